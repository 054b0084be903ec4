"""Jobs over HTTP: submit, list, look."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from aiohttp import web
from pydantic import Field
from pydantic.fields import FieldInfo

from traind.api.changes import idempotency_key
from traind.api.context import (
    CONTEXT,
    HIGHEST_ID,
    JUST_ACCEPTED,
    Context,
    caller,
    job_id,
    own_job,
)
from traind.api.doors import json_response
from traind.api.etags import job_response
from traind.api.orders import read_orders
from traind.api.rehearsal import rehearse
from traind.api.routes import NoQuery, Query, read_query
from traind.errors import ErrorCode, FieldError, TraindError
from traind.job import Job, JobState, Outcome
from traind.publicwire import Jobs, public_reason
from traind.store.listing import JobFilter
from traind.store.rows import from_us
from traind.store.submission import Submission
from traind.wire import (
    Attempts,
    Events,
    EventView,
    Why,
    attempt_view,
    cause_view,
    reason_view,
)


class SubmitQuery(Query):
    """`dry_run=1`: check it and tell where it would start or why it would wait; store nothing.
    `directives=slurm`: the #SBATCH lines of a script count too.
    """

    dry_run: bool = False
    directives: Literal["slurm"] | None = None


def _some_of(words: type[JobState] | type[Outcome]) -> FieldInfo:
    """What the document says of a list with commas; `words_of` reads it."""
    word = f"({'|'.join(words)})?"
    found: FieldInfo = Field(json_schema_extra={"pattern": f"^{word}(,{word})*$"})
    return found


_LABEL = Field(json_schema_extra={"pattern": "^[^=]"})


class ListQuery(Query):
    """Which jobs; state and outcome may be lists with commas, label is NAME or NAME=VALUE and may
    be repeated, q is a part of the name. A page ends before `limit` where its orders, scripts
    included, would be more than 16 MiB.
    """

    state: Annotated[str | None, _some_of(JobState)] = None
    outcome: Annotated[str | None, _some_of(Outcome)] = None
    user: str | None = None
    label: tuple[Annotated[str, _LABEL], ...] = ()
    q: Annotated[str, Field(max_length=200)] | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 50
    cursor: Annotated[int, Field(ge=1, le=HIGHEST_ID)] | None = None


class WaitQuery(Query):
    """`wait`: answer when it is finished, or after so many seconds."""

    wait: Annotated[float, Field(ge=0, le=3600)] = 0


class EventsQuery(Query):
    """Events behind `cursor`."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 1000
    cursor: Annotated[int, Field(ge=0, le=HIGHEST_ID)] = 0


async def create_jobs(request: web.Request) -> web.StreamResponse:
    """Accept orders: 201 once they are on stable storage."""
    context, who = request.app[CONTEXT], caller(request)
    query = read_query(request, SubmitQuery, options=True)
    key = idempotency_key(request)
    context.submitter(who)  # who may not submit need not send all of a body
    orders = await read_orders(request, context, slurm=query.directives == "slurm")
    _check_priority([spec.priority for spec in orders.specs], operator=who.operator)
    person = context.submitter(who)
    submission = Submission(
        user=person.user,
        uid=person.uid,
        specs=orders.specs,
        key=key,
        fingerprint=orders.fingerprint,
        warnings=orders.warnings,
    )
    if query.dry_run:
        await context.store.check_room(submission)
        views = rehearse(context, submission, now=datetime.now(UTC))
        return json_response(Jobs(jobs=[*views]) if orders.several else views[0])
    jobs, new = await context.store.submit(submission, now=datetime.now(UTC))
    if new:
        views = [context.view_with(job, job.hold or JUST_ACCEPTED) for job in jobs]
    else:
        views = [await context.view(job) for job in jobs]
    status = 201 if new else 200
    if orders.several:
        return json_response(Jobs(jobs=[*views]), status=status)
    headers = {"Location": f"/v1/jobs/{jobs[0].id}"}
    return json_response(views[0], status=status, headers=headers)


def _check_priority(priorities: list[int], *, operator: bool) -> None:
    if not operator and max(priorities) > 0:
        error = FieldError("priority", "only operators may ask for more than 0")
        raise TraindError(ErrorCode.INVALID, f"priority: {error.message}", [error])


