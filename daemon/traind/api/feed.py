"""The newest events, read from the table once for all who follow them."""

import asyncio
from collections import deque

from aiohttp import web

from traind.hub import Hub
from traind.store.events import EventStore, StoredEvent

_KEPT = 1000
_PAGE = 500


class EventFeed:
    """Gives each follower what came behind its own place; it keeps no queue for any of them.

    Every event with an id above `_floor` lies in `_recent`; older ones are read from the table.
    """

    def __init__(self, store: EventStore, hub: Hub) -> None:
        self._store = store
        self._hub = hub
        self._lock = asyncio.Lock()
        self._recent: deque[StoredEvent] = deque()
        self._floor = -1
        self._newest = -1
        self._changes = -1

    async def behind(self, last: int, job_id: int | None) -> tuple[list[StoredEvent], int]:
        """(the next events behind the id `last`, the place that is reached with them)."""
        await self._refresh()
        newest = self._newest
        if last >= self._floor:
            events = [e for e in self._recent if e.id > last and job_id in (None, e.job_id)]
            return events, max(last, newest)
        events = await self._store.behind(last, job_id=job_id, limit=_PAGE)
        return events, events[-1].id if events else max(last, newest)

    async def _refresh(self) -> None:
        """Take in what was written since; who comes while somebody does waits for them."""
        async with self._lock:
            if self._floor < 0:
                _, self._floor = await self._store.bounds()
                self._newest = self._floor
            if self._changes == self._hub.changes:
                return
            self._changes = self._hub.changes
            events = await self._store.behind(self._newest, job_id=None, limit=_PAGE)
            if len(events) == _PAGE:  # too many at once to keep: the table has them
                self._recent.clear()
                _, self._newest = await self._store.bounds()
                self._floor = self._newest
                return
            self._recent.extend(events)
            self._newest = events[-1].id if events else self._newest
            while len(self._recent) > _KEPT:
                self._floor = self._recent.popleft().id


FEED = web.AppKey("feed", EventFeed)
