"""A real daemon for a test: started, asked, killed, started again; nothing of it is left over."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from traind.gpus.monitor import NOT_YET

T = TypeVar("T")
D = TypeVar("D", bound="Daemon")

DEADLINE_S = 90.0
"""How long anything may take before a test gives up: it costs nothing where all is well, and a
machine that is busy with other things is no failure.
"""
SHORT = """
[gpus]
sample_busy = "1s"
sample_idle = "1s"
respawn_delay = "1s"
ramp = "2s"
foreign_gone = "0s"
[host]
cpus = 4
[jobs]
leftover_grace = "1s"
[queue]
requeue_delay = "100ms"
launcher_retry = "100ms"
"""


def eventually(
    found: Callable[[], T | None], *, what: str = "", deadline_s: float = DEADLINE_S
) -> T:
    """The first truthy thing that `found` gives; fails the test when none comes in time."""
    end = time.monotonic() + deadline_s
    pause = threading.Event()
    while True:
        value = found()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"did not happen within {deadline_s:g} s: {what or found}")
        pause.wait(0.01)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout: float = DEADLINE_S) -> None:
        super().__init__("traind", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclass(frozen=True)
class Answer:
    """Status, headers and body of an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass
class Daemon:
    """One state directory and the daemons that are started on it, one after the other."""

    state_dir: Path
    home: Path
    simulate: str | None = "2x24GiB"
    config: str = SHORT
    flags: tuple[str, ...] = ()
    process: subprocess.Popen[str] | None = None
    env: dict[str, str] = field(default_factory=dict)

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.state_dir / "traind.sock"

    @property
    def log(self) -> Path:
        """What all daemons of this state directory wrote to stderr."""
        return self.home / "daemon.log"

    def command(self) -> list[str]:
        """The command line that starts it."""
        config = self.home / "config.toml"
        config.write_text(self.config)
        command = [sys.executable, "-m", "traind", "serve", "--state-dir", str(self.state_dir)]
        command += ["--config", str(config), "--socket", str(self.socket), *self.flags]
        return command + (["--simulate", self.simulate] if self.simulate else [])

    def start(self, **env: str) -> "Daemon":
        """Start it and wait until it serves, and has looked at its GPUs."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._environment() | env,
            )
        self.await_ready()
        return self

    def await_ready(self) -> None:
        """Wait until it serves and has looked at its GPUs.

        Its doors open after a second also where the driver, or a busy machine, takes longer.
        """
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        ready = re.match(r"ready socket=(.*) http=", line)
        assert ready, f"{line!r} {self.log.read_text()}"
        door = Path(ready[1])

        def looked() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            try:
                with contextlib.closing(UnixConnection(door)) as connection:
                    connection.request("GET", "/v1/gpus")
                    told = json.loads(connection.getresponse().read())
            except ConnectionError:
                return False
            return told["read_at"] is not None or told["fault"] != NOT_YET

        eventually(looked, what="a first look at the GPUs")

    def await_launcher(self) -> Any:
        """What /readyz tells once it can start jobs: its launcher need not be up when it serves."""

        def ready() -> Any:
            answer = self.ask("GET", "/readyz")
            return answer.json if answer.status == 200 else None

        return eventually(ready, what="the launcher")

    def refused(self, **env: str) -> subprocess.CompletedProcess[str]:
        """Start it where it will not run: its exit code and what it says."""
        return subprocess.run(
            self.command(),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
            env=self._environment() | env,
        )

    def _environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "LD_LIBRARY_PATH")}
        return kept | {"HOME": str(self.home)} | self.env

    @property
    def pid(self) -> int:
        """The daemon's pid."""
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        assert self.process is not None
        self.process.kill()
        self.reap()

    def stop(self) -> int:
        """Stop it as systemd would; its exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.reap()

    def reap(self) -> int:
        """Wait for its end; its exit code."""
        assert self.process is not None
        code = self.process.wait(DEADLINE_S)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def restart(self, **env: str) -> "Daemon":
        """kill -9 and start again."""
        self.kill()
        return self.start(**env)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = DEADLINE_S,
    ) -> Answer:
        """One call of the API; a body that is no bytes is sent as JSON."""
        connection = UnixConnection(self.socket, timeout)
        with contextlib.closing(connection):
            raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            kinds = {} if raw is None else {"Content-Type": "application/json"}
            connection.request(method, path, raw, kinds | dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.headers), answer.read())

    def submit(self, command: str | list[str], **fields: Any) -> int:
        """Submit a job; its id."""
        key = "command" if isinstance(command, str) else "argv"
        answer = self.ask("POST", "/v1/jobs", {key: command, **fields})
        assert answer.status == 201, answer.body
        number: int = answer.json["id"]
        return number

    def job(self, number: int) -> dict[str, Any]:
        """The job now."""
        found: dict[str, Any] = self.ask("GET", f"/v1/jobs/{number}").json
        return found

    def wait(self, number: int, state: str = "finished", **facts: Any) -> dict[str, Any]:
        """The job once it is in this state and these facts hold."""

        def there() -> dict[str, Any] | None:
            job = self.job(number)
            hit = job["state"] == state and all(job[k] == v for k, v in facts.items())
            return job if hit else None

        try:
            return eventually(there)
        except AssertionError:
            raise AssertionError(f"{self.job(number)} {self.log.read_text()[-3000:]}") from None

    def log_of(self, number: int, query: str = "") -> str:
        """The job's log."""
        return self.ask("GET", f"/v1/jobs/{number}/log{query}").body.decode()

    def cli(self, *args: str, cwd: Path | None = None, stdin: str = "") -> "Completed":
        """The real command line on this daemon."""
        done = subprocess.run(
            [sys.executable, "-m", "traind", *args],
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE_S,
            cwd=cwd or self.home,
            input=stdin,
            env=self._environment() | {"TRAIND_SOCKET": str(self.socket)},
        )
        return Completed(done.returncode, done.stdout, done.stderr)

    def run_dir(self, number: int, attempt: int = 1) -> Path:
        """The run directory of an attempt."""
        return self.state_dir / "runs" / str(number) / str(attempt)

    def record(self, number: int, name: str, attempt: int = 1) -> dict[str, Any] | None:
        """A record of the run directory, None while it is not there."""
        try:
            found: dict[str, Any] = json.loads((self.run_dir(number, attempt) / name).read_bytes())
        except FileNotFoundError:
            return None
        return found

    def main_pid(self, number: int, attempt: int = 1) -> int:
        """The pid of the main process of a running attempt, once it was exec'ed."""
        record = eventually(lambda: self.record(number, "exec.intent", attempt), what="intent")
        pid = int(record["pid"])
        eventually(lambda: "traind-shim" not in command_line(pid), what="exec")
        return pid

    def shim_pid(self, number: int, attempt: int = 1) -> int:
        """The pid of an attempt's shim."""
        record = eventually(lambda: self.record(number, "shim.json", attempt), what="shim.json")
        return int(record["pid"])

    def launcher_pids(self) -> list[int]:
        """The launchers of this state directory."""
        return [p for p in self.processes() if "traind.runner.launcher" in command_line(p)]

    def processes(self) -> list[int]:
        """Every process that names this state directory in its command line or environment."""
        mark = str(self.state_dir).encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().split(b"\0")
                own = any(mark in part for part in command) or any(
                    part.startswith(b"TRAIND_RUN_DIR=" + mark)
                    for part in (entry / "environ").read_bytes().split(b"\0")
                )
                if own and alive(int(entry.name)):
                    found.append(int(entry.name))
        return found

    def clean_up(self) -> None:
        """End every process of this state directory."""

        def none_left() -> bool:
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not self.processes()

        eventually(none_left, what="the end of all processes")
        if self.process is not None:
            self.reap()


@dataclass(frozen=True)
class Completed:
    """How a command ended."""

    code: int
    out: str
    err: str


def alive(pid: int) -> bool:
    """Whether the process lives; a zombie does not."""
    return process_state(pid) not in ("", "Z", "X")


def process_state(pid: int) -> str:
    """The state letter of a process, empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def command_line(pid: int) -> str:
    """The command line of a process, empty when there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@contextlib.contextmanager
def daemon_in(folder: Path, kind: type[D] = Daemon, **settings: Any) -> Iterator[D]:
    """A daemon that is not started yet, on a state directory below `folder`."""
    home = folder / "home"
    home.mkdir()
    daemon = kind(state_dir=folder / "state", home=home, **settings)
    try:
        yield daemon
    finally:
        daemon.clean_up()
