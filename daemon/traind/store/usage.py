"""Who used how much: attempts within a span of time, summed by person, label or GPU."""

import sqlite3
from dataclasses import dataclass
from datetime import datetime

from traind.store.rows import to_us

_HOUR_US = 3_600_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one person, label (NAME=VALUE) or GPU (its UUID) accounts for.

    **Units**: hours of wall time; `gpu_hours` counts each GPU of an attempt, shared ones whole.
    `energy_wh` is None where no GPU told its power.
    """

    name: str
    jobs: int
    attempts: int
    hours: float
    gpu_hours: float
    energy_wh: float | None


# An attempt that reaches beyond the span counts, and its energy too, by the part within.
_RAN = """
WITH ran AS (
    SELECT attempt.id, attempt.job_id,
        MIN(COALESCE(ended_at, :now), :until) - MAX(started_at, :since) AS us,
        energy_wh * (MIN(COALESCE(ended_at, :now), :until) - MAX(started_at, :since))
            / MAX(COALESCE(ended_at, :now) - started_at, 1) AS energy_wh,
        (SELECT COUNT(*) FROM lease WHERE attempt_id = attempt.id) AS gpus
    FROM attempt
    WHERE started_at < :until AND (ended_at > :since OR ended_at IS NULL)
        AND (:uid IS NULL OR (SELECT uid FROM job WHERE id = attempt.job_id) = :uid)
)
"""
_SUMS = "COUNT(DISTINCT ran.job_id) AS jobs, COUNT(*) AS attempts, SUM(us) AS us, "
_STATEMENTS = {
    "user": (
        f"{_RAN} SELECT job.user AS name, {_SUMS} SUM(us * ran.gpus) AS gpu_us, "
        "SUM(ran.energy_wh) AS energy_wh "
        "FROM ran JOIN job ON job.id = ran.job_id GROUP BY job.user"
    ),
    "label": (
        f"{_RAN} SELECT job_label.name || '=' || job_label.value AS name, {_SUMS} "
        "SUM(us * ran.gpus) AS gpu_us, SUM(ran.energy_wh) AS energy_wh "
        "FROM ran JOIN job_label ON job_label.job_id = ran.job_id "
        "GROUP BY job_label.name, job_label.value"
    ),
    "gpu": (
        f"{_RAN} SELECT lease.gpu_uuid AS name, {_SUMS} SUM(us) AS gpu_us, "
        "SUM(ran.energy_wh / ran.gpus) AS energy_wh "
        "FROM ran JOIN lease ON lease.attempt_id = ran.id GROUP BY lease.gpu_uuid"
    ),
}


def usage(
    connection: sqlite3.Connection,
    by: str,
    *,
    uid: int | None,
    since: datetime,
    until: datetime,
    now: datetime,
) -> list[Usage]:
    """What was used from `since` to before `until`, by `user`, `label` or `gpu`, the most GPU time
    first; by the jobs of `uid`, None for everybody's.
    """
    span = {"uid": uid, "since": to_us(since), "until": to_us(until), "now": to_us(now)}
    found = [
        Usage(
            name=row["name"],
            jobs=row["jobs"],
            attempts=row["attempts"],
            hours=row["us"] / _HOUR_US,
            gpu_hours=row["gpu_us"] / _HOUR_US,
            energy_wh=row["energy_wh"],
        )
        for row in connection.execute(_STATEMENTS[by], span)
    ]
    return sorted(found, key=lambda used: (-used.gpu_hours, -used.hours, used.name))
