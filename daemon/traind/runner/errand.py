"""What is done to an attempt as its submitter, never as root: its processes found and signalled,
its files emptied.

A signal to a process that became somebody else in the meantime is refused by the kernel.
"""

import contextlib
import os
import shutil
import signal
from collections.abc import Iterable, Mapping
from typing import Any

from traind.runner.rundir import stat_fields

Record = Mapping[str, Any]
_ROUNDS = 50


def signal_main(main: Record, number: int) -> int:
    """Signal the main process; how many got it."""
    if not main:
        return 0
    try:
        pidfd = os.pidfd_open(main["pid"])
    except ProcessLookupError:
        return 0
    if start_time(main["pid"]) != main["start_time"]:
        return 0
    with contextlib.suppress(ProcessLookupError, PermissionError):
        signal.pidfd_send_signal(pidfd, number)
        return 1
    return 0


def signal_all(path: str, shim: Record, main: Record, number: int) -> int:
    """Signal every process of the attempt but its shim; how many were seen."""
    living = _living(path, shim, main)
    _send(living, number)
    return len(living)


def end_below(shim: int) -> int:
    """SIGTERM to all below a shim, also to who was stopped; how many were seen."""
    left = [pid for pid in descendants(shim) if pid != os.getpid()]
    _send(left, signal.SIGTERM)
    _send(left, signal.SIGCONT)
    return len(left)


def kill_below(shim: int) -> int:
    """SIGKILL to all below a shim, again while there are any, as they may fork; what was left."""
    left: list[int] = []
    for _ in range(_ROUNDS):
        left = [pid for pid in descendants(shim) if pid != os.getpid() and start_time(pid)]
        if not left:
            break
        _send(left, signal.SIGKILL)
    return len(left)


def empty_tree(path: str) -> int:
    """Delete what is below a directory and, where its parent lets, itself; links are not followed.

    Always 0: what is left is seen by whoever looks again.
    """
    for folder, names, _ in os.walk(path):
        for below in (f"{folder}/{name}" for name in names):
            if not os.path.islink(below):
                os.chmod(below, 0o700)
    shutil.rmtree(path, ignore_errors=True)
    return 0


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when there is none, or a zombie."""
    try:
        fields = stat_fields(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def children(pid: int) -> list[int]:
    """The processes whose parent is `pid`; zombies are among them."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    return found


def descendants(pid: int) -> list[int]:
    """All processes below `pid`, without it, parents first; zombies are among them."""
    found = children(pid)
    for below in found:  # it grows while it is walked
        found += children(below)
    return found


def _living(path: str, shim: Record, main: Record) -> list[int]:
    """The attempt's processes, its shim not among them."""
    found = members(shim["cgroup"]) if shim.get("cgroup") else []
    if shim and start_time(shim["pid"]) == shim["start_time"]:
        found += descendants(shim["pid"])
    elif shim:
        if main and start_time(main["pid"]) == main["start_time"]:
            found += [main["pid"], *descendants(main["pid"])]
        found += _marked(path)
    return [p for p in dict.fromkeys(found) if start_time(p) is not None and p != os.getpid()]


def members(cgroup: str) -> list[int]:
    """The processes in the cgroup; none when it is gone."""
    try:
        with open(f"{cgroup}/cgroup.procs") as file:
            return [int(line) for line in file]
    except OSError:
        return []


def _marked(path: str) -> list[int]:
    """Processes whose environment names this run directory: what outlived its shim.

    One that cleared its environment is not found.
    """
    mark = f"TRAIND_RUN_DIR={path}/work".encode()
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
            if mark in file.read().split(b"\0"):
                found.append(int(name))
    return found


def _send(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
