"""What a run directory proves, read by the daemon: whether an attempt lives, and how it ended."""

import fcntl
import functools
import os
import signal
from datetime import UTC, datetime
from typing import Any

from traind.job import Exit, LaunchError
from traind.runner.rundir import FLOCK


@functools.cache
def boot_id() -> str:
    """The kernel's name for this boot."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def lock_held(path: str) -> bool:
    """Whether launcher or shim of the attempt still holds its lock; asks, never takes it.

    Raises FileNotFoundError when there is no run directory.
    """
    descriptor = os.open(f"{path}/lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        asked = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind: int = FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0]
    finally:
        os.close(descriptor)
    return kind != fcntl.F_UNLCK


def exit_of(record: dict[str, Any]) -> Exit:
    """What `exit.json` says."""
    failed = record["launch_error"]
    error, code = None, os.waitstatus_to_exitcode(record["status"])
    if failed is not None and failed.get("hung") and code != -signal.SIGALRM:
        failed = None  # it did not hang: somebody ended it on its way to the command
    if failed is not None:
        error = LaunchError(step=failed["step"], errno=failed["errno"], detail=failed["detail"])
    exited: int | None = code if code >= 0 else None
    return Exit(
        exit_code=exited if failed is None else failed["exit_code"],
        signal=None if code >= 0 or failed is not None else _signal_name(-code),
        launch_error=error,
        ended_at=datetime.fromtimestamp(record["ended_at"], UTC),
        run_s=record["run_s"],
        peak_memory_mib=record["peak_memory_kib"] // 1024,
        oom_kills=record["oom_kills"],
        oom_at_limit=record["oom_at_limit"] > 0,
    )


def _signal_name(number: int) -> str:
    """A signal without its SIG."""
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return f"RTMIN+{number - signal.SIGRTMIN}"
