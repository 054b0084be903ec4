"""Keeps the front true to the store: who comes, whose time comes, and lanes that run short."""

from collections.abc import Iterable
from datetime import UTC, datetime

from traind.dispatcher.front import Front
from traind.hub import Hub
from traind.job import Job, JobState, Request
from traind.scheduler import Plan, World, joins, plan
from traind.store.jobs import JobStore


class Waiting:
    """The waiting jobs, as far as the mind sees them."""

    def __init__(self, store: JobStore, hub: Hub, size: int) -> None:
        self._store = store
        self._hub = hub
        self._size = size
        self._front = Front(size)
        self._thought = Plan(starts=(), reasons={}, wake_at=None)
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

    def think(self, world: World) -> Plan:
        """What is to be done in this world, known to all from now on."""
        self._thought = plan(world)
        self._hub.world = world
        self._hub.reasons = dict(self._thought.reasons)
        return self._thought

    def joined(self, jobs: Iterable[Job]) -> bool:
        """Whether the last plan holds with jobs that changed, of which note was taken: all are new
        and wait behind others of which none can start. Why each waits is known from now on.
        """
        now = datetime.now(UTC)
        return all(self._joined(job, now) for job in jobs)

    def _joined(self, job: Job, now: datetime) -> bool:
        if job.version > 1 or (job.state is JobState.QUEUED and job.eligible_at > now):
            return False
        request = self._front.request(job.id)
        if request is None:
            return True  # it is held, or too far behind to be seen
        reason = joins(self._thought, request, now)
        if reason is not None:
            self._hub.reasons[job.id] = reason
        return reason is not None

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
