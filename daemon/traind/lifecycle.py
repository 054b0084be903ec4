"""The state machine of a job: one table of legal moves, and what follows from an ending. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from traind.causes import CauseCode
from traind.errors import ErrorCode, TraindError
from traind.job import (
    Budget,
    HeldBy,
    Job,
    JobState,
    StopOrder,
    StopReason,
    WaitCode,
    WaitReason,
)
from traind.jobspec import JobSpec, Retry
from traind.verdict import Verdict


class JobEvent(StrEnum):
    """What may happen to a job."""

    HOLD = "hold"
    RELEASE = "release"
    CLAIM = "claim"
    STARTED = "started"
    STOP = "stop"
    FINISH = "finish"
    REQUEUE = "requeue"


_S, _E = JobState, JobEvent

TRANSITIONS: Mapping[JobState, Mapping[JobEvent, tuple[JobState, ...]]] = {
    _S.HELD: {_E.HOLD: (_S.HELD,), _E.RELEASE: (_S.QUEUED,), _E.FINISH: (_S.FINISHED,)},
    _S.QUEUED: {_E.HOLD: (_S.HELD,), _E.CLAIM: (_S.STARTING,), _E.FINISH: (_S.FINISHED,)},
    _S.STARTING: {
        _E.STARTED: (_S.RUNNING,),
        _E.STOP: (_S.STOPPING,),
        _E.FINISH: (_S.FINISHED,),
        _E.REQUEUE: (_S.QUEUED, _S.HELD),
    },
    _S.RUNNING: {
        _E.STOP: (_S.STOPPING,),
        _E.FINISH: (_S.FINISHED,),
        _E.REQUEUE: (_S.QUEUED, _S.HELD),
    },
    _S.STOPPING: {
        _E.STOP: (_S.STOPPING,),
        _E.FINISH: (_S.FINISHED,),
        _E.REQUEUE: (_S.QUEUED, _S.HELD),
    },
    _S.FINISHED: {_E.REQUEUE: (_S.QUEUED, _S.HELD)},
}
"""Where each event leads; two targets where the facts say whether it is held."""


def after(state: JobState, event: JobEvent, *, held: bool = False) -> JobState:
    """The state that `event` leads to. Raises CONFLICT where the table has no such move."""
    targets = TRANSITIONS[state].get(event)
    if targets is None:
        raise TraindError(ErrorCode.CONFLICT, f"{_REFUSED[event].format(state)}{_hint(state)}")
    return targets[1] if held and len(targets) > 1 else targets[0]


_REFUSED: Mapping[JobEvent, str] = {
    _E.HOLD: "a {} job cannot be held",
    _E.RELEASE: "a {} job cannot be released",
    _E.CLAIM: "a {} job cannot be claimed",
    _E.STARTED: "a {} job cannot have started",
    _E.STOP: "a {} job cannot be stopped",
    _E.FINISH: "a {} job cannot finish",
    _E.REQUEUE: "a {} job cannot be requeued",
}


def _hint(state: JobState) -> str:
    """What works instead, as people ask for it."""
    match state:
        case JobState.STARTING | JobState.RUNNING:
            return "; requeue with hold stops it and holds it (traind requeue --hold)"
        case JobState.STOPPING:
            return "; wait until it has stopped"
        case JobState.HELD | JobState.QUEUED:
            return "; it waits: hold, release, change or cancel it"
        case JobState.FINISHED:
            return "; requeue it, or rerun it as a new job"


def hold_reason(by: str) -> WaitReason:
    """Why a job waits that a person holds."""
    return WaitReason(code=WaitCode.HELD, detail=f"it is held by {by} until it is released")


def submitted(job_id: int, spec: JobSpec, *, user: str, uid: int, now: datetime) -> Job:
    """The job that an order becomes: queued, or held where the order says so."""
    return Job(
        id=job_id,
        array_id=None,
        array_index=None,
        user=user,
        uid=uid,
        spec=spec.model_copy(update={"hold": False}) if spec.hold else spec,
        state=JobState.HELD if spec.hold else JobState.QUEUED,
        outcome=None,
        cause=None,
        hold=hold_reason(user) if spec.hold else None,
        held_by=HeldBy.USER if spec.hold else None,
        stop=None,
        signals=(),
        attempt=0,
        budget=Budget(),
        priority=spec.priority,
        submitted_at=now,
        eligible_at=spec.begin_at or now,
        started_at=None,
        finished_at=None,
        exit_code=None,
        signal=None,
        peak_memory_mib=None,
        gpu_seconds=0.0,
        progress_step=None,
        progress_total=None,
        log_path=None,
        leases=(),
        version=1,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The job is over."""

    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Requeue:
    """The job goes back into the queue, or is held by somebody with a reason.

    `avoid_until`: how long it is kept from the GPUs that failed under it.
    """

    verdict: Verdict
    budget: Budget
    eligible_at: datetime
    avoid_until: datetime | None = None
    hold: WaitReason | None = None
    held_by: HeldBy = HeldBy.SYSTEM


