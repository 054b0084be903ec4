"""One action on many jobs: each is decided by itself, and a refused one keeps no other back."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

from aiohttp import web
from pydantic import Field

from traind.api import decisions
from traind.api.bodies import read_body
from traind.api.changes import SIGNALS, copy_of, wish_of
from traind.api.context import CONTEXT, HIGHEST_ID, Caller, Context
from traind.api.decisions import Moves, Wish
from traind.api.doors import json_response
from traind.api.jobs import label_pairs, words_of
from traind.api.orders import beyond_the_box
from traind.api.routes import Body, NoQuery, read_query
from traind.errors import ErrorCode, FieldError, TraindError
from traind.job import OWNING, Job, JobState, Outcome
from traind.jobspec import Strict
from traind.lifecycle import after
from traind.publicwire import public_name
from traind.store.listing import JobFilter
from traind.store.moves import event_of
from traind.wire import View

JOBS_MAX = 10_000
_AT_ONCE = 100
_S = JobState

USUAL: dict[str, frozenset[JobState]] = {
    "cancel": frozenset(_S) - {_S.FINISHED},
    "hold": frozenset({_S.QUEUED}),
    "release": frozenset({_S.HELD}),
    "requeue": frozenset({_S.STARTING, _S.RUNNING}),
    "signal": frozenset({_S.RUNNING}),
    "rerun": frozenset({_S.FINISHED}),
}
"""The states of the jobs that each action is for where neither states nor ids are given."""


class Selection(Strict):
    """Which jobs: all that is given must hold. `state` and `outcome` may be lists with commas,
    `label` is NAME or NAME=VALUE.
    """

    ids: (
        Annotated[
            tuple[Annotated[int, Field(ge=1, le=HIGHEST_ID)], ...],
            Field(min_length=1, max_length=JOBS_MAX, strict=False),
        ]
        | None
    ) = None
    user: str | None = None
    label: str | None = None
    state: str | None = None
    outcome: str | None = None


class Action(Body):
    """What to do with which jobs. `now` is for cancel, `hold` for requeue, `signal` for signal;
    `dry_run`: only tell what would be done.
    """

    action: Literal["cancel", "hold", "release", "requeue", "rerun", "signal"]
    select: Selection
    dry_run: bool = False
    now: bool = False
    hold: bool = False
    signal: Literal[SIGNALS] | None = None  # type: ignore[valid-type]


class ActionError(View):
    """Why a job was refused."""

    code: str
    detail: str


class ActionResult(View):
    """What was done, or would be, with one job: `did` in a word, or the error; its state then.

    `new_id` is the copy's of a rerun, once there is one.
    """

    id: int
    name: str | None
    user: str | None
    state: JobState | None
    did: str | None
    new_id: int | None
    error: ActionError | None


class ActionResults(View):
    """An action on jobs, job by job, the newest first."""

    action: str
    dry_run: bool
    jobs: list[ActionResult]


async def act_on_jobs(request: web.Request) -> web.StreamResponse:
    """Do one thing with many jobs; 200 with what became of each."""
    context, wish = request.app[CONTEXT], wish_of(request)
    read_query(request, NoQuery)
    action = await read_body(request, Action)
    _check(action)
    ids, missing = await _selected(context, action, wish.who)
    results: list[ActionResult] = []
    while ids:
        few, more = await context.store.page(
            JobFilter(ids=frozenset(ids[:_AT_ONCE]), limit=_AT_ONCE)
        )
        # A page ends early where its orders are long: the others are read once these are done with.
        ids = [number for number in ids if number < few[-1].id] if more else ids[_AT_ONCE:]
        results += await asyncio.gather(*(_act(context, job, action, wish) for job in few))
    results += [_missing(number) for number in missing]
    view = ActionResults(action=action.action, dry_run=action.dry_run, jobs=results)
    return json_response(view)


def _check(action: Action) -> None:
    """Raises INVALID for an action that would mean everything, or nothing."""
    errors = []
    if all(getattr(action.select, name) is None for name in Selection.model_fields):
        known = ", ".join(Selection.model_fields)
        errors.append(FieldError("select", f"give at least one of {known}"))
    if (action.signal is None) == (action.action == "signal"):
        errors.append(FieldError("signal", "goes with the action signal, and only with it"))
    for field, verb in (("now", "cancel"), ("hold", "requeue")):
        if getattr(action, field) and action.action != verb:
            errors.append(FieldError(field, f"is for the action {verb} only"))
    if errors:
        sentence = "; ".join(f"{error.field}: {error.message}" for error in errors)
        raise TraindError(ErrorCode.INVALID, sentence, errors)


async def _selected(context: Context, action: Action, who: Caller) -> tuple[list[int], list[int]]:
    """The ids of the jobs that are meant, newest first, and those of which there is no job. Who is
    no operator means their own unless they say whose. Raises INVALID for too many, FORBIDDEN for
    labels of others.
    """
    select, user = action.select, action.select.user
    if not who.operator and select.ids is None:
        user = user or who.user
    if not who.operator and select.label is not None and user != who.user:
        sentence = "labels are their owner's and the operators'; choose others' jobs by their ids"
        raise TraindError(ErrorCode.FORBIDDEN, sentence)
    states = frozenset(map(JobState, words_of(select.state, JobState, "select.state")))
    outcomes = frozenset(map(Outcome, words_of(select.outcome, Outcome, "select.outcome")))
    if not states and not outcomes and select.ids is None:
        states = USUAL[action.action]
    chosen = JobFilter(
        ids=None if select.ids is None else frozenset(select.ids),
        states=states,
        outcomes=outcomes,
        user=user,
        labels=label_pairs([] if select.label is None else [select.label], "select.label"),
        limit=JOBS_MAX + 1,
    )
    ids = await context.store.ids(chosen)
    if len(ids) > JOBS_MAX:
        message = f"means more than {JOBS_MAX} jobs; narrow it by state, label or ids"
        raise TraindError(ErrorCode.INVALID, f"select {message}", [FieldError("select", message)])
    if select.ids is None:
        return ids, []
    return ids, await context.store.unknown(select.ids)


def _missing(number: int) -> ActionResult:
    error = ActionError(code=ErrorCode.NOT_FOUND, detail=f"there is no job {number}")
    return ActionResult(
        id=number, name=None, user=None, state=None, did=None, new_id=None, error=error
    )


async def _act(context: Context, job: Job, action: Action, wish: Wish) -> ActionResult:
    """What became of one job, or would; what is not possible now at all raises UNAVAILABLE."""
    new_id = None
    try:
        if action.action == "rerun":
            new_id = await _rerun(context, job, wish, dry_run=action.dry_run)
            did = "rerun"
        else:
            decide = _decide(action, wish)
            did = _word(action, decide(job), job)
            if not action.dry_run:
                job = await context.store.change(job.id, decide, now=wish.now)
    except TraindError as refused:
        if refused.code is ErrorCode.UNAVAILABLE:
            raise
        error = ActionError(code=refused.code, detail=refused.sentence)
        return _result(job, wish.who, error=error)
    return _result(job, wish.who, did=did, new_id=new_id)


async def _rerun(context: Context, job: Job, wish: Wish, *, dry_run: bool) -> int | None:
    if dry_run:
        decisions.rerun(job, wish, refusals=partial(beyond_the_box, context=context))
        return None
    copy, _ = await copy_of(context, job, wish, None)
    return copy.id


def _decide(action: Action, wish: Wish) -> Callable[[Job], Moves]:
    """The decision on a job as it stands then."""
    match action.action:
        case "cancel":
            return lambda job: decisions.cancel(job, wish, at_once=action.now)
        case "hold":
            return lambda job: decisions.hold(job, wish)
        case "release":
            return lambda job: decisions.release(job, wish)
        case "requeue":
            return lambda job: decisions.requeue(job, wish, held=action.hold)
        case _:
            return lambda job: decisions.send_signal(job, wish, name=str(action.signal))


_DONE = {
    "cancel": "cancelled",
    "hold": "held",
    "release": "released",
    "requeue": "requeued",
    "signal": "signalled",
}


def _word(action: Action, moves: Moves, job: Job) -> str:
    """What the moves do, in a word. Raises CONFLICT for those the state does not allow."""
    for move in moves:
        event = event_of(move)
        if event is not None:
            after(job.state, event)
    if not moves:
        return "nothing"
    stopping = job.state in OWNING and action.action in ("cancel", "requeue")
    return "stopping" if stopping else _DONE[action.action]


def _result(
    job: Job,
    who: Caller,
    *,
    did: str | None = None,
    new_id: int | None = None,
    error: ActionError | None = None,
) -> ActionResult:
    return ActionResult(
        id=job.id,
        name=job.spec.name if who.sees(job) else public_name(job),
        user=job.user,
        state=job.state,
        did=did,
        new_id=new_id,
        error=error,
    )
