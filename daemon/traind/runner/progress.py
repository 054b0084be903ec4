"""How far a job says that it is, from the last line of its metrics file."""

import json
import math
import os
import stat
from pathlib import Path

_TAIL = 8192


def read_progress(path: Path) -> tuple[float | None, float | None]:
    """(step, total) as last told; None for what was not. Never raises for what a job wrote."""
    descriptor = open_regular(path)
    if descriptor is None:
        return None, None
    with open(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        file.seek(max(0, size - _TAIL))
        lines = file.read(_TAIL).split(b"\n")[:-1]
    for line in reversed(lines):
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(told, dict) and "step" in told:
            return _number(told["step"]), _number(told.get("total"))
    return None, None


def open_regular(path: Path) -> int | None:
    """A descriptor of the file, None where there is none, or what a job put there instead."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
