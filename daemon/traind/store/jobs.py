"""The jobs on disk: what the API and the dispatcher ask of them, in their own words."""

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from traind.errors import ErrorCode, TraindError
from traind.hub import Hub
from traind.job import Attempt, Job, JobState, Lane
from traind.meters import Histogram
from traind.store.advance import advance, advance_from, note_start, read_job
from traind.store.controls import read_pause
from traind.store.database import Database
from traind.store.listing import JobFilter, ids_listing, listing
from traind.store.moves import Again, Claim, Move, Started
from traind.store.rows import (
    JOBS,
    attempt_of,
    from_us,
    jobs_by,
    jobs_of,
    leases_of,
    page_of,
    to_us,
)
from traind.store.submission import Submission, insert, remember

_WAIT_BOUNDS_S = (1, 5, 15, 60, 300, 900, 3600, 14400, 86400, 604800)


class JobStore:
    """Jobs, attempts, leases and their history. Every writing call returns after the commit."""

    def __init__(
        self, database: Database, hub: Hub, *, remember: timedelta, jobs_per_user: int
    ) -> None:
        self._database = database
        self._hub = hub
        self._remember = remember
        self.jobs_per_user = jobs_per_user
        self.queue_wait_s = Histogram(_WAIT_BOUNDS_S)
        self.commit_s = database.commit_s

    async def submit(self, submission: Submission, *, now: datetime) -> tuple[list[Job], bool]:
        """The jobs, and whether they are new: False for an Idempotency-Key seen before.

        Raises INVALID for a key used with another body, CONFLICT for too many waiting jobs.
        """

        def work(connection: sqlite3.Connection) -> tuple[list[Job], bool]:
            known = self._known_answer(connection, submission, now)
            if known is not None:
                return [read_job(connection, job_id) for job_id in known], False
            self._check_room(connection, submission.user, submission.uid, len(submission.specs))
            jobs = insert(connection, submission, now)
            if submission.key is not None:
                remember(connection, submission, [job.id for job in jobs], now)
            return jobs, True

        return await self._database.run(work, self._tell_submitted)

    def _tell_submitted(self, stored: tuple[list[Job], bool]) -> None:
        jobs, new = stored
        for job in jobs if new else ():
            self._hub.job_changed(job)

    def _known_answer(
        self, connection: sqlite3.Connection, submission: Submission, now: datetime
    ) -> list[int] | None:
        """The ids that an earlier request with the same key was given, if there was one."""
        if submission.key is None:
            return None
        connection.execute(
            "DELETE FROM idempotency WHERE created_at < :oldest",
            {"oldest": to_us(now - self._remember)},
        )
        row = connection.execute(
            "SELECT fingerprint, answer FROM idempotency WHERE uid = :uid AND key = :key",
            {"uid": submission.uid, "key": submission.key},
        ).fetchone()
        if row is None:
            return None
        if row["fingerprint"] != submission.fingerprint:
            raise TraindError(
                ErrorCode.INVALID,
                "this Idempotency-Key came with another body before; use a new key for a new job",
            )
        ids: list[int] = json.loads(row["answer"])
        return ids

    async def check_room(self, submission: Submission) -> None:
        """Nothing. Raises CONFLICT where so many more jobs of this person may not wait."""
        of = submission.user, submission.uid, len(submission.specs)
        await self._database.run(lambda connection: self._check_room(connection, *of))

    def _check_room(self, connection: sqlite3.Connection, user: str, uid: int, more: int) -> None:
        waiting: int = connection.execute(
            "SELECT COALESCE(SUM(jobs), 0) FROM waiting WHERE uid = :uid",
            {"uid": uid},
        ).fetchone()[0]
        if waiting + more > self.jobs_per_user:
            raise TraindError(
                ErrorCode.CONFLICT,
                f"{user} has {waiting} jobs waiting; this box takes at most "
                f"{self.jobs_per_user} of one person",
            )

    async def advance(self, job_id: int, move: Move, *, now: datetime) -> Job:
        """The job after the move. Raises NOT_FOUND, and CONFLICT for an illegal move."""
        return await self._database.run(
            lambda connection: advance(connection, job_id, move, now=now), self._hub.job_changed
        )

    async def change(
        self, job_id: int, decide: Callable[[Job], Sequence[Move]], *, now: datetime
    ) -> Job:
        """The job after the moves that are decided on it as it stands, all of them or none.

        Raises NOT_FOUND, CONFLICT for an illegal move and for a finished job that is to wait again
        beside too many others of its owner, and what `decide` raises.
        """

        def work(connection: sqlite3.Connection) -> Job:
            job = read_job(connection, job_id)
            for move in decide(job):
                if isinstance(move, Again):
                    self._check_room(connection, job.user, job.uid, 1)
                job = advance_from(connection, job, move, now=now)
            return job

        return await self._database.run(work, self._hub.job_changed)

    async def note_signals_sent(self, job_id: int, attempt: int, count: int) -> Job:
        """The job without its first `count` signals, which the processes of an attempt got."""

        def work(connection: sqlite3.Connection) -> Job:
            job = read_job(connection, job_id)
            if job.attempt == attempt:
                left = json.dumps(job.signals[count:])
                connection.execute(
                    "UPDATE job SET signals = :left WHERE id = :id", {"left": left, "id": job_id}
                )
            return read_job(connection, job_id)

        return await self._database.run(work, self._hub.job_changed)

    async def claim(self, job_id: int, claim: Claim, *, now: datetime) -> tuple[Job, int | None]:
        """The job with a new attempt and its leases, and the port that is its own."""

        def work(connection: sqlite3.Connection) -> tuple[Job, int | None]:
            if read_pause(connection) is not None:
                raise TraindError(ErrorCode.CONFLICT, "the queue is paused; nothing starts")
            job = advance(connection, job_id, claim, now=now)
            statement = "SELECT port FROM attempt WHERE job_id = :job AND ended_at IS NULL"
            return job, connection.execute(statement, {"job": job_id}).fetchone()[0]

        def tell(claimed: tuple[Job, int | None]) -> None:
            self.queue_wait_s.observe((now - claimed[0].eligible_at).total_seconds())
            self._hub.job_changed(claimed[0])

        return await self._database.run(work, tell)

    async def started(self, job_id: int, boottime_s: float, *, now: datetime) -> Job:
        """The job after its attempt began; one that is already being stopped stays so."""

        def work(connection: sqlite3.Connection) -> Job:
            job, move = read_job(connection, job_id), Started(boottime_s=boottime_s)
            if job.state is JobState.STARTING:
                return advance_from(connection, job, move, now=now)
            note_start(connection, job, move, now=now)
            return job

        return await self._database.run(work, self._hub.job_changed)

    async def note_stop_stage(self, job_id: int, stage: int) -> None:
        """Remember which step of the stop protocol was taken."""
        await self._database.run(
            lambda connection: (
                connection.execute(
                    "UPDATE job SET stop_stage = :stage WHERE id = :id AND state = 'stopping'",
                    {"stage": stage, "id": job_id},
                ).rowcount
            )
        )

    async def get(self, job_id: int) -> Job:
        """The job. Raises NOT_FOUND."""
        return await self._database.run(lambda connection: read_job(connection, job_id))

    async def find(self, chosen: JobFilter) -> list[Job]:
        """Jobs, newest first."""
        return await self._select(*listing(chosen))

    async def ids(self, chosen: JobFilter) -> list[int]:
        """The ids of jobs, newest first; nothing else of them is read."""
        statement, values = ids_listing(chosen)
        return await self._database.run(
            lambda connection: [row[0] for row in connection.execute(statement, values)]
        )

    async def page(self, chosen: JobFilter) -> tuple[list[Job], bool]:
        """(jobs, newest first, whether there may be more)."""
        return await self._page(*listing(chosen))

    async def unknown(self, ids: Sequence[int]) -> list[int]:
        """Those of the ids that no job has, in their order."""
        statement = (
            "SELECT value FROM json_each(:ids) WHERE value NOT IN (SELECT id FROM job) ORDER BY key"
        )
        values = {"ids": json.dumps(list(ids))}
        return await self._database.run(
            lambda connection: [row[0] for row in connection.execute(statement, values)]
        )

    async def owning(self) -> list[Job]:
        """The jobs that own GPUs: starting, running, stopping; by id."""
        states = "('starting', 'running', 'stopping')"
        return await self._select(f"{JOBS} WHERE job.state IN {states} ORDER BY job.id", {})

    async def queue(self, *, after: tuple[int, int] | None, limit: int) -> tuple[list[Job], bool]:
        """(queued jobs in their order behind the place `after` (priority, id), whether there may
        be more).
        """
        priority, job_id = after or (1000, 0)
        statement = (
            f"{jobs_by('job_who_waits_in_order')} "
            "WHERE job.state = 'queued' AND (job.priority < :priority OR "
            "(job.priority = :priority AND job.id > :id)) "
            "ORDER BY job.priority DESC, job.id LIMIT :limit"
        )
        return await self._page(statement, {"priority": priority, "id": job_id, "limit": limit})

    async def ahead(self, job: Job) -> int:
        """How many queued jobs stand before this one."""
        return await self._database.run(
            lambda connection: int(
                connection.execute(
                    "SELECT COUNT(*) FROM job WHERE state = 'queued' AND (priority > :priority "
                    "OR (priority = :priority AND id < :id))",
                    {"priority": job.priority, "id": job.id},
                ).fetchone()[0]
            )
        )

    async def _select(self, statement: str, values: Mapping[str, Any]) -> list[Job]:
        return await self._database.run(
            lambda connection: jobs_of(connection, connection.execute(statement, values))
        )

    async def _page(self, statement: str, values: Mapping[str, Any]) -> tuple[list[Job], bool]:
        def read(connection: sqlite3.Connection) -> tuple[list[Job], bool]:
            rows, more = page_of(connection.execute(statement, values), limit=values["limit"])
            return jobs_of(connection, rows), more

        return await self._database.run(read)

    async def lanes(self, *, now: datetime) -> list[Lane]:
        """The lanes in which anybody waits whose time has come."""
        statement = (
            "SELECT DISTINCT user, priority, gpus > 0 FROM job "
            "WHERE state = 'queued' AND eligible_at <= :now"
        )
        return await self._database.run(
            lambda c: [
                Lane(row[0], row[1], bool(row[2]))
                for row in c.execute(statement, {"now": to_us(now)})
            ]
        )

    async def lane(self, lane: Lane, limit: int, *, now: datetime) -> list[Job]:
        """The first jobs of a lane whose time has come, in their order."""
        statement = (
            f"{JOBS} WHERE job.state = 'queued' AND job.user = :user AND "
            "job.priority = :priority AND (job.gpus > 0) = :with_gpus AND "
            "job.eligible_at <= :now ORDER BY job.id LIMIT :limit"
        )
        values = {"user": lane.user, "priority": lane.priority, "with_gpus": int(lane.with_gpus)}
        return await self._select(statement, {**values, "now": to_us(now), "limit": limit})

    async def maturing(self, *, after: datetime, now: datetime, limit: int) -> list[Job]:
        """Queued jobs whose time came behind `after` and up to `now`, the first ones first."""
        statement = (
            f"{jobs_by('job_whose_time_comes')} "
            "WHERE job.state = 'queued' AND job.eligible_at > :after AND "
            "job.eligible_at <= :now ORDER BY job.eligible_at, job.id LIMIT :limit"
        )
        values = {"after": to_us(after), "now": to_us(now), "limit": limit}
        return await self._select(statement, values)

    async def next_maturity(self, *, now: datetime) -> datetime | None:
        """When the time of the next queued job comes, None when all have come."""
        statement = (
            "SELECT MIN(eligible_at) FROM job INDEXED BY job_whose_time_comes "
            "WHERE state = 'queued' AND eligible_at > :now"
        )
        found: int | None = await self._database.run(
            lambda c: c.execute(statement, {"now": to_us(now)}).fetchone()[0]
        )
        return None if found is None else from_us(found)

    async def attempts(self, job_id: int) -> list[Attempt]:
        """All attempts of a job, the first one first."""
        statement = "SELECT * FROM attempt WHERE job_id = :job ORDER BY number"
        return await self._database.run(lambda c: _attempts(c, statement, {"job": job_id}))

    async def open_attempts(self) -> list[Attempt]:
        """The attempts that are not over."""
        statement = "SELECT * FROM attempt WHERE ended_at IS NULL ORDER BY id"
        return await self._database.run(lambda c: _attempts(c, statement, {}))

    async def events(self, job_id: int, *, after: int, limit: int) -> list[dict[str, Any]]:
        """The history of a job: {id, at_us, event, state, facts}, oldest first, behind `after`."""
        statement = (
            "SELECT * FROM job_event WHERE job_id = :job AND id > :after ORDER BY id LIMIT :limit"
        )
        values = {"job": job_id, "after": after, "limit": limit}
        return await self._database.run(
            lambda connection: [
                {
                    "id": row["id"],
                    "job_id": row["job_id"],
                    "at_us": row["at"],
                    "event": row["event"],
                    "state": row["state"],
                    "facts": json.loads(row["facts"]),
                }
                for row in connection.execute(statement, values)
            ]
        )

    async def counts(self) -> dict[JobState, int]:
        """How many jobs are in each state but finished."""
        statement = (
            "SELECT state, COUNT(*) FROM job WHERE state IN "
            "('held', 'queued', 'starting', 'running', 'stopping') GROUP BY state"
        )
        found = await self._database.run(lambda c: dict(c.execute(statement).fetchall()))
        return {state: found.get(state, 0) for state in JobState if state != JobState.FINISHED}

    async def prove_writable(self, *, now: datetime) -> None:
        """Write something small. Raises UNAVAILABLE when nothing can be stored."""
        await self._database.run(
            lambda connection: (
                connection.execute(
                    "INSERT INTO counter VALUES ('proved_writable_at', :at) "
                    "ON CONFLICT (name) DO UPDATE SET value = :at",
                    {"at": to_us(now)},
                ).rowcount
            )
        )

    async def ids_start_above(self, floor: int) -> None:
        """Never give an id again that a run directory already bears."""
        await self._database.run(
            lambda connection: (
                connection.execute(
                    "UPDATE counter SET value = :floor WHERE name = 'id' AND value < :floor",
                    {"floor": floor},
                ).rowcount
            )
        )


def _attempts(
    connection: sqlite3.Connection, statement: str, values: Mapping[str, Any]
) -> list[Attempt]:
    rows = connection.execute(statement, values).fetchall()
    leases = leases_of(connection, [row["id"] for row in rows])
    return [attempt_of(row, leases.get(row["id"], ())) for row in rows]
