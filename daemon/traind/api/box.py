"""The box over HTTP: its queue, and the daemon itself."""

import os
from datetime import UTC, datetime
from typing import Annotated

from aiohttp import web
from pydantic import Field

import traind
from traind.api.context import CONTEXT, DOCUMENT, Context, caller
from traind.api.doors import json_response, problem_response
from traind.api.routes import NoQuery, Query, read_query
from traind.boxwire import Alive, Ready, WhoAmI
from traind.errors import ErrorCode, TraindError
from traind.publicwire import Queue
from traind.wire import Status, pause_view, problem


class QueueQuery(Query):
    """A page of the queue; `cursor` is what the page before gave as `next`."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 50
    cursor: Annotated[str, Field(pattern=r"^-?[0-9]{1,3}\.[0-9]{1,18}$")] | None = None


async def list_queue(request: web.Request) -> web.StreamResponse:
    """The waiting jobs in their order, each with its reason."""
    context, who = request.app[CONTEXT], caller(request)
    query = read_query(request, QueueQuery)
    priority, _, behind = (query.cursor or "").partition(".")
    after = (int(priority), int(behind)) if query.cursor else None
    jobs, more = await context.store.queue(after=after, limit=query.limit)
    views = await context.views_for(who, jobs)
    following = f"{jobs[-1].priority}.{jobs[-1].id}" if more else None
    return json_response(Queue(queue=views, next=following))


async def who_am_i(request: web.Request) -> web.StreamResponse:
    """Who the caller is to the daemon."""
    who = caller(request)
    read_query(request, NoQuery)
    return json_response(WhoAmI(user=who.user, uid=who.uid, operator=who.operator))


async def show_status(request: web.Request) -> web.StreamResponse:
    """The daemon itself."""
    context, _ = request.app[CONTEXT], caller(request)
    read_query(request, NoQuery)
    counts = await context.store.counts()
    view = Status(
        version=traind.__version__,
        pid=os.getpid(),
        state_dir=str(context.state_dir),
        socket=str(context.socket),
        http=context.http,
        started_at=context.started_at,
        launcher_pid=context.link.pid,
        launcher_fault=context.link.fault,
        gpu_fault=context.hub.snapshot.fault,
        gpu_group=context.link.gpu_group,
        gpus=len(context.known_gpus()),
        jobs={state.value: count for state, count in counts.items()},
        paused=pause_view(context.controls.pause),
    )
    return json_response(view)


async def show_health(request: web.Request) -> web.StreamResponse:
    """The daemon answers."""
    read_query(request, NoQuery)
    return json_response(Alive(alive=True))


async def show_readiness(request: web.Request) -> web.StreamResponse:
    """Whether jobs can be started; 503 with what keeps them otherwise."""
    context = request.app[CONTEXT]
    read_query(request, NoQuery)
    checks = {
        "store": await _store_fault(context),
        "launcher": context.link.fault,
        "gpus": context.hub.snapshot.fault,
    }
    failed = [sentence for sentence in checks.values() if sentence is not None]
    if failed:
        detail = "; ".join(failed)
        return problem_response(problem(503, "Not ready", detail, ErrorCode.UNAVAILABLE))
    return json_response(Ready(ready=True, checks=checks))


async def _store_fault(context: Context) -> str | None:
    try:
        await context.store.prove_writable(now=datetime.now(UTC))
    except TraindError as failed:
        return failed.sentence
    return None


async def show_openapi(request: web.Request) -> web.StreamResponse:
    """The OpenAPI document."""
    caller(request)
    read_query(request, NoQuery)
    return web.Response(body=request.app[DOCUMENT], content_type="application/json")
