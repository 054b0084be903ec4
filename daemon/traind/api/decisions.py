"""What a wish for a job means, given how the job stands: moves for the store. Nothing is done."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from traind.api.context import Caller
from traind.causes import Cause, CauseCode
from traind.config import JobSettings
from traind.errors import ErrorCode, FieldError, TraindError
from traind.job import (
    OWNING,
    HeldBy,
    Job,
    JobState,
    Outcome,
    StopReason,
    WaitCode,
)
from traind.jobspec import JobSpec, changed_fields, patch_spec
from traind.lifecycle import Finish, hold_reason, stop_order
from traind.store.moves import Again, Amend, Ended, Hold, Move, Release, Signal, Stop
from traind.verdict import Verdict

Moves = Sequence[Move]
Refusals = Callable[[JobSpec], Sequence[FieldError]]
WAITING = frozenset({JobState.HELD, JobState.QUEUED})
WHILE_IT_RUNS = ("name", "labels", "priority", "time_limit_s")
"""The fields of a started job that may change."""

WHAT_RUNS = frozenset(
    {
        *("command", "argv", "script", "script_args", "shell", "workdir", "env", "python_env"),
        "checkpoint_dir",
    }
)
"""The fields that say what is done in the owner's name, and where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Who wishes something when, and the box's rules for it."""

    who: Caller
    now: datetime
    rules: JobSettings

    @property
    def holder(self) -> str:
        """The name that holds, causes and the history bear."""
        return self.who.user

    def check_owner(self, job: Job) -> None:
        """Raises FORBIDDEN for somebody else's job, unless an operator asks."""
        self.who.check_sees(job)

    def check_person(self, job: Job, changed: Sequence[str]) -> None:
        """Raises FORBIDDEN for changes by which somebody else would act in the owner's name."""
        theirs = [name for name in changed if name in WHAT_RUNS]
        if theirs and self.who.uid != job.uid:
            raise TraindError(
                ErrorCode.FORBIDDEN,
                f"job {job.id} runs as {job.user}, who alone may change {', '.join(theirs)}",
            )

    def held_by(self, job: Job) -> HeldBy:
        """As whom the caller holds this job."""
        return HeldBy.USER if self.who.uid == job.uid else HeldBy.OPERATOR


def _conflict(sentence: str) -> TraindError:
    return TraindError(ErrorCode.CONFLICT, sentence)


def cancel(job: Job, wish: Wish, *, at_once: bool) -> Moves:
    """The end of a job that waits, an order to stop for one that runs, nothing for an ended one."""
    wish.check_owner(job)
    if job.state is JobState.FINISHED:
        return ()
    if job.state in WAITING:
        detail = f"it was cancelled by {wish.holder}"
        cause = Cause(code=CauseCode.CANCELLED_BY, detail=detail)
        verdict = Verdict(outcome=Outcome.CANCELLED, cause=cause)
        return (Ended(settled=Finish(verdict=verdict)),)
    return (_stop(job, StopReason.CANCEL, wish, at_once=at_once),)


def _stop(
    job: Job,
    reason: StopReason,
    wish: Wish,
    *,
    at_once: bool = False,
    hold: HeldBy | None = None,
) -> Stop:
    order = stop_order(
        job.spec,
        reason,
        by=wish.holder,
        now=wish.now,
        grace=wish.rules.cancel_grace,
        lead=wish.rules.checkpoint_lead,
        at_once=at_once,
        hold=hold,
    )
    return Stop(order=order)


def hold(job: Job, wish: Wish) -> Moves:
    """A hold, in place of a weaker one. A job that was started raises CONFLICT in the store."""
    wish.check_owner(job)
    by = wish.held_by(job)
    if job.held_by is HeldBy.OPERATOR or job.held_by is by:
        return ()
    return (Hold(by=by, reason=hold_reason(wish.holder)),)


def release(job: Job, wish: Wish) -> Moves:
    """The end of a hold. A user ends their own, and the one of a crash loop of their own job.

    Nothing for a job that is not held. Raises FORBIDDEN for holds of others.
    """
    wish.check_owner(job)
    if job.state is not JobState.HELD:
        return ()
    crashed = job.hold is not None and job.hold.code is WaitCode.CRASH_LOOP
    if job.held_by is not HeldBy.USER and not crashed and not wish.who.operator:
        raise TraindError(
            ErrorCode.FORBIDDEN,
            f"job {job.id} is held by the {job.held_by}; an operator can release it",
        )
    return (Release(eligible_at=max(wish.now, job.spec.begin_at or wish.now)),)


