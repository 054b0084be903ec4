"""Samples that grow old: readings give way to minute means, in small units.

A row has the span that it stands for: 0 is one reading, 60 s the mean of a minute. An attempt knows
its oldest of both, so that nobody searches for them.
"""

import sqlite3
from collections.abc import Mapping
from typing import Any

MINUTE_US = 60_000_000
_HOUR_US = 60 * MINUTE_US
_UNIT = 500
"""Samples after which a unit is over."""

HOST_MEANS = (
    "CAST(ROUND(AVG(memory_mib)) AS INTEGER) AS memory_mib, AVG(cpu_pct) AS cpu_pct, "
    "CAST(ROUND(AVG(processes)) AS INTEGER) AS processes, "
    "MAX(read_bytes) AS read_bytes, MAX(write_bytes) AS write_bytes"
)
"""What stands for several rows of `sample`; its bytes were counted from the attempt's start."""

GPU_MEANS = (
    "CAST(ROUND(AVG(gpu_sample.memory_mib)) AS INTEGER) AS memory_mib, AVG(busy_pct) AS busy_pct, "
    "AVG(power_w) AS power_w, CAST(ROUND(AVG(temperature_c)) AS INTEGER) AS temperature_c"
)
"""What stands for several rows of `gpu_sample`, which are of one lease."""


def thin(connection: sqlite3.Connection, *, before_us: int) -> int:
    """Put minute means in the place of readings before an instant's minute; how many readings, a
    unit or so at most, nought when there are none.
    """
    end, gone = before_us // MINUTE_US * MINUTE_US, 0
    while gone < _UNIT and (hour := _oldest_hour(connection, "samples_from", end)) is not None:
        _write_means(connection, hour)
        gone += _delete(connection, {**hour, "span": 0})
    return gone


def forget(connection: sqlite3.Connection, *, before_us: int) -> int:
    """Forget minute means from before an instant; how many, a unit or so at most."""
    gone = 0
    while gone < _UNIT and (hour := _oldest_hour(connection, "means_from", before_us)) is not None:
        gone += _delete(connection, {**hour, "span": 60})
    return gone


def _oldest_hour(connection: sqlite3.Connection, oldest: str, end: int) -> dict[str, Any] | None:
    """The attempt that has the oldest sample from before `end`, and the `end` of that hour."""
    row = connection.execute(
        f"SELECT id, {oldest} AS since FROM attempt WHERE {oldest} < :end "
        f"ORDER BY {oldest} LIMIT 1",
        {"end": end},
    ).fetchone()
    if row is None:
        return None
    return {"attempt": row["id"], "end": min(end, (row["since"] // _HOUR_US + 1) * _HOUR_US)}


def _write_means(connection: sqlite3.Connection, hour: Mapping[str, Any]) -> None:
    values = {**hour, "minute": MINUTE_US}
    connection.execute(
        "INSERT OR REPLACE INTO sample SELECT attempt_id, 60, at / :minute * :minute AS begins, "
        f"{HOST_MEANS} FROM sample WHERE attempt_id = :attempt AND span_s = 0 AND at < :end "
        "GROUP BY begins",
        values,
    )
    connection.execute(
        "INSERT OR REPLACE INTO gpu_sample SELECT lease.id, 60, at / :minute * :minute AS begins, "
        f"{GPU_MEANS} FROM lease JOIN gpu_sample ON lease_id = lease.id "
        "WHERE attempt_id = :attempt AND span_s = 0 AND at < :end GROUP BY lease.id, begins",
        values,
    )


def _delete(connection: sqlite3.Connection, values: Mapping[str, Any]) -> int:
    connection.execute(
        "DELETE FROM gpu_sample WHERE span_s = :span AND at < :end "
        "AND lease_id IN (SELECT id FROM lease WHERE attempt_id = :attempt)",
        values,
    )
    gone = connection.execute(
        "DELETE FROM sample WHERE attempt_id = :attempt AND span_s = :span AND at < :end", values
    )
    connection.execute(
        "UPDATE attempt SET "
        "samples_from = (SELECT MIN(at) FROM sample WHERE attempt_id = :attempt AND span_s = 0), "
        "means_from = (SELECT MIN(at) FROM sample WHERE attempt_id = :attempt AND span_s = 60) "
        "WHERE id = :attempt",
        values,
    )
    return gone.rowcount
