"""The floor's memory: a database in which each state is one insert and one full commit."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

Commit = Callable[[], None]
"""Puts one state on stable storage."""


@contextlib.contextmanager
def ledger(path: Path) -> Iterator[Commit]:
    """What puts a state on stable storage, into a new database at `path`."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE state (body TEXT)")

        def commit() -> None:
            connection.execute("INSERT INTO state VALUES ('somewhere between two states')")

        yield commit
