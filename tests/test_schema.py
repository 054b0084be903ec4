"""Rows that cannot be true are refused by the tables themselves, whatever the program thinks."""

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import sqlite_utils

from traind.job import HeldBy, JobState, Outcome, StopReason
from traind.jobspec import JobSpec
from traind.store.schema import migrations
from traind.store.submission import Submission
from traind.store.submission import insert as store_new

JOB = {
    "user": "alice",
    "uid": 1000,
    "name": "n",
    "spec": "{}",
    "priority": 0,
    "gpus": 1,
    "state": "queued",
    "submitted_at": 1,
    "eligible_at": 1,
}
ATTEMPT = {
    "job_id": 1,
    "number": 1,
    "supervision": "shim",
    "boot_id": "b",
    "claimed_at": 1,
    "log_path": "/log",
    "port": 29600,
}
LEASE = {
    "attempt_id": 1,
    "gpu_uuid": "GPU-0",
    "gpu_index": 0,
    "gpu_name": "A",
    "memory_mib": 1024,
    "exclusive": 1,
    "baseline_mib": 0,
    "unlisted_mib": 0,
    "state": "held",
    "held_at": 1,
}
STOP = {"stop_reason": "cancel", "stop_stage": 0}
ENDED = {"outcome": "failed", "finished_at": 2}
HELD = {"held_by": "user"}


@pytest.fixture
def tables() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    migrations.apply(sqlite_utils.Database(connection, execute_plugins=False))
    for number in (1, 2, 3):
        insert(connection, "job", JOB | {"id": number, "state": "running"})
        row = ATTEMPT | {"id": number, "job_id": number, "port": 29600 + number}
        insert(connection, "attempt", row)
    yield connection
    connection.close()


def insert(connection: sqlite3.Connection, table: str, row: dict[str, object]) -> None:
    names = ", ".join(row)
    values = ", ".join(f":{name}" for name in row)
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({values})", row)


def refused(connection: sqlite3.Connection, table: str, row: dict[str, object]) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        insert(connection, table, row)


@pytest.mark.parametrize(
    ("row", "fits"),
    [
        ({"state": "queued"}, True),
        ({"state": "held", **HELD}, True),
        ({"state": "stopping", **STOP}, True),
        ({"state": "finished", **ENDED}, True),
        ({"state": "waiting"}, False),
        ({"state": None}, False),
        ({"state": "finished"}, False),
        ({"state": "finished", "outcome": "failed"}, False),
        ({"state": "finished", "finished_at": 2}, False),
        ({"state": "finished", **ENDED, "outcome": "done"}, False),
        ({"state": "running", **ENDED}, False),
        ({"state": "running", "finished_at": 2}, False),
        ({"state": "held"}, False),
        ({"state": "queued", **HELD}, False),
        ({"state": "held", "held_by": "root"}, False),
        ({"state": "stopping"}, False),
        ({"state": "stopping", "stop_reason": "cancel"}, False),
        ({"state": "stopping", "stop_stage": 1}, False),
        ({"state": "stopping", **STOP, "stop_stage": 4}, False),
        ({"state": "stopping", **STOP, "stop_reason": "mood"}, False),
        ({"state": "running", **STOP}, False),
        ({"state": "finished", **ENDED, **STOP}, False),
        ({"array_id": 1}, False),
        ({"array_index": 1}, False),
        ({"priority": "high"}, False),
        ({"gpus": 1.5}, False),
        ({"uid": None}, False),
        ({"submitted_at": "2026-01-01"}, False),
    ],
    ids=str,
)
def test_a_job_is_in_one_state_with_all_that_belongs_to_it(
    tables: sqlite3.Connection, row: dict[str, object], fits: bool
) -> None:
    insert(tables, "job", JOB | row) if fits else refused(tables, "job", JOB | row)


def test_every_word_of_the_program_is_one_of_the_tables(tables: sqlite3.Connection) -> None:
    for state in JobState:
        facts: dict[str, object] = {
            **(HELD if state is JobState.HELD else {}),
            **(STOP if state is JobState.STOPPING else {}),
            **(ENDED if state is JobState.FINISHED else {}),
        }
        insert(tables, "job", JOB | {"state": state} | facts)
    for outcome in Outcome:
        insert(tables, "job", JOB | ENDED | {"state": "finished", "outcome": outcome})
    for held_by in HeldBy:
        insert(tables, "job", JOB | {"state": "held", "held_by": held_by})
    for reason in StopReason:
        insert(tables, "job", JOB | STOP | {"state": "stopping", "stop_reason": reason})


