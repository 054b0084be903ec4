"""Orders that somebody wrote down: a job file in TOML, or JSON from standard input.

One job, a list of them, or `jobs` with their `defaults`; paths are from where the file lies.
"""

import json
import math
import tomllib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from traind.cli.errors import UsageError
from traind.cli.paths import placed
from traind.cli.terminal import safe
from traind.options import merged

Job = dict[str, Any]


def read_job_file(path: str) -> Job:
    """The file's fields as the API takes them. **Raises** UsageError when it is no job file."""
    shown = safe(path)
    try:
        with open(path, "rb") as file:
            text = file.read().decode()
        fields = tomllib.loads(text)
    except OSError as failure:
        raise UsageError(f"{shown} cannot be read: {failure.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{shown} is not UTF-8, so it is not TOML") from None
    except tomllib.TOMLDecodeError as wrong:
        raise UsageError(f"{shown} is not TOML: {wrong}") from None
    return {name: _as_json(value, f"{shown}: {name}") for name, value in fields.items()}


def read_json(content: bytes) -> object:
    """What the JSON says. **Raises** UsageError when it is none."""
    try:
        return json.loads(content.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as wrong:
        raise UsageError(f"standard input is not JSON: {wrong}") from None


def jobs_of(written: object, folder: str) -> tuple[list[Job], bool]:
    """(the jobs, each with the defaults and whole paths, whether they came as several).

    **Raises** UsageError for what holds no jobs.
    """
    several = isinstance(written, list) or (isinstance(written, dict) and "jobs" in written)
    defaults: object = {}
    jobs: object = written if several else [written]
    if isinstance(written, dict) and several:
        unknown = sorted(set(written) - {"defaults", "jobs"})
        if unknown:
            raise UsageError(f"beside jobs there may only be defaults; move {unknown[0]!r} there")
        defaults, jobs = written.get("defaults", {}), written["jobs"]
    elif isinstance(written, dict) and "defaults" in written:
        raise UsageError("defaults are for several jobs: give jobs as well, or no defaults")
    if not isinstance(defaults, dict) or not isinstance(jobs, list):
        raise UsageError("jobs is a list, and defaults are fields of a job")
    if not all(isinstance(job, dict) for job in jobs):
        raise UsageError('a job is an object, such as {"command": "python3 train.py"}')
    return [placed({**defaults, **job}, folder) for job in jobs], several


def override(fields: Job, options: Mapping[str, object]) -> Job:
    """The fields with what the options say in their place; env and labels are put together."""
    short = {name.removesuffix("_mib").removesuffix("_s") for name in options} - set(options)
    return merged({n: v for n, v in fields.items() if n not in short}, options)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _as_json(value: object, where: str) -> object:
    """The value without what only TOML has: instants become text, local ones this machine's."""
    if isinstance(value, dict):
        return {name: _as_json(inner, f"{where}.{name}") for name, inner in value.items()}
    if isinstance(value, list):
        return [_as_json(inner, where) for inner in value]
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.astimezone()).isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{where} is {value}, which is no number a job can have")
    if not isinstance(value, str | bool | int | float):
        raise UsageError(f"{where} is {value}: an instant needs a date and a time")
    return value
