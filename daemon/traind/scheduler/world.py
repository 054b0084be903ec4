"""What a plan is made of: the world it looks at, and the decisions it holds. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from traind.gpu import Gpu, GpuReading
from traind.job import Pause, Request, WaitReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """One open lease: who holds how much of which GPU, and what is seen of it.

    `observed_mib` is what its processes use there now, `peak_mib` the most that they were seen to
    use before; `started_at` is None while it starts, `cleaning` when its attempt is over and its
    memory is awaited back. `kept_by` says what keeps it when that takes long.
    """

    gpu_uuid: str
    job_id: int
    user: str
    memory_mib: int
    exclusive: bool
    observed_mib: int = 0
    peak_mib: int = 0
    started_at: datetime | None = None
    cleaning: bool = False
    kept_by: str | None = None

    @property
    def seen_mib(self) -> int:
        """The most that was ever seen of it."""
        return max(self.observed_mib, self.peak_mib)

    @property
    def reserved_mib(self) -> int:
        """What is kept for it: what it used once it may use again."""
        return max(self.memory_mib, self.seen_mib)


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """What one starting, running or stopping job takes of the host."""

    job_id: int
    gpus: int
    cpus: int | None
    memory_mib: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the box gives to all jobs together: cores for CPU-only jobs, MiB of memory.

    `available_mib` is the memory that nobody uses now, None where it is not known; `start_mib` of
    it must be there for a GPU job that declares none.
    """

    cpus: int
    memory_mib: int
    start_mib: int = 0
    available_mib: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingPolicy:
    """How GPUs are shared; MiB, percent, seconds."""

    safety_mib: int
    safety_pct: float
    max_jobs: int
    ramp_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything a plan depends on.

    `readings` are those of the GPUs that answer or once answered, healthy or not;
    `unhealthy` gives, by UUID, the sentence why nothing new may start there, `apart` why no job of
    several GPUs may; `suspect` GPUs are given out last;
    `gpu_fault` is the sentence why no reading comes at all, `launcher_fault` why nothing starts.
    `pause` lets nothing start at all.
    `foreign` gives by UUID a sentence of whose memory keeps it from exclusive use, `others` who
    holds memory there that is of no job, in words.
    """

    now: datetime
    host: Host
    policy: SharingPolicy
    readings: tuple[GpuReading, ...] = ()
    unhealthy: Mapping[str, str] = field(default_factory=dict)
    apart: Mapping[str, str] = field(default_factory=dict)
    suspect: frozenset[str] = frozenset()
    foreign: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)
    holdings: tuple[Holding, ...] = ()
    owners: tuple[Owner, ...] = ()
    waiting: tuple[Request, ...] = ()
    gpu_fault: str | None = None
    launcher_fault: str | None = None
    pause: Pause | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a start gives of one GPU: `memory_mib` of it, all of it when `exclusive`.

    Of what is in use there before, `baseline_mib` is not of jobs, `unlisted_mib` of no process.
    """

    gpu: Gpu
    memory_mib: int
    exclusive: bool
    baseline_mib: int
    unlisted_mib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Start this job on these GPUs now."""

    job_id: int
    grants: tuple[Grant, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Starts in order, a reason for every job that waits, and when to think again at the latest.

    `wake_at` is None when only an event can change anything. `blocked` gives for all that asks the
    same the first request of it that waits, and why those wait that come behind it.
    """

    starts: tuple[Start, ...]
    reasons: Mapping[int, WaitReason]
    wake_at: datetime | None
    blocked: Mapping[object, tuple[Request, WaitReason]] = field(default_factory=dict)