@pytest.mark.parametrize(
    ("first", "second", "fits"),
    [
        ({}, {}, False),
        ({"exclusive": 0}, {"exclusive": 0}, True),
        ({}, {"exclusive": 0}, False),
        ({"exclusive": 0}, {}, False),
        ({}, {"gpu_uuid": "GPU-1"}, True),
        ({"state": "cleaning"}, {}, False),
        ({"state": "cleaning"}, {"exclusive": 0}, False),
        ({"state": "cleaning", "exclusive": 0}, {}, False),
        ({"state": "released", "released_at": 2}, {}, True),
        ({"exclusive": 0}, {"exclusive": 0, "attempt_id": 1}, False),
    ],
    ids=str,
)
def test_an_exclusive_gpu_has_one_lease_that_is_not_released(
    tables: sqlite3.Connection, first: dict[str, object], second: dict[str, object], fits: bool
) -> None:
    insert(tables, "lease", LEASE | first)
    row = LEASE | {"attempt_id": 2} | second
    insert(tables, "lease", row) if fits else refused(tables, "lease", row)


def test_a_lease_does_not_become_exclusive_or_come_back_beside_another(
    tables: sqlite3.Connection,
) -> None:
    insert(tables, "lease", LEASE | {"state": "released", "released_at": 2})
    insert(tables, "lease", LEASE | {"attempt_id": 2, "exclusive": 0})
    insert(tables, "lease", LEASE | {"attempt_id": 3, "exclusive": 0})
    for change in (
        "UPDATE lease SET state = 'held', released_at = NULL WHERE attempt_id = 1",
        "UPDATE lease SET exclusive = 1 WHERE attempt_id = 2",
        "UPDATE lease SET gpu_uuid = 'GPU-0', exclusive = 1 WHERE attempt_id = 3",
    ):
        with pytest.raises(sqlite3.IntegrityError):
            tables.execute(change)


@pytest.mark.parametrize(
    "row",
    [
        {"memory_mib": 0},
        {"memory_mib": -1},
        {"exclusive": 2},
        {"state": "open"},
        {"state": "released"},
        {"released_at": 2},
        {"attempt_id": 99},
        {"gpu_uuid": None},
    ],
    ids=str,
)
def test_a_lease_is_of_an_attempt_and_of_some_memory(
    tables: sqlite3.Connection, row: dict[str, object]
) -> None:
    refused(tables, "lease", LEASE | row)


@pytest.mark.parametrize(
    "row",
    [
        {"number": 2},
        {"number": 1, "ended_at": 2, "outcome": "failed"},
        {"number": 0, "ended_at": 2, "outcome": "failed"},
        {"number": 2, "ended_at": 2},
        {"number": 2, "outcome": "failed"},
        {"number": 2, "job_id": 99},
        {"number": 2, "supervision": "hope", "ended_at": 2, "outcome": "failed"},
    ],
    ids=str,
)
def test_a_job_has_one_attempt_at_a_time_and_numbers_them(
    tables: sqlite3.Connection, row: dict[str, object]
) -> None:
    refused(tables, "attempt", ATTEMPT | {"port": 29700} | row)


def test_no_two_open_attempts_have_one_port(tables: sqlite3.Connection) -> None:
    insert(tables, "job", JOB | {"id": 4, "state": "running"})
    refused(tables, "attempt", ATTEMPT | {"job_id": 4, "port": 29601})
    tables.execute("UPDATE attempt SET ended_at = 2, outcome = 'lost' WHERE id = 1")
    insert(tables, "attempt", ATTEMPT | {"job_id": 4, "port": 29601})


def test_what_has_a_history_is_not_deleted(tables: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        tables.execute("DELETE FROM job WHERE id = 1")
    insert(tables, "lease", LEASE)
    with pytest.raises(sqlite3.IntegrityError):
        tables.execute("DELETE FROM attempt WHERE id = 1")


def test_who_waits_is_counted(tables: sqlite3.Connection) -> None:
    def waiting() -> object:
        return tables.execute("SELECT uid, jobs FROM waiting").fetchall()

    tables.execute("UPDATE counter SET value = 9 WHERE name = 'id'")
    specs = [JobSpec(command="true"), JobSpec(command="true", hold=True)]
    submission = Submission(user="alice", uid=1000, specs=specs)
    queued, held = store_new(tables, submission, datetime.now(UTC))
    assert waiting() == [(1000, 2)]
    tables.execute("UPDATE job SET state = 'queued', held_by = NULL WHERE id = ?", (held.id,))
    assert waiting() == [(1000, 2)]
    tables.execute("UPDATE job SET state = 'starting' WHERE id = ?", (queued.id,))
    assert waiting() == [(1000, 1)]
    tables.execute("UPDATE job SET state = 'queued' WHERE id = ?", (queued.id,))
    assert waiting() == [(1000, 2)]
    store_new(tables, submission, datetime.now(UTC))
    assert waiting() == [(1000, 4)]


def test_an_array_has_each_member_once(tables: sqlite3.Connection) -> None:
    tables.execute(
        "INSERT INTO array (id, user, uid, spec, members, submitted_at) "
        "VALUES (9, 'alice', 1000, '{}', 2, 1)"
    )
    insert(tables, "job", JOB | {"id": 10, "array_id": 9, "array_index": 0})
    insert(tables, "job", JOB | {"id": 11, "array_id": 9, "array_index": 1})
    refused(tables, "job", JOB | {"id": 12, "array_id": 9, "array_index": 1})
