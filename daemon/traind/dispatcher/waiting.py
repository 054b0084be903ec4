"""Keeps the front true to the store: who comes, whose time comes, and lanes that run short."""

from datetime import UTC, datetime

from traind.dispatcher.front import Front
from traind.job import Job, Request
from traind.store.jobs import JobStore


class Waiting:
    """The waiting jobs, as far as the mind sees them."""

    def __init__(self, store: JobStore, size: int) -> None:
        self._store = store
        self._size = size
        self._front = Front(size)
        self._matured_at = datetime.fromtimestamp(0, UTC)

    @property
    def requests(self) -> tuple[Request, ...]:
        """What those ask whose time has come."""
        return self._front.requests

    @property
    def matures_at(self) -> datetime | None:
        """When the next one's time comes; None when all have come."""
        return self._front.matures_at

    def absorb(self, job: Job) -> None:
        """Take note of how a job stands now."""
        self._front.absorb(job, now=datetime.now(UTC))

    async def load(self, now: datetime) -> None:
        """Read everything afresh."""
        for lane in await self._store.lanes(now=now):
            self._front.fill(lane, await self._store.lane(lane, self._size, now=now))
        self._matured_at = now
        self._front.matures_at = await self._store.next_maturity(now=now)

    async def refresh(self, now: datetime) -> None:
        """Let those in whose time has come, and fill the lanes that ran short."""
        if self.matures_at is not None and now >= self.matures_at:
            await self._mature(now)
        for lane in self._front.short():
            self._front.fill(lane, await self._store.lane(lane, self._size, now=now))

    async def _mature(self, now: datetime) -> None:
        come = await self._store.maturing(after=self._matured_at, now=now, limit=self._size)
        if len(come) == self._size:
            await self.load(now)
            return
        for job in come:
            self._front.absorb(job, now=now)
        self._matured_at = now
        self._front.matures_at = await self._store.next_maturity(now=now)
