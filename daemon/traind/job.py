"""What a job is: the order, where it stands, and each try at it.

State is where it stands, outcome how it ended, cause why an attempt ended so, reason why it waits.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from traind.causes import Cause
from traind.jobspec import JobSpec


class JobState(StrEnum):
    """Where a job stands. `starting`, `running` and `stopping` own GPUs."""

    HELD = "held"
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FINISHED = "finished"


OWNING = frozenset({JobState.STARTING, JobState.RUNNING, JobState.STOPPING})


class Outcome(StrEnum):
    """How a job, or one attempt of it, ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    GPU_FAULT = "gpu_fault"
    LAUNCH_FAILED = "launch_failed"
    DEPENDENCY_FAILED = "dependency_failed"
    LOST = "lost"


class WaitCode(StrEnum):
    """Why a job waits."""

    RESOURCES = "resources"
    PRIORITY = "priority"
    DEPENDENCY = "dependency"
    BEGIN_TIME = "begin_time"
    BACKOFF = "backoff"
    HELD = "held"
    QUOTA = "quota"
    ARRAY_LIMIT = "array_limit"
    RESERVATION = "reservation"
    MAINTENANCE = "maintenance"
    PAUSED = "paused"
    GPU_FOREIGN = "gpu_foreign"
    GPU_UNHEALTHY = "gpu_unhealthy"
    GPU_CLEANING = "gpu_cleaning"
    GPU_MONITOR = "gpu_monitor"
    LAUNCHER = "launcher"
    CRASH_LOOP = "crash_loop"


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitReason:
    """Why a job waits: a code, a sentence naming jobs, people and times, and the facts of it."""

    code: WaitCode
    detail: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Who let nothing start any more, and since when."""

    by: str
    at: datetime

    @property
    def reason(self) -> WaitReason:
        """Why jobs wait meanwhile."""
        detail = (
            f"the queue is paused: {self.by} unplugged the box; `traind unplug --resume` ends it"
        )
        return WaitReason(code=WaitCode.PAUSED, detail=detail, facts={"by": self.by})


class StopReason(StrEnum):
    """Why a running job is being stopped; a stronger one replaces a weaker (see `strength`)."""

    PREEMPTION = "preemption"
    TIME_LIMIT = "time_limit"
    OVERRUN = "overrun"
    GPU_FAULT = "gpu_fault"
    REQUEUE = "requeue"
    UNPLUG = "unplug"
    CANCEL = "cancel"

    @property
    def strength(self) -> int:
        """The higher number wins."""
        return list(StopReason).index(self)


class HeldBy(StrEnum):
    """Who holds a job; a user releases only their own holds."""

    USER = "user"
    OPERATOR = "operator"
    SYSTEM = "system"


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchError:
    """Why a command could not be exec'ed: the step that failed, errno, and a sentence."""

    step: str
    errno: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How the main process of an attempt ended, as its shim wrote it down.

    Exactly one of `exit_code`, `signal` (a name without SIG) and `launch_error` is not None.
    `run_s` is the time from exec to the end of everything, in seconds of CLOCK_BOOTTIME.
    `peak_memory_mib` is None where nothing measured it. `oom_kills` are processes that the kernel
    ended for host memory, `oom_at_limit` says that it was at the job's own limit.
    """

    exit_code: int | None = None
    signal: str | None = None
    launch_error: LaunchError | None = None
    ended_at: datetime
    run_s: float
    peak_memory_mib: int | None = None
    oom_kills: int = 0
    oom_at_limit: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """An attempt whose exit nobody knows: its shim is gone, or the machine was restarted."""

    reboot: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NeverStarted:
    """An attempt that provably never exec'ed anything, and why."""

    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What an attempt holds of one GPU: `memory_mib` of it, or all of it when `exclusive`.

    `baseline_mib` is the memory that was in use there before, `unlisted_mib` what of it was of no
    process, `peak_mib` the most that the attempt was seen to use, `busiest_pct` the most that the
    GPU was seen to be busy meanwhile, None where it did not say. `state` is held, cleaning or
    released.
    """

    gpu_uuid: str
    gpu_index: int
    gpu_name: str
    memory_mib: int
    exclusive: bool
    baseline_mib: int
    unlisted_mib: int = 0
    peak_mib: int = 0
    state: str = "held"
    busiest_pct: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUse:
    """What was seen to be taken of GPUs, as far as they were read; None where they did not say.

    `peak_memory_mib` is the most on any one of them, `mean_busy_pct` over all of them. `energy_wh`
    is the power of the GPUs over the time it was read in, so what was used while no daemon ran is
    missing; the power of a shared GPU is split by the memory that each job has there.
    """

    peak_memory_mib: int | None = None
    mean_busy_pct: float | None = None
    energy_wh: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try at a job, counted from 1. What is not known yet is None.

    `started_boottime_s` is CLOCK_BOOTTIME at its start, valid within `boot_id`.
    """

    id: int
    job_id: int
    number: int
    supervision: str
    boot_id: str
    claimed_at: datetime
    started_at: datetime | None
    started_boottime_s: float | None
    ended_at: datetime | None
    outcome: Outcome | None
    cause: Cause | None
    exit_code: int | None
    signal: str | None
    port: int | None
    log_path: str
    peak_memory_mib: int | None
    gpu_use: GpuUse
    leases: tuple[Lease, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a job has used of its second chances.

    `free` requeues, `retries` it asked for, `checkpoints` (exit code 75), and `quick` ones of
    these in a row, each within a minute of its start.
    """

    free: int = 0
    retries: int = 0
    checkpoints: int = 0
    quick: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StopOrder:
    """Why and how a job is being stopped; steps that were taken survive a restart in `stage`.

    Stages: 0 nothing yet, 1 stop file and checkpoint signal, 2 SIGTERM, 3 SIGKILL.
    `hold`: who holds the job once it is requeued, None when it is to be queued. `detail` says of a
    GPU fault, or of an overrun, what it was.
    """

    reason: StopReason
    by: str | None
    asked_at: datetime
    term_at: datetime
    kill_at: datetime
    stage: int
    hold: HeldBy | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as the store has it. `attempt` counts the attempts begun; `version` its changes.

    `signals` are names without SIG that its processes are still to get, in their order; `warnings`
    what its owner is to know of how the order was read, and of its GPUs while it ran. `gpu_use` is
    the last attempt's, but its energy that of all attempts; `mean_cpu_pct`, of one core, is the
    last one's, too, and `samples` is how many were taken of it. `avoid` are UUIDs of GPUs that
    failed under it, which it does not get before `avoid_until`.
    """

    id: int
    array_id: int | None
    array_index: int | None
    user: str
    uid: int
    spec: JobSpec
    state: JobState
    outcome: Outcome | None
    cause: Cause | None
    hold: WaitReason | None
    held_by: HeldBy | None
    stop: StopOrder | None
    signals: tuple[str, ...]
    attempt: int
    budget: Budget
    priority: int
    submitted_at: datetime
    eligible_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    exit_code: int | None
    signal: str | None
    peak_memory_mib: int | None
    gpu_seconds: float
    progress_step: float | None
    progress_total: float | None
    log_path: str | None
    gpu_use: GpuUse = GpuUse()
    mean_cpu_pct: float | None = None
    samples: int = 0
    leases: tuple[Lease, ...]
    version: int
    warnings: tuple[str, ...] = ()
    avoid: frozenset[str] = frozenset()
    avoid_until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a job asks of the box, as the scheduler sees it.

    `gpu_memory_mib` None or `exclusive`: GPUs to itself. `avoid` are UUIDs it failed on, to be
    kept from it before `avoid_until` (None: always).
    `delay` is the code to show while `eligible_at` is ahead.
    """

    job_id: int
    user: str
    priority: int
    eligible_at: datetime
    delay: WaitCode = WaitCode.BEGIN_TIME
    gpus: int = 0
    gpu_memory_mib: int | None = None
    exclusive: bool = False
    gpu_type: str | None = None
    gpu_min_memory_mib: int | None = None
    gpu_ids: tuple[str, ...] = ()
    gpu_exclude: tuple[str, ...] = ()
    cpus: int | None = None
    memory_mib: int | None = None
    avoid: frozenset[str] = frozenset()
    avoid_until: datetime | None = None


class Lane(NamedTuple):
    """Jobs that wait behind each other: of one person, one band, with or without GPUs."""

    user: str
    priority: int
    with_gpus: bool


def lane_of(job: Job) -> Lane:
    """The lane a queued job waits in."""
    return Lane(job.user, job.priority, job.spec.gpus > 0)


def request_of(job: Job) -> Request:
    """What a queued job asks of the box."""
    spec = job.spec
    return Request(
        job_id=job.id,
        user=job.user,
        priority=job.priority,
        eligible_at=job.eligible_at,
        delay=WaitCode.BEGIN_TIME if job.eligible_at == spec.begin_at else WaitCode.BACKOFF,
        gpus=spec.gpus,
        gpu_memory_mib=spec.gpu_memory_mib,
        exclusive=spec.exclusive,
        gpu_type=spec.gpu_type,
        gpu_min_memory_mib=spec.gpu_min_memory_mib,
        gpu_ids=spec.gpu_ids,
        gpu_exclude=spec.gpu_exclude,
        cpus=spec.cpus,
        memory_mib=spec.memory_mib,
        avoid=job.avoid,
        avoid_until=job.avoid_until,
    )
