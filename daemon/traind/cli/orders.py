"""What a command line means, as the API takes it: a command, a script, a job file, a request."""

from __future__ import annotations

import os

from traind.cli.arguments import parse
from traind.cli.environment import exported_beside, python_env
from traind.cli.errors import UsageError
from traind.cli.paths import placed
from traind.cli.terminal import safe
from traind.cli.verbs import NOT_BUILT_OPTIONS, VERBS
from traind.options import OPTIONS, merged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any, BinaryIO

    from traind.cli.arguments import Parsed

_SHELL_CHARACTERS = frozenset(" \t\n|&;<>()$`\\\"'*?[]#~=!{}")
_RUN = ("command", "argv", "script", "script_args")
_REQUEST_BYTES = 16 << 20


class Order:
    """What is sent: one job, or `several` with what they share; and what the caller is told."""

    __slots__ = ("body", "several", "warnings")

    def __init__(
        self, body: dict[str, Any], *, several: bool = False, warnings: tuple[str, ...] = ()
    ) -> None:
        self.body = body
        self.several = several
        self.warnings = warnings


class Caller:
    """Who types: the environment, where they stand, and what comes in, if anything."""

    __slots__ = ("environ", "here", "stdin")

    def __init__(self, environ: Mapping[str, str], here: str, stdin: BinaryIO | None) -> None:
        self.environ = environ
        self.here = here
        self.stdin = stdin


def order_of(parsed: Parsed, caller: Caller) -> Order:
    """The jobs that a command line means. **Raises** UsageError."""
    first = "" if parsed.literal or not parsed.words else parsed.words[0]
    if first.endswith(".toml"):
        return _of_job_file(parsed, caller)
    if parsed.text("wrap") is not None and parsed.words:
        raise UsageError(f"give --wrap or a command, not both; leave out {parsed.words[0]!r}")
    if first == "-":
        return _of_stdin(parsed, caller)
    path = os.path.join(caller.here, first)
    if first and not first.endswith(".py"):
        from traind.cli.script import is_script, read_script

        if is_script(path):
            return _of_script(read_script(first, path), safe(first), parsed, caller)
        if first.endswith(".sh"):
            raise UsageError(_no_script(first, caller.here, exists=os.path.isfile(path)))
    return _of_command(parsed, caller)


def _no_script(name: str, here: str, *, exists: bool) -> str:
    if exists:
        return (
            f"{safe(name)} does not begin with its interpreter, such as #!/bin/bash; "
            f"`traind submit -- bash {safe(name)}` runs it where it lies"
        )
    return f"there is no {safe(name)} in {safe(here)}; a program of your PATH goes behind --"


def _of_command(parsed: Parsed, caller: Caller) -> Order:
    """A command for a shell, words for none, or a Python file."""
    options = _options(parsed, caller.here)
    wrapped, words = parsed.text("wrap"), parsed.words
    if wrapped is not None:
        fields: dict[str, Any] = {"command": wrapped}
    elif not words:
        raise UsageError("there is nothing to run; such as: traind submit --gpus 1 -- python x.py")
    elif not parsed.literal and words[0].endswith(".py"):
        fields = _python(words, caller.environ, str(options.get("workdir", caller.here)))
    elif len(words) == 1 and _SHELL_CHARACTERS.intersection(words[0]):
        fields = {"command": words[0]}
    else:
        fields = {"argv": words}
    return Order(_whole(fields, options, parsed.text("export") or "ALL", caller))


def _of_script(text: str, name: str, parsed: Parsed, caller: Caller) -> Order:
    """A script with its arguments; what is typed outweighs its lines."""
    from traind.cli.script import directives_of

    found = directives_of(text, name, export=parsed.text("export") is None)
    fields: dict[str, Any] = {"script": text, "script_args": parsed.words[1:]}
    if parsed.words[0] != "-":
        fields["name"] = _name(parsed.words)
    fields = merged(fields, placed(found.values, caller.here))
    export = parsed.text("export") or found.export or "ALL"
    body = _whole(fields, _options(parsed, caller.here), export, caller)
    return Order(body, warnings=found.ignored)


def _whole(
    fields: Mapping[str, Any], options: Mapping[str, Any], export: str, caller: Caller
) -> dict[str, Any]:
    """One job: what it runs, what was typed, and what it takes from where it was typed."""
    base: dict[str, Any] = {"workdir": caller.here}
    active = python_env(caller.environ, export)
    if active is not None:
        base["python_env"] = active
    order = merged(merged(base, fields), options)
    inherited = exported_beside(caller.environ, export, order.get("python_env"))
    return _sendable(merged({"env": inherited}, order))


