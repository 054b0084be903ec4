"""GPUs that do not exist, put on the stage for a test, and what the daemon makes of them."""

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import Daemon, command_line, eventually

CARD = 24564
LONG = "sleep 600"


def describe(path: Path, *gpus: dict[str, Any], **scene: Any) -> Path:
    """Put the GPUs into the file that is read, whole or not at all."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"gpus": list(gpus), **scene}))
    return new.rename(path)


def reason(daemon: Daemon, number: int, code: str, *, says: str = "") -> str:
    """The sentence why a job waits, once the reason has this code and says this."""

    def told() -> str | None:
        found = daemon.job(number)["reason"]
        hit = found is not None and found["code"] == code and says in found["detail"]
        return found["detail"] if hit else None

    return eventually(told, what=f"reason {code} {says}")


def scene(daemon: Daemon, *gpus: dict[str, Any]) -> None:
    """Have the GPUs be so from now on; what is not said is as usual."""
    described = [{"memory_mib": CARD} | gpu for gpu in gpus]
    describe(Path(str(daemon.simulate)), *described)


def xid(number: int, seq: int = 1, pid: int | None = None) -> dict[str, Any]:
    """That a GPU has an XID."""
    return {"xids": [{"seq": seq, "xid": number, "pid": pid}]}


def health(daemon: Daemon, index: int) -> dict[str, Any]:
    """How a GPU is, once it was read."""
    gpus = eventually(lambda: daemon.ask("GET", "/v1/gpus").json["gpus"][index:], what="a reading")
    found: dict[str, Any] = gpus[0]["health"]
    return found


def codes(daemon: Daemon, index: int) -> list[str]:
    """What is wrong with a GPU, the worst first."""
    return [condition["code"] for condition in health(daemon, index)["conditions"]]


def closed(daemon: Daemon, index: int) -> str:
    """What is said of a GPU, once nothing new may start there."""
    eventually(lambda: not health(daemon, index)["allocatable"], what="a closed GPU")
    return str(health(daemon, index)["sentence"])


def attributed(daemon: Daemon, number: int, job: int) -> None:
    """Wait until an XID was told, and seen to be this job's while its process was there."""
    told = re.compile(rf"XID .*\bxid={number}\b.*\bjob={job}\b")
    eventually(lambda: told.search(daemon.log.read_text()), what=f"XID {number} of job {job}")


def running(daemon: Daemon, **fields: Any) -> tuple[int, int]:
    """A job that runs on one GPU, and the pid of its main process."""
    number = daemon.submit(f"exec {LONG}", gpus=1, **fields)
    daemon.wait(number, "running")
    return number, daemon.main_pid(number)


def gpu_of(job: dict[str, Any]) -> list[int]:
    """The indices of the GPUs that a job has or had."""
    return [gpu["index"] for gpu in job["gpus_allotted"]]


@contextlib.contextmanager
def program_of_somebody() -> Iterator[int]:
    """A process that is of no job; its pid."""
    process = subprocess.Popen(["sleep", "600"])
    try:
        eventually(lambda: command_line(process.pid).startswith("sleep 600"), what="its exec")
        yield process.pid
    finally:
        process.kill()
        process.wait()


def settle(daemon: Daemon, **settings: str) -> None:
    """Have a daemon that is not started go by these settings of GPUs."""
    lines = [f'{key} = "{value}"' for key, value in settings.items()]
    kept = [line for line in daemon.config.splitlines() if line.partition(" ")[0] not in settings]
    daemon.config = "\n".join(kept).replace("[gpus]", "\n".join(["[gpus]", *lines]))


def settle_now(daemon: Daemon, **settings: str) -> None:
    """Have it go by them from now on."""
    settle(daemon, **settings)
    (daemon.home / "config.toml").write_text(daemon.config)
    os.kill(daemon.pid, signal.SIGHUP)


def read_anew(daemon: Daemon) -> None:
    """Wait for a reading that was asked for after this."""
    seen = {daemon.ask("GET", "/v1/gpus").json["read_at"]}

    def again() -> bool:
        seen.add(daemon.ask("GET", "/v1/gpus").json["read_at"])
        return len(seen) > 2

    eventually(again, what="two more readings")


def using(pid: int, memory_mib: int, *others: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """A GPU on which the process uses so much."""
    return {"processes": [{"pid": pid, "memory_mib": memory_mib}, *others], **facts}
