"""The order for a job, checked once, at the door: bad fields are all named at once."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
)

from traind.errors import ErrorCode, FieldError, TraindError
from traind.options import nearest, parse_size, parse_span
from traind.script import check_script

ENV_NAMES = 1000
ERRORS_TOLD = 100
"""Nobody reads more, and to word each of a hundred thousand takes a minute."""

ARGUMENT_BYTES = 128 * 1024
"""Linux refuses to exec one argument of this many bytes or more (MAX_ARG_STRLEN)."""

INSTANT_SCHEMA = {
    "type": "string",
    "format": "date-time",
    "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z$",
}
"""What the API says of every instant it gives."""

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RFC_3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_SIGNALS = ("USR1", "USR2", "HUP", "INT", "TERM", "CONT", "URG", "WINCH", "ALRM")
_OWN_ENV = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
_SECONDS_MAX = 366 * 86400.0
_MIB_MAX = 1 << 40


def _clean(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain a NUL character")
    return text


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be printable text, without line breaks or control characters")
    return text


def _short_enough(text: str) -> str:
    if len(text.encode()) >= ARGUMENT_BYTES:
        raise ValueError("must be shorter than 128 KiB: Linux takes no longer argument")
    return text


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(f"must be an absolute path, not {path[:80]!r}")
    return path


def _environment(text: str) -> str:
    """A prefix or a name: what is neither would be looked for in the wrong place."""
    if ":" in text:
        raise ValueError("must not contain a colon, which PATH is divided by")
    if not text.startswith("/") and ("/" in text or text in (".", "..")):
        raise ValueError(
            f"must be an absolute prefix of a venv or conda environment, or the name of a conda "
            f"environment, not {text[:80]!r}"
        )
    return text


def _instant(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        if not _RFC_3339.fullmatch(value):
            raise ValueError
        return datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            "must be an RFC 3339 instant with its offset, such as '2030-01-31T18:00:00Z'"
        ) from None


def instant_text(instant: datetime) -> str:
    """The instant as the API writes it: UTC, six decimals, Z."""
    utc = instant.astimezone(UTC).isoformat(timespec="microseconds")
    return f"{utc.removesuffix('+00:00')}Z"


def _env_text(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be text or a finite number")
    return str(value)


def _at_most(count: int) -> BeforeValidator:
    """Refuse more members than that before any of them is looked at: a body may hold millions."""

    def check(value: object) -> object:
        if isinstance(value, list | tuple | dict) and len(value) > count:
            raise ValueError(f"holds {len(value)} members, and may hold {count}")
        return value

    return BeforeValidator(check)


Text = Annotated[str, AfterValidator(_clean)]
Argument = Annotated[Text, AfterValidator(_short_enough)]
Arguments = Annotated[tuple[Argument, ...], Field(strict=False), _at_most(50_000)]
Name = Annotated[Text, Field(min_length=1, max_length=200), AfterValidator(_printable)]
AbsolutePath = Annotated[Text, Field(max_length=4095), AfterValidator(_absolute)]
Environment = Annotated[
    Text,
    Field(min_length=1, max_length=4095),
    AfterValidator(_printable),
    AfterValidator(_environment),
]
Seconds = Annotated[float, Field(gt=0, le=_SECONDS_MAX)]
Mib = Annotated[int, Field(gt=0, le=_MIB_MAX)]
GpuId = Annotated[
    str, BeforeValidator(lambda v: str(v) if type(v) is int else v), AfterValidator(_clean)
]
GpuIds = Annotated[tuple[GpuId, ...], Field(strict=False), _at_most(64)]
EnvValue = Annotated[str, BeforeValidator(_env_text), AfterValidator(_clean)]
Instant = Annotated[
    datetime,
    BeforeValidator(_instant),
    PlainSerializer(instant_text, when_used="json"),
    WithJsonSchema(INSTANT_SCHEMA, mode="serialization"),
]


class Strict(BaseModel):
    """The base of what comes from outside: unknown fields, wrong types, NaN are all refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Retry(Strict):
    """Which of a job's own failures start it again, how often and how long after.

    **Units**: `delay_s` seconds, multiplied by `backoff` each time.
    """

    max: Annotated[int, Field(ge=1, le=1000)]
    on: Annotated[
        tuple[Literal["failed", "out_of_memory", "timed_out", "lost"], ...],
        Field(min_length=1, strict=False),
        _at_most(100),
    ] = ("failed",)
    delay_s: Annotated[float, Field(ge=0, le=_SECONDS_MAX)] = 30.0
    backoff: Annotated[float, Field(ge=1, le=10)] = 2.0


