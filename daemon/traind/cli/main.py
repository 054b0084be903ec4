"""The program `traind`: finds the verb, does it, and turns what went wrong into an exit status."""

from __future__ import annotations

import os
import sys

from traind import __version__
from traind.cli.errors import ClientError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from traind.cli.arguments import Parsed
    from traind.cli.verbs import Verb

_INTERRUPTED = 130
_BROKEN_PIPE = 141


def main(argv: list[str] | None = None) -> int:
    """The exit status of one command line."""
    _never_fail_to_print()
    try:
        status = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return status
    except ClientError as failure:
        from traind.cli.terminal import complain

        complain(failure.sentence)
        return failure.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return _BROKEN_PIPE


def _run(argv: list[str]) -> int:
    from traind.cli.arguments import parse
    from traind.cli.verbs import GLOBAL, NOT_BUILT_OPTIONS, VERBS

    before = parse(argv, GLOBAL, stop_at_word=True)
    if before.flag("version"):
        print(f"traind {__version__}")
        return 0
    if not before.words or before.words[0] == "help":
        print(_overview(), file=sys.stdout if before.values or before.words else sys.stderr)
        return 0 if before.values or before.words else UsageError.exit_code
    name, *rest = before.words
    verb = VERBS.get(name)
    if verb is None:
        raise _unknown(name)
    not_built = NOT_BUILT_OPTIONS if verb.own_words else ()
    parsed = parse(rest, verb.options, stop_at_word=verb.own_words, not_built=not_built)
    parsed.values = before.values | parsed.values
    if parsed.flag("help"):
        print(_help(verb))
        return 0
    if name == "serve":
        return _serve(verb, parsed)
    if verb.local:
        from traind.cli.local import LOCAL

        return LOCAL[name](parsed)
    return _dispatch(name, verb, parsed)


def _dispatch(name: str, verb: Verb, parsed: Parsed) -> int:
    from traind.cli.client import Client
    from traind.cli.verbs import SELECTORS

    chosen = verb.selects and any(parsed.values.get(name) for name in SELECTORS)
    if verb.takes_ids and not parsed.words and not chosen:
        raise UsageError(f"`traind {name}` needs a job: an id, a name, or @ for your last one")
    if parsed.words and not (verb.takes_ids or verb.own_words or verb.takes_words):
        raise UsageError(f"`traind {name}` takes no {parsed.words[0]!r}; see traind {name} --help")
    client = Client(parsed.text("socket"), os.environ)
    if name == "submit" or (name == "run" and parsed.flag("detach")):
        from traind.cli.submit import submit

        return submit(parsed, client)
    if name == "run":
        from traind.cli.submit import run

        return run(parsed, client)
    from traind.cli.changes import CHANGES
    from traind.cli.commands import ACTIONS

    return (ACTIONS | CHANGES)[name](parsed, client)


def _serve(verb: Verb, parsed: Parsed) -> int:
    """The daemon; nothing of it is imported before somebody asks for it."""
    if parsed.words:
        raise UsageError(f"`traind serve` takes no {parsed.words[0]!r}; see traind serve --help")
    from argparse import Namespace

    from traind.app import serve

    known = {option.field: None for option in verb.options}
    flags = {"test_mode": parsed.flag("test_mode")}
    return serve(Namespace(**(known | parsed.values | flags)))


def _unknown(name: str) -> UsageError:
    from traind.cli.verbs import VERBS
    from traind.options import nearest

    near = nearest(name, VERBS)
    hint = f"did you mean `traind {near}`?" if near else f"known are {', '.join(VERBS)}"
    return UsageError(f"there is no verb {name!r}; {hint}")


def _overview() -> str:
    from traind.cli.arguments import options_text
    from traind.cli.verbs import GLOBAL, VERBS

    width = max(map(len, VERBS)) + 2
    lines = [f"  {name:{width}}{verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: traind VERB …",
            "",
            *lines,
            "",
            options_text(GLOBAL),
            "",
            "`traind VERB --help` tells more.",
        ]
    )


def _help(verb: Verb) -> str:
    from traind.cli.arguments import options_text
    from traind.cli.verbs import IDS_HELP

    usage = verb.usage.replace("  |  ", "\n       traind ")
    parts = [f"usage: traind {usage}", f"{verb.summary[0].upper()}{verb.summary[1:]}."]
    parts += [options_text(verb.options)]
    parts += [IDS_HELP] if verb.takes_ids else []
    return "\n\n".join(parts)


def _never_fail_to_print() -> None:
    """What the terminal's encoding lacks is escaped instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _forget_stdout() -> None:
    """The reader of our output has gone; Python's last flush must not complain about it."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
