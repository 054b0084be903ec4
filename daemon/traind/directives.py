"""What a script says of itself: the options of its `#TRAIND` lines and, if asked, `#SBATCH` lines.

They end at the first line that is neither blank nor a comment. `#TRAIND` outweighs `#SBATCH`, a
later line an earlier one of its kind. **Source**: sbatch(1).
"""

from __future__ import annotations

import re
import shlex

from traind.options import BY_FLAG, Kind, field_values, merged, nearest
from traind.sbatch import Request, takes_value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LINE = re.compile(r"#(TRAIND|SBATCH)[ \t](.*)")
_IGNORED_TOLD = 50
_LONGEST = 32 * 1024


class Directives:
    """The fields that a script sets, in normal form, and what of it means nothing here.

    `export` is the value of `#SBATCH --export`, for whoever has an environment to choose from; its
    NAME=VALUE pairs are in `values` too. `ignored` are sentences.
    """

    __slots__ = ("export", "ignored", "values")

    def __init__(
        self, values: dict[str, object], ignored: tuple[str, ...], export: str | None
    ) -> None:
        self.values = values
        self.ignored = ignored
        self.export = export


def read_directives(text: str, *, slurm: bool, export: bool = True) -> Directives:
    """The directives of a script; `export` False: what `#SBATCH --export` sets does not count.

    **Raises** ValueError that names the line.
    """
    own: dict[str, object] = {}
    request = Request()
    for number, kind, line in _lines(text):
        if kind == "SBATCH" and not slurm:
            continue
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            raise ValueError(f"line {number}: #{kind} {line[:80]}: a quote is not closed") from None
        walk = _options(words, _takes_value if kind == "TRAIND" else takes_value)
        for flag, value in walk:
            try:
                if kind == "TRAIND":
                    own = merged(own, _own_values(flag, value))
                elif flag.startswith("-"):
                    request.take(flag, value or "")
                else:
                    request.ignore_word(flag)
            except ValueError as wrong:
                raise ValueError(f"line {number}: #{kind} {flag[:80]}: {wrong}") from None
    asked = request.values()
    if not export:
        asked.pop("env", None)
    if "gpus" in own:
        asked.pop("gpu_type", None)  # it came with the number of GPUs that is replaced
    return Directives(merged(asked, own), _told(request.ignored()), request.export)


def _lines(text: str) -> Iterator[tuple[int, str, str]]:
    """Number, kind and content of each directive."""
    size = 0
    for number, line in enumerate(text.split("\n"), 1):
        bare = line.strip()
        if bare and not bare.startswith("#"):
            return
        found = _LINE.fullmatch(line)
        if found:
            size += len(line)
            if size > _LONGEST:
                raise ValueError(f"line {number}: the directives are longer than 32 KiB together")
            yield number, found[1], found[2]


def _options(
    words: list[str], takes: Callable[[str], bool | None]
) -> Iterator[tuple[str, str | None]]:
    """Each option with its value, None when it has none; a word that is no option by itself."""
    left = list(reversed(words))
    while left:
        word = left.pop()
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            if equals:
                yield flag, value
            elif takes(flag) or (takes(flag) is None and left and not left[-1].startswith("-")):
                yield flag, left.pop() if left else None
            else:
                yield flag, None
        elif word.startswith("-") and len(word) > 1:
            flag, rest = word[:2], word[2:]
            if takes(flag) is not False:
                yield flag, rest or (left.pop() if left else None)
            else:
                yield flag, None
                left += ["-" + rest] if rest else []
        else:
            yield word, None


def _takes_value(flag: str) -> bool | None:
    option = BY_FLAG.get(flag)
    return None if option is None else option.kind is not Kind.FLAG


def _own_values(flag: str, value: str | None) -> dict[str, object]:
    """The fields that an option of a `#TRAIND` line sets. **Raises** ValueError."""
    if not flag.startswith("-"):
        raise ValueError("is no option; a value with blanks is written in quotes")
    opposite = BY_FLAG.get("--" + flag.removeprefix("--no-"))
    option = BY_FLAG.get(flag)
    if option is None and opposite is not None and opposite.kind is Kind.FLAG and value is None:
        return {opposite.field: False}
    if option is None:
        near = nearest(flag, BY_FLAG)
        hint = f"did you mean {near}?" if near else "`traind submit --help` lists them"
        raise ValueError(f"there is no such option; {hint}")
    if value is None and option.kind is not Kind.FLAG:
        raise ValueError("needs a value")
    return field_values(option, value or "")


def _told(ignored: tuple[str, ...]) -> tuple[str, ...]:
    more = len(ignored) - _IGNORED_TOLD
    if more <= 0:
        return ignored
    return (*ignored[:_IGNORED_TOLD], f"{more} more options of #SBATCH lines ignored")
