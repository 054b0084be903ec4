"""What an operator has switched for the whole box, so that it survives a restart."""

import json
import sqlite3
from collections.abc import Callable
from datetime import datetime

from traind.hub import Hub
from traind.job import Job, Pause
from traind.store.advance import advance_from
from traind.store.database import Database
from traind.store.moves import Stop
from traind.store.rows import JOBS, from_us, jobs_of, to_us


class ControlStore:
    """The pause of the queue; `pause` is kept in memory, None while the queue goes on.

    A claim asks the table itself, in its own transaction: nothing starts behind a pause.
    """

    def __init__(self, database: Database, hub: Hub) -> None:
        self._database = database
        self._hub = hub
        self.pause: Pause | None = None

    async def load(self) -> None:
        """Read what is stored."""
        self.pause = await self._database.run(read_pause)

    async def unplug(self, by: str, order: Callable[[Job], Stop], *, now: datetime) -> list[Job]:
        """The jobs that are stopped now, each by its `order`; the queue pauses with it,
        in one commit.
        """

        def work(connection: sqlite3.Connection) -> list[Job]:
            connection.execute(
                "INSERT INTO control (name, value, at) VALUES ('pause', :value, :at) "
                "ON CONFLICT (name) DO UPDATE SET value = :value, at = :at",
                {"value": json.dumps({"by": by}), "at": to_us(now)},
            )
            states = "('starting', 'running', 'stopping')"
            rows = connection.execute(f"{JOBS} WHERE job.state IN {states} ORDER BY job.id")
            owning = jobs_of(connection, rows)
            return [advance_from(connection, job, order(job), now=now) for job in owning]

        def tell(stopped: list[Job]) -> None:
            self.pause = Pause(by=by, at=now)
            for job in stopped:
                self._hub.job_changed(job)
            self._hub.wake()

        return await self._database.run(work, tell)

    async def resume(self) -> None:
        """Let the queue go on; harmless where it does."""

        def tell(_: int) -> None:
            self.pause = None
            self._hub.wake()

        statement = "DELETE FROM control WHERE name = 'pause'"
        await self._database.run(lambda connection: connection.execute(statement).rowcount, tell)


def read_pause(connection: sqlite3.Connection) -> Pause | None:
    """The pause of the queue, None while it goes on."""
    row = connection.execute("SELECT value, at FROM control WHERE name = 'pause'").fetchone()
    return None if row is None else Pause(by=json.loads(row["value"])["by"], at=from_us(row["at"]))
