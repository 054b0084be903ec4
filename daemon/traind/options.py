"""One table of long options and job fields, and the grammars of spans and sizes.

Standard library only, and little of it: the client imports this before anything else, so what is
slow (dataclasses, difflib, datetime: two thirds of its time) stays out of the top.
"""

import math
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum

_SPAN_UNITS = {
    "w": 604800.0,
    "d": 86400.0,
    "h": 3600.0,
    "m": 60.0,
    "min": 60.0,
    "s": 1.0,
    "ms": 0.001,
}
_SPAN_PART = re.compile(r"(\d+(?:\.\d+)?)(min|ms|w|d|h|m|s)")
_SPAN = re.compile(r"(?:\d+(?:\.\d+)?(?:min|ms|w|d|h|m|s))+")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])(?:i?B)?", re.IGNORECASE)
_SIZE_MIB = {"K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0 * 1024}
_LONGEST = 100
_CLOCK = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")

SPAN_SENTENCE = "a span has units, such as '90s', '30m', '2h30m' or '1d'"
SIZE_SENTENCE = "a size has a unit, such as '512MiB', '24GiB' or '1T' (K M G T are binary)"


def parse_span(text: str) -> float:
    """Seconds in a span such as '2h30m'. Raises ValueError when it is none."""
    cleaned = text.strip().replace(" ", "")
    if len(cleaned) > _LONGEST or not _SPAN.fullmatch(cleaned):
        raise ValueError(f"{text[:80]!r} is not a span: {SPAN_SENTENCE}")
    return math.fsum(float(n) * _SPAN_UNITS[unit] for n, unit in _SPAN_PART.findall(cleaned))


def parse_size(text: str) -> int:
    """MiB in a size such as '24GiB', rounded up. Raises ValueError when it is none."""
    found = _SIZE.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    if not found:
        raise ValueError(f"{text[:80]!r} is not a size: {SIZE_SENTENCE}")
    return math.ceil(float(found[1]) * _SIZE_MIB[found[2].upper()])


def parse_time_option(text: str) -> float:
    """Seconds in a command line's time: a span, bare minutes, or Slurm's D-HH:MM:SS forms.

    Raises ValueError. Source: sbatch(1), --time.
    """
    found = _CLOCK.fullmatch(text.strip())
    if not found:
        return parse_span(text)
    days, first, second, third = (int(part) if part else 0 for part in found.groups())
    if found[1] is not None:
        return days * 86400.0 + first * 3600 + second * 60 + third
    if found[4] is not None:
        return first * 3600.0 + second * 60 + third
    return first * 60.0 + second


def parse_size_option(text: str) -> int:
    """MiB in a command line's size: a size with its unit, or bare MiB. Raises ValueError."""
    return int(text) if text.strip().isdecimal() else parse_size(text)


def span_text(seconds: float) -> str:
    """A span as people write it, such as '2h30m' or '45s'; whole seconds."""
    left = round(seconds)
    parts = []
    for unit in ("d", "h", "m", "s"):
        count, left = divmod(left, int(_SPAN_UNITS[unit]))
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def size_text(mib: int) -> str:
    """A size as people write it, such as '10 GiB' or '512 MiB'."""
    return f"{mib / 1024:.3g} GiB" if mib >= 1024 else f"{mib} MiB"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None when nothing is near."""
    import difflib

    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


class Kind(StrEnum):
    """How the text of an option becomes the value of its field."""

    TEXT = "text"
    PATH = "path"
    WHOLE = "whole"
    FLAG = "flag"
    SPAN = "span"
    TIME = "time"
    INSTANT = "instant"
    SIZE = "size"
    LIST = "list"
    PAIRS = "pairs"
    GPUS = "gpus"


class Option:
    """One option: its spellings, the field it sets, its grammar. Without help it is not shown."""

    __slots__ = ("field", "flags", "help", "kind")

    def __init__(self, flags: tuple[str, ...], field: str, kind: Kind, meaning: str = "") -> None:
        self.flags = flags
        self.field = field
        self.kind = kind
        self.help = meaning


OPTIONS = (
    Option(("--name", "-J", "--job-name"), "name", Kind.TEXT, "what the job is called"),
    Option(
        ("--workdir", "-D", "--chdir"),
        "workdir",
        Kind.PATH,
        "where it runs (default: here)",
    ),
    Option(("--env",), "env", Kind.PAIRS, "NAME=VALUE for the job; may be repeated"),
    Option(
        ("--python-env",),
        "python_env",
        Kind.PATH,
        "a venv, a conda prefix, or the name of a conda environment (default: the active one)",
    ),
    Option(("--shell",), "shell", Kind.TEXT, "the shell for a command line"),
    Option(("--gpus", "-G"), "gpus", Kind.GPUS, "how many GPUs; TYPE:N also says which"),
    Option(("--gres",), "gpus", Kind.GPUS, "the same in Slurm's words: gpu[:TYPE]:N"),
    Option(
        ("--gpu-memory", "--gpu-mem"),
        "gpu_memory_mib",
        Kind.SIZE,
        "what it needs of each GPU, such as 11G; it may then share the GPU",
    ),
    Option(("--exclusive",), "exclusive", Kind.FLAG, "GPUs to itself, whatever it declares"),
    Option(("--gpu-type",), "gpu_type", Kind.TEXT, "part of the GPU's name"),
    Option(
        ("--gpu-min-memory",),
        "gpu_min_memory_mib",
        Kind.SIZE,
        "only GPUs of at least this nominal size",
    ),
    Option(("--gpu-ids",), "gpu_ids", Kind.LIST, "only these GPUs: indices or UUIDs"),
    Option(("--gpu-exclude",), "gpu_exclude", Kind.LIST, "not these GPUs"),
    Option(("--cpus", "-c", "--cpus-per-task"), "cpus", Kind.WHOLE, "how many CPU cores"),
    Option(("--memory", "--mem"), "memory_mib", Kind.SIZE, "host memory, such as 16G"),
    Option(
        ("--time-limit", "-t", "--time"),
        "time_limit_s",
        Kind.TIME,
        "wall time of one attempt: 2h30m, 90 (minutes) or 1-12:00:00",
    ),
    Option(("--priority",), "priority", Kind.WHOLE, "-100 to 100, higher is sooner"),
    Option(
        ("--begin-at", "--begin"),
        "begin_at",
        Kind.INSTANT,
        "not before: 2030-01-31T18:00 (this machine's time unless it has an offset), 18:00, "
        "tomorrow or now+2hours",
    ),
    Option(("--hold", "-H"), "hold", Kind.FLAG, "it waits until it is released"),
    Option(("--grace",), "grace_s", Kind.SPAN, "time between SIGTERM and SIGKILL"),
    Option(
        ("--checkpoint-signal",),
        "checkpoint_signal",
        Kind.TEXT,
        "sent to all its processes before SIGTERM, such as USR1",
    ),
    Option(
        ("--checkpoint-lead",),
        "checkpoint_lead_s",
        Kind.SPAN,
        "time between the checkpoint signal and SIGTERM",
    ),
    Option(("--checkpoint-dir",), "checkpoint_dir", Kind.PATH, "instead of ~/traind/<job>"),
    Option(
        ("--requeue",),
        "requeue",
        Kind.FLAG,
        "back in the queue after a reboot (default; --no-requeue: not)",
    ),
    Option(
        ("--label", "--labels"), "labels", Kind.PAIRS, "NAME=VALUE to find it by; may be repeated"
    ),
)

BY_FLAG = {flag: option for option in OPTIONS for flag in option.flags}


def field_values(option: Option, text: str) -> dict[str, object]:
    """What this text of an option sets: its field, and `gpu_type` for 'a100:2'.

    Raises ValueError with what would be accepted.
    """
    value: object = text
    match option.kind:
        case Kind.WHOLE:
            value = _whole(text)
        case Kind.FLAG:
            value = _flag(text)
        case Kind.SPAN:
            value = parse_span(text)
        case Kind.TIME:
            value = parse_time_option(text)
        case Kind.INSTANT:
            value = parse_instant_option(text)
        case Kind.SIZE:
            value = parse_size_option(text)
        case Kind.LIST:
            value = [part.strip() for part in text.split(",") if part.strip()]
        case Kind.PAIRS:
            name, equals, content = text.partition("=")
            if not name or not equals:
                raise ValueError(f"{text!r} is not NAME=VALUE")
            value = {name: content}
        case Kind.GPUS:
            return _gpus(text)
        case Kind.TEXT | Kind.PATH:
            pass
    return {option.field: value}


def merged(lower: Mapping[str, object], upper: Mapping[str, object]) -> dict[str, object]:
    """Both, the upper one's fields in place of the lower one's; env and labels put together."""
    both = {**lower, **upper}
    for name, value in upper.items():
        before = lower.get(name)
        if isinstance(before, dict) and isinstance(value, dict):
            both[name] = {**before, **value}
    return both


def parse_instant_option(text: str) -> str:
    """The RFC 3339 instant a command line means now; without an offset, this machine's time.

    Raises ValueError.
    """
    from datetime import UTC, datetime

    from traind.instants import parse_instant

    return parse_instant(text, datetime.now(UTC)).isoformat()


def _whole(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text.strip()):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def _flag(text: str) -> bool:
    if text.lower() in ("", "true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def _gpus(text: str) -> dict[str, object]:
    """Slurm's '2', 'a100:2', 'gpu', 'gpu:2', 'gpu:a100' and 'gpu:a100:2'.

    Source: sbatch(1), --gpus and --gres.
    """
    cleaned = text.strip()
    found = re.fullmatch(r"(?:gpu:)?(?:([^:,]+):)?(\d{1,9})|gpu(?::([^:,]+))?", cleaned)
    if not found:
        raise ValueError(f"{text!r} is not a number of GPUs, such as '2', 'a100:2' or 'gpu:a100:2'")
    kind = found[1] or found[3]
    if kind == "gpu":
        kind = None
    return {"gpus": int(found[2] or 1)} | ({"gpu_type": kind} if kind else {})
