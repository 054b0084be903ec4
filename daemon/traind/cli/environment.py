"""Which of the caller's variables go with a job: what describes the work, not the session."""

from __future__ import annotations

import os

from traind.cli.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE_BYTES = 128 * 1024
"""Linux refuses to exec one `NAME=VALUE` of this many bytes or more (MAX_ARG_STRLEN)."""

_LEFT_OUT = (
    "DISPLAY TERM CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER NVIDIA_VISIBLE_DEVICES RANK WORLD_SIZE "
    "LOCAL_RANK PET_MASTER_ADDR PET_MASTER_PORT HOME USER LOGNAME SHELL PWD OLDPWD SHLVL _"
)
_LEFT_OUT_PREFIXES = "SSH_ DBUS_ XDG_ TMUX SLURM_ MASTER_ TORCHELASTIC_ PMI_ OMPI_ TRAIND_"

_OF_PYTHON = ("VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV")


def exported(environ: Mapping[str, str], request: str) -> dict[str, str]:
    """The variables that `--export` asks for: ALL, NONE, or a list that may hold ALL.

    A variable named in a list goes along whatever it is; one that is not set is left out, as in
    Slurm. **Raises** UsageError. **Source**: sbatch(1), --export.
    """
    if request == "NONE":
        return {}
    chosen: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in request.split(","))):
        name, equals, value = item.partition("=")
        if equals:
            chosen[name] = value
        elif name == "ALL":
            chosen = {**_describing_the_work(environ), **chosen}
        elif name in environ:
            chosen[name] = environ[name]
    for name, value in chosen.items():
        if not _sendable(name, value):
            raise UsageError(
                f"--export: {name[:80]!r} cannot go along: a variable has a name of letters, "
                "digits and underscores and a UTF-8 value shorter than 128 KiB"
            )
    return chosen


def python_env(environ: Mapping[str, str], request: str) -> str | None:
    """The active venv or conda environment, where ALL goes along; None when there is none.

    One that has gone, or has no python, is not demanded: a job would be refused for want of it.
    """
    if "ALL" not in (part.strip() for part in request.split(",")):
        return None
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        prefix = environ.get(name, "")
        if os.path.isabs(prefix) and os.access(os.path.join(prefix, "bin/python"), os.X_OK):
            return prefix
    return None


def exported_beside(environ: Mapping[str, str], request: str, chosen: object) -> dict[str, str]:
    """The same for a job whose Python environment is `chosen`: no other one is named in it."""
    variables = exported(environ, request)
    if chosen in (None, python_env(environ, request)):
        return variables
    return {name: value for name, value in variables.items() if name not in _OF_PYTHON}


def _describing_the_work(environ: Mapping[str, str]) -> dict[str, str]:
    names, prefixes = _LEFT_OUT.split(), tuple(_LEFT_OUT_PREFIXES.split())
    return {
        name: value
        for name, value in environ.items()
        if name not in names and not name.startswith(prefixes) and _sendable(name, value)
    }


def _sendable(name: str, value: str) -> bool:
    if not (name.isascii() and name.isidentifier()):
        return False
    try:
        return len(name) + 1 + len(value.encode()) < VARIABLE_BYTES - 1
    except UnicodeEncodeError:
        return False
