"""The jobs that wait, as far as the mind needs to see them: the first of every lane, in memory."""

from collections.abc import Iterable
from datetime import datetime

from traind.job import Job, JobState, Lane, Request, lane_of, request_of


class Front:
    """The first `size` or so jobs of each lane whose time has come. Where it has more, the highest
    id that is seen is kept in `_last_seen`: all jobs of the lane up to it are known.

    Of the others only the moment is known at which the next one's time comes: `matures_at`.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lanes: dict[Lane, dict[int, Request]] = {}
        self._lane_of: dict[int, Lane] = {}
        self._last_seen: dict[Lane, int] = {}
        self._requests: tuple[Request, ...] | None = ()
        self.matures_at: datetime | None = None

    @property
    def requests(self) -> tuple[Request, ...]:
        """What all of them ask, in no particular order."""
        if self._requests is None:
            lanes = self._lanes.values()
            self._requests = tuple(request for lane in lanes for request in lane.values())
        return self._requests

    def fill(self, lane: Lane, jobs: Iterable[Job]) -> None:
        """Put the first jobs of a lane in place of what was known of it."""
        for job_id in self._lanes.pop(lane, {}):
            del self._lane_of[job_id]
        jobs = list(jobs)
        self._last_seen.pop(lane, None)
        if len(jobs) >= self._size:
            self._last_seen[lane] = max(job.id for job in jobs)
        for job in jobs:
            self._add(lane, job)
        self._requests = None

    def absorb(self, job: Job, *, now: datetime) -> None:
        """Take note of how a job stands now."""
        self._remove(job.id)
        if job.state is not JobState.QUEUED:
            return
        if job.eligible_at > now:
            self.matures_at = min(job.eligible_at, self.matures_at or job.eligible_at)
            return
        lane = lane_of(job)
        known = self._lanes.get(lane, {})
        if job.id > self._last_seen.get(lane, job.id):
            return
        self._add(lane, job)
        if len(known) > 2 * self._size:
            in_order = sorted(known)
            for job_id in in_order[self._size :]:
                self._remove(job_id)
            self._last_seen[lane] = in_order[self._size - 1]

    def _add(self, lane: Lane, job: Job) -> None:
        self._lanes.setdefault(lane, {})[job.id] = request_of(job)
        self._lane_of[job.id] = lane
        self._requests = None

    def _remove(self, job_id: int) -> None:
        lane = self._lane_of.pop(job_id, None)
        if lane is None:
            return
        del self._lanes[lane][job_id]
        if not self._lanes[lane] and lane not in self._last_seen:
            del self._lanes[lane]
        self._requests = None

    def request(self, job_id: int) -> Request | None:
        """What a job asks, None where it is not seen."""
        lane = self._lane_of.get(job_id)
        return None if lane is None else self._lanes[lane][job_id]

    def short(self) -> list[Lane]:
        """The lanes with more of which less than half is left: they want filling."""
        return [lane for lane in self._last_seen if len(self._lanes.get(lane, ())) < self._size / 2]
