"""The verbs that need no daemon: `restore`, `config`, `doctor`, `completion`."""

from __future__ import annotations

from traind.cli.arguments import Parsed
from traind.cli.doctor import doctor
from traind.cli.errors import UsageError
from traind.cli.terminal import complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def restore(parsed: Parsed) -> int:
    """`restore`: puts a backup in the place of the database."""
    if len(parsed.words) != 1:
        raise UsageError("`traind restore` needs one backup; `traind doctor` tells where they are")
    from traind.app import restore as put_back

    return put_back(parsed.text("config"), parsed.text("state_dir"), parsed.words[0])


def config(parsed: Parsed) -> int:
    """`config check` tells what is wrong in a file, `config show` which settings it gives."""
    action, *files = parsed.words or [""]
    if action not in ("check", "show") or len(files) > 1 or (action == "check" and not files):
        raise UsageError("write `traind config check FILE` or `traind config show [FILE]`")
    from traind.config import examine

    code, text = examine(files[0] if files else None)
    if code:
        complain(text)
    else:
        print(text if action == "show" else f"{files[0]} is in order")
    return code


def completion(parsed: Parsed) -> int:
    """`completion`: prints the script that a shell reads."""
    from traind.cli.completion import script_for

    print(script_for(" ".join(parsed.words)), end="")
    return 0


LOCAL: dict[str, Callable[[Parsed], int]] = {
    "restore": restore,
    "config": config,
    "doctor": doctor,
    "completion": completion,
}
