"""The one connection, in its one thread: units of work are synchronous functions, and those that
meet share a commit.
"""

import asyncio
import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import sqlite_utils

from traind.errors import ErrorCode, StartupError, TraindError
from traind.meters import Histogram
from traind.store.schema import APPLICATION_ID, SCHEMA_VERSION, migrations

EXIT_REFUSED = 78
"""EX_CONFIG: the state is not one that this daemon may touch."""

_FULL = ("SQLITE_FULL", "SQLITE_READONLY")
_OF_ONE_UNIT = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError)
"""What a unit of work brings upon itself; every other error of SQLite is the disk's."""

_PRAGMAS = (
    # EXCLUSIVE before WAL: no second connection can exist, which keeps the WAL-reset bug of
    # SQLite 3.7.0 to 3.51.2 out of reach and lets the file open on a full disk.
    "locking_mode = EXCLUSIVE",
    "journal_mode = WAL",
    "synchronous = FULL",
    "foreign_keys = ON",
    "trusted_schema = OFF",
    "busy_timeout = 5000",
)

_COMMIT_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
log = logging.getLogger(__name__)


class UnfitError(StartupError):
    """A file that this traind may not use as its database, and `why`."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            EXIT_REFUSED,
            f"{path} is not touched: {why}. Put a backup in its place (`traind restore`), or move "
            "it away together with the runs directory beside its folder to start empty.",
        )
        self.why = why


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of work, who waits for it, and who is told of it."""

    work: Work[Any]
    future: asyncio.Future[Any]
    then: Callable[[Any], None] | None


