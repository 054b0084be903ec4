"""The words of a command line as values, by the table of options that every other door uses.

`argparse` cannot leave a job's own words alone in every Python (REMAINDER and '--' changed
their meaning with 3.12), knows nothing of the table, and costs more than a `submit` has.
"""

from __future__ import annotations

from traind.cli.errors import UsageError
from traind.options import Kind, Option, field_values, merged, nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

PLACEHOLDERS = {
    Kind.TEXT: "TEXT",
    Kind.PATH: "PATH",
    Kind.WHOLE: "N",
    Kind.FLAG: "",
    Kind.SPAN: "SPAN",
    Kind.TIME: "SPAN",
    Kind.INSTANT: "INSTANT",
    Kind.SIZE: "SIZE",
    Kind.LIST: "A,B",
    Kind.PAIRS: "NAME=VALUE",
    Kind.GPUS: "N",
}


class Parsed:
    """What a command line says: values by field, and words; `literal` ones came after '--'."""

    __slots__ = ("literal", "values", "words")

    def __init__(self) -> None:
        self.values: dict[str, object] = {}
        self.words: list[str] = []
        self.literal = False

    def flag(self, field: str) -> bool:
        """Whether the flag was given."""
        return bool(self.values.get(field))

    def text(self, field: str) -> str | None:
        """The option's text, None when it was not given."""
        value = self.values.get(field)
        return None if value is None else str(value)

    def number(self, field: str) -> int | None:
        """The option's number, None when it was not given."""
        value = self.values.get(field)
        return value if isinstance(value, int) else None


def parse(
    words: Iterable[str],
    options: Sequence[Option],
    *,
    stop_at_word: bool = False,
    not_built: Collection[str] = (),
) -> Parsed:
    """What the words say; with `stop_at_word` the first word that is no option ends the options.

    **Raises** UsageError.
    """
    known = {flag: option for option in options for flag in option.flags}
    parsed = Parsed()
    left = iter(words)
    for word in left:
        if word == "--":
            parsed.literal = not parsed.words
            parsed.words += left
        elif word == "-" or not word.startswith("-"):
            parsed.words.append(word)
            if stop_at_word:
                parsed.words += left
        else:
            take = _take_long if word.startswith("--") else _take_short
            take(parsed, word, left, known, not_built)
    return parsed


def _take_long(
    parsed: Parsed,
    word: str,
    left: Iterator[str],
    known: dict[str, Option],
    not_built: Collection[str],
) -> None:
    flag, equals, text = word.partition("=")
    opposite = known.get("--" + flag.removeprefix("--no-"))
    if flag not in known and opposite is not None and opposite.kind is Kind.FLAG and not equals:
        _set(parsed, opposite, flag, "false")
        return
    option = _option(flag, known, not_built)
    if not equals and option.kind is not Kind.FLAG:
        text = _next(flag, left)
    _set(parsed, option, flag, text)


def _take_short(
    parsed: Parsed,
    word: str,
    left: Iterator[str],
    known: dict[str, Option],
    not_built: Collection[str],
) -> None:
    """'-f', '-af', '-G2' and '-G 2'."""
    flag, rest = word[:2], word[2:]
    option = _option(flag, known, not_built)
    if option.kind is not Kind.FLAG:
        _set(parsed, option, flag, rest or _next(flag, left))
        return
    _set(parsed, option, flag, "")
    if rest:
        _take_short(parsed, "-" + rest, left, known, not_built)


def _option(flag: str, known: dict[str, Option], not_built: Collection[str]) -> Option:
    if flag in known:
        return known[flag]
    if flag in not_built:
        raise UsageError(f"{flag} is not built yet; leave it out")
    near = nearest(flag, known)
    raise UsageError(
        f"there is no option {flag}" + (f"; did you mean {near}?" if near else "; see --help")
    )


def _next(flag: str, left: Iterator[str]) -> str:
    text = next(left, None)
    if text is None:
        raise UsageError(f"{flag} needs a value")
    return text


def _set(parsed: Parsed, option: Option, flag: str, text: str) -> None:
    try:
        values = field_values(option, text)
    except ValueError as wrong:
        raise UsageError(f"{flag}: {wrong}") from None
    parsed.values = merged(parsed.values, values)


def options_text(options: Iterable[Option]) -> str:
    """The options as lines for a person: what can be written, and what it means."""
    lines = []
    for option in options:
        if not option.help:
            continue
        short = [flag for flag in option.flags if not flag.startswith("--")]
        long = [flag for flag in option.flags if flag.startswith("--")]
        left = f"  {', '.join(short + long)} {PLACEHOLDERS[option.kind]}".rstrip()
        gap = " " * (34 - len(left)) if len(left) < 33 else "\n" + " " * 34
        lines.append(left + gap + option.help)
    return "\n".join(lines)
