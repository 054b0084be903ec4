"""Values as text for a person: tables, ages, sizes, instants; nothing here asks the daemon."""

import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise

from traind.cli.terminal import safe

STATE_COLOURS = {
    "running": "32",
    "starting": "32",
    "stopping": "33",
    "queued": "36",
    "held": "33",
    "succeeded": "32",
    "cancelled": "33",
    "failed": "31",
    "timed_out": "31",
    "out_of_memory": "31",
    "gpu_fault": "31",
    "launch_failed": "31",
    "dependency_failed": "31",
    "lost": "31",
}
_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def age(seconds: float) -> str:
    """A span in its two largest units, such as '2h30m', '3d4h' or '45s'."""
    left = max(0, int(seconds))
    for (large, size), (small, part) in pairwise(_UNITS):
        if left >= size:
            rest = left % size // part
            return f"{left // size}{large}" + (f"{rest}{small}" if rest else "")
    return f"{left}s"


def instant(text: object) -> datetime | None:
    """The API's instant, None when it has none."""
    try:
        found = datetime.fromisoformat(str(text)) if text else None
    except ValueError:
        return None
    return found.replace(tzinfo=found.tzinfo or UTC) if found else None


def local(text: object, now: datetime) -> str:
    """An instant on this machine's clock, and how long ago it was; empty without one."""
    when = instant(text)
    if when is None:
        return ""
    seconds = (now - when).total_seconds()
    distance = f"{age(seconds)} ago" if seconds >= 0 else f"in {age(-seconds)}"
    return f"{when.astimezone():%Y-%m-%d %H:%M:%S} ({distance})"


def columns(text: str) -> int:
    """How many terminal columns a text takes. Source: Unicode Standard Annex 11."""
    if text.isascii():
        return len(text)
    return sum(_columns_of(character) for character in text)


def _columns_of(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Me", "Mn"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int) -> str:
    """The text in at most `width` columns, an ellipsis in place of what is too much."""
    if columns(text) <= width:
        return text
    taken, kept = 0, []
    for character in text:
        taken += _columns_of(character)
        if taken > width - 1:
            break
        kept.append(character)
    return "".join(kept) + "…" if width > 0 else ""


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    width: int | None,
    colour: bool,
    flexible: Sequence[tuple[str, int]] = (),
) -> str:
    """Rows under headers, '-' in empty cells, so that scripts can count columns.

    `width` None: nothing is cut. Otherwise the `flexible` columns give way in their order, each
    down to its number of columns; what then does not fit is cut off at the right.
    The STATE column is painted when there is `colour`.
    """
    cells = [list(headers), *([safe(cell) or "-" for cell in row] for row in rows)]
    widths = [max(map(columns, column)) for column in zip(*cells, strict=True)]
    if width is not None:
        _shrink(widths, headers, width, flexible)
    lines = []
    for number, row in enumerate(cells):
        padded = [_padded(cell, size) for cell, size in zip(row, widths, strict=True)]
        if colour and number and "STATE" in headers:
            state = headers.index("STATE")
            padded[state] = paint(padded[state])
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _shrink(
    widths: list[int], names: Sequence[str], width: int, flexible: Sequence[tuple[str, int]]
) -> None:
    for name, least in flexible:
        excess = sum(widths) + 2 * (len(widths) - 1) - width
        if excess > 0 and name in names:
            column = names.index(name)
            widths[column] = max(min(least, widths[column]), widths[column] - excess)
    left = width
    for column, size in enumerate(widths):
        widths[column] = max(0, min(size, left))
        left -= widths[column] + 2


def _padded(text: str, width: int) -> str:
    text = cut(text, width)
    return text + " " * (width - columns(text))


def paint(cell: str) -> str:
    """The cell in its state's colour, its padding included; unknown words stay plain."""
    colour = STATE_COLOURS.get(cell.strip())
    return f"\x1b[{colour}m{cell}\x1b[0m" if colour else cell


def pairs_text(pairs: Sequence[tuple[str, object]]) -> str:
    """Names and values, one pair a line; those without a value are left out."""
    shown = [(name, safe(value)) for name, value in pairs if value not in (None, "")]
    width = max((len(name) for name, _ in shown), default=0)
    return "\n".join(f"{name + ':':{width + 2}}{value}" for name, value in shown)