def words_of(text: str | None, known: type[JobState] | type[Outcome], name: str) -> frozenset[str]:
    """The states or outcomes of a list with commas. Raises INVALID naming the known ones."""
    words = frozenset((text or "").split(",")) - {""}
    wrong = sorted(words - {member.value for member in known})
    if wrong:
        message = f"{wrong[0][:80]!r} is none of {', '.join(known)}"
        raise TraindError(ErrorCode.INVALID, f"{name}: {message}", [FieldError(name, message)])
    return words


def label_pairs(texts: Sequence[str], field: str = "label") -> tuple[tuple[str, str | None], ...]:
    """(name, value) of each NAME=VALUE; the value is None where only the name is given.

    Raises INVALID for a label without a name.
    """
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not name:
            message = "must be NAME or NAME=VALUE"
            raise TraindError(
                ErrorCode.INVALID, f"{field}: {message}", [FieldError(field, message)]
            )
        pairs.append((name, value if equals else None))
    return tuple(pairs)


async def list_jobs(request: web.Request) -> web.StreamResponse:
    """A page of jobs, newest first. What is hidden of a job does not find it either."""
    context, who = request.app[CONTEXT], caller(request)
    query = read_query(request, ListQuery)
    hidden = not who.operator and (query.label or query.q is not None)
    chosen = JobFilter(
        states=frozenset(map(JobState, words_of(query.state, JobState, "state"))),
        outcomes=frozenset(map(Outcome, words_of(query.outcome, Outcome, "outcome"))),
        user=query.user,
        uid=who.uid if hidden else None,
        labels=label_pairs(query.label),
        part=query.q,
        before=query.cursor,
        limit=query.limit,
    )
    jobs, more = await context.store.page(chosen)
    views = await context.views_for(who, jobs)
    following = str(jobs[-1].id) if more else None
    return json_response(Jobs(jobs=views, next=following))


async def show_job(request: web.Request) -> web.StreamResponse:
    """One job, at once or when it is finished."""
    context, who = request.app[CONTEXT], caller(request)
    query = read_query(request, WaitQuery)
    job = await _finished(context, job_id(request), timedelta(seconds=query.wait))
    return job_response(request, await context.view_for(who, job), job)


async def _finished(context: Context, number: int, patience: timedelta) -> Job:
    """The job once it is finished, or as it stands when patience is over."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience.total_seconds()
    with context.hub.watch(number) as changed:
        job = await context.store.get(number)
        while job.state is not JobState.FINISHED and not changed.closing:
            try:
                async with asyncio.timeout_at(deadline):
                    await changed.wait()
            except TimeoutError:
                break
            changed.clear()
            job = changed.job or job
    return job


async def explain_job(request: web.Request) -> web.StreamResponse:
    """Why a job waits, or why it ended so, in a sentence."""
    context, who = request.app[CONTEXT], caller(request)
    read_query(request, NoQuery)
    job = await context.store.get(job_id(request))
    reason = await context.reason(job)
    if reason is not None:
        detail = reason.detail
    elif job.state is JobState.FINISHED and job.cause is not None and who.sees(job):
        detail = job.cause.detail
    else:
        detail = f"it is {job.state}"
    view = Why(
        id=job.id,
        state=job.state,
        reason=reason_view(reason) if who.sees(job) else public_reason(reason),
        cause=cause_view(job.cause) if who.sees(job) else None,
        eta=None,
        detail=detail,
    )
    return json_response(view)


async def list_attempts(request: web.Request) -> web.StreamResponse:
    """All attempts of a job."""
    context = request.app[CONTEXT]
    read_query(request, NoQuery)
    job = await own_job(request)
    attempts = await context.store.attempts(job.id)
    return json_response(Attempts(attempts=[attempt_view(attempt) for attempt in attempts]))


async def list_job_events(request: web.Request) -> web.StreamResponse:
    """The history of a job."""
    context = request.app[CONTEXT]
    query = read_query(request, EventsQuery)
    job = await own_job(request)
    rows = await context.store.events(job.id, after=query.cursor, limit=query.limit)
    views = [EventView(at=from_us(row.pop("at_us")), **row) for row in rows]
    following = str(views[-1].id) if len(views) == query.limit else None
    return json_response(Events(events=views, next=following))