@dataclass(frozen=True, slots=True, kw_only=True)
class RequeuePolicy:
    """The box's rules for second chances."""

    free_max: int
    free_delay: timedelta
    free_delay_max: timedelta
    never_started_delay: timedelta
    checkpoint_max: int
    crash_loop_count: int
    crash_loop_within: timedelta
    avoid_for: timedelta
    neighbour_avoid: timedelta


_NOT_ITS_FAULT = frozenset(
    {
        *(CauseCode.REBOOT, CauseCode.GPU_FAULT, CauseCode.CUDA_DRIVER),
        *(CauseCode.CUDA_OOM_NEIGHBOUR, CauseCode.PORT_IN_USE),
    }
)
"""What the machine or a neighbour did: the job comes back free of charge."""


def settle(
    job: Job, verdict: Verdict, *, now: datetime, ran: timedelta, policy: RequeuePolicy
) -> Finish | Requeue:
    """What becomes of the job: over, back in the queue, or held. `ran` is the attempt's length."""
    budget, code = job.budget, verdict.cause.code
    if code is CauseCode.CANCELLED_BY:
        return Finish(verdict=verdict)
    if code is CauseCode.REQUEUED_BY:
        return _requeued(job, verdict, now=now)
    if code is CauseCode.PREEMPTED:
        return Requeue(verdict=verdict, budget=budget, eligible_at=now)
    if code is CauseCode.NEVER_STARTED:
        eligible_at = now + policy.never_started_delay
        return Requeue(verdict=verdict, budget=budget, eligible_at=eligible_at)
    if code is CauseCode.UNPLUGGED:
        hold = WaitReason(code=WaitCode.HELD, detail="the box was unplugged; release it to go on")
        return Requeue(verdict=verdict, budget=budget, eligible_at=now, hold=hold)
    if code is CauseCode.CHECKPOINTED and budget.checkpoints < policy.checkpoint_max:
        return _run_again(verdict, budget, now=now, ran=ran, policy=policy)
    if code in _NOT_ITS_FAULT and job.spec.requeue and budget.free < policy.free_max:
        delay = min(policy.free_delay * 2**budget.free, policy.free_delay_max)
        spent = replace(budget, free=budget.free + 1)
        sick = code is not CauseCode.CUDA_OOM_NEIGHBOUR
        avoid_for = policy.avoid_for if sick else policy.neighbour_avoid
        avoid_until = now + avoid_for if verdict.faulty else None
        return Requeue(
            verdict=verdict, budget=spent, eligible_at=now + delay, avoid_until=avoid_until
        )
    retry = job.spec.retry
    if retry is not None and verdict.outcome in retry.on and budget.retries < retry.max:
        return _retried(verdict, budget, retry, now=now, ran=ran, policy=policy)
    return Finish(verdict=verdict)


