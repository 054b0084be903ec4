"""A script that is stored with its job: its text, and what its own lines ask for."""

from __future__ import annotations

import os

from traind.cli.errors import UsageError
from traind.cli.terminal import safe
from traind.script import SCRIPT_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from traind.directives import Directives


def is_script(path: str) -> bool:
    """Whether it is a file that says in its first line what interprets it."""
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return file.read(2) == b"#!"
    except (OSError, ValueError):
        return False


def read_script(name: str, path: str) -> str:
    """The text of a script file. **Raises** UsageError where it cannot be stored."""
    try:
        with open(path, "rb") as file:
            content = file.read(SCRIPT_BYTES)
    except OSError as failure:
        raise UsageError(f"{safe(name)} cannot be read: {failure.strerror}") from None
    there = safe(name if "/" in name else f"./{name}")
    way_out = f"`traind submit -- {there}` runs it where it lies"
    return script_text(content, safe(name), way_out, unix=f"`dos2unix {safe(name)}` mends them")


def script_text(content: bytes, name: str, way_out: str, *, unix: str) -> str:
    """The content as text that can be stored. **Raises** UsageError, with the way out.

    `unix` says how it gets the line ends of Unix.
    """
    if not content.startswith(b"#!"):
        raise UsageError(f"{name} does not begin with its interpreter, such as #!/bin/bash")
    if len(content) >= SCRIPT_BYTES:
        raise UsageError(f"{name} is not shorter than 512 KiB, so it is not stored; {way_out}")
    if content.partition(b"\n")[0].endswith(b"\r"):
        raise UsageError(f"{name} has the line ends of Windows; {unix}")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not UTF-8, so it cannot be stored; {way_out}") from None
    if "\0" in text:
        raise UsageError(f"{name} holds a NUL character, so it is no script; {way_out}")
    return text


def directives_of(text: str, name: str, *, export: bool) -> Directives:
    """What its `#TRAIND` and `#SBATCH` lines ask for; `export` False: `--export` was typed, which
    replaces that of the lines. **Raises** UsageError naming the line.
    """
    from traind.directives import read_directives

    try:
        return read_directives(text, slurm=True, export=export)
    except ValueError as wrong:
        raise UsageError(f"{name}, {wrong}") from None
