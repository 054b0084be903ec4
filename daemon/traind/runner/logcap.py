"""Keeps a log within its cap while it is written: the middle becomes a hole, offsets stay."""

import ctypes
import os
from pathlib import Path

_PUNCH_HOLE, _KEEP_SIZE = 0x02, 0x01
_BLOCK = 1 << 16


def cap_log(path: Path, *, head_mib: int, tail_mib: int) -> None:
    """Drop what lies between the first `head_mib` and the last `tail_mib` MiB of the log.

    Does nothing where the file system knows no holes. Source: fallocate(2).
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        first = head_mib << 20
        last = (os.fstat(descriptor).st_size - (tail_mib << 20)) // _BLOCK * _BLOCK
        if last > first:
            length = ctypes.c_int64(last - first)
            flags = _PUNCH_HOLE | _KEEP_SIZE
            ctypes.CDLL(None).fallocate(descriptor, flags, ctypes.c_int64(first), length)
    finally:
        os.close(descriptor)