def _retried(
    verdict: Verdict,
    budget: Budget,
    retry: Retry,
    *,
    now: datetime,
    ran: timedelta,
    policy: RequeuePolicy,
) -> Requeue:
    wait = min(retry.delay_s * retry.backoff ** min(budget.retries, 60), 30 * 86400.0)
    spent = replace(budget, retries=budget.retries + 1)
    again = Requeue(verdict=verdict, budget=spent, eligible_at=now + timedelta(seconds=wait))
    return _held_in_a_loop(again, "it failed {} times in a row", ran=ran, policy=policy)


def _requeued(job: Job, verdict: Verdict, *, now: datetime) -> Requeue:
    """A person's requeue: all second chances afresh, queued or held by whom it says."""
    order = job.stop
    if order is None or order.hold is None:
        return Requeue(verdict=verdict, budget=Budget(), eligible_at=now)
    hold = hold_reason(order.by or order.hold)
    return Requeue(verdict=verdict, budget=Budget(), eligible_at=now, hold=hold, held_by=order.hold)


def _run_again(
    verdict: Verdict, budget: Budget, *, now: datetime, ran: timedelta, policy: RequeuePolicy
) -> Requeue:
    spent = replace(budget, checkpoints=budget.checkpoints + 1)
    again = Requeue(verdict=verdict, budget=spent, eligible_at=now)
    said = "it asked {} times in a row to be run again"
    return _held_in_a_loop(again, said, ran=ran, policy=policy)


def _held_in_a_loop(again: Requeue, said: str, *, ran: timedelta, policy: RequeuePolicy) -> Requeue:
    """The same, or held where too many attempts in a row were over as soon as they had begun."""
    quick = again.budget.quick + 1 if ran < policy.crash_loop_within else 0
    if quick < policy.crash_loop_count:
        return replace(again, budget=replace(again.budget, quick=quick))
    within = f"{policy.crash_loop_within.total_seconds():.0f} s"
    detail = f"{said.format(quick)}, each within {within} of its start; mend it, then release it"
    hold = WaitReason(code=WaitCode.CRASH_LOOP, detail=detail)
    return replace(again, budget=replace(again.budget, quick=0), hold=hold)


def stop_order(
    spec: JobSpec,
    reason: StopReason,
    *,
    by: str | None,
    now: datetime,
    grace: timedelta,
    lead: timedelta,
    at_once: bool = False,
    hold: HeldBy | None = None,
) -> StopOrder:
    """When each step of the stop protocol is due. `grace`, `lead`: where the job does not say."""
    if at_once:
        return StopOrder(reason=reason, by=by, asked_at=now, term_at=now, kill_at=now, stage=0)
    if spec.checkpoint_signal is None:
        lead = timedelta(0)
    elif spec.checkpoint_lead_s is not None:
        lead = timedelta(seconds=spec.checkpoint_lead_s)
    if spec.grace_s is not None:
        grace = timedelta(seconds=spec.grace_s)
    term_at = now + lead
    return StopOrder(
        reason=reason,
        by=by,
        asked_at=now,
        term_at=term_at,
        kill_at=term_at + grace,
        stage=0,
        hold=hold,
    )


def unplug_order(
    spec: JobSpec, *, by: str, now: datetime, grace: timedelta, lead: timedelta | None
) -> StopOrder:
    """When each step of the stop protocol is due as everything is stopped: what the operator says
    outweighs the job's own grace. `lead` None: no time for checkpoints, whoever asked for it.
    """
    if spec.checkpoint_signal is None or lead is None:
        lead = timedelta(0)
    elif spec.checkpoint_lead_s is not None:
        lead = timedelta(seconds=spec.checkpoint_lead_s)
    term_at = now + lead
    return StopOrder(
        reason=StopReason.UNPLUG,
        by=by,
        asked_at=now,
        term_at=term_at,
        kill_at=term_at + grace,
        stage=0,
    )