class Database:
    """Runs units of work, each atomic, many in one commit.

    After a failed write to disk nothing may be believed any more: `on_failure` is called once.
    """

    def __init__(self, path: Path, on_failure: Callable[[str], None]) -> None:
        self._path = path
        self._on_failure = on_failure
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database")
        self.commit_s = Histogram(_COMMIT_BOUNDS_S)
        self._pending: list[Unit] = []
        self._flushing = False
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Open, or make, the database. Raises StartupError 78 for one that must not be touched."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._open)

    def _open(self) -> None:
        if not self._path.exists():
            _create(self._path)
        self._connection = _connect(self._path)

    async def close(self) -> None:
        """Finish what was asked for, and close."""
        await self.run(lambda _: None)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    async def run(self, work: Work[T], then: Callable[[T], None] | None = None) -> T:
        """What `work` returns, once it is on stable storage; all of it is, or nothing.

        `then` is called with it as well, also when nobody waits any more for the answer.
        Raises what `work` raised, or UNAVAILABLE when it could not be stored.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._pending.append(Unit(work, future, then))
        if not self._flushing:
            self._flushing = True
            loop.call_soon(self._flush)
        return await future

    async def between(self, work: Work[T]) -> T:
        """What `work` returns, run between two transactions: for what SQLite refuses inside one.

        Nothing else is stored meanwhile. Raises UNAVAILABLE when it could not be done.
        """
        connection = self._connection
        if connection is None:
            raise TraindError(ErrorCode.UNAVAILABLE, "the database is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, connection)
        except sqlite3.Error as error:
            raise TraindError(ErrorCode.UNAVAILABLE, f"the database refused it: {error}") from None

    def _flush(self) -> None:
        """Hand everything that waits to the thread; what comes meanwhile goes into the next."""
        if not self._pending:
            self._flushing = False
            return
        batch, self._pending = self._pending, []
        loop = asyncio.get_running_loop()
        done = loop.run_in_executor(self._thread, self._commit, [unit.work for unit in batch])
        done.add_done_callback(lambda outcome: self._resolve(batch, outcome))

    def _resolve(
        self,
        batch: list[Unit],
        outcome: asyncio.Future[list[tuple[Any, BaseException | None]]],
    ) -> None:
        failed = outcome.exception()
        if isinstance(failed, sqlite3.Error):
            self._on_failure(str(failed))
            failed = TraindError(ErrorCode.UNAVAILABLE, f"the state cannot be kept: {failed}")
        results = [(None, failed)] * len(batch) if failed else outcome.result()
        for unit, (value, error) in zip(batch, results, strict=True):
            if error is None and unit.then is not None:
                unit.then(value)
            if unit.future.done():
                continue
            if error is None:
                unit.future.set_result(value)
            else:
                unit.future.set_exception(error)
        self._flush()

    def _commit(self, batch: list[Work[Any]]) -> list[tuple[Any, BaseException | None]]:
        """Run the batch in one transaction, or each unit in its own where not all find room."""
        try:
            return self._transaction(batch)
        except sqlite3.Error as error:
            if not getattr(error, "sqlite_errorname", "").startswith(_FULL):
                raise
            if len(batch) > 1:
                return [self._commit([work])[0] for work in batch]
            sentence = f"the state cannot be stored ({error}); free some space and try again"
            return [(None, TraindError(ErrorCode.UNAVAILABLE, sentence))]

    def _transaction(self, batch: list[Work[Any]]) -> list[tuple[Any, BaseException | None]]:
        """What each unit returned or raised, committed; each has a savepoint of its own."""
        connection = self._connection
        if connection is None:
            raise TraindError(ErrorCode.UNAVAILABLE, "the database is closed")
        try:
            connection.execute("BEGIN")
            results = [_one(connection, work) for work in batch]
            began_s = time.monotonic()
            connection.execute("COMMIT")
            self.commit_s.observe(time.monotonic() - began_s)
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return results


def _one(connection: sqlite3.Connection, work: Work[Any]) -> tuple[Any, BaseException | None]:
    """One unit; its own refusals undo it alone, an error of the disk undoes the whole batch."""
    connection.execute("SAVEPOINT unit")
    try:
        value = work(connection)
    except Exception as refused:  # it belongs to whoever asked for this unit
        if isinstance(refused, sqlite3.Error) and not isinstance(refused, _OF_ONE_UNIT):
            raise
        connection.execute("ROLLBACK TO unit")
        connection.execute("RELEASE unit")
        return None, refused
    connection.execute("RELEASE unit")
    return value, None


def _create(path: Path) -> None:
    """Make the database under another name and rename it: a half-made one is never found."""
    new = path.with_suffix(".new")
    for leftover in path.parent.glob(new.name + "*"):
        leftover.unlink()
    try:
        with contextlib.closing(_prepared(sqlite3.connect(new, isolation_level=None))) as fresh:
            fresh.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            _migrate(fresh)
        descriptor = os.open(new, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        new.rename(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)
    except (sqlite3.Error, OSError) as error:
        raise StartupError(EXIT_REFUSED, f"{path} cannot be made: {error}") from None


def _migrate(connection: sqlite3.Connection) -> None:
    database = sqlite_utils.Database(connection, execute_plugins=False)
    migrations.apply(database)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _connect(path: Path) -> sqlite3.Connection:
    """The connection to an existing database, checked before anything is written to it."""
    try:
        version = inspect(path)
        connection = _prepared(sqlite3.connect(path, isolation_level=None))
        if version < SCHEMA_VERSION:
            _migrate(connection)
    except sqlite3.Error as error:
        raise UnfitError(path, f"it cannot be read ({error})") from None
    except OSError as error:
        raise UnfitError(path, f"it cannot be opened ({error.strerror})") from None
    return connection


def _prepared(connection: sqlite3.Connection) -> sqlite3.Connection:
    connection.row_factory = sqlite3.Row
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection


def inspect(path: Path) -> int:
    """The schema version of a sound database, read without changing a byte of it or of its
    write-ahead log, which the closing of a writing connection would fold in.

    The lock on the state directory stands in for SQLite's own, which a reader alone cannot take.
    Blocks. Raises UnfitError, sqlite3.Error and OSError for what is no sound database.
    Source: sqlite.org/vfs.html, "unix-none".
    """
    _check_header(path)
    address = f"file:{quote(str(path))}?mode=ro&vfs=unix-none"
    with contextlib.closing(sqlite3.connect(address, uri=True, isolation_level=None)) as reader:
        reader.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        found = [row[0] for row in reader.execute("PRAGMA quick_check(3)")]
        if found != ["ok"]:
            raise UnfitError(path, f"it is damaged ({'; '.join(found)})")
        version: int = reader.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise _newer(path, version)
    return version


def _check_header(path: Path) -> None:
    """Whose database it is and of which version, before SQLite opens it.

    Source: sqlite.org/fileformat2.html, 1.3, bytes 60 (user version) and 68 (application id).
    """
    with path.open("rb") as file:
        header = file.read(100)
    if not header:
        raise UnfitError(path, "it has no content")
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise UnfitError(path, "it is no SQLite database")
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise UnfitError(path, "it is not a database of traind")
    version = int.from_bytes(header[60:64], "big")
    if version > SCHEMA_VERSION:
        raise _newer(path, version)


def _newer(path: Path, version: int) -> UnfitError:
    why = f"it was written by a newer traind (schema {version}, this one knows {SCHEMA_VERSION})"
    return UnfitError(path, f"{why}; install that version again")