class JobSpec(Strict):
    """What to run and what it needs, in normal form: spans in seconds, sizes in MiB.

    Exactly one of `command` (for a shell), `argv` (no shell) and `script` (with its shebang) is
    given. `python_env`: the prefix of a venv or conda environment, or the name of a conda one.
    """

    command: Annotated[Argument, Field(min_length=1)] | None = None
    argv: Annotated[Arguments, Field(min_length=1)] | None = None
    script: Annotated[Text, AfterValidator(check_script)] | None = None
    script_args: Arguments = ()
    shell: AbsolutePath | None = None
    name: Name = "job"
    workdir: AbsolutePath | None = None
    env: Annotated[dict[str, EnvValue], _at_most(ENV_NAMES)] = Field(default_factory=dict)
    python_env: Environment | None = None
    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    gpu_memory_mib: Mib | None = None
    exclusive: bool = False
    gpu_type: Name | None = None
    gpu_min_memory_mib: Mib | None = None
    gpu_ids: GpuIds = ()
    gpu_exclude: GpuIds = ()
    cpus: Annotated[int, Field(ge=1, le=65536)] | None = None
    memory_mib: Mib | None = None
    time_limit_s: Seconds | None = None
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    begin_at: Instant | None = None
    hold: bool = False
    grace_s: Annotated[float, Field(ge=0, le=1800)] | None = None
    checkpoint_signal: Literal[_SIGNALS] | None = None  # type: ignore[valid-type]
    checkpoint_lead_s: Annotated[float, Field(ge=0, le=1800)] | None = None
    checkpoint_dir: AbsolutePath | None = None
    requeue: bool = True
    retry: Retry | None = None
    labels: Annotated[
        dict[Name, Annotated[str, Field(max_length=1000), AfterValidator(_clean)]],
        _at_most(64),
    ] = Field(default_factory=dict)
    kind: Literal["batch"] = "batch"


@dataclass(frozen=True, slots=True)
class Short:
    """A field's short name, where a string carries the unit."""

    normal: str
    parse: Callable[[str], float | int]
    example: str


SHORT_NAMES: Mapping[str, Short] = {
    "gpu_memory": Short("gpu_memory_mib", parse_size, "24GiB"),
    "gpu_min_memory": Short("gpu_min_memory_mib", parse_size, "24GiB"),
    "memory": Short("memory_mib", parse_size, "16GiB"),
    "time_limit": Short("time_limit_s", parse_span, "2h30m"),
    "grace": Short("grace_s", parse_span, "60s"),
    "checkpoint_lead": Short("checkpoint_lead_s", parse_span, "120s"),
    "delay": Short("delay_s", parse_span, "30s"),
}

NOT_BUILT = {
    name: f"{name} is not built yet; leave it out"
    for name in (
        *("depends_on", "on_dependency_failure", "array", "matrix", "max_concurrent"),
        *("max_failures", "preemptible", "output", "error", "snapshot", "notify", "reservation"),
    )
}

_ONE_OF = "give exactly one of command (for a shell), argv (without one) and script"
_BELONGS = {"command": {"command", "shell"}, "argv": {"argv"}, "script": {"script", "script_args"}}
"""What is to be run, and the fields that mean nothing without it."""


def read_spec(raw: object) -> JobSpec:
    """The order in normal form. Raises INVALID with every refused field."""
    if not isinstance(raw, dict):
        sentence = "a job is an object with at least a command, an argv or a script"
        raise TraindError(ErrorCode.INVALID, sentence)
    errors = [FieldError(name, NOT_BUILT[name]) for name in raw if name in NOT_BUILT]
    given = {name: value for name, value in raw.items() if name not in NOT_BUILT}
    given, mistakes = _normal_names(given, JobSpec)
    errors += mistakes
    if isinstance(given.get("retry"), dict):
        given["retry"], mistakes = _normal_names(given["retry"], Retry, "retry.")
        errors += mistakes
    if given.get("name") is None:
        given["name"] = default_name(given)
    spec: JobSpec | None = None
    try:
        spec = JobSpec.model_validate(given)
    except ValidationError as failed:
        broken = {error.field.removesuffix("_s").removesuffix("_mib") for error in errors}
        errors += [e for e in field_errors(failed, _known_fields()) if e.field not in broken]
    errors += _cross_errors(given)
    if errors or spec is None:
        raise TraindError(ErrorCode.INVALID, _summary(errors), errors)
    return spec


def patch_spec(spec: JobSpec, patch: Mapping[str, Any]) -> JobSpec:
    """The order with some fields replaced, checked whole; None puts a field's default back.

    A name that was made from what is run follows it. Raises INVALID with every refused field.
    """
    merged = spec.model_dump(mode="json", exclude_defaults=True) | {"name": spec.name}
    if spec.name == default_name(merged):
        del merged["name"]
    known = _known_fields()
    for name, value in patch.items():
        short = SHORT_NAMES.get(name)
        merged.pop(name if short is None else short.normal, None)
        if name in _BELONGS and value is not None:
            for other in _BELONGS.keys() - {name}:
                for field in _BELONGS[other] - patch.keys():
                    merged.pop(field, None)
    given = {n: v for n, v in patch.items() if v is not None or n not in known}
    return read_spec(merged | given)


