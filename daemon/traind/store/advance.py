"""The one door that changes a state: asks the table, writes job, attempt, leases and event."""

import json
import sqlite3
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, assert_never

from traind.errors import ErrorCode, TraindError
from traind.job import OWNING, Budget, Job, JobState, request_of
from traind.jobspec import JobSpec, changed_fields
from traind.lifecycle import Finish, JobEvent, Requeue, after
from traind.store.moves import (
    Again,
    Amend,
    Claim,
    Ended,
    Hold,
    Move,
    Notice,
    Release,
    Signal,
    Started,
    Stop,
    event_of,
)
from traind.store.rows import JOBS, jobs_of, to_us
from traind.verdict import Verdict

Columns = Mapping[str, Any]

_NO_STOP: Columns = dict.fromkeys(
    (
        *("stop_reason", "stop_by", "stop_asked_at", "stop_term_at", "stop_kill_at"),
        *("stop_stage", "stop_hold", "stop_detail"),
    )
)
_NO_HOLD: Columns = {"held_by": None, "hold_code": None, "hold_detail": None}
_STAYS = {Amend: "update", Signal: "signal"}
"""What the history calls a change that leaves the state as it is."""


def read_job(connection: sqlite3.Connection, job_id: int) -> Job:
    """The job. Raises NOT_FOUND."""
    found = jobs_of(connection, connection.execute(f"{JOBS} WHERE job.id = :id", {"id": job_id}))
    if not found:
        raise TraindError(ErrorCode.NOT_FOUND, f"there is no job {job_id}")
    return found[0]


def advance(connection: sqlite3.Connection, job_id: int, move: Move, *, now: datetime) -> Job:
    """The job after the move. Raises NOT_FOUND, and CONFLICT where the table has no such move."""
    return advance_from(connection, read_job(connection, job_id), move, now=now)


def advance_from(connection: sqlite3.Connection, job: Job, move: Move, *, now: datetime) -> Job:
    """The same for a job that this transaction has read already. Raises CONFLICT."""
    event = event_of(move)
    state = job.state if event is None else after(job.state, event, held=_held(move))
    columns, facts = _effects(connection, job, move, now)
    _update_job(connection, job, {"state": state, **columns})
    named = move.event if isinstance(move, Notice) else event or _STAYS[type(move)]
    record(connection, named, [(job.id, state, facts)], now=now)
    return read_job(connection, job.id)


def record(
    connection: sqlite3.Connection,
    event: str,
    of: Iterable[tuple[int, JobState, Columns]],
    *,
    now: datetime,
) -> None:
    """Append an event to the history of jobs: each job's id, its state after it, and its facts."""
    at = to_us(now)
    rows = [
        {
            "job": job_id,
            "at": at,
            "event": event,
            "state": state,
            "facts": json.dumps({k: v for k, v in facts.items() if v is not None}),
        }
        for job_id, state, facts in of
    ]
    connection.executemany(
        "INSERT INTO job_event (job_id, at, event, state, facts) "
        "VALUES (:job, :at, :event, :state, :facts)",
        rows,
    )


def _update_job(connection: sqlite3.Connection, job: Job, columns: Columns) -> None:
    sets = ", ".join(f"{name} = :{name}" for name in columns)
    changed = connection.execute(
        f"UPDATE job SET {sets}, version = version + 1 WHERE id = :job_id AND state = :was",
        {**columns, "job_id": job.id, "was": job.state},
    )
    if changed.rowcount != 1:
        raise TraindError(ErrorCode.CONFLICT, f"job {job.id} is no longer {job.state}")


def _effects(
    connection: sqlite3.Connection, job: Job, move: Move, now: datetime
) -> tuple[Columns, Columns]:
    """What a move changes in the job's row, and the facts of its event; other rows are written."""
    match move:
        case Claim():
            return _claim(connection, job, move, now)
        case Started():
            note_start(connection, job, move, now=now)
            return {"started_at": to_us(now)}, {"attempt": job.attempt}
        case Stop():
            return _stop(job, move)
        case Ended():
            return _ended(connection, job, move, now)
        case Hold(by=by, reason=reason):
            hold = {"held_by": by, "hold_code": reason.code, "hold_detail": reason.detail}
            return hold, {"by": by, "reason": reason.code}
        case Again():
            return _again(move)
        case Amend():
            return _amend(connection, job, move)
        case Signal(by=by, name=name):
            return {"signals": json.dumps([*job.signals, name])}, {"by": by, "signal": name}
        case Notice(sentence=sentence, facts=facts):
            return {"warnings": json.dumps([*job.warnings, sentence])}, facts
        case Release(eligible_at=eligible_at):
            return {**_NO_HOLD, "eligible_at": to_us(eligible_at)}, {}
    assert_never(move)


