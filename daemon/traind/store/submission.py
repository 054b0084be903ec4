"""New jobs on disk: orders of one person become rows, and their Idempotency-Key is remembered."""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from traind.job import Job
from traind.jobspec import JobSpec
from traind.lifecycle import submitted
from traind.store.advance import record, stored_spec, write_labels
from traind.store.rows import to_us


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """Orders of one person, accepted whole or not at all.

    `key` and `fingerprint` are those of an Idempotency-Key, None without one; `warnings` what is to
    be known of how they were read, each of them.
    """

    user: str
    uid: int
    specs: Sequence[JobSpec]
    key: str | None = None
    fingerprint: bytes = b""
    warnings: tuple[str, ...] = ()

    def job(self, job_id: int, spec: JobSpec, now: datetime) -> Job:
        """The job that one of the orders becomes."""
        job = submitted(job_id, spec, user=self.user, uid=self.uid, now=now)
        return replace(job, warnings=self.warnings) if self.warnings else job


def insert(connection: sqlite3.Connection, submission: Submission, now: datetime) -> list[Job]:
    """Store the orders as jobs, queued or held; the jobs, their ids one after the other."""
    count = len(submission.specs)
    last: int = connection.execute(
        "UPDATE counter SET value = value + :count WHERE name = 'id' RETURNING value",
        {"count": count},
    ).fetchone()[0]
    jobs = [
        submission.job(job_id, spec, now)
        for job_id, spec in enumerate(submission.specs, start=last - count + 1)
    ]
    connection.executemany(
        "INSERT INTO job (id, user, uid, name, spec, priority, gpus, state, held_by, hold_code, "
        "hold_detail, warnings, submitted_at, eligible_at) VALUES (:id, :user, :uid, :name, :spec, "
        ":priority, :gpus, :state, :held_by, :hold_code, :hold_detail, :warnings, :at, :eligible)",
        [_row(job) for job in jobs],
    )
    _count(connection, submission.uid, jobs)
    write_labels(connection, ((job.id, job.spec) for job in jobs))
    told = ((job.id, job.state, {"user": job.user, "name": job.spec.name}) for job in jobs)
    record(connection, "submit", told, now=now)
    return jobs


def _count(connection: sqlite3.Connection, uid: int, jobs: Sequence[Job]) -> None:
    """Count new jobs among those that wait, all of them at once.

    A trigger would do it row by row, and SQLite copies every page that a row with a trigger
    touches: that takes as long as all else that is stored of a job.
    """
    connection.execute(
        "INSERT INTO waiting VALUES (:uid, :count) "
        "ON CONFLICT (uid) DO UPDATE SET jobs = jobs + excluded.jobs",
        {"uid": uid, "count": len(jobs)},
    )


def _row(job: Job) -> dict[str, Any]:
    hold = job.hold
    return {
        "id": job.id,
        "user": job.user,
        "uid": job.uid,
        "name": job.spec.name,
        "spec": stored_spec(job.spec),
        "priority": job.priority,
        "gpus": job.spec.gpus,
        "state": job.state,
        "held_by": job.held_by,
        "hold_code": hold.code if hold else None,
        "hold_detail": hold.detail if hold else None,
        "warnings": json.dumps(job.warnings) if job.warnings else "[]",
        "at": to_us(job.submitted_at),
        "eligible": to_us(job.eligible_at),
    }


def remember(
    connection: sqlite3.Connection, submission: Submission, ids: Sequence[int], now: datetime
) -> None:
    """Note which jobs an Idempotency-Key made."""
    connection.execute(
        "INSERT INTO idempotency (uid, key, fingerprint, answer, created_at) "
        "VALUES (:uid, :key, :fingerprint, :answer, :at)",
        {
            "uid": submission.uid,
            "key": submission.key,
            "fingerprint": submission.fingerprint,
            "answer": json.dumps(list(ids)),
            "at": to_us(now),
        },
    )
