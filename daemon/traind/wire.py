"""The shapes of every answer of the API: the same declarations give the JSON and its schema."""

import functools
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainSerializer, WithJsonSchema

from traind.advice import advice_on
from traind.causes import Cause
from traind.errors import FieldError
from traind.job import Attempt, HeldBy, Job, JobState, Outcome, Pause, WaitReason
from traind.jobspec import INSTANT_SCHEMA, JobSpec, instant_text

At = Annotated[
    datetime,
    PlainSerializer(instant_text, return_type=str),
    WithJsonSchema(INSTANT_SCHEMA, mode="serialization"),
]


class View(BaseModel):
    """An answer of the API, or a part of one."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CauseView(View):
    """Why an attempt ended as it did."""

    code: str
    detail: str


class ReasonView(View):
    """Why a job waits."""

    code: str
    detail: str
    facts: dict[str, Any]


class AllottedGpu(View):
    """A GPU that the last attempt has or had; `memory_mib` of it is the attempt's."""

    index: int
    uuid: str
    name: str
    memory_mib: int


class ProgressView(View):
    """How far the job says that it is."""

    step: float | None
    total: float | None


class JobView(JobSpec):
    """A job: its order in normal form, and where it stands. What is not known yet is null."""

    id: int
    array_id: int | None
    array_index: int | None
    user: str
    uid: int
    state: JobState
    outcome: Outcome | None
    cause: CauseView | None
    reason: ReasonView | None
    eta: At | None
    attempt: int
    submitted_at: At
    eligible_at: At
    started_at: At | None
    finished_at: At | None
    exit_code: int | None
    signal: str | None
    gpus_allotted: list[AllottedGpu]
    peak_gpu_memory_mib: int | None
    mean_gpu_busy_pct: float | None
    mean_cpu_pct: float | None
    peak_memory_mib: int | None
    gpu_seconds: float
    energy_wh: float | None
    advice: list[str]
    progress: ProgressView | None
    log_path: str | None
    held_by: HeldBy | None
    warnings: list[str]


class AttemptView(View):
    """One try at a job."""

    attempt: int
    claimed_at: At
    started_at: At | None
    ended_at: At | None
    outcome: Outcome | None
    cause: CauseView | None
    exit_code: int | None
    signal: str | None
    gpus_allotted: list[AllottedGpu]
    peak_gpu_memory_mib: int | None
    mean_gpu_busy_pct: float | None
    peak_memory_mib: int | None
    energy_wh: float | None
    log_path: str


class EventView(View):
    """One line of a job's history."""

    id: int
    job_id: int
    at: At
    event: str
    state: JobState
    facts: dict[str, Any]


class Attempts(View):
    """All attempts of a job, the first one first."""

    attempts: list[AttemptView]


class Events(View):
    """A part of a job's history, oldest first; `next` is null at its end."""

    events: list[EventView]
    next: str | None = None


class Why(View):
    """Why a job waits, or why it ended so; null where that does not apply."""

    id: int
    state: JobState
    reason: ReasonView | None
    cause: CauseView | None
    eta: At | None
    detail: str


class PauseView(View):
    """Who paused the queue, and since when."""

    by: str
    at: At


class Status(View):
    """The daemon itself."""

    version: str
    pid: int
    state_dir: str
    socket: str
    http: str | None
    started_at: At
    launcher_pid: int | None
    launcher_fault: str | None
    gpu_fault: str | None
    gpu_group: str | None
    gpus: int
    jobs: dict[str, int]
    paused: PauseView | None


class FieldProblem(View):
    """One refused field."""

    field: str
    message: str


class OpenApi(BaseModel):
    """The OpenAPI document."""

    openapi: str
    info: dict[str, str]
    paths: dict[str, Any]
    components: dict[str, Any]


