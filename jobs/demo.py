"""Watch traind train real models on real data, through a kill -9 of its daemon.

Starts a daemon on a state directory that is thrown away afterwards, submits two trainings with a
GPU each and one with two ranks, kills the daemon in the middle, starts it again, and ends with a
table. Exits with 0 only when all of that was seen: the same processes ran on, every job succeeded,
and every model reads at least 97 % of the digits right.

A client like any other: it knows the command line and the HTTP API and nothing else. Where there
is no NVIDIA driver the GPUs are simulated and the models train on the CPU.
"""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

JOBS = Path(__file__).resolve().parent
DEADLINE_S = 170.0
DOWN_S = 2.0
GOAL = 0.97

Json = dict[str, Any]


class DemoError(Exception):
    """Something that should have been seen was not."""


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("traind", timeout=10)
        self._path = path

    def connect(self) -> None:
        """Connect to the daemon."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


@dataclass
class Box:
    """A daemon on a throw-away state directory. `environment` is that of all its processes."""

    folder: Path
    environment: dict[str, str]
    flags: list[str]
    process: subprocess.Popen[str] | None = None

    @property
    def socket(self) -> Path:
        """Where the daemon listens."""
        return self.folder / "s"

    @property
    def pid(self) -> int:
        """The daemon's pid."""
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Start the daemon and wait until it serves. Raises DemoError."""
        command = [sys.executable, "-m", "traind", "serve", "--state-dir", str(self.folder)]
        command += ["--socket", str(self.socket), *self.flags]
        with (self.folder / "daemon.log").open("a") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=self.environment
            )
        assert self.process.stdout is not None
        if not self.process.stdout.readline().startswith("ready"):
            raise DemoError((self.folder / "daemon.log").read_text().strip())

    def kill(self) -> None:
        """kill -9 the daemon."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def traind(self, *words: str) -> str:
        """What the command line prints. Raises DemoError with its complaint."""
        done = subprocess.run(
            [sys.executable, "-m", "traind", *words],
            capture_output=True,
            text=True,
            check=False,
            env={**self.environment, "TRAIND_SOCKET": str(self.socket)},
            cwd=JOBS.parent,
        )
        if done.returncode:
            raise DemoError(f"traind {words[0]}: {done.stderr.strip()}")
        return done.stdout.strip()

    def get(self, path: str) -> Json:
        """What the API answers to GET."""
        with contextlib.closing(UnixConnection(self.socket)) as connection:
            connection.request("GET", path)
            answer: Json = json.loads(connection.getresponse().read())
        return answer

    def jobs(self, numbers: Sequence[int]) -> list[Json]:
        """The jobs as they stand now."""
        return [self.get(f"/v1/jobs/{number}") for number in numbers]


def main() -> int:
    """Run the demonstration; gives the exit code."""
    began = time.monotonic()
    with throw_away_box() as box:
        try:
            demonstrate(box)
        except (DemoError, OSError) as missed:
            log = (box.folder / "daemon.log").read_text()
            say(f"\nFAILED: {missed}\n\nThe daemon's log:\n{log[-3000:]}")
            return 1
    say(f"Done in {time.monotonic() - began:.0f} s. Your turn: see README.md.")
    return 0


@contextlib.contextmanager
def throw_away_box() -> Iterator[Box]:
    """A daemon's place for the length of a demonstration; afterwards nothing of it is left."""
    folder = Path(tempfile.mkdtemp(prefix="traind-demo-"))
    kept = ("PATH", "LANG", "LD_LIBRARY_PATH")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"HOME": str(folder / "home")}
    (folder / "home").mkdir()
    flags = [] if Path("/dev/nvidiactl").exists() else ["--simulate", "2x24GiB"]
    box = Box(folder, environment, flags)
    try:
        yield box
    finally:
        with contextlib.suppress(DemoError, OSError):
            for job in box.get("/v1/jobs?state=queued,starting,running,stopping")["jobs"]:
                box.traind("cancel", "--now", str(job["id"]))
                box.traind("wait", str(job["id"]))
        if box.process is not None and box.process.poll() is None:
            box.process.terminate()
            box.process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def demonstrate(box: Box) -> None:
    """Everything that is to be seen, in order. Raises DemoError for what was not."""
    deadline = time.monotonic() + DEADLINE_S
    box.start()
    gpus = box.get("/v1/gpus")["gpus"]
    if not gpus:
        raise DemoError("the driver is there, but no GPU is; see nvidia-smi")
    say(f"A daemon serves {len(gpus)} GPUs ({gpus[0]['name']}), pid {box.pid}.\n")
    numbers = submit_all(box, len(gpus))
    pair = numbers[:2] if len(gpus) > 1 else numbers[:1]
    watch(box, numbers, deadline, lambda jobs: all(percent(job) >= 25 for job in jobs[: len(pair)]))
    before = {number: main_process(box, number) for number in pair}
    steps = {number: percent(job) for number, job in zip(pair, box.jobs(pair), strict=True)}
    say(f"\n*** kill -9 {box.pid}: the daemon is dead. The jobs do not notice. ***")
    box.kill()
    time.sleep(DOWN_S)
    box.start()
    say(f"*** A new daemon, pid {box.pid}, finds them by their locks. ***\n")
    for number in pair:
        if main_process(box, number) != before[number]:
            raise DemoError(f"job {number} is not the same process as before the kill")
    for number, job in zip(pair, box.jobs(pair), strict=True):
        say(
            f"job {number}: still process {before[number][0]}, still attempt {job['attempt']}, "
            f"{steps[number]:.0f} % before the kill, {percent(job):.0f} % now"
        )
    say("")
    watch(box, numbers, deadline, lambda jobs: all(job["state"] == "finished" for job in jobs))
    conclude(box, box.jobs(numbers), steps)


