"""A GPU that had no more memory: what the message says of it, and whose doing that was. Pure."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from traind.options import size_text

_LINE = 4096
"""Characters of a message that are read; every expression here is bounded, too."""

_SIZE = r"([0-9.]{1,12}) ?([KMGT]iB|bytes)"
_WANTED = re.compile(rf"(?:[Tt]ried to allocate|while trying to allocate) {_SIZE}")
_CARD = re.compile(rf"GPU ([0-9]{{1,2}}) has a total capaci?ty of {_SIZE} of which {_SIZE} is free")
_OWN = re.compile(rf"this process has {_SIZE} memory in use")
_OTHER = re.compile(rf"Process ([0-9]{{1,10}}) has {_SIZE} memory in use")
_UNUSED = re.compile(rf"{_SIZE} is reserved by PyTorch but unallocated")
_OLD_CARD = re.compile(rf"\(GPU ([0-9]{{1,2}}); {_SIZE} total capacity; {_SIZE} already allocated")
_OLD_FREE = re.compile(rf"{_SIZE} free; {_SIZE} (?:reserved|cached)")

_MIB = {"bytes": 2**-20, "KiB": 2**-10, "MiB": 1.0, "GiB": 2.0**10, "TiB": 2.0**20}
_NAMED = 2
"""Neighbours that a sentence names, those with the most memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """What a program said as its GPU had no more memory; MiB, None for what it did not say.

    `device` counts the GPUs that it saw. `own_mib` is what the process that asked held,
    `unused_mib` what of it lay unused in its pools, `others` the (pid, MiB) of further processes.
    """

    wanted_mib: int | None = None
    device: int | None = None
    total_mib: int | None = None
    free_mib: int | None = None
    own_mib: int | None = None
    unused_mib: int | None = None
    others: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A process on the GPU that is not of the job: whose, of which job if of any, and its MiB."""

    pid: int
    user: str | None
    job_id: int | None
    memory_mib: int


def read_shortage(line: str) -> Shortage:
    """What the message in this line says: PyTorch's of either generation, JAX's, or nothing.

    Source: PyTorch, c10/cuda/CUDACachingAllocator.cpp, before and since 2.1.
    """
    line = line[:_LINE]
    wanted = _WANTED.search(line)
    found = Shortage(wanted_mib=_mib(wanted[1], wanted[2]) if wanted else None)
    if new := _CARD.search(line):
        own, unused = _OWN.search(line), _UNUSED.search(line)
        return Shortage(
            wanted_mib=found.wanted_mib,
            device=int(new[1]),
            total_mib=_mib(new[2], new[3]),
            free_mib=_mib(new[4], new[5]),
            own_mib=_mib(own[1], own[2]) if own else None,
            unused_mib=_mib(unused[1], unused[2]) if unused else None,
            others=tuple((int(pid), _mib(size, unit)) for pid, size, unit in _OTHER.findall(line)),
        )
    if old := _OLD_CARD.search(line):
        free = _OLD_FREE.search(line)
        reserved = _mib(free[3], free[4]) if free else None
        return Shortage(
            wanted_mib=found.wanted_mib,
            device=int(old[1]),
            total_mib=_mib(old[2], old[3]),
            free_mib=_mib(free[1], free[2]) if free else None,
            own_mib=reserved,
            unused_mib=None if reserved is None else max(0, reserved - _mib(old[4], old[5])),
        )
    return found


def _mib(size: str, unit: str) -> int:
    """MiB, rounded up; of a number that is none, 0."""
    try:
        return math.ceil(float(size) * _MIB[unit])
    except ValueError:
        return 0


def is_neighbours(
    shortage: Shortage, neighbours: Sequence[Neighbour], *, own_mib: int, share_mib: int
) -> bool:
    """Whether the job would have got what it wanted within its share, had others not been there.

    `own_mib` is what all its processes held on the GPU, `share_mib` what it was given of it.
    """
    wanted, free = shortage.wanted_mib, shortage.free_mib
    if wanted is None or free is None or own_mib + wanted > share_mib:
        return False
    theirs = sum(neighbour.memory_mib for neighbour in neighbours)
    return free < wanted <= free + theirs


def shortage_sentence(
    shortage: Shortage, neighbours: Sequence[Neighbour], *, gpu: str | None, own_mib: int | None
) -> str:
    """What was wanted, what there was, and who held the rest."""
    where = "" if gpu is None else f" on {gpu}"
    parts = []
    if shortage.wanted_mib is not None:
        parts.append(f"it wanted {size_text(shortage.wanted_mib)} more")
    if shortage.free_mib is not None:
        parts.append(f"{size_text(shortage.free_mib)} were free")
    if own_mib:
        parts.append(f"it held {size_text(own_mib)} itself")
    if _is_fragmented(shortage):
        unused = size_text(shortage.unused_mib or 0)
        hint = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True may help"
        parts.append(f"of which {unused} lay unused ({hint})")
    parts += _named(neighbours)
    return f"CUDA out of memory{where}" + (f": {', '.join(parts)}" if parts else "")


def _is_fragmented(shortage: Shortage) -> bool:
    """Whether it had enough, in pieces that were too small."""
    unused, wanted = shortage.unused_mib, shortage.wanted_mib
    return unused is not None and wanted is not None and unused > wanted


def _named(neighbours: Sequence[Neighbour]) -> list[str]:
    most = sorted(neighbours, key=lambda each: -each.memory_mib)
    parts = []
    for each in most[:_NAMED]:
        whose = "" if each.user is None else f" of {each.user}"
        job = "" if each.job_id is None else f" (job {each.job_id})"
        parts.append(f"pid {each.pid}{whose}{job} held {size_text(each.memory_mib)}")
    if rest := most[_NAMED:]:
        size = size_text(sum(each.memory_mib for each in rest))
        parts.append(f"{len(rest)} more processes held {size}")
    return parts
