"""Changing jobs over HTTP: PATCH, cancel, requeue, rerun, signal. Orders go through the store."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Literal

from aiohttp import web

from traind.api import decisions
from traind.api.bodies import read_body, read_object
from traind.api.context import CONTEXT, JUST_ACCEPTED, Context, caller, job_id, own_job
from traind.api.decisions import Moves, Wish
from traind.api.doors import json_response
from traind.api.etags import check_match, job_response
from traind.api.orders import beyond_the_box
from traind.api.routes import Body, NoQuery, Query, read_query
from traind.errors import ErrorCode, TraindError
from traind.job import Job, JobState
from traind.jobspec import JobSpec
from traind.store.submission import Submission

SIGNALS = (
    *("USR1", "USR2", "HUP", "INT", "QUIT", "TERM", "KILL", "STOP", "CONT", "TSTP", "ALRM"),
    *("ABRT", "URG", "WINCH"),
)
"""The signals that may be sent, without SIG."""

KEY_LENGTH = 255


class CancelQuery(Query):
    """`now=1`: without grace."""

    now: bool = False


class RequeueOrder(Body):
    """`hold`: it is held once it has stopped, not queued."""

    hold: bool = False


class SignalOrder(Body):
    """A signal by its name without SIG."""

    signal: Literal[SIGNALS]  # type: ignore[valid-type]


class RerunOrder(Body):
    """Nothing: the copy is as the job was."""


def wish_of(request: web.Request) -> Wish:
    """Who asks, now, under this box's rules. Raises UNAUTHORIZED."""
    rules = request.app[CONTEXT].config.jobs
    return Wish(who=caller(request), now=datetime.now(UTC), rules=rules)


async def _changed(request: web.Request, wish: Wish, decide: Callable[[Job], Moves]) -> Job:
    """The job after what is decided on it as it stands, when it is the one the caller knows."""

    def checked(job: Job) -> Moves:
        wish.check_owner(job)
        check_match(request, job)
        return decide(job)

    store = request.app[CONTEXT].store
    return await store.change(job_id(request), checked, now=wish.now)


async def patch_job(request: web.Request) -> web.StreamResponse:
    """Change an order: all of it while the job waits, a little while it runs."""
    context, wish = request.app[CONTEXT], wish_of(request)
    read_query(request, NoQuery)
    patch = await read_object(request)
    refusals = partial(beyond_the_box, context=context)
    job = await _changed(
        request,
        wish,
        lambda job: decisions.change(job, patch, wish, refusals=refusals),
    )
    return job_response(request, await context.view(job), job)


async def cancel_job(request: web.Request) -> web.StreamResponse:
    """Cancel: 200 when it is over with that, 202 while it stops. Again is harmless."""
    context, wish = request.app[CONTEXT], wish_of(request)
    query = read_query(request, CancelQuery)
    job = await _changed(request, wish, lambda job: decisions.cancel(job, wish, at_once=query.now))
    status = 200 if job.state is JobState.FINISHED else 202
    return job_response(request, await context.view(job), job, status)


async def requeue_job(request: web.Request) -> web.StreamResponse:
    """Stop and queue again, or hold: 202 while it stops, 200 when it waits again."""
    context, wish = request.app[CONTEXT], wish_of(request)
    read_query(request, NoQuery)
    order = await read_body(request, RequeueOrder)
    job = await _changed(request, wish, lambda job: decisions.requeue(job, wish, held=order.hold))
    status = 202 if job.state is JobState.STOPPING else 200
    return job_response(request, await context.view(job), job, status)


async def signal_job(request: web.Request) -> web.StreamResponse:
    """A signal to all processes of a running job: 202, it is sent as soon as they are there."""
    context, wish = request.app[CONTEXT], wish_of(request)
    read_query(request, NoQuery)
    order = await read_body(request, SignalOrder)
    job = await _changed(
        request, wish, lambda job: decisions.send_signal(job, wish, name=str(order.signal))
    )
    return job_response(request, await context.view(job), job, 202)


async def rerun_job(request: web.Request) -> web.StreamResponse:
    """A copy as a new job: 201 once it is on stable storage."""
    context, wish = request.app[CONTEXT], wish_of(request)
    read_query(request, NoQuery)
    key = idempotency_key(request)
    await read_body(request, RerunOrder)
    job = await own_job(request)
    check_match(request, job)
    copy, new = await copy_of(context, job, wish, key)
    view = context.view_with(copy, copy.hold or JUST_ACCEPTED) if new else await context.view(copy)
    headers = {"Location": f"/v1/jobs/{copy.id}"}
    return json_response(view, status=201 if new else 200, headers=headers)


async def copy_of(context: Context, job: Job, wish: Wish, key: str | None) -> tuple[Job, bool]:
    """A new job like this one, of the same person, and whether it is new."""
    spec: JobSpec = decisions.rerun(job, wish, refusals=partial(beyond_the_box, context=context))
    submission = Submission(
        user=job.user,
        uid=job.uid,
        specs=[spec],
        key=key,
        fingerprint=f"rerun {job.id}".encode(),
        warnings=job.warnings,
    )
    jobs, new = await context.store.submit(submission, now=wish.now)
    await context.accounts.find(job.uid)
    return jobs[0], new


def idempotency_key(request: web.Request) -> str | None:
    """The request's key, None without one. Raises INVALID."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not (0 < len(key) <= KEY_LENGTH and key.isprintable()):
        raise TraindError(
            ErrorCode.INVALID, f"an Idempotency-Key has 1 to {KEY_LENGTH} printable characters"
        )
    return key
