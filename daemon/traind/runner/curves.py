"""What a job told about itself, line by line; whatever it wrote there, reading it is harmless."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from traind.runner.progress import open_regular

_LINE_BYTES = 64 << 10
_READ_BYTES = 64 << 20
_TOLD_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Lines of a metrics file: what they say, how many were none, and the number of the last one.

    `more`: there are further whole lines behind it. Numbers that JSON lacks are None.
    """

    told: list[dict[str, Any]]
    skipped: int
    line: int
    more: bool


def read_curve(path: Path, *, since: int, limit: int) -> Curve:
    """At most `limit` lines behind the line `since`. **Blocks** for the disk."""
    told: list[dict[str, Any]] = []
    skipped, line, size = 0, 0, 0
    descriptor = open_regular(path)
    if descriptor is None:
        return Curve(told=told, skipped=0, line=since, more=False)
    with open(descriptor, "rb") as file:
        while raw := _line(file):
            if not raw.endswith(b"\n") or file.tell() > _READ_BYTES:
                break  # it is still being written, or nobody needs that much
            if line >= since and (len(told) + skipped >= limit or size > _TOLD_BYTES):
                return Curve(told=told, skipped=skipped, line=line, more=True)
            line += 1
            if line <= since:
                continue
            size += len(raw)
            found = _parsed(raw)
            if found is None:
                skipped += 1
            else:
                told.append(found)
    return Curve(told=told, skipped=skipped, line=max(line, since), more=False)


def _line(file: Any) -> bytes:  # noqa: ANN401 a binary file
    """The next line with its end; of one that is too long only the end, which is no JSON."""
    raw: bytes = file.readline(_LINE_BYTES)
    while len(raw) == _LINE_BYTES and not raw.endswith(b"\n"):
        raw = b"}" + file.readline(_LINE_BYTES - 1)
    return raw


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(raw, parse_constant=lambda _: None, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None
