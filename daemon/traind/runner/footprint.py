"""What an attempt takes of the host at one moment, as /proc and its cgroup tell it.

Everything here blocks: with a thousand processes it takes tens of milliseconds.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from traind.runner import rundir

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What an attempt takes: `cpu_s` and the bytes since its start, of what lives and of what was
    waited for; `taken_s` is CLOCK_MONOTONIC then. Bytes are None where the kernel does not say.

    `memory_mib` is the cgroup's where it counts memory. Otherwise it is what each process has to
    itself, and the largest share that one of them has with others: a page that many map is not
    counted many times, unless it was written before a fork and not since.
    """

    taken_s: float
    memory_mib: int
    cpu_s: float
    processes: int
    read_bytes: int | None
    write_bytes: int | None


@dataclass(frozen=True, slots=True)
class _Process:
    own_pages: int
    shared_pages: int
    cpu_s: float
    alive: bool
    bytes: tuple[int, int] | None


def footprint(run_dir: Path, pids: Sequence[int]) -> Footprint:
    """What the processes of a live attempt take; the first of them is its shim. Blocks."""
    shim = rundir.read_record(str(run_dir), "shim.json") or {}
    of_job = [process for pid in pids[1:] if (process := _process(pid)) is not None]
    # The shim takes next to nothing itself, but it has waited for whom nobody else did.
    waiter = _process(pids[0])
    seen = of_job if waiter is None else [waiter, *of_job]
    known = [process.bytes for process in seen if process.bytes is not None]
    return Footprint(
        taken_s=time.monotonic(),
        memory_mib=_memory_mib(shim.get("cgroup"), of_job),
        cpu_s=sum(process.cpu_s for process in seen),
        processes=sum(process.alive for process in of_job),
        read_bytes=sum(pair[0] for pair in known) if known else None,
        write_bytes=sum(pair[1] for pair in known) if known else None,
    )


def _memory_mib(cgroup: str | None, processes: Sequence[_Process]) -> int:
    if cgroup is not None:
        try:
            return int(Path(cgroup, "memory.current").read_text()) >> 20
        except (OSError, ValueError):
            pass  # it counts processes only: the memory controller is not ours to use
    own = sum(process.own_pages for process in processes)
    shared = max((process.shared_pages for process in processes), default=0)
    return (own + shared) * _PAGE_KIB >> 10


def _process(pid: int) -> _Process | None:
    """One process, None when it is gone. Source: proc(5), stat and statm."""
    try:
        fields = _text(pid, "stat").rpartition(")")[2].split()
        _, resident, shared, *_ = map(int, _text(pid, "statm").split())
    except (OSError, ValueError):
        return None
    return _Process(
        own_pages=resident - shared,
        shared_pages=shared,
        cpu_s=sum(map(int, fields[11:15])) * _TICK_S,
        alive=fields[0] not in ("Z", "X"),
        bytes=_traffic(pid),
    )


def _traffic(pid: int) -> tuple[int, int] | None:
    """Bytes (read from, written to) disks, None where that is not for us to know."""
    try:
        lines = dict(line.split(": ") for line in _text(pid, "io").splitlines())
        return int(lines["read_bytes"]), int(lines["write_bytes"])
    except (OSError, ValueError, KeyError):
        return None


def _text(pid: int, name: str) -> str:
    with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="replace") as file:
        return file.read()
