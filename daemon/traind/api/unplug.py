"""Stop everything now, and go on later: an operator's hand on the whole box."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Annotated, ClassVar

from aiohttp import web
from pydantic import Field

from traind.api.bodies import read_body
from traind.api.context import CONTEXT, caller
from traind.api.doors import json_response
from traind.api.routes import Body, NoQuery, read_query
from traind.boxwire import Unplugged
from traind.job import Job
from traind.lifecycle import unplug_order
from traind.store.moves import Stop
from traind.wire import pause_view

_LONGEST_GRACE_S = 1800.0
log = logging.getLogger(__name__)


class UnplugOrder(Body):
    """How jobs are stopped: `grace` between SIGTERM and SIGKILL, none for SIGKILL at once;
    with `checkpoint` those with a checkpoint signal get it first, and their lead.
    """

    spans: ClassVar[tuple[str, ...]] = ("grace",)

    grace_s: Annotated[float, Field(ge=0, le=_LONGEST_GRACE_S)] = 0.0
    checkpoint: bool = False


async def unplug(request: web.Request) -> web.StreamResponse:
    """Stop every job; each is held, and nothing starts until the queue is resumed."""
    context, who = request.app[CONTEXT], caller(request)
    read_query(request, NoQuery)
    wanted = await read_body(request, UnplugOrder)
    now = datetime.now(UTC)
    lead = context.config.jobs.checkpoint_lead if wanted.checkpoint else None

    def order(job: Job) -> Stop:
        grace = timedelta(seconds=wanted.grace_s)
        return Stop(order=unplug_order(job.spec, by=who.user, now=now, grace=grace, lead=lead))

    stopped = await context.controls.unplug(who.user, order, now=now)
    log.warning("unplugged", extra={"by": who.user, "jobs": len(stopped)})
    view = Unplugged(
        paused=pause_view(context.controls.pause), stopping=[job.id for job in stopped]
    )
    return json_response(view, status=202)


async def resume(request: web.Request) -> web.StreamResponse:
    """Let the queue go on; jobs that were held stay so until somebody releases them."""
    context, who = request.app[CONTEXT], caller(request)
    read_query(request, NoQuery)
    await context.controls.resume()
    log.warning("resumed", extra={"by": who.user})
    return json_response(Unplugged(paused=None, stopping=[]))
