"""The settings of the daemon: every key with its default; unknown or wrong keys stop the start."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import time, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from traind.errors import StartupError
from traind.jobspec import field_errors
from traind.options import parse_size, parse_span, span_text

EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: the configuration or the state will not do."""


def _span(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("must be a span with its unit, such as '30s' or '2h30m'")
    return timedelta(seconds=parse_span(value))


def _size(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("must be a size with its unit, such as '512MiB' or '24GiB'")
    return parse_size(value)


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain a NUL character")
    return text


def _http(text: str) -> str:
    host, _, port = text.rpartition(":")
    if text != "off" and not (host and port.isdecimal() and int(port) < 65536):
        raise ValueError("must be 'off' or HOST:PORT, such as '127.0.0.1:7979'")
    return text


def _clock(text: str) -> str:
    try:
        time.fromisoformat(text)
    except ValueError:
        text = ""
    if len(text) != len("03:30"):
        raise ValueError("must be a time of day with hours and minutes, such as '03:30'")
    return text


def _zone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise ValueError("must be the name of a time zone, such as 'Europe/Berlin'") from None
    return text


Span = Annotated[timedelta, BeforeValidator(_span)]
SizeMib = Annotated[int, BeforeValidator(_size)]
Text = Annotated[str, AfterValidator(_no_nul)]


class Section(BaseModel):
    """One table of config.toml."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class DaemonSettings(Section):
    """Where it keeps its state and where it listens; an empty path means the usual place."""

    state_dir: Text = ""
    socket: Text = ""
    http: Annotated[str, AfterValidator(_http)] = "off"
    hosts: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class GpuHealthSettings(Section):
    """When a GPU is believed to be sick, how long, and what that means for jobs."""

    hold_down: Span = timedelta(seconds=60)
    warn_for: Span = timedelta(hours=24)
    avoid_for: Span = timedelta(hours=24)
    ending_wait: Span = timedelta(seconds=2)
    verdict_wait: Span = timedelta(seconds=60)
    contained_within: Span = timedelta(seconds=30)
    same_xid_within: Span = timedelta(seconds=10)
    repeat_within: Span = timedelta(hours=24)
    relapses: Annotated[int, Field(ge=1)] = 2
    relapse_within: Span = timedelta(days=7)
    unknown_xid: Literal["auto", "warn", "degraded", "ignore"] = "auto"
    strict_monitoring: bool = False
    errors: Annotated[int, Field(ge=1)] = 5
    unknown_errors: Annotated[int, Field(ge=1)] = 3
    unknown_within: Span = timedelta(seconds=30)
    ecc_corrected_per_day: Annotated[int, Field(ge=1)] = 1_000_000
    remapped_rows: Annotated[int, Field(ge=1)] = 512
    retired_pages: Annotated[int, Field(ge=1)] = 63
    retired_double_bit: Annotated[int, Field(ge=0)] = 15
    retired_per_week: Annotated[int, Field(ge=0)] = 1
    throttle_window: Span = timedelta(minutes=10)
    throttle_share: Annotated[float, Field(gt=0, le=1)] = 0.6
    soft_throttle_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    hot_for: Span = timedelta(seconds=60)
    hot_margin_c: Annotated[int, Field(ge=0)] = 3
    cool_margin_c: Annotated[int, Field(ge=0)] = 10
    stuck_after: Span = timedelta(minutes=5)


def _kernel_log(text: str) -> str:
    if text not in ("auto", "off") and not text.startswith("/"):
        raise ValueError("must be 'auto', 'off' or an absolute path, such as '/dev/kmsg'")
    return text


class GpuSettings(Section):
    """Which GPUs it reads, how often, and how it shares them."""

    source: Literal["nvml", "simulated"] = "nvml"
    simulate: Text = ""
    sample_busy: Annotated[Span, Field(gt=timedelta(0))] = timedelta(seconds=5)
    sample_idle: Annotated[Span, Field(gt=timedelta(0))] = timedelta(seconds=30)
    answer_deadline: Span = timedelta(seconds=10)
    first_answer_deadline: Span = timedelta(seconds=60)
    respawn_delay: Span = timedelta(seconds=30)
    safety_mib: Annotated[SizeMib, Field(ge=0)] = 512
    safety_pct: Annotated[float, Field(ge=0, le=50)] = 2.0
    max_jobs: Annotated[int, Field(ge=1, le=64)] = 4
    ramp: Span = timedelta(seconds=60)
    overrun_grace: Span = timedelta(seconds=10)
    release_slack: SizeMib = 64
    release_wait: Span = timedelta(seconds=30)
    stranded_pct: Annotated[float, Field(ge=0, le=100)] = 5.0
    foreign_memory: SizeMib = 700
    foreign_busy_pct: Annotated[float, Field(ge=0, le=100)] = 2.0
    foreign_idle: Span = timedelta(minutes=30)
    foreign_gone: Span = timedelta(seconds=60)
    kernel_log: Annotated[Text, AfterValidator(_kernel_log)] = "auto"
    fence: Literal["off", "group"] = "off"
    health: GpuHealthSettings = GpuHealthSettings()


class JobSettings(Section):
    """What a job gets when it does not say."""

    max_time_limit: Span = timedelta(days=7)
    grace: Span = timedelta(seconds=60)
    cancel_grace: Span = timedelta(seconds=30)
    checkpoint_lead: Span = timedelta(seconds=120)
    leftover_grace: Span = timedelta(seconds=5)
    launch_deadline: Annotated[Span, Field(gt=timedelta(0))] = timedelta(seconds=60)
    max_threads: Annotated[int, Field(ge=1)] = 32768
    first_port: Annotated[int, Field(ge=1024, le=65535)] = 29600
    last_port: Annotated[int, Field(ge=1024, le=65535)] = 29999
    log_head: SizeMib = 16
    log_tail: SizeMib = 240
    cgroups: Literal["auto", "off"] = "auto"
    env: dict[str, Text] = {}


class HostSettings(Section):
    """What of the box all jobs together may have; 0 means worked out from the machine."""

    cpus: Annotated[int, Field(ge=0)] = 0
    memory: SizeMib = 0
    start_memory: SizeMib = 0


class QueueSettings(Section):
    """Second chances, and how much of the queue one pass looks at."""

    free_requeues: Annotated[int, Field(ge=0)] = 5
    requeue_delay: Span = timedelta(seconds=30)
    requeue_delay_max: Span = timedelta(minutes=10)
    neighbour_avoid: Span = timedelta(hours=1)
    checkpoint_requeues: Annotated[int, Field(ge=0)] = 100
    crash_loop_count: Annotated[int, Field(ge=1)] = 3
    crash_loop_within: Span = timedelta(minutes=1)
    launcher_retry: Span = timedelta(seconds=2)
    front: Annotated[int, Field(ge=1)] = 1000
    jobs_per_user: Annotated[int, Field(ge=1)] = 200_000


class ApiSettings(Section):
    """How long it remembers, how long it waits for a client, and how many it serves at once."""

    idempotency: Span = timedelta(hours=24)
    body_deadline: Span = timedelta(seconds=30)
    keepalive: Span = timedelta(seconds=30)
    heartbeat: Annotated[Span, Field(gt=timedelta(0))] = timedelta(seconds=15)
    stalled: Annotated[Span, Field(gt=timedelta(0))] = timedelta(seconds=30)
    connections: Annotated[int, Field(ge=1)] = 400
    failed_signins: Annotated[int, Field(ge=1)] = 10
    streams: Annotated[int, Field(ge=1)] = 256
    streams_per_caller: Annotated[int, Field(ge=1)] = 64


class AccessSettings(Section):
    """Whom a daemon for many serves: the group of its operators beside root, and the groups that
    may use it, all accounts where there are none.
    """

    operators: Text = "traind-admin"
    groups: Annotated[tuple[Text, ...], Field(strict=False)] = ()


class NightlySettings(Section):
    """When the database is backed up and what is old is removed."""

    at: Annotated[str, AfterValidator(_clock)] = "03:30"
    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"


class BackupSettings(Section):
    """How many backups stay: the newest of each day, and of each week."""

    daily: Annotated[int, Field(ge=1)] = 7
    weekly: Annotated[int, Field(ge=0)] = 4


class RetentionSettings(Section):
    """How long after its end something of an attempt, or of a job, stays; samples from when they
    were taken.
    """

    run_dirs: Span = timedelta(days=14)
    logs: Span = timedelta(days=90)
    samples_raw: Span = timedelta(days=7)
    samples_minutes: Span = timedelta(days=365)
    rows: Span = timedelta(days=365)


class Config(Section):
    """Everything that can be set, as config.toml has it."""

    daemon: DaemonSettings = DaemonSettings()
    host: HostSettings = HostSettings()
    gpus: GpuSettings = GpuSettings()
    jobs: JobSettings = JobSettings()
    queue: QueueSettings = QueueSettings()
    api: ApiSettings = ApiSettings()
    access: AccessSettings = AccessSettings()
    nightly: NightlySettings = NightlySettings()
    backups: BackupSettings = BackupSettings()
    retention: RetentionSettings = RetentionSettings()


def load(path: Path | None) -> Config:
    """The settings of a file, or the defaults without one.

    Raises StartupError 78 naming every wrong key at once.
    """
    if path is None:
        return Config()
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as wrong:
        raise StartupError(EXIT_CONFIG, f"{path} cannot be read: {wrong}") from None
    return check(raw, str(path))


def check(raw: Mapping[str, Any], source: str) -> Config:
    """The settings in `raw`. Raises StartupError 78 naming every wrong key at once."""
    try:
        config = Config.model_validate(raw)
    except ValidationError as failed:
        wrong = [f"  {error.field}: {error.message}" for error in _errors(failed)]
        raise StartupError(EXIT_CONFIG, "\n".join([f"{source} is refused:", *wrong])) from None
    if config.jobs.last_port < config.jobs.first_port:
        raise StartupError(EXIT_CONFIG, f"{source} is refused:\n  jobs.last_port: below first_port")
    return config


_WHOLE = frozenset({"jobs", "queue", "access", "nightly", "backups", "retention"})
_ALSO = {
    "daemon": {"log_level"},
    "gpus": {
        *("safety_mib", "safety_pct", "max_jobs", "ramp", "release_slack", "release_wait"),
        *("stranded_pct", "overrun_grace"),
        *("foreign_memory", "foreign_busy_pct", "foreign_idle", "foreign_gone", "health"),
    },
}
_AT_THE_START = {"jobs": {"cgroups"}, "queue": {"front"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload:
    """The settings after a reload; the keys that changed with it, and those that want a restart."""

    config: Config
    applied: tuple[str, ...]
    needs_restart: tuple[str, ...]


def reloaded(old: Config, new: Config) -> Reload:
    """The old settings with those of the new ones that may change while the daemon runs."""
    applied, needs_restart, sections = [], [], {}
    for section in Config.model_fields:
        before, after = getattr(old, section), getattr(new, section)
        fields = type(before).model_fields
        changed = {name for name in fields if getattr(before, name) != getattr(after, name)}
        allowed = set(fields) if section in _WHOLE else _ALSO.get(section, set())
        now = changed & (allowed - _AT_THE_START.get(section, set()))
        applied += [f"{section}.{name}" for name in sorted(now)]
        needs_restart += [f"{section}.{name}" for name in sorted(changed - now)]
        sections[section] = before.model_copy(update={name: getattr(after, name) for name in now})
    return Reload(
        config=old.model_copy(update=sections),
        applied=tuple(applied),
        needs_restart=tuple(needs_restart),
    )


def _errors(failed: ValidationError) -> list[Any]:
    sections = Config.model_fields
    models = [field.annotation for field in sections.values()]
    keys = [key for model in models if model is not None for key in model.model_fields]
    keys += GpuHealthSettings.model_fields
    return list(field_errors(failed, (*sections, *keys)))


def examine(file: str | None) -> tuple[int, str]:
    """(0, every setting as TOML with where it comes from), or (78, what is wrong in the file)."""
    path = Path(file) if file else None
    try:
        config = load(path)
    except StartupError as refused:
        return refused.exit_code, refused.sentence
    given = tomllib.loads(path.read_text(encoding="utf-8")) if path else {}
    lines: list[str] = []
    for name in Config.model_fields:
        lines += _examined(name, getattr(config, name), given.get(name, {}), file)
    return 0, "\n".join(lines[1:])


def _examined(name: str, section: Section, given: Mapping[str, Any], file: str | None) -> list[str]:
    """A section as it could be written in the file, with where each setting comes from."""
    lines, below = ["", f"[{name}]"], []
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, Section):
            below += _examined(f"{name}.{key}", value, given.get(key, {}), file)
            continue
        origin = file if key in given else "default"
        lines.append(f"{key + ' = ' + _toml(value, field):40}# {origin}")
    return lines + below


def _toml(value: object, field: FieldInfo) -> str:
    """A setting as it could be written in the file."""
    if isinstance(value, timedelta):
        text = f"{round(value.total_seconds() * 1000)}ms"
        whole = value.total_seconds().is_integer()
        return json.dumps(span_text(value.total_seconds()) if whole else text)
    if isinstance(value, dict):
        pairs = ", ".join(f"{json.dumps(k)} = {json.dumps(v)}" for k, v in value.items())
        return f"{{{pairs}}}"
    if any(getattr(rule, "func", None) is _size for rule in field.metadata):
        return json.dumps(f"{value}MiB")
    return json.dumps(value)