def _claim(
    connection: sqlite3.Connection, job: Job, claim: Claim, now: datetime
) -> tuple[Columns, Columns]:
    if request_of(job) != claim.request:
        raise TraindError(ErrorCode.CONFLICT, f"job {job.id} was changed meanwhile")
    number = job.attempt + 1
    attempt = connection.execute(
        "INSERT INTO attempt (job_id, number, supervision, boot_id, claimed_at, port, log_path) "
        "VALUES (:job, :number, 'shim', :boot, :at, :port, :log)",
        {
            "job": job.id,
            "number": number,
            "boot": claim.boot_id,
            "at": to_us(now),
            "port": _free_port(connection, claim.ports, job.id + number),
            "log": f"{claim.run_dirs}/{job.id}/{number}/log",
        },
    ).lastrowid
    for lease in claim.leases:
        connection.execute(
            "INSERT INTO lease (attempt_id, gpu_uuid, gpu_index, gpu_name, memory_mib, exclusive, "
            "baseline_mib, unlisted_mib, state, held_at) VALUES (:attempt, :uuid, :index, :name, "
            ":memory, :exclusive, :baseline, :unlisted, 'held', :at)",
            {
                "attempt": attempt,
                "uuid": lease.gpu_uuid,
                "index": lease.gpu_index,
                "name": lease.gpu_name,
                "memory": lease.memory_mib,
                "exclusive": int(lease.exclusive),
                "baseline": lease.baseline_mib,
                "unlisted": lease.unlisted_mib,
                "at": to_us(now),
            },
        )
    columns = {"attempt": number, "started_at": None, "exit_code": None, "signal": None}
    gpus = [lease.gpu_index for lease in claim.leases]
    return {**columns, "progress_step": None, "progress_total": None}, {
        "attempt": number,
        "gpus": gpus,
    }


def _free_port(connection: sqlite3.Connection, ports: range, hint: int) -> int | None:
    """A port no open attempt has, from a place that moves on; None when all are taken."""
    taken = {
        row[0]
        for row in connection.execute(
            "SELECT port FROM attempt WHERE ended_at IS NULL AND port IS NOT NULL"
        )
    }
    turn = hint % len(ports)
    return next((port for port in (*ports[turn:], *ports[:turn]) if port not in taken), None)


def note_start(
    connection: sqlite3.Connection, job: Job, started: Started, *, now: datetime
) -> None:
    """Write down when the running attempt started, whatever was asked of the job meanwhile."""
    connection.execute(
        "UPDATE attempt SET started_at = :at, started_boottime = :boottime "
        "WHERE job_id = :job AND number = :number AND started_at IS NULL",
        {
            "at": to_us(now),
            "boottime": started.boottime_s,
            "job": job.id,
            "number": job.attempt,
        },
    )


def _stop(job: Job, stop: Stop) -> tuple[Columns, Columns]:
    """A stronger reason replaces a weaker one; the deadlines only ever come nearer."""
    order, known = stop.order, job.stop
    term_at, kill_at, stage = order.term_at, order.kill_at, 0
    reason, by, asked_at = order.reason, order.by, order.asked_at
    hold, detail = order.hold, order.detail
    if known is not None:
        hold = hold or known.hold
        term_at, kill_at = min(term_at, known.term_at), min(kill_at, known.kill_at)
        stage = known.stage
        if known.reason.strength >= reason.strength:
            reason, by, asked_at = known.reason, known.by, known.asked_at
            detail = known.detail
    columns = {
        "stop_reason": reason,
        "stop_by": by,
        "stop_asked_at": to_us(asked_at),
        "stop_term_at": to_us(term_at),
        "stop_kill_at": to_us(kill_at),
        "stop_stage": stage,
        "stop_hold": hold,
        "stop_detail": detail,
    }
    return columns, {"reason": reason, "by": by, "detail": detail}


def _held(move: Move) -> bool:
    """Whether a requeue leads to held."""
    if isinstance(move, Again):
        return move.hold is not None
    settled = move.settled if isinstance(move, Ended) else None
    return isinstance(settled, Requeue) and settled.hold is not None


