"""Who used how much of the box, over HTTP."""

from datetime import UTC, datetime, timedelta

from aiohttp import web

from traind.api.context import CONTEXT, caller
from traind.api.doors import json_response
from traind.api.routes import Query, read_query
from traind.boxwire import UsageBy, UsageReport, UsageView
from traind.errors import ErrorCode, FieldError, TraindError
from traind.jobspec import Instant
from traind.store.usage import Usage
from traind.wire import rounded

_USUAL_SPAN = timedelta(days=30)


class UsageQuery(Query):
    """Usage from the instant `since` (30 days before the end) to before `until` (now)."""

    since: Instant | None = None
    until: Instant | None = None
    by: UsageBy = "user"


async def report_usage(request: web.Request) -> web.StreamResponse:
    """What each person, label or GPU accounts for, the most GPU time first; labels are of the
    caller's own jobs, for an operator of all.
    """
    context, who = request.app[CONTEXT], caller(request)
    query, now = read_query(request, UsageQuery), datetime.now(UTC)
    until = query.until or now
    since = query.since or _before(until)
    if since >= until:
        error = FieldError("since", "must be before until, which is now where it is left out")
        raise TraindError(ErrorCode.INVALID, f"since: {error.message}", [error])
    uid = who.uid if query.by == "label" and not who.operator else None
    found = await context.samples.usage(query.by, uid=uid, since=since, until=until, now=now)
    views = [_view(used) for used in found]
    return json_response(UsageReport(usage=views, by=query.by, since=since, until=until))


def _before(until: datetime) -> datetime:
    """Where the usual span that ends there begins; the calendar has a first day."""
    return max(until, datetime.min.replace(tzinfo=UTC) + _USUAL_SPAN) - _USUAL_SPAN


def _view(used: Usage) -> UsageView:
    return UsageView(
        name=used.name,
        jobs=used.jobs,
        attempts=used.attempts,
        hours=round(used.hours, 6),
        gpu_hours=round(used.gpu_hours, 6),
        energy_wh=rounded(used.energy_wh, 3),
    )
