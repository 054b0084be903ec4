"""What a job tells about itself over HTTP: the lines of its TRAIND_METRICS."""

import asyncio
import json
from typing import Annotated

from aiohttp import web
from pydantic import Field

from traind.api.context import CONTEXT, HIGHEST_ID, own_job, past_attempt
from traind.api.routes import Query, read_query
from traind.runner.curves import Curve, read_curve


class CurveQuery(Query):
    """The lines behind the line `since`, of the last attempt or of `attempt`; `limit` at most."""

    since: Annotated[int, Field(ge=0, le=HIGHEST_ID)] = 0
    limit: Annotated[int, Field(ge=1, le=10_000)] = 1000
    attempt: Annotated[int, Field(ge=1)] | None = None


async def read_metrics(request: web.Request) -> web.StreamResponse:
    """The metrics of an attempt; before the first one there are none."""
    context = request.app[CONTEXT]
    query = read_query(request, CurveQuery)
    job = await own_job(request)
    attempt = past_attempt(job, query.attempt)
    path = context.supervisor.path((job.id, attempt)) / "metrics"
    curve = await asyncio.to_thread(read_curve, path, since=query.since, limit=query.limit)
    headers = {"Cache-Control": "no-store"}
    body = _text(curve, attempt).encode()
    return web.Response(body=body, headers=headers, content_type="application/json")


def _text(curve: Curve, attempt: int) -> str:
    """A `boxwire.Metrics`, written by the json module: a job may write what UTF-8 cannot hold."""
    view = {
        "metrics": curve.told,
        "attempt": attempt,
        "line": curve.line,
        "skipped": curve.skipped,
        "next": curve.line if curve.more else None,
    }
    return json.dumps(view, allow_nan=False)
