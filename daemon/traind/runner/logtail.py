"""The end of an attempt's log, as far as it is read to find out of what the attempt died."""

import os
from pathlib import Path

from traind.runner.progress import open_regular

TAIL = 128 << 10
"""Bytes: room for the tracebacks of eight ranks, and for what torchrun says behind them."""


def read_tail(path: Path) -> str:
    """The last `TAIL` bytes of a log, empty where there is none that may be read. **Blocks** for
    the disk. Never raises for what a job wrote or put there.
    """
    descriptor = open_regular(path)
    if descriptor is None:
        return ""
    with open(descriptor, "rb") as file:
        file.seek(max(0, os.fstat(descriptor).st_size - TAIL))
        return file.read(TAIL).decode(errors="replace")