def changed_fields(before: JobSpec, after: JobSpec) -> tuple[str, ...]:
    """The fields in which two orders differ."""
    names = JobSpec.model_fields
    return tuple(name for name in names if getattr(before, name) != getattr(after, name))


def _normal_names(
    given: Mapping[str, Any], model: type[BaseModel], prefix: str = ""
) -> tuple[dict[str, Any], list[FieldError]]:
    """Short names turned into the names with the unit, and what was wrong with them."""
    normal, errors = dict(given), []
    for name in list(normal):
        short = SHORT_NAMES.get(name)
        if short is None or short.normal not in model.model_fields:
            continue
        value = normal.pop(name)
        if value is None:
            continue
        if given.get(short.normal) is not None:
            errors.append(FieldError(prefix + name, f"give {name} or {short.normal}, not both"))
        elif not isinstance(value, str):
            errors.append(
                FieldError(
                    prefix + name,
                    f"must be a string with its unit, such as {short.example!r}; "
                    f"a bare number goes into {short.normal}",
                )
            )
        else:
            try:
                normal[short.normal] = short.parse(value)
            except (ValueError, OverflowError) as wrong:
                errors.append(FieldError(prefix + name, str(wrong)[:300]))
    return normal, errors


def default_name(given: Mapping[str, Any]) -> str:
    """A printable name of at most 200 characters, from what is to be run."""
    source = given.get("command")
    argv = given.get("argv")
    if isinstance(argv, list | tuple):
        source = " ".join(str(part) for part in argv[:20])
    if not isinstance(source, str):
        return "job" if given.get("script") is None else "script"
    line = next((line for line in source.splitlines() if line.strip()), "")
    if not line.isprintable():
        line = "".join(c if c.isprintable() else " " for c in line)
    return line.strip()[:200] or "job"


def _cross_errors(given: Mapping[str, Any]) -> list[FieldError]:
    """What single fields cannot tell: exactly one command, and an environment that is its own."""
    errors = []
    runs = [name for name in _BELONGS if given.get(name) is not None]
    if len(runs) != 1:
        errors.append(FieldError("command", _ONE_OF))
    if given.get("shell") is not None and runs in (["argv"], ["script"]):
        errors.append(FieldError("shell", f"{runs[0]} is run without a shell; use command"))
    if given.get("script_args") and "script" not in runs:
        errors.append(FieldError("script_args", "there is no script that could take them"))
    env = given.get("env")
    env = env if isinstance(env, dict) and len(env) <= ENV_NAMES else {}
    for name in env:
        if not isinstance(name, str) or not _ENV_NAME.fullmatch(name):
            errors.append(FieldError("env", f"{str(name)[:80]!r} cannot name a variable"))
        elif name.startswith("TRAIND_") or name in _OWN_ENV:
            errors.append(FieldError("env", f"{name} is set by traind and cannot be given"))
        elif (
            isinstance(env[name], str)
            and len(env[name].encode("utf-8", "replace")) + len(name) >= ARGUMENT_BYTES - 1
        ):
            errors.append(FieldError("env", f"{name[:80]} must be shorter than 128 KiB"))
    return errors


def _known_fields() -> tuple[str, ...]:
    return (*JobSpec.model_fields, *SHORT_NAMES)


def field_errors(failed: ValidationError, known: tuple[str, ...]) -> list[FieldError]:
    """Each pydantic error as the field's name and a sentence; unknown ones with the nearest."""
    errors: list[FieldError] = []
    found = failed.errors(include_url=False, include_context=False, include_input=False)
    lists_of_wrong_ones = {error["loc"][:-1] for error in found}
    for error in found[:ERRORS_TOLD]:
        if error["type"] == "too_short" and error["loc"] in lists_of_wrong_ones:
            continue  # it only seems so: wrong members are not counted
        where = ".".join(str(part) for part in error["loc"]) or "body"
        if error["type"] == "extra_forbidden":
            near = nearest(str(error["loc"][-1]), known)
            hint = f"; did you mean {near}?" if near else f"; known are {', '.join(known)}"
            errors.append(FieldError(where[:200], f"there is no such field{hint}"))
        else:
            errors.append(FieldError(where[:200], error["msg"].removeprefix("Value error, ")))
    return errors


def _summary(errors: list[FieldError]) -> str:
    return "; ".join(f"{error.field}: {error.message}" for error in errors[:5])
