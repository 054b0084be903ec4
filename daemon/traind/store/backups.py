"""Copies of the database that were proved to be whole: made while it is in use, kept by age."""

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from traind.errors import ErrorCode, TraindError
from traind.store.database import Database, UnfitError, inspect

_NAME = "traind-%Y%m%dT%H%M%S.%fZ.db"
_HALF_MADE = ".half-made.db"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A copy of the database; it has its name only once it was proved to be whole."""

    path: Path
    made_at: datetime
    bytes: int


class Backups:
    """The folder of backups beside the database."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self._folder = folder
        self._one_at_a_time = asyncio.Lock()

    async def make(self, *, now: datetime) -> tuple[Backup, float]:
        """A new backup, and the seconds that it took. Raises UNAVAILABLE."""
        began = time.monotonic()
        path = self._folder / now.astimezone(UTC).strftime(_NAME)
        new = self._folder / _HALF_MADE
        async with self._one_at_a_time:
            try:
                await asyncio.to_thread(_prepare, new)
                await self._database.between(lambda connection: _copy(connection, new))
                await asyncio.to_thread(_finish, new, path)
            except OSError as error:
                why = f"no backup could be made in {self._folder}: {error.strerror}"
                raise TraindError(ErrorCode.UNAVAILABLE, why) from None
            finally:
                with contextlib.suppress(OSError):
                    new.unlink(missing_ok=True)
        size = path.stat().st_size
        return Backup(path=path, made_at=now, bytes=size), time.monotonic() - began

    async def all(self) -> list[Backup]:
        """The backups, the newest first."""
        return await asyncio.to_thread(backups_in, self._folder)

    async def rotate(self, *, daily: int, weekly: int) -> int:
        """Remove what is neither among the daily nor among the weekly ones; how many that were."""
        found = await self.all()
        kept = kept_of((backup.made_at for backup in found), daily=daily, weekly=weekly)
        spare = [backup.path for backup in found if backup.made_at not in kept]
        for path in spare:
            path.unlink(missing_ok=True)
        return len(spare)


def kept_of(instants: Iterable[datetime], *, daily: int, weekly: int) -> set[datetime]:
    """Which backups stay: the newest of each of the last days and weeks that have one."""
    days: dict[object, datetime] = {}
    weeks: dict[object, datetime] = {}
    for at in sorted(instants, reverse=True):
        days.setdefault(at.date(), at)
        weeks.setdefault(at.isocalendar()[:2], at)
    return {*list(days.values())[:daily], *list(weeks.values())[:weekly]}


def backups_in(folder: Path) -> list[Backup]:
    """The backups of a folder, the newest first; none where there is no folder. Blocks."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            with contextlib.suppress(ValueError):
                made_at = datetime.strptime(entry.name, _NAME).replace(tzinfo=UTC)
                size = entry.stat(follow_symlinks=False).st_size
                found.append(Backup(path=Path(entry.path), made_at=made_at, bytes=size))
    return sorted(found, key=lambda backup: backup.made_at, reverse=True)


def prove(path: Path) -> int:
    """The schema version of a copy that is whole. Blocks. Raises TraindError UNAVAILABLE."""
    try:
        return inspect(path)
    except UnfitError as unfit:
        raise TraindError(ErrorCode.UNAVAILABLE, f"{path} will not do: {unfit.why}") from None
    except (sqlite3.Error, OSError) as error:
        raise TraindError(ErrorCode.UNAVAILABLE, f"{path} cannot be read: {error}") from None


def _prepare(new: Path) -> None:
    """An empty file that nobody else may read, for SQLite to fill."""
    new.parent.mkdir(mode=0o700, exist_ok=True)
    for leftover in new.parent.glob(new.name + "*"):
        leftover.unlink()
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def _copy(connection: sqlite3.Connection, new: Path) -> None:
    connection.execute("VACUUM INTO :path", {"path": str(new)})


def _finish(new: Path, path: Path) -> None:
    """Give the copy its name, once it is on disk and proved to be whole."""
    _sync(new)
    prove(new)
    new.rename(path)
    _sync(path.parent)


def restore(file: Path, database: Path, *, now: datetime) -> tuple[Path | None, int]:
    """Put a backup in the place of the database, which is moved aside: (where to, highest id).

    Ids given since the backup are not given again. Whoever calls holds the state directory.
    Blocks. Raises TraindError for a backup that is not whole; nothing is changed then.
    """
    prove(file)
    new = database.with_suffix(".new")
    _prepare(new)
    with file.open("rb") as source, new.open("wb") as target:
        while block := source.read(1 << 20):
            target.write(block)
    last, last_event = (
        max(pair) for pair in zip(_last_ids(file), _last_ids(database), strict=True)
    )
    _keep_ids(new, last, last_event)
    _sync(new)
    prove(new)
    aside = _move_aside(database, now)
    new.rename(database)
    _sync(database.parent)
    return aside, last


def _last_ids(database: Path) -> tuple[int, int]:
    """The highest ids that a database gave to jobs and to events, noughts for one that cannot say.

    Blocks.
    """
    try:
        inspect(database)
        address = f"file:{database}?mode=ro&vfs=unix-none"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as reader:
            reader.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
            statement = "SELECT value FROM counter WHERE name = 'id'"
            last: int = reader.execute(statement).fetchone()[0]
            statement = "SELECT MAX(seq) FROM sqlite_sequence WHERE name = 'job_event'"
            last_event: int | None = reader.execute(statement).fetchone()[0]
    except (UnfitError, sqlite3.Error, OSError, TypeError):
        return 0, 0
    return last, last_event or 0


def _keep_ids(database: Path, last: int, last_event: int) -> None:
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute(
            "UPDATE counter SET value = :last WHERE name = 'id' AND value < :last", {"last": last}
        )
        # Those who follow the event stream know where they are by the id of an event.
        connection.execute("DELETE FROM sqlite_sequence WHERE name = 'job_event'")
        connection.execute(
            "INSERT INTO sqlite_sequence VALUES ('job_event', :last)", {"last": last_event}
        )


def _move_aside(database: Path, now: datetime) -> Path | None:
    """The place to which the database was moved with its write-ahead log; None without one."""
    folder = database.parent / now.astimezone(UTC).strftime("set-aside-%Y%m%dT%H%M%S.%fZ")
    # The file itself first: without it nothing starts, while without its log it would have lost
    # what was committed last, and nobody would be told.
    parts = [database.with_name(database.name + suffix) for suffix in ("", "-wal", "-shm")]
    parts = [part for part in parts if part.exists()]
    if not parts:
        return None
    folder.mkdir(mode=0o700)
    for part in parts:
        part.rename(folder / part.name)
    _sync(folder)
    return folder


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