def requeue(job: Job, wish: Wish, *, held: bool) -> Moves:
    """The job in the queue again, or held: at once when it is finished, else once it stopped."""
    wish.check_owner(job)
    by = wish.held_by(job) if held else None
    if job.state in WAITING:
        raise _conflict(
            f"job {job.id} is {job.state} and waits for its turn already; hold, release, change "
            "or cancel it"
        )
    if job.state is JobState.FINISHED:
        reason = hold_reason(wish.holder)
        again = None if by is None else Hold(by=by, reason=reason)
        return (Again(by=wish.holder, eligible_at=wish.now, hold=again),)
    known = job.stop
    if known is not None and known.reason.strength > StopReason.REQUEUE.strength:
        raise _conflict(
            f"job {job.id} is being stopped ({known.reason}); requeue it once it has stopped"
        )
    return (_stop(job, StopReason.REQUEUE, wish, hold=by),)


def send_signal(job: Job, wish: Wish, *, name: str) -> Moves:
    """A signal to all processes of a running job."""
    wish.check_owner(job)
    if job.state is not JobState.RUNNING:
        raise _conflict(f"job {job.id} is {job.state}; only a running job takes signals")
    return (Signal(by=wish.holder, name=name),)


def rerun(job: Job, wish: Wish, *, refusals: Refusals) -> JobSpec:
    """The order for a copy of the job, as good as a new one. Raises INVALID, FORBIDDEN."""
    wish.check_owner(job)
    _check(job.spec, wish, refusals)
    return job.spec


def change(job: Job, patch: Mapping[str, Any], wish: Wish, *, refusals: Refusals) -> Moves:
    """A changed order and what it says of holding. `refusals`: what the box can never give.

    Raises INVALID for bad fields, CONFLICT for what the job's state does not allow.
    """
    wish.check_owner(job)
    spec = patch_spec(job.spec, patch)
    wanted = replace_hold(spec)
    changed = changed_fields(job.spec, wanted)
    moves: list[Move] = []
    if changed:
        wish.check_person(job, changed)
        _check_state(job, changed)
        _check(wanted, wish, refusals, only=None if job.state in WAITING else changed)
        eligible_at = None
        if "begin_at" in changed:
            eligible_at = wanted.begin_at or wish.now
        moves.append(Amend(by=wish.holder, spec=wanted, eligible_at=eligible_at))
    if "hold" in patch:
        after = replace(job, spec=wanted)
        moves += hold(after, wish) if spec.hold else release(after, wish)
    return moves


def replace_hold(spec: JobSpec) -> JobSpec:
    """The order without its hold, which the job's state tells."""
    return spec.model_copy(update={"hold": False})


def _check_state(job: Job, changed: Sequence[str]) -> None:
    """Raises CONFLICT, saying what would work, for fields that the state keeps."""
    if job.state in WAITING:
        return
    if job.state not in OWNING:
        raise _conflict(
            f"job {job.id} is finished and keeps its order; requeue it with hold and change it "
            "then, or submit a new one"
        )
    if job.state is JobState.STOPPING:
        raise _conflict(f"job {job.id} is being stopped; change it once it has stopped")
    kept = [name for name in changed if name not in WHILE_IT_RUNS]
    if kept:
        allowed = ", ".join(WHILE_IT_RUNS)
        raise _conflict(
            f"job {job.id} is {job.state}: {', '.join(kept)} cannot change now, only {allowed}; "
            "requeue it with hold, change it, and release it"
        )


def _check(
    spec: JobSpec, wish: Wish, refusals: Refusals, *, only: Sequence[str] | None = None
) -> None:
    """Raises INVALID with what the box can never give, or only an operator may ask for.

    `only`: the fields that matter, None for all.
    """
    errors = list(refusals(spec))
    if spec.priority > 0 and not wish.who.operator and (only is None or "priority" in only):
        errors.append(FieldError("priority", "only operators may ask for more than 0"))
    if only is not None:
        names = {*only, *(name.removesuffix("_s").removesuffix("_mib") for name in only)}
        errors = [error for error in errors if error.field in names]
    if errors:
        sentence = "; ".join(f"{error.field}: {error.message}" for error in errors[:5])
        raise TraindError(ErrorCode.INVALID, sentence, errors)