def _of_job_file(parsed: Parsed, caller: Caller) -> Order:
    name, *behind = parsed.words
    path = os.path.join(caller.here, name)
    if not os.path.isfile(path):
        raise UsageError(f"there is no job file {safe(name)} here; a command goes behind --")
    _take_options(parsed, safe(name), behind)

    from traind.cli.jobfile import read_job_file

    return _of_written(read_job_file(path), os.path.dirname(path), parsed, caller)


def _of_stdin(parsed: Parsed, caller: Caller) -> Order:
    """A script, or JSON: one job, a list, or jobs with their defaults."""
    content = caller.stdin.read(_REQUEST_BYTES + 1) if caller.stdin else b""
    if content.startswith(b"#!"):
        from traind.cli.script import script_text

        name = "standard input"
        text = script_text(
            content,
            name,
            "write it to a file FILE, and: traind submit -- ./FILE",
            unix="send it through dos2unix",
        )
        return _of_script(text, name, parsed, caller)
    if content.lstrip()[:1] not in (b"{", b"["):
        held = "neither JSON nor a script that begins with #!" if content.strip() else "nothing"
        raise UsageError(f"standard input holds {held}; such as: traind submit - < train.sh")
    if len(content) > _REQUEST_BYTES:
        raise UsageError("standard input is larger than 16 MiB, the most that is taken at once")
    _take_options(parsed, "standard input", parsed.words[1:])

    from traind.cli.jobfile import read_json

    return _of_written(read_json(content), caller.here, parsed, caller)


def _of_written(written: object, folder: str, parsed: Parsed, caller: Caller) -> Order:
    """The jobs that a file or a request holds; what is typed outweighs what is written."""
    from traind.cli.jobfile import jobs_of, override

    options = _options(parsed, caller.here)
    found, several = jobs_of(written, folder)
    export = parsed.text("export") or "ALL"
    shared = {"workdir": caller.here, "env": exported_beside(caller.environ, export, None)}
    jobs = []
    for job in found:
        if parsed.text("wrap") is not None:
            job = {name: job[name] for name in job if name not in _RUN}
            job["command"] = parsed.text("wrap")
        job = override(job, options)
        chosen, own = job.get("python_env"), job.get("env", {})
        if isinstance(own, dict) and (own or chosen is not None):
            job["env"] = exported_beside(caller.environ, export, chosen) | own
        jobs.append(_sendable(job))
    if several:
        return Order({"defaults": shared, "jobs": jobs}, several=True)
    return Order(shared | jobs[0])


def _options(parsed: Parsed, here: str) -> dict[str, Any]:
    """The typed options that are fields of a job."""
    fields = {option.field for option in OPTIONS} & parsed.values.keys()
    return placed({name: parsed.values[name] for name in fields}, here)


def _take_options(parsed: Parsed, name: str, behind: Iterable[str]) -> None:
    """Options may stand behind the name of what was written down, too."""
    left = parse(behind, VERBS["submit"].options, not_built=NOT_BUILT_OPTIONS)
    if left.words:
        raise UsageError(f"{name} says what is run; leave out {left.words[0]!r}")
    parsed.words = []
    parsed.values = merged(parsed.values, left.values)


def _python(words: Sequence[str], environ: Mapping[str, str], workdir: str) -> dict[str, Any]:
    """A Python file with the caller's own interpreter."""
    import shutil

    if not os.path.isfile(os.path.join(workdir, words[0])):
        raise UsageError(f"there is no {safe(words[0])} in {safe(workdir)}")
    places = [environ.get("PATH", os.defpath)]
    if environ.get("VIRTUAL_ENV"):
        places.insert(0, os.path.join(environ["VIRTUAL_ENV"], "bin"))
    path = os.pathsep.join(places)
    python = shutil.which("python3", path=path) or shutil.which("python", path=path)
    if python is None:
        raise UsageError("your PATH has no python3; name one: traind submit -- /path/to/python …")
    return {"argv": [os.path.abspath(python), *words], "name": _name(words)}


def _name(words: Sequence[str]) -> str:
    """What a job is called that has no name: the words, as far as they can be printed."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(words)[:200])


def _sendable(order: dict[str, Any]) -> dict[str, Any]:
    """The order, if it is UTF-8, as JSON is. **Raises** UsageError."""
    for name, value in order.items():
        inner = value.values() if isinstance(value, dict) else value
        for text in inner if isinstance(value, dict | list) else (value,):
            if isinstance(text, str) and not _is_utf8(text):
                raise UsageError(f"{name} is not UTF-8: {text!r}; a job can only name what is")
    return order


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
