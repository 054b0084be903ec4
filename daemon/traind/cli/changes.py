"""The verbs that change jobs: one by one for those that are named, at once for those selected."""

from __future__ import annotations

import os
from typing import Any

from traind.cli.arguments import Parsed
from traind.cli.client import Client, Reply
from traind.cli.commands import for_each
from traind.cli.errors import NotAllowed, NotFound, Refused, UsageError
from traind.cli.follow import job_of
from traind.cli.ids import resolve
from traind.cli.paths import placed
from traind.cli.submit import print_json
from traind.cli.terminal import complain, safe
from traind.cli.verbs import SELECTORS
from traind.options import OPTIONS, parse_span, span_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

FAILED = "failed,out_of_memory,timed_out,gpu_fault,launch_failed,lost"
_EXIT_CODES = {"not_found": NotFound.exit_code, "forbidden": NotAllowed.exit_code}


def cancel(parsed: Parsed, client: Client) -> int:
    """`cancel`: stops jobs with grace or at once; those that wait leave the queue."""
    if _selects(parsed):
        now = {"now": True} if parsed.flag("now") else {}
        return _act(parsed, client, "cancel", now)

    def ask(job_id: str) -> Reply:
        query = {"now": 1} if parsed.flag("now") else None
        return client.call("DELETE", f"/v1/jobs/{job_id}", query=query)

    def describe(job_id: str) -> str:
        reply = ask(job_id)
        job = reply.data if isinstance(reply.data, dict) else {}
        if reply.status == 202:
            return f"job {job_id} is being stopped"
        outcome = safe(job.get("outcome") or "cancelled")
        return f"job {job_id} {outcome}"

    return for_each(parsed, client, describe, ask)


def hold(parsed: Parsed, client: Client) -> int:
    """`hold`: keeps waiting jobs from starting."""
    if _selects(parsed):
        return _act(parsed, client, "hold", {})
    return _patch_each(parsed, client, {"hold": True})


def release(parsed: Parsed, client: Client) -> int:
    """`release`: lets held jobs wait for their turn again, or for an instant."""
    at = parsed.text("at")
    if _selects(parsed):
        if at is not None:
            raise UsageError("--at goes with jobs that are named by id; leave it out")
        return _act(parsed, client, "release", {})
    return _patch_each(parsed, client, {"hold": False} | ({"begin_at": at} if at else {}))


def _patch_each(parsed: Parsed, client: Client, fields: dict[str, Any]) -> int:
    def ask(job_id: str) -> Reply:
        return client.call("PATCH", f"/v1/jobs/{job_id}", body=fields)

    return for_each(
        parsed, client, lambda job_id: f"job {job_id} is {safe(ask(job_id).data['state'])}", ask
    )


def requeue(parsed: Parsed, client: Client) -> int:
    """`requeue`: stops jobs and queues them again under their ids, or holds them."""
    order = {"hold": True} if parsed.flag("hold") else {}
    if _selects(parsed):
        return _act(parsed, client, "requeue", order)

    def ask(job_id: str) -> Reply:
        return client.call("POST", f"/v1/jobs/{job_id}/requeue", body=order)

    def describe(job_id: str) -> str:
        reply = ask(job_id)
        if reply.status != 202:
            return f"job {job_id} is {safe(reply.data['state'])}"
        return f"job {job_id} is being stopped, then {'held' if order else 'queued'}"

    return for_each(parsed, client, describe, ask)


def rerun(parsed: Parsed, client: Client) -> int:
    """`rerun`: submits copies of jobs as new ones."""
    if _selects(parsed) or parsed.flag("failed"):
        return _act(parsed, client, "rerun", {})

    def ask(job_id: str) -> Reply:
        return client.call("POST", f"/v1/jobs/{job_id}/rerun", body={})

    def describe(job_id: str) -> str:
        return f"job {job_id} runs again as job {ask(job_id).data['id']}"

    return for_each(parsed, client, describe, ask)


def send_signal(parsed: Parsed, client: Client) -> int:
    """`signal`: a signal to all processes of running jobs; it is the last word."""
    name = parsed.words.pop().upper().removeprefix("SIG") if parsed.words else ""
    if not name or not (parsed.words or _selects(parsed)):
        raise UsageError("say which jobs and which signal, such as: traind signal 42 USR1")
    order = {"signal": name}
    if _selects(parsed):
        return _act(parsed, client, "signal", order)

    def ask(job_id: str) -> Reply:
        return client.call("POST", f"/v1/jobs/{job_id}/signal", body=order)

    def describe(job_id: str) -> str:
        ask(job_id)
        return f"job {job_id} gets SIG{name}"

    return for_each(parsed, client, describe, ask)


def update(parsed: Parsed, client: Client) -> int:
    """`update`: changes what was ordered; env and labels are added to."""
    fields = {o.field: parsed.values[o.field] for o in OPTIONS if o.field in parsed.values}
    fields = placed(fields, os.getcwd())
    if parsed.text("wrap") is not None:
        fields["command"] = parsed.text("wrap")
    reset = parsed.values.get("reset")
    for name in reset if isinstance(reset, list) else ():
        fields[str(name).replace("-", "_")] = None
    if not fields:
        raise UsageError("say what to change, such as: traind update 42 --time 4h")

    def ask(job_id: str) -> Reply:
        return _change(client, job_id, fields)

    def describe(job_id: str) -> str:
        ask(job_id)
        return f"job {job_id} changed"

    return for_each(parsed, client, describe, ask)


