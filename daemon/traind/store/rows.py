"""Rows of the database and the values they mean, translated here and nowhere else."""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from traind.causes import Cause, CauseCode
from traind.job import (
    Attempt,
    Budget,
    GpuUse,
    HeldBy,
    Job,
    JobState,
    Lease,
    Outcome,
    StopOrder,
    StopReason,
    WaitCode,
    WaitReason,
)
from traind.jobspec import JobSpec

PAGE_LENGTH = 16 << 20
"""How many characters the orders of a page of jobs may have: what a list that is submitted may."""

Columns = sqlite3.Row | dict[str, Any]
"""A row by its columns' names; a dict finds them faster where there are many."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

JOBS = """
SELECT job.*, attempt.id AS attempt_id, attempt.log_path,
    attempt.peak_gpu_memory_mib, attempt.gpu_busy_sum, attempt.gpu_busy_count,
    attempt.cpu_pct_sum / NULLIF(attempt.cpu_pct_count, 0) AS mean_cpu_pct, attempt.samples,
    (SELECT SUM(energy_wh) FROM attempt WHERE job_id = job.id) AS energy_wh
FROM job LEFT JOIN attempt ON attempt.job_id = job.id AND attempt.number = job.attempt
"""


def jobs_by(index: str) -> str:
    """`JOBS` walked by the index that answers the question; the planner takes a worse one."""
    return JOBS.replace("FROM job ", f"FROM job INDEXED BY {index} ")


_LEASES = """
SELECT lease.* FROM lease
WHERE attempt_id IN (SELECT value FROM json_each(:attempts)) ORDER BY gpu_index
"""


def to_us(instant: datetime) -> int:
    """Microseconds since 1970 UTC."""
    return (instant - _EPOCH) // _MICROSECOND


def from_us(value: int) -> datetime:
    """The instant of so many microseconds since 1970 UTC."""
    return _EPOCH + timedelta(microseconds=value)


def instant_of(value: int | None) -> datetime | None:
    """The instant of so many microseconds, None of none."""
    return None if value is None else from_us(value)


def jobs_of(connection: sqlite3.Connection, rows: Iterable[sqlite3.Row]) -> list[Job]:
    """The jobs of rows selected with `JOBS`, in their order."""
    rows = list(rows)
    names = rows[0].keys() if rows else []
    found = [dict(zip(names, row, strict=True)) for row in rows]
    attempts = [row["attempt_id"] for row in found if row["attempt_id"] is not None]
    leases = leases_of(connection, attempts) if attempts else {}
    return [_job(row, leases.get(row["attempt_id"], ())) for row in found]


def page_of(rows: Iterable[sqlite3.Row], *, limit: int) -> tuple[list[sqlite3.Row], bool]:
    """(the first rows of `JOBS` whose orders take no more than a page together, at least one;
    whether there may be more).
    """
    page: list[sqlite3.Row] = []
    size = 0
    for row in rows:
        size += len(row["spec"])
        if page and size > PAGE_LENGTH:
            return page, True
        page.append(row)
    return page, len(page) == limit


def leases_of(
    connection: sqlite3.Connection, attempts: Iterable[int]
) -> Mapping[int, tuple[Lease, ...]]:
    """The leases of each attempt that has any, by attempt id."""
    found: dict[int, list[Lease]] = defaultdict(list)
    for row in connection.execute(_LEASES, {"attempts": json.dumps(list(attempts))}):
        found[row["attempt_id"]].append(
            Lease(
                gpu_uuid=row["gpu_uuid"],
                gpu_index=row["gpu_index"],
                gpu_name=row["gpu_name"],
                memory_mib=row["memory_mib"],
                exclusive=bool(row["exclusive"]),
                baseline_mib=row["baseline_mib"],
                unlisted_mib=row["unlisted_mib"],
                peak_mib=row["peak_mib"],
                state=row["state"],
                busiest_pct=row["busiest_pct"],
            )
        )
    return {attempt: tuple(leases) for attempt, leases in found.items()}


def _cause(row: Columns) -> Cause | None:
    if row["cause_code"] is None:
        return None
    return Cause(code=CauseCode(row["cause_code"]), detail=row["cause_detail"])


def _stop(row: Columns) -> StopOrder | None:
    if row["stop_reason"] is None:
        return None
    return StopOrder(
        reason=StopReason(row["stop_reason"]),
        by=row["stop_by"],
        asked_at=from_us(row["stop_asked_at"]),
        term_at=from_us(row["stop_term_at"]),
        kill_at=from_us(row["stop_kill_at"]),
        stage=row["stop_stage"],
        hold=None if row["stop_hold"] is None else HeldBy(row["stop_hold"]),
        detail=row["stop_detail"],
    )


def _job(row: dict[str, Any], leases: tuple[Lease, ...]) -> Job:
    hold = row["hold_code"]
    return Job(
        id=row["id"],
        array_id=row["array_id"],
        array_index=row["array_index"],
        user=row["user"],
        uid=row["uid"],
        spec=JobSpec.model_validate_json(row["spec"]),
        state=JobState(row["state"]),
        outcome=None if row["outcome"] is None else Outcome(row["outcome"]),
        cause=_cause(row),
        hold=None if hold is None else WaitReason(code=WaitCode(hold), detail=row["hold_detail"]),
        held_by=None if row["held_by"] is None else HeldBy(row["held_by"]),
        stop=_stop(row),
        signals=_texts(row["signals"]),
        warnings=_texts(row["warnings"]),
        attempt=row["attempt"],
        budget=Budget(
            free=row["used_free"],
            retries=row["used_retries"],
            checkpoints=row["used_checkpoints"],
            quick=row["used_quick"],
        ),
        avoid=frozenset(_texts(row["avoid"])),
        avoid_until=instant_of(row["avoid_until"]),
        priority=row["priority"],
        submitted_at=from_us(row["submitted_at"]),
        eligible_at=from_us(row["eligible_at"]),
        started_at=instant_of(row["started_at"]),
        finished_at=instant_of(row["finished_at"]),
        exit_code=row["exit_code"],
        signal=row["signal"],
        peak_memory_mib=row["peak_memory_mib"],
        gpu_seconds=row["gpu_seconds"],
        progress_step=row["progress_step"],
        progress_total=row["progress_total"],
        log_path=row["log_path"],
        gpu_use=_gpu_use(row),
        mean_cpu_pct=row["mean_cpu_pct"],
        samples=row["samples"] or 0,
        leases=leases,
        version=row["version"],
    )


def _texts(column: str) -> tuple[str, ...]:
    """The texts of a JSON list, which is empty for almost every job."""
    return () if column == "[]" else tuple(json.loads(column))


def _gpu_use(row: Columns) -> GpuUse:
    count = row["gpu_busy_count"]
    return GpuUse(
        peak_memory_mib=row["peak_gpu_memory_mib"],
        mean_busy_pct=row["gpu_busy_sum"] / count if count else None,
        energy_wh=row["energy_wh"],
    )


def attempt_of(row: sqlite3.Row, leases: tuple[Lease, ...]) -> Attempt:
    """The attempt of a row of its table."""
    return Attempt(
        id=row["id"],
        job_id=row["job_id"],
        number=row["number"],
        supervision=row["supervision"],
        boot_id=row["boot_id"],
        claimed_at=from_us(row["claimed_at"]),
        started_at=instant_of(row["started_at"]),
        started_boottime_s=row["started_boottime"],
        ended_at=instant_of(row["ended_at"]),
        outcome=None if row["outcome"] is None else Outcome(row["outcome"]),
        cause=_cause(row),
        exit_code=row["exit_code"],
        signal=row["signal"],
        port=row["port"],
        log_path=row["log_path"],
        peak_memory_mib=row["peak_memory_mib"],
        gpu_use=_gpu_use(row),
        leases=leases,
    )
