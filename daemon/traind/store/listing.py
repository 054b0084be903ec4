"""Which jobs a list shows: a filter as a value, and the statement that walks the indexes for it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from traind.job import JobState, Outcome
from traind.store.rows import JOBS


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs to list, newest first, below the id `before`; empty sets and None mean any.

    `uid` is whose they are; `labels` are pairs of name and value, a value of None means any;
    `part` is one of the name, in any case as far as letters are ASCII.
    """

    ids: frozenset[int] | None = None
    states: frozenset[JobState] = frozenset()
    outcomes: frozenset[Outcome] = frozenset()
    user: str | None = None
    uid: int | None = None
    labels: tuple[tuple[str, str | None], ...] = ()
    part: str | None = None
    before: int | None = None
    limit: int = 50


def listing(chosen: JobFilter) -> tuple[str, dict[str, Any]]:
    """The statement that selects the jobs, and its values."""
    ids, values = ids_listing(chosen)
    return f"{JOBS} WHERE job.id IN ({ids}) ORDER BY job.id DESC", values


def ids_listing(chosen: JobFilter) -> tuple[str, dict[str, Any]]:
    """The statement that selects the ids of the jobs, and its values."""
    values: dict[str, Any] = {"limit": chosen.limit, "user": chosen.user}
    values["before"] = chosen.before or 1 << 62
    where = ["id < :before"]
    if chosen.ids is not None:
        where.append("id IN (SELECT value FROM json_each(:ids))")
        values["ids"] = json.dumps(sorted(chosen.ids))
    if chosen.user is not None:
        where.append("user = :user")
    if chosen.uid is not None:
        where.append("uid = :uid")
        values["uid"] = chosen.uid
    if chosen.outcomes:
        where.append("outcome IN (SELECT value FROM json_each(:outcomes))")
        values["outcomes"] = json.dumps(sorted(chosen.outcomes))
    if chosen.part is not None:
        where.append("name LIKE :part ESCAPE '\\'")
        values["part"] = f"%{_literal(chosen.part)}%"
    for number, (name, value) in enumerate(chosen.labels):
        values |= {f"label{number}": name, f"value{number}": value}
        wanted = "" if value is None else f" AND value = :value{number}"
        where.append(f"id IN (SELECT job_id FROM job_label WHERE name = :label{number}{wanted})")
    # One ordered walk of an index for each state; with IN all of history would be sorted.
    parts = []
    for number, state in enumerate(sorted(chosen.states)):
        values[f"state{number}"] = state
        parts.append(_newest([*where, f"state = :state{number}"]))
    wanted = " UNION ALL ".join(parts or [_newest(where)])
    return f"SELECT id FROM ({wanted}) ORDER BY id DESC LIMIT :limit", values


def _literal(text: str) -> str:
    """The text without a meaning for LIKE."""
    for special in ("\\", "%", "_"):
        text = text.replace(special, f"\\{special}")
    return text


def _newest(conditions: Sequence[str]) -> str:
    where = " AND ".join(conditions)
    return f"SELECT id FROM (SELECT id FROM job WHERE {where} ORDER BY id DESC LIMIT :limit)"