def _ended(
    connection: sqlite3.Connection, job: Job, ended: Ended, now: datetime
) -> tuple[Columns, Columns]:
    settled, verdict = ended.settled, ended.settled.verdict
    columns: dict[str, Any] = {**_NO_STOP, **_NO_HOLD, "signals": "[]"}
    if job.state in OWNING:
        began = _began(job, ended, now)
        columns["started_at"] = None if began is None else to_us(began)
        if job.state is JobState.STARTING and began is not None:
            started = [(job.id, JobState.RUNNING, {"attempt": job.attempt})]
            record(connection, JobEvent.STARTED, started, now=began)
        _end_attempt(connection, job, ended, columns["started_at"], now)
    columns |= {"cause_code": verdict.cause.code, "cause_detail": verdict.cause.detail}
    columns |= {"exit_code": verdict.exit_code, "signal": verdict.signal}
    columns |= {"peak_memory_mib": ended.peak_memory_mib}
    if job.leases and ended.run_s is not None:
        columns["gpu_seconds"] = job.gpu_seconds + len(job.leases) * ended.run_s
    if ended.progress is not None:
        columns |= {"progress_step": ended.progress[0], "progress_total": ended.progress[1]}
    facts: dict[str, Any] = {"outcome": verdict.outcome, "cause": verdict.cause.code}
    facts |= {"exit_code": verdict.exit_code, "signal": verdict.signal, "attempt": job.attempt}
    if isinstance(settled, Finish):
        return {**columns, "outcome": verdict.outcome, "finished_at": to_us(now)}, facts
    columns |= {"eligible_at": to_us(settled.eligible_at), "outcome": None, "finished_at": None}
    columns |= _budget(settled.budget)
    if settled.avoid_until is not None:
        lately = job.avoid_until is not None and job.avoid_until > now
        avoid = verdict.faulty | (job.avoid if lately else frozenset())
        columns |= {"avoid": json.dumps(sorted(avoid)), "avoid_until": to_us(settled.avoid_until)}
    if settled.hold is not None:
        columns |= {"held_by": settled.held_by, "hold_code": settled.hold.code}
        columns |= {"hold_detail": settled.hold.detail}
    return columns, facts


def _began(job: Job, ended: Ended, now: datetime) -> datetime | None:
    """When the attempt started: a quick one may be over before its start could be noted."""
    if job.started_at is not None or ended.run_s is None:
        return job.started_at
    return now - timedelta(seconds=ended.run_s)


def _budget(budget: Budget) -> Columns:
    return {
        "used_free": budget.free,
        "used_retries": budget.retries,
        "used_checkpoints": budget.checkpoints,
        "used_quick": budget.quick,
    }


def _again(again: Again) -> tuple[Columns, Columns]:
    columns: dict[str, Any] = {**_NO_HOLD, **_budget(Budget())}
    columns |= {"outcome": None, "finished_at": None, "eligible_at": to_us(again.eligible_at)}
    hold = again.hold
    if hold is not None:
        columns |= {"held_by": hold.by, "hold_code": hold.reason.code}
        columns |= {"hold_detail": hold.reason.detail}
    return columns, {"by": again.by}


def _amend(connection: sqlite3.Connection, job: Job, amend: Amend) -> tuple[Columns, Columns]:
    spec = amend.spec
    columns: dict[str, Any] = {"name": spec.name, "spec": stored_spec(spec), "gpus": spec.gpus}
    columns |= {"priority": spec.priority}
    if spec.script != job.spec.script:
        columns |= {"warnings": "[]"}  # they were about the script that it no longer has
    if amend.eligible_at is not None:
        columns |= {"eligible_at": to_us(amend.eligible_at)}
    connection.execute("DELETE FROM job_label WHERE job_id = :job", {"job": job.id})
    write_labels(connection, [(job.id, spec)])
    return columns, {"by": amend.by, "fields": list(changed_fields(job.spec, spec))}


def write_labels(connection: sqlite3.Connection, of: Iterable[tuple[int, JobSpec]]) -> None:
    """Put the labels of orders, each with its job's id, where jobs are found by them."""
    rows = [
        {"name": name, "value": value, "job": job_id}
        for job_id, spec in of
        for name, value in spec.labels.items()
    ]
    connection.executemany("INSERT INTO job_label VALUES (:name, :value, :job)", rows)


def stored_spec(spec: JobSpec) -> str:
    """The order as it is kept; whether the job is held is told by its state alone."""
    unheld = spec.model_copy(update={"hold": False}) if spec.hold else spec
    return unheld.model_dump_json(exclude_defaults=True)


def _end_attempt(
    connection: sqlite3.Connection, job: Job, ended: Ended, began: int | None, now: datetime
) -> None:
    verdict: Verdict = ended.settled.verdict
    key = {"job": job.id, "number": job.attempt}
    connection.execute(
        "UPDATE lease SET state = 'cleaning', cleaning_at = :at WHERE state = 'held' AND "
        "attempt_id = (SELECT id FROM attempt WHERE job_id = :job AND number = :number)",
        {**key, "at": to_us(now)},
    )
    connection.execute(
        "UPDATE attempt SET ended_at = :at, outcome = :outcome, cause_code = :code, "
        "cause_detail = :detail, exit_code = :exit, signal = :signal, peak_memory_mib = :peak, "
        "started_at = COALESCE(started_at, :began) "
        "WHERE job_id = :job AND number = :number",
        {
            **key,
            "at": to_us(now),
            "outcome": verdict.outcome,
            "code": verdict.cause.code,
            "detail": verdict.cause.detail,
            "exit": verdict.exit_code,
            "signal": verdict.signal,
            "peak": ended.peak_memory_mib,
            "began": began,
        },
    )