class Problem(View):
    """An error, after RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldProblem] | None = None


def problem(
    status: int, title: str, detail: str, code: str, fields: tuple[FieldError, ...] = ()
) -> Problem:
    """The problem as the API answers it."""
    errors = [FieldProblem(field=f.field, message=f.message) for f in fields] or None
    return Problem(
        type=f"urn:traind:problem:{code}",
        title=title,
        status=status,
        detail=detail,
        code=code,
        errors=errors,
    )


def cause_view(cause: Cause | None) -> CauseView | None:
    """The cause as the API shows it."""
    return None if cause is None else CauseView(code=cause.code, detail=cause.detail)


def reason_view(reason: WaitReason | None) -> ReasonView | None:
    """The reason as the API shows it."""
    if reason is None:
        return None
    return ReasonView(code=reason.code, detail=reason.detail, facts=reason.facts)


def rounded(value: float | None, digits: int) -> float | None:
    """A figure with as many digits as mean something."""
    return None if value is None else round(value, digits)


def pause_view(pause: Pause | None) -> PauseView | None:
    """The pause as the API shows it."""
    return None if pause is None else PauseView(by=pause.by, at=pause.at)


def allotted(of: Job | Attempt) -> list[AllottedGpu]:
    """The GPUs of an attempt, or of a job's last one."""
    return [
        AllottedGpu(
            index=lease.gpu_index,
            uuid=lease.gpu_uuid,
            name=lease.gpu_name,
            memory_mib=lease.memory_mib,
        )
        for lease in of.leases
    ]


def warnings_of(spec: JobSpec, *, box_gpus: int) -> list[str]:
    """What its owner may not have meant."""
    warnings = []
    if spec.gpus == 0 and box_gpus:
        warnings.append("gpus is 0: this job sees no GPU; ask for them with gpus")
    if spec.gpus and spec.gpu_memory_mib is not None and not spec.exclusive:
        warnings.append(
            "gpu_memory is given, so it may share its GPUs with other jobs; "
            "exclusive gives it GPUs to itself"
        )
    return warnings


@functools.cache
def _blank() -> JobView:
    """A view without a field, to be copied: to construct one takes five times as long."""
    return JobView.model_construct()


def job_view(
    job: Job,
    *,
    reason: WaitReason | None,
    progress: tuple[float | None, float | None],
    box_gpus: int,
    box_cores: int,
    home: str | None,
) -> JobView:
    """The job as the API shows it. `home` is that of whom it runs as, None where that is not
    known; id 0: it has none yet.
    """
    step, total = progress
    use = job.gpu_use
    told = step is not None or total is not None
    fields = {
        **vars(job.spec),
        "checkpoint_dir": job.spec.checkpoint_dir
        or (f"{home}/traind/{job.id}" if job.id and home else None),
        "hold": job.held_by is not None,
        "priority": job.priority,
        "id": job.id,
        "array_id": job.array_id,
        "array_index": job.array_index,
        "user": job.user,
        "uid": job.uid,
        "state": job.state,
        "outcome": job.outcome,
        "cause": cause_view(job.cause),
        "reason": reason_view(reason),
        "eta": None,
        "attempt": job.attempt,
        "submitted_at": job.submitted_at,
        "eligible_at": job.eligible_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "exit_code": job.exit_code,
        "signal": job.signal,
        "gpus_allotted": allotted(job),
        "peak_gpu_memory_mib": use.peak_memory_mib,
        "mean_gpu_busy_pct": rounded(use.mean_busy_pct, 1),
        "mean_cpu_pct": rounded(job.mean_cpu_pct, 1),
        "peak_memory_mib": job.peak_memory_mib,
        "gpu_seconds": round(job.gpu_seconds, 3),
        "energy_wh": rounded(use.energy_wh, 3),
        "advice": advice_on(job, cores=box_cores),
        "progress": ProgressView(step=step, total=total) if told else None,
        "log_path": job.log_path,
        "held_by": job.held_by,
        "warnings": [*job.warnings, *warnings_of(job.spec, box_gpus=box_gpus)],
    }
    return _blank().model_copy(update=fields)


def attempt_view(attempt: Attempt) -> AttemptView:
    """The attempt as the API shows it."""
    return AttemptView(
        attempt=attempt.number,
        claimed_at=attempt.claimed_at,
        started_at=attempt.started_at,
        ended_at=attempt.ended_at,
        outcome=attempt.outcome,
        cause=cause_view(attempt.cause),
        exit_code=attempt.exit_code,
        signal=attempt.signal,
        gpus_allotted=allotted(attempt),
        peak_gpu_memory_mib=attempt.gpu_use.peak_memory_mib,
        mean_gpu_busy_pct=rounded(attempt.gpu_use.mean_busy_pct, 1),
        peak_memory_mib=attempt.peak_memory_mib,
        energy_wh=rounded(attempt.gpu_use.energy_wh, 3),
        log_path=attempt.log_path,
    )
