"""What happens to all jobs: a stream that is taken up again without loss or repeat."""

import asyncio
from collections.abc import Iterable
from typing import Annotated

from aiohttp import web
from pydantic import Field

from traind.api.context import CONTEXT, HIGHEST_ID, Caller, Context, caller
from traind.api.doors import json_response
from traind.api.feed import FEED
from traind.api.routes import Query, read_query
from traind.api.streams import STREAMS
from traind.errors import ErrorCode, FieldError, TraindError
from traind.hub import Watcher
from traind.store.events import StoredEvent
from traind.wire import Events, EventView

_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}
_STILL_HERE = ": still here\n\n"


class FeedQuery(Query):
    """Events behind the id `since`, of one `job` or all; `follow=0` answers what there is, `limit`
    of them at most.
    """

    job: Annotated[int, Field(ge=1, le=HIGHEST_ID)] | None = None
    since: Annotated[int, Field(ge=0, le=HIGHEST_ID)] | None = None
    follow: bool = True
    limit: Annotated[int, Field(ge=1, le=1000)] = 1000


async def list_events(request: web.Request) -> web.StreamResponse:
    """What happens to all jobs, as it happens: server-sent events.

    Source: html.spec.whatwg.org, 9.2.
    """
    context, who = request.app[CONTEXT], caller(request)
    query = read_query(request, FeedQuery)
    asked = _asked(request, query)
    if query.job is not None:
        await context.store.get(query.job)
    if not query.follow:
        return await _answer_known(context, who, query, asked or 0)
    with (
        request.app[STREAMS].slot(who.uid, context.config.api),
        context.hub.watch(query.job) as news,
    ):
        last, reset = await _first_place(context, asked)
        response = web.StreamResponse(headers=_HEADERS)
        await response.prepare(request)
        stream = _Stream(request, response, query.job, last)
        await stream.send(f"retry: 3000\nid: {last}\n\n{reset}")
        await stream.follow(news)
    return response


def _asked(request: web.Request, query: FeedQuery) -> int | None:
    """The id behind which to begin; what a client saw last outweighs the address it calls."""
    text = request.headers.get("Last-Event-ID", "")
    if not text:
        return query.since
    if not text.isascii() or not text.isdecimal() or len(text) > len(str(HIGHEST_ID)):
        message = "must be the id of an event, a whole number"
        error = FieldError("Last-Event-ID", message)
        raise TraindError(ErrorCode.INVALID, f"Last-Event-ID: {message}", [error])
    return int(text)


async def _answer_known(
    context: Context, who: Caller, query: FeedQuery, asked: int
) -> web.Response:
    events = await context.events.behind(asked, job_id=query.job, limit=query.limit)
    following = str(events[-1].id) if len(events) == query.limit else None
    views = [event_view(each, who) for each in events]
    return json_response(Events(events=views, next=following))


async def _first_place(context: Context, asked: int | None) -> tuple[int, str]:
    """(the id behind which to begin, the reset where that is not behind the one asked for).

    Without an id only what comes from now on is told; one that was never given, as after a restore
    from a backup, is as good as one whose successors are gone.
    """
    oldest, newest = await context.events.bounds()
    if asked is None:
        return newest, ""
    if oldest <= asked <= newest:
        return asked, ""
    place = oldest if asked < oldest else newest
    return place, f'event: reset\ndata: {{"asked":{asked},"kept_behind":{place}}}\n\n'


class _Stream:
    """One follower, and how far it is."""

    def __init__(
        self, request: web.Request, response: web.StreamResponse, job_id: int | None, last: int
    ) -> None:
        self._request = request
        self._response = response
        self._job_id = job_id
        self._last = last

    async def follow(self, news: Watcher) -> None:
        """Send what comes until the daemon stops. Raises ConnectionResetError."""
        feed, who = self._request.app[FEED], caller(self._request)
        heartbeat_s = self._request.app[CONTEXT].config.api.heartbeat.total_seconds()
        while True:
            news.clear()
            closing = news.closing
            events, place = await feed.behind(self._last, self._job_id)
            if events:
                await self.send(_text_of(events, who))
            behind, self._last = self._last, place
            if place != behind:
                continue
            if closing:
                return
            try:
                async with asyncio.timeout(heartbeat_s):
                    await news.wait()
            except TimeoutError:
                await self.send(_STILL_HERE)

    async def send(self, text: str) -> None:
        """Send it. Raises ConnectionResetError when the reader is gone."""
        await self._response.write(text.encode())


def _text_of(events: Iterable[StoredEvent], who: Caller) -> str:
    return "".join(
        f"id: {event.id}\nevent: job\ndata: {event_view(event, who).model_dump_json()}\n\n"
        for event in events
    )


def event_view(event: StoredEvent, who: Caller) -> EventView:
    """The event as the API shows it; what it says beside the state is for who sees the job."""
    return EventView(
        id=event.id,
        job_id=event.job_id,
        at=event.at,
        event=event.event,
        state=event.state,
        facts=event.facts if who.operator or who.uid == event.uid else {},
    )