def submit_all(box: Box, gpus: int) -> list[int]:
    """Two trainings with a GPU each, and one with two ranks; gives the ids."""
    python, script = sys.executable, str(JOBS / "digits.py")
    torchrun = str(Path(python).with_name("torchrun"))
    slowed = [python, script, "--step-delay", "0.02", "--epochs", "24"]
    orders = [
        ("digits-a", 1, [*slowed, "--seed", "1"]),
        ("digits-b", 1, [*slowed, "--seed", "2"]),
        ("digits-two-ranks", min(2, gpus), [torchrun, "--nproc-per-node", "2", script]),
    ]
    numbers = []
    for name, count, command in orders:
        words = ["submit", "--parsable", "--name", name, "--gpus", str(count), "--", *command]
        numbers.append(int(box.traind(*words)))
        say(f"$ traind submit --name {name} --gpus {count} -- {shown(command)}")
        say(f"Submitted batch job {numbers[-1]}")
    say("")
    return numbers


def shown(command: Sequence[str]) -> str:
    """A command line as one would type it."""
    return " ".join(Path(word).name if word.startswith("/") else word for word in command)


def watch(
    box: Box, numbers: Sequence[int], deadline: float, seen: Callable[[list[Json]], bool]
) -> None:
    """Show how the jobs get on until `seen` says so. Raises DemoError after the deadline."""
    told: dict[int, str] = {}
    while True:
        jobs = box.jobs(numbers)
        for job in jobs:
            line = progress_line(job)
            if told.get(job["id"]) != line:
                told[job["id"]] = line
                say(line)
            if job["state"] == "finished" and job["outcome"] != "succeeded":
                text = box.traind("logs", str(job["id"]))
                raise DemoError(f"job {job['id']}: {job['cause']['detail']}\n{text[-2000:]}")
        if seen(jobs):
            return
        if time.monotonic() > deadline:
            raise DemoError(f"not seen within {DEADLINE_S:.0f} s")
        time.sleep(0.2)


def progress_line(job: Json) -> str:
    """One line of a job's life; it changes when there is something to tell."""
    tenths = int(percent(job) // 10)
    head = f"job {job['id']} {job['name']:17}"
    if job["state"] == "queued":
        return f"{head} waits: {job['reason']['detail']}"
    if job["state"] == "running" and tenths:
        gpus = ",".join(str(gpu["index"]) for gpu in job["gpus_allotted"])
        return f"{head} GPU {gpus:4} [{'#' * tenths:10}] {tenths * 10} %"
    return f"{head} {job['outcome'] or job['state']}"


def percent(job: Json) -> float:
    """How far the job says that it is, 0 to 100."""
    told = job["progress"]
    if not told or not told["total"]:
        return 0.0
    return float(100 * told["step"] / told["total"])


def main_process(box: Box, number: int) -> tuple[int, str]:
    """(pid, start time) of the job's main process, which together name one process only."""
    shims = [
        entry.name
        for entry in Path("/proc").iterdir()
        if entry.name.isdecimal()
        and command_line(entry).startswith(f"traind-shim {number}.")
        and str(box.folder) in command_line(entry)
    ]
    if len(shims) != 1:
        raise DemoError(f"job {number} has {len(shims)} supervisors, not one")
    child = Path(f"/proc/{shims[0]}/task/{shims[0]}/children").read_text().split()[0]
    started = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[19]
    return int(child), started


def command_line(entry: Path) -> str:
    """The command line of a process, empty when it is gone."""
    try:
        return (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def conclude(box: Box, jobs: Sequence[Json], steps: dict[int, float]) -> None:
    """Print the table. Raises DemoError when a model did not learn."""
    rows = [("JOB", "NAME", "GPU", "WAIT", "RUN", "EPOCHS", "ACCURACY")]
    poor = []
    for job in jobs:
        last = last_metrics(Path(job["log_path"]).with_name("metrics"))
        accuracy = float(last.get("val_accuracy", 0.0))
        if accuracy < GOAL:
            poor.append(f"job {job['id']} reads {accuracy:.1%} of the digits right, not {GOAL:.0%}")
        gpus = ",".join(str(gpu["index"]) for gpu in job["gpus_allotted"])
        wait, run = (
            seconds(job, "submitted_at", "started_at"),
            seconds(job, "started_at", "finished_at"),
        )
        numbers = (f"{wait:.1f} s", f"{run:.1f} s", str(last.get("epoch")), f"{accuracy:.2%}")
        rows.append((str(job["id"]), job["name"], gpus, *numbers))
        if job["attempt"] != 1:
            poor.append(f"job {job['id']} took {job['attempt']} attempts, not one")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    say("")
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if poor:
        raise DemoError("; ".join(poor))
    say(
        f"\nThe daemon was killed with -9 while jobs {', '.join(map(str, steps))} trained; they "
        "never stopped, and their exit codes were recorded."
    )


def last_metrics(path: Path) -> Json:
    """The newest line that tells of an epoch."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found: Json = next((line for line in reversed(lines) if "val_accuracy" in line), {})
    return found


def seconds(job: Json, first: str, last: str) -> float:
    """Seconds between two instants of a job."""
    return (datetime.fromisoformat(job[last]) - datetime.fromisoformat(job[first])).total_seconds()


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