def _change(client: Client, job_id: str, fields: dict[str, Any]) -> Reply:
    """The job with the fields changed; nobody else's change of env or labels is lost."""
    added = [name for name in ("env", "labels") if isinstance(fields.get(name), dict)]
    if not added:
        return client.call("PATCH", f"/v1/jobs/{job_id}", body=fields)
    answer = client.request("GET", f"/v1/jobs/{job_id}")
    tag = answer.headers.get("etag")
    known = Reply(answer.status, answer.read()).data
    merged = fields | {name: (known.get(name) or {}) | fields[name] for name in added}
    headers = {"If-Match": tag} if tag else None
    return client.call("PATCH", f"/v1/jobs/{job_id}", body=merged, headers=headers)


def extend(parsed: Parsed, client: Client) -> int:
    """`extend`: more time for jobs, on top of their limit; it is the last word."""
    more = parsed.words.pop() if parsed.words else ""
    if not more.startswith("+") or not parsed.words:
        raise UsageError("say which jobs and how much more, such as: traind extend 42 +2h")
    try:
        seconds = parse_span(more[1:])
    except ValueError as wrong:
        raise UsageError(str(wrong)) from None

    def ask(job_id: str) -> Reply:
        limit = job_of(client, job_id).get("time_limit_s")
        if limit is None:
            raise Refused(
                "it has no time limit of its own, so it may run as long as this box allows; "
                "traind update --time sets one",
                409,
            )
        body = {"time_limit_s": limit + seconds}
        return client.call("PATCH", f"/v1/jobs/{job_id}", body=body)

    def describe(job_id: str) -> str:
        return f"job {job_id} may run {span_text(ask(job_id).data['time_limit_s'])} in all"

    return for_each(parsed, client, describe, ask)


def _selects(parsed: Parsed) -> bool:
    """Whether jobs are meant by what they are, or nothing is to be done."""
    return parsed.flag("dry_run") or any(parsed.values.get(name) for name in SELECTORS)


def _act(parsed: Parsed, client: Client, action: str, more: dict[str, Any]) -> int:
    """One action on all jobs that are meant; the highest exit status of the refused ones."""
    dry_run = parsed.flag("dry_run")
    body = {"action": action, "select": _selection(parsed, client), "dry_run": dry_run, **more}
    reply = client.call("POST", "/v1/jobs/actions", body=body, timeout=None)
    jobs: list[dict[str, Any]] = reply.data["jobs"]
    if parsed.flag("json"):
        print_json(reply)
    elif not jobs:
        complain("no such jobs")
    status = 0
    for job in jobs:
        error = job["error"]
        if error is not None:
            status = max(status, _EXIT_CODES.get(error["code"], Refused.exit_code))
            complain(f"job {job['id']}: {error['detail']}")
        elif not parsed.flag("json"):
            print(_said(job, dry_run=dry_run))
    return status


def _said(job: dict[str, Any], *, dry_run: bool) -> str:
    """What became of a job, in a line."""
    name = f"job {job['id']} ({safe(job['name'])})"
    if job["did"] == "nothing":
        return f"{name} is {safe(job['state'])} already"
    if job["new_id"] is not None:
        return f"{name} runs again as job {job['new_id']}"
    did = {"stopping": "stopped", "rerun": "run again"}.get(job["did"], safe(job["did"]))
    if dry_run:
        return f"{name} would be {did}"
    return f"{name} is being stopped" if did == "stopped" else f"{name} {did}"


def _selection(parsed: Parsed, client: Client) -> dict[str, Any]:
    """Which jobs are meant: those named, and of these, or of the caller's, those selected."""
    select: dict[str, Any] = {}
    for name in ("user", "label", "state"):
        if parsed.text(name) is not None:
            select[name] = parsed.text(name)
    if parsed.flag("failed"):
        select["outcome"] = FAILED
    if parsed.words:
        if parsed.flag("all"):
            raise UsageError("give --all or ids, not both")
        ids = resolve(parsed.words, client)
        if not all(job_id.isdecimal() for job_id in ids):
            raise UsageError("members of arrays cannot be selected; name them by their own ids")
        return {"ids": [int(job_id) for job_id in ids], **select}
    if not any(parsed.values.get(name) for name in SELECTORS):
        raise UsageError("say which jobs: ids, --label, --state, --user, or --all for all of yours")
    if "user" not in select:
        select["user"] = client.call("GET", "/v1/whoami").data["user"]
    return select


CHANGES: dict[str, Callable[[Parsed, Client], int]] = {
    "cancel": cancel,
    "hold": hold,
    "release": release,
    "requeue": requeue,
    "rerun": rerun,
    "signal": send_signal,
    "update": update,
    "extend": extend,
}
