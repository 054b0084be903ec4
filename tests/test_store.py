"""The database itself: what it refuses to open, refuses to hold, and how it commits."""

import asyncio
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlite_utils
from sqlite_utils import Migrations

from traind.errors import ErrorCode, StartupError, TraindError
from traind.hub import Hub
from traind.jobspec import JobSpec, read_spec
from traind.store.database import Database
from traind.store.jobs import JobStore
from traind.store.listing import JobFilter
from traind.store.rows import from_us, to_us
from traind.store.schema import APPLICATION_ID, SCHEMA_VERSION, migrations
from traind.store.submission import Submission

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = read_spec({"command": "true", "gpus": 1})


def never_fails(why: str) -> None:
    raise AssertionError(why)


@asynccontextmanager
async def opened(
    path: Path, failed: Callable[[str], None] = never_fails
) -> AsyncIterator[Database]:
    database = Database(path, failed)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


def store_on(database: Database, hub: Hub | None = None) -> JobStore:
    day = timedelta(days=1)
    return JobStore(database, hub or Hub(), remember=day, jobs_per_user=100)


def order(count: int = 1, spec: JobSpec = SPEC) -> Submission:
    return Submission(user="alice", uid=1000, specs=[spec] * count)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database of ten jobs as a killed daemon leaves it: some in the log alone."""
    folder = tmp_path_factory.mktemp("sound")

    async def fill() -> None:
        async with opened(folder / "traind.db") as database:
            await store_on(database).submit(order(9), now=NOW)

    asyncio.run(fill())
    leave_in_the_log(folder / "traind.db", "UPDATE counter SET value = 41 WHERE name = 'id'")
    return folder


def leave_in_the_log(path: Path, statement: str) -> None:
    """Commit, and die before the log is folded in."""
    program = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "c.execute('PRAGMA locking_mode = EXCLUSIVE'); c.execute('PRAGMA journal_mode = WAL'); "
        "c.execute(sys.argv[2]); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(path), statement], check=False)
    assert path.with_name("traind.db-wal").stat().st_size


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)


def flip_in_the_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(8192, len(content) - 4096, 4096):
        content[place : place + 100] = bytes(255 - byte for byte in content[place : place + 100])
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "newer": (
        lambda path: change(path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}"),
        f"newer traind (schema {SCHEMA_VERSION + 1}",
    ),
    "newer in the log": (
        lambda path: leave_in_the_log(path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}"),
        f"newer traind (schema {SCHEMA_VERSION + 1}",
    ),
    "flipped": (flip_in_the_middle, "it "),
    "half": (lambda path: os.truncate(path, path.stat().st_size // 8192 * 4096), "it "),
    "stump": (lambda path: os.truncate(path, 50), "no SQLite database"),
    "empty": (lambda path: os.truncate(path, 0), "no content"),
    "text": (lambda path: path.write_text("Dear diary,\n" * 1000), "no SQLite database"),
    "foreign": (lambda path: change(path, "PRAGMA application_id = 7"), "not a database of traind"),
    "directory": (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    "no log to read": (lambda path: log_is_a_directory(path), "cannot be read"),
}


def log_is_a_directory(path: Path) -> None:
    path.with_name("traind.db-wal").unlink(missing_ok=True)
    path.with_name("traind.db-wal").mkdir()


def contents(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_database_that_will_not_do_is_left_as_it_is_to_the_byte(
    sound: Path, tmp_path: Path, damage: str
) -> None:
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    path, (do, words) = tmp_path / "traind.db", DAMAGES[damage]
    do(path)
    before = contents(tmp_path)
    with pytest.raises(StartupError) as refused:
        await Database(path, never_fails).open()
    assert refused.value.exit_code == 78
    assert refused.value.sentence.startswith(f"{path} is not touched: ")
    assert words in refused.value.sentence
    assert contents(tmp_path) == before


async def test_a_sound_database_is_opened_with_what_stood_in_its_log_alone(
    sound: Path, tmp_path: Path
) -> None:
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    async with opened(tmp_path / "traind.db") as database:
        jobs, new = await store_on(database).submit(order(), now=NOW)
    assert new
    assert jobs[0].id == 42


async def test_a_new_database_is_ours_and_keeps_what_it_says_it_kept(tmp_path: Path) -> None:
    async with opened(tmp_path / "a b?c#%41.db") as database:
        kept = ("application_id", "user_version", "journal_mode", "synchronous", "foreign_keys")
        found = [
            await database.run(lambda c, name=name: c.execute(f"PRAGMA {name}").fetchone()[0])
            for name in kept
        ]
    assert found == [APPLICATION_ID, SCHEMA_VERSION, "wal", 2, 1]
    assert list(contents(tmp_path)) == ["a b?c#%41.db"]


async def test_no_second_connection_gets_in(tmp_path: Path) -> None:
    async with opened(tmp_path / "traind.db"):
        with (
            closing(sqlite3.connect(tmp_path / "traind.db", timeout=0)) as other,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            other.execute("SELECT * FROM job")


def test_a_migration_that_fails_is_undone_whole(tmp_path: Path) -> None:
    chain = Migrations("thrown away")

    @chain()
    def one(db: sqlite_utils.Database) -> None:
        db.executescript("CREATE TABLE one (a INTEGER) STRICT; INSERT INTO one VALUES (1);")

    @chain()
    def two(db: sqlite_utils.Database) -> None:
        db.execute("ALTER TABLE one ADD COLUMN b TEXT")
        db.executescript("CREATE TABLE two (a INTEGER) STRICT; INSERT INTO one VALUES (2, 'x');")
        db.execute("INSERT INTO nowhere VALUES (1)")

    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as connection:
        database = sqlite_utils.Database(connection, execute_plugins=False)
        with pytest.raises(sqlite3.OperationalError, match="nowhere"):
            chain.apply(database)
        assert connection.execute("SELECT * FROM one").fetchall() == [(1,)]
        assert "two" not in database.table_names()
        assert [applied.name for applied in chain.applied(database)] == ["one"]


def test_the_schema_is_what_its_migrations_make(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as connection:
        migrations.apply(sqlite_utils.Database(connection, execute_plugins=False))
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        tables = connection.execute(
            "SELECT name, strict FROM pragma_table_list WHERE schema = 'main' AND "
            "name NOT LIKE 'sqlite%' AND name NOT LIKE '_sqlite%'"
        ).fetchall()
    assert all(strict for _, strict in tables), tables


async def test_units_that_meet_share_a_commit(tmp_path: Path) -> None:
    commits: list[str] = []
    async with opened(tmp_path / "traind.db") as database:
        store = store_on(database)
        await database.run(
            lambda c: c.set_trace_callback(
                lambda sql: commits.append(sql) if sql == "COMMIT" else None
            )
        )
        results = await asyncio.gather(*(store.submit(order(), now=NOW) for _ in range(50)))
    assert sorted(jobs[0].id for jobs, _ in results) == list(range(1, 51))
    assert len(commits) < 10


async def test_a_unit_that_refuses_takes_nobody_with_it(tmp_path: Path) -> None:
    async with opened(tmp_path / "traind.db") as database:
        store, hub = store_on(database), Hub()
        good, bad, broken, more = await asyncio.gather(
            store.submit(order(), now=NOW),
            store_on(database, hub).submit(order(101), now=NOW),
            database.run(lambda c: c.execute("INSERT INTO counter VALUES ('id', 1)")),
            store.submit(order(2), now=NOW),
            return_exceptions=True,
        )
        assert isinstance(bad, TraindError)
        assert bad.code is ErrorCode.CONFLICT
        assert isinstance(broken, sqlite3.IntegrityError)
        assert not hub.take_changed()
        assert not isinstance(good, BaseException)
        assert not isinstance(more, BaseException)
        assert [job.id for job in (*good[0], *more[0])] == [1, 2, 3]
        assert len(await store.find(JobFilter())) == 3


@pytest.mark.parametrize("error", [sqlite3.DatabaseError, sqlite3.OperationalError])
async def test_an_error_of_the_disk_is_told_once_and_stores_nothing(
    tmp_path: Path, error: type[sqlite3.Error]
) -> None:
    told: list[str] = []
    async with opened(tmp_path / "traind.db", told.append) as database:

        def fail(_: sqlite3.Connection) -> None:
            raise error("database disk image is malformed")

        store = store_on(database)
        results = await asyncio.gather(
            store.submit(order(), now=NOW), database.run(fail), return_exceptions=True
        )
        for result in results:
            assert isinstance(result, TraindError)
            assert result.code is ErrorCode.UNAVAILABLE
        assert told == ["database disk image is malformed"]
        assert await store.find(JobFilter()) == []


async def test_the_answer_comes_even_when_nobody_waits_for_it_any_more(tmp_path: Path) -> None:
    hub = Hub()
    async with opened(tmp_path / "traind.db") as database:
        waiting = asyncio.create_task(store_on(database, hub).submit(order(), now=NOW))
        await asyncio.sleep(0)
        waiting.cancel()
        assert [job.id for job in await store_on(database).find(JobFilter())] == [1]
    assert [job.id for job in hub.take_changed()] == [1]


def test_instants_come_back_from_the_disk_as_they_went() -> None:
    for instant in (NOW, datetime(1, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)):
        assert from_us(to_us(instant)) == instant
