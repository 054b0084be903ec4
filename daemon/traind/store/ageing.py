"""What is old enough to go: found and forgotten in small units, so that the store never stalls."""

import sqlite3
from dataclasses import dataclass
from datetime import datetime

from traind.store.database import Database
from traind.store.rows import from_us, to_us
from traind.store.thinning import forget, thin

_UNIT = 100
"""Jobs, or keys, that one unit of work removes."""
_OF_JOB = "attempt_id IN (SELECT id FROM attempt WHERE job_id = :id)"


@dataclass(frozen=True, slots=True)
class Files:
    """An attempt that is over and still has files; `number` is that of the attempt."""

    attempt_id: int
    job_id: int
    number: int


class Ageing:
    """The old rows, and which attempts' files are old."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def files(
        self, left: str, *, before: datetime, after: int, limit: int = _UNIT
    ) -> list[Files]:
        """Attempts that ended before an instant, by id behind `after`.

        `left` names what may still be there of them: `all`, or `log` for the log at least.
        """
        states = ("all",) if left == "all" else ("all", "log")
        statement = (
            "SELECT id, job_id, number FROM attempt WHERE files IN (:one, :other) "
            "AND ended_at < :before AND id > :after ORDER BY id LIMIT :limit"
        )
        values = {"one": states[0], "other": states[-1], "before": to_us(before)}
        values |= {"after": after, "limit": limit}
        return await self._database.run(
            lambda c: [
                Files(row["id"], row["job_id"], row["number"])
                for row in c.execute(statement, values)
            ]
        )

    async def note_files(self, attempt_id: int, left: str) -> None:
        """What is still there of an attempt's files: `log` or `none`."""
        statement = "UPDATE attempt SET files = :left WHERE id = :id"
        values = {"left": left, "id": attempt_id}
        await self._database.run(lambda c: c.execute(statement, values).rowcount)

    async def forget_keys(self, *, before: datetime) -> int:
        """Forget idempotency keys that came before an instant; how many of them, a unit at most."""
        statement = (
            "DELETE FROM idempotency WHERE (uid, key) IN (SELECT uid, key FROM idempotency "
            "WHERE created_at < :before ORDER BY created_at LIMIT :limit)"
        )
        values = {"before": to_us(before), "limit": _UNIT}
        return await self._database.run(lambda c: c.execute(statement, values).rowcount)

    async def forget_jobs(self, *, before: datetime) -> int:
        """Forget jobs that ended before an instant, with all that is known of them; how many, a
        unit at most. One whose files are not gone, or that holds a GPU, stays.
        """

        def work(connection: sqlite3.Connection) -> int:
            rows = connection.execute(
                "SELECT id FROM job INDEXED BY job_whose_row_ages WHERE state = 'finished' "
                "AND finished_at < :before AND NOT EXISTS ("
                "SELECT 1 FROM attempt WHERE job_id = job.id AND (files <> 'none' OR EXISTS ("
                "SELECT 1 FROM lease WHERE attempt_id = attempt.id AND state <> 'released'))"
                ") ORDER BY finished_at LIMIT :limit",
                {"before": to_us(before), "limit": _UNIT},
            ).fetchall()
            for row in rows:
                _forget(connection, row["id"])
            return len(rows)

        return await self._database.run(work)

    async def thin_samples(self, *, before: datetime) -> int:
        """Put minute means in the place of readings from before an instant; how many readings."""
        return await self._database.run(lambda c: thin(c, before_us=to_us(before)))

    async def forget_means(self, *, before: datetime) -> int:
        """Forget minute means from before an instant; how many, a unit at most."""
        return await self._database.run(lambda c: forget(c, before_us=to_us(before)))

    async def done_at(self, service: str) -> datetime | None:
        """When a service was last done, None before the first time."""
        statement = "SELECT value FROM counter WHERE name = :name"
        row = await self._database.run(
            lambda c: c.execute(statement, {"name": f"{service}_done_at"}).fetchone()
        )
        return None if row is None else from_us(row["value"])

    async def note_done(self, service: str, *, now: datetime) -> None:
        """Remember that a service was done."""
        statement = (
            "INSERT INTO counter VALUES (:name, :at) ON CONFLICT (name) DO UPDATE SET value = :at"
        )
        values = {"name": f"{service}_done_at", "at": to_us(now)}
        await self._database.run(lambda c: c.execute(statement, values).rowcount)


def _forget(connection: sqlite3.Connection, job_id: int) -> None:
    for statement in (
        f"DELETE FROM gpu_sample WHERE lease_id IN (SELECT id FROM lease WHERE {_OF_JOB})",
        f"DELETE FROM sample WHERE {_OF_JOB}",
        f"DELETE FROM lease WHERE {_OF_JOB}",
        "DELETE FROM attempt WHERE job_id = :id",
        "DELETE FROM job_event WHERE job_id = :id",
        "DELETE FROM job WHERE id = :id",
    ):
        connection.execute(statement, {"id": job_id})
