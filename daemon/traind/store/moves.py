"""What may be done to a job, as values: each names its event and carries the facts of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from traind.job import HeldBy, Request, StopOrder, WaitReason
from traind.jobspec import JobSpec
from traind.lifecycle import Finish, JobEvent, Requeue


@dataclass(frozen=True, slots=True, kw_only=True)
class NewLease:
    """What a claim takes of one GPU; MiB. `baseline_mib` and `unlisted_mib` as in a lease."""

    gpu_uuid: str
    gpu_index: int
    gpu_name: str
    memory_mib: int
    exclusive: bool
    baseline_mib: int
    unlisted_mib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A new attempt with its leases, committed before any process of it exists.

    `request` is what it was planned for: a job that asks for something else by now is not claimed.
    """

    request: Request
    leases: tuple[NewLease, ...]
    boot_id: str
    ports: range
    run_dirs: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The attempt's shim lives; `boottime_s` is CLOCK_BOOTTIME at its start."""

    boottime_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """An order to stop, by somebody or something."""

    order: StopOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """An attempt is over, or a waiting job is: what becomes of the job, and what was measured.

    `run_s` is None where nothing ran; `progress` is (step, total) as the job last told.
    """

    settled: Finish | Requeue
    run_s: float | None = None
    peak_memory_mib: int | None = None
    progress: tuple[float | None, float | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Keep a waiting job from starting."""

    by: HeldBy
    reason: WaitReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Let a held job wait for its turn again, not before `eligible_at`."""

    eligible_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """A person's requeue of a finished job: queued, or held by whom `hold` says."""

    by: str
    eligible_at: datetime
    hold: Hold | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Amend:
    """A changed order; the job stays where it stands. `eligible_at` None: as it was."""

    by: str
    spec: JobSpec
    eligible_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """A signal (a name without SIG) that all processes of a running job are to get."""

    by: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something that the owner of a running job is to know: an event of this name with its facts,
    and a sentence among the job's warnings.
    """

    event: str
    sentence: str
    facts: Mapping[str, Any]


Move = Claim | Started | Stop | Ended | Hold | Release | Again | Amend | Signal | Notice


def event_of(move: Move) -> JobEvent | None:
    """The event of the state machine that a move is."""
    match move:
        case Amend() | Signal() | Notice():
            return None
        case Claim():
            return JobEvent.CLAIM
        case Started():
            return JobEvent.STARTED
        case Stop():
            return JobEvent.STOP
        case Ended(settled=Finish()):
            return JobEvent.FINISH
        case Ended() | Again():
            return JobEvent.REQUEUE
        case Hold():
            return JobEvent.HOLD
        case Release():
            return JobEvent.RELEASE
