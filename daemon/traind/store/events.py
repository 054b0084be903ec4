"""The history of all jobs, in the order in which it was written: the ids of a stream of it."""

import json
import sqlite3
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from traind.job import JobState
from traind.store.database import Database
from traind.store.rows import from_us


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """What happened to a job of `uid`, and the state it has been in since."""

    id: int
    job_id: int
    uid: int
    at: datetime
    event: str
    state: JobState
    facts: dict[str, Any]


class EventStore:
    """Reads what `advance` writes; an id that was given is never given again."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def behind(self, last: int, *, job_id: int | None, limit: int) -> list[StoredEvent]:
        """The events behind the id `last`, oldest first; of one job where `job_id` is given."""
        of_job = "" if job_id is None else "job_event.job_id = :job AND "
        statement = (
            "SELECT job_event.*, job.uid FROM job_event JOIN job ON job.id = job_event.job_id "
            f"WHERE {of_job}job_event.id > :last ORDER BY job_event.id LIMIT :limit"
        )
        values = {"job": job_id, "last": last, "limit": limit}
        return await self._database.run(
            lambda connection: [_event(row) for row in connection.execute(statement, values)]
        )

    async def bounds(self) -> tuple[int, int]:
        """(id before the oldest event that is kept, id of the newest that ever was)."""

        def work(connection: sqlite3.Connection) -> tuple[int, int]:
            given = "SELECT seq FROM sqlite_sequence WHERE name = 'job_event'"
            row = connection.execute(given).fetchone()
            newest = 0 if row is None else int(row[0])
            oldest = connection.execute("SELECT MIN(id) FROM job_event").fetchone()[0]
            return (newest if oldest is None else int(oldest) - 1), newest

        return await self._database.run(work)

    async def attempts_finished(self) -> dict[str, int]:
        """How many attempts ever ended with each outcome, for those that any ended with."""
        statement = "SELECT outcome, attempts FROM attempts_finished ORDER BY outcome"
        return await self._database.run(lambda c: dict(c.execute(statement).fetchall()))


def _event(row: sqlite3.Row) -> StoredEvent:
    return StoredEvent(
        id=row["id"],
        job_id=row["job_id"],
        uid=row["uid"],
        at=from_us(row["at"]),
        event=row["event"],
        state=JobState(row["state"]),
        facts=json.loads(row["facts"]),
    )
