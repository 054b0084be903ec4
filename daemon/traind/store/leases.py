"""The leases on disk: who holds how much of which GPU until its memory is seen to be free."""

import sqlite3
from dataclasses import dataclass
from datetime import datetime

from traind.job import Lease
from traind.store.database import Database
from traind.store.rows import leases_of, to_us


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLease:
    """A lease not yet released, with whose it is."""

    attempt_id: int
    job_id: int
    attempt: int
    user: str
    started_at_us: int | None
    cleaning_at_us: int | None
    lease: Lease


class LeaseStore:
    """Leases are opened by a claim, turn to cleaning with the attempt's end, are released here.

    `given_up`: an operator gave some up since they were read last.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.given_up = False

    async def open(self) -> list[OpenLease]:
        """Every lease that is not released."""
        self.given_up = False

        def work(connection: sqlite3.Connection) -> list[OpenLease]:
            rows = connection.execute(
                "SELECT DISTINCT attempt.id, job_id, number, attempt.started_at, ended_at, "
                "job.user FROM lease JOIN attempt ON attempt.id = attempt_id "
                "JOIN job ON job.id = job_id WHERE lease.state <> 'released'"
            ).fetchall()
            leases = leases_of(connection, [row["id"] for row in rows])
            return [
                OpenLease(
                    attempt_id=row["id"],
                    job_id=row["job_id"],
                    attempt=row["number"],
                    user=row["user"],
                    started_at_us=row["started_at"],
                    cleaning_at_us=row["ended_at"],
                    lease=lease,
                )
                for row in rows
                for lease in leases[row["id"]]
                if lease.state != "released"
            ]

        return await self._database.run(work)

    async def release(self, attempt_id: int, gpu_uuid: str, *, now: datetime) -> None:
        """The GPU has the memory of an ended attempt back."""
        await self._database.run(
            lambda connection: (
                connection.execute(
                    "UPDATE lease SET state = 'released', released_at = :at "
                    "WHERE attempt_id = :attempt AND gpu_uuid = :uuid AND state = 'cleaning'",
                    {"at": to_us(now), "attempt": attempt_id, "uuid": gpu_uuid},
                ).rowcount
            )
        )

    async def give_up(self, gpu_uuid: str, *, ended_before: datetime, now: datetime) -> None:
        """Wait no longer for what attempts have left on a GPU that ended before that."""

        def tell(_: object) -> None:
            self.given_up = True

        values = {"at": to_us(now), "uuid": gpu_uuid, "before": to_us(ended_before)}
        await self._database.run(
            lambda connection: (
                connection.execute(
                    "UPDATE lease SET state = 'released', released_at = :at WHERE gpu_uuid = :uuid "
                    "AND state = 'cleaning' AND cleaning_at < :before",
                    values,
                ).rowcount
            ),
            tell,
        )
