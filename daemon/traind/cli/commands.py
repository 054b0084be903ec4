"""The verbs that look at jobs and GPUs, or wait for them."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from traind.cli.arguments import Parsed
from traind.cli.clean import clean
from traind.cli.client import Client, Reply
from traind.cli.errors import Refused, UsageError
from traind.cli.events import events
from traind.cli.follow import exit_status, follow, job_of, say_outcome, wait_for
from traind.cli.gpu import gpu
from traind.cli.ids import resolve, resolve_one
from traind.cli.submit import print_json
from traind.cli.terminal import LogOutput, complain, safe, wants_colour, width_of
from traind.cli.tokens import token
from traind.cli.top import top
from traind.cli.unplug import unplug
from traind.cli.usage import usage
from traind.cli.views import gpus_text, in_order, job_text, jobs_text, why_text

ACTIVE = "held,queued,starting,running,stopping"
_MOST = 1000
_USUAL = 50
"""How many jobs are listed where nobody says how many."""

_RUN = frozenset({"command", "argv", "script", "script_args", "env"})
"""What may be long of a job, and stands in no list."""


def list_jobs(parsed: Parsed, client: Client) -> int:
    """`ls`: the jobs of everybody, those of the caller marked."""
    active = not parsed.flag("all") and parsed.text("state") is None
    query: dict[str, str | int] = {}
    if active:
        query = {"state": ACTIVE, "limit": _MOST}
    elif parsed.text("state"):
        query["state"] = str(parsed.text("state"))
    none = "no active jobs; `traind ls -a` shows finished ones" if active else "no such jobs"
    return _print_list(parsed, client, query, in_order if active else list, none=none)


def history(parsed: Parsed, client: Client) -> int:
    """`history`: the finished jobs of everybody, newest first, those of the caller marked."""
    query: dict[str, str | int] = {"state": "finished"}
    if parsed.text("outcome") is not None:
        query["outcome"] = str(parsed.text("outcome"))
    return _print_list(parsed, client, query, list, none="no finished jobs")


def _print_list(
    parsed: Parsed,
    client: Client,
    query: dict[str, str | int],
    ordered: Callable[[list[dict[str, Any]]], Sequence[Mapping[str, Any]]],
    *,
    none: str,
) -> int:
    """A table of the jobs that the query and the options narrow down to."""
    me = str(client.call("GET", "/v1/whoami").data["user"])
    user = me if parsed.flag("me") else parsed.text("user")
    narrowed = {"user": user, "label": parsed.text("label"), "q": parsed.text("q")}
    query |= {name: value for name, value in narrowed.items() if value is not None}
    if parsed.number("limit") is not None:
        query["limit"] = parsed.number("limit") or 0
    if parsed.flag("json"):
        print_json(client.call("GET", "/v1/jobs", query=query))
        return 0
    jobs, more = _newest(client, query)
    if not jobs:
        complain(none)
        return 0
    print(
        jobs_text(
            ordered(jobs),
            me=me,
            now=datetime.now(UTC),
            width=width_of(sys.stdout),
            colour=wants_colour(sys.stdout),
        )
    )
    if more and len(jobs) < _MOST:
        complain(f"these are the newest {len(jobs)}; --limit, at most {_MOST}, shows more")
    elif more:
        complain(f"these are the newest {len(jobs)}; --user, --label and --name narrow them down")
    return 0


def _newest(client: Client, query: Mapping[str, str | int]) -> tuple[list[dict[str, Any]], bool]:
    """(as many jobs as are wanted, without what they run; whether there are more). The API ends a
    page early where orders are long, and does not know of a full one whether it is the last.
    """
    wanted, place = int(query.get("limit", _USUAL)), dict(query)
    jobs: list[dict[str, Any]] = []
    while True:
        full = bool(jobs) and len(jobs) >= wanted
        limit = 1 if full else wanted - len(jobs)
        page = client.call("GET", "/v1/jobs", query=place | {"limit": limit})
        if full:
            return jobs, bool(page.data["jobs"])
        jobs += [
            {name: value for name, value in job.items() if name not in _RUN}
            for job in page.data["jobs"]
        ]
        if not page.data.get("next"):
            return jobs, False
        place["cursor"] = page.data["next"]


def show(parsed: Parsed, client: Client) -> int:
    """`show`: all about jobs."""

    def describe(job_id: str) -> str:
        job = job_of(client, job_id)
        return job_text(job, _attempts(client, job_id), datetime.now(UTC))

    def ask(job_id: str) -> Reply:
        return client.call("GET", f"/v1/jobs/{job_id}")

    return for_each(parsed, client, describe, ask, between="\n")


def why(parsed: Parsed, client: Client) -> int:
    """`why`: the sentence that says why a job waits, or why it ended."""

    def ask(job_id: str) -> Reply:
        return client.call("GET", f"/v1/jobs/{job_id}/why")

    def describe(job_id: str) -> str:
        answer = ask(job_id).data
        return safe(why_text(job_of(client, job_id), answer, datetime.now(UTC)))

    return for_each(parsed, client, describe, ask)


def logs(parsed: Parsed, client: Client) -> int:
    """`logs`: a job's log, as it is or as it grows. Ctrl-C never touches the job."""
    job_id = resolve_one(parsed.words, client)
    tail, attempt = parsed.number("tail"), parsed.number("attempt")
    if (tail is not None and tail < 0) or (attempt is not None and attempt < 1):
        raise UsageError("--tail counts lines from 0, --attempt attempts from 1")
    output = LogOutput(sys.stdout, raw=parsed.flag("raw"))
    try:
        if parsed.flag("follow"):
            job_of(client, job_id)
            follow(client, job_id, output.write, attempt=attempt, tail=tail)
            return 0
        query: dict[str, str | int] = {}
        if tail is not None:
            query["tail"] = tail
        if attempt is not None:
            query["attempt"] = attempt
        for block in client.request("GET", f"/v1/jobs/{job_id}/log", query=query).blocks():
            output.write(block)
    finally:
        output.close()
    return 0


def wait(parsed: Parsed, client: Client) -> int:
    """`wait`: the highest exit status of the jobs, once all are finished."""
    ids = resolve(parsed.words, client)
    statuses, jobs = [0], []
    for job_id in ids:
        try:
            job_of(client, job_id)
            job = wait_for(client, job_id)
        except Refused as refused:
            complain(f"job {job_id}: {refused.sentence}")
            statuses.append(refused.exit_code)
        else:
            say_outcome(job)
            statuses.append(exit_status(job))
            jobs.append(job)
    if parsed.flag("json"):
        print(json.dumps(jobs[0] if len(ids) == 1 and jobs else {"jobs": jobs}))
    return max(statuses)


def gpus(parsed: Parsed, client: Client) -> int:
    """`gpus`: the GPUs, who uses them, and why one is not given out."""
    reply = client.call("GET", "/v1/gpus")
    if parsed.flag("json"):
        print_json(reply)
        return 0
    if reply.data.get("fault"):
        complain(str(reply.data["fault"]))
    if reply.data["gpus"]:
        width, colour = width_of(sys.stdout), wants_colour(sys.stdout)
        print(gpus_text(reply.data["gpus"], width=width, colour=colour))
    elif not reply.data.get("fault"):
        complain("this machine has no GPUs that the daemon can see")
    return 0


def whoami(parsed: Parsed, client: Client) -> int:
    """`whoami`: who the daemon takes the caller for."""
    reply = client.call("GET", "/v1/whoami")
    if parsed.flag("json"):
        print_json(reply)
        return 0
    operator = ", operator" if reply.data.get("operator") else ""
    print(f"{safe(reply.data['user'])} (uid {reply.data.get('uid')}{operator})")
    return 0


def backup(parsed: Parsed, client: Client) -> int:
    """`backup`: backs the database up, and tells where to."""
    reply = client.call("POST", "/v1/backups", timeout=None)
    if parsed.flag("json"):
        print_json(reply)
        return 0
    made = reply.data
    print(f"{safe(made['path'])}: {made['bytes']} bytes in {made['took_s']:.2f} s, verified")
    return 0


def _attempts(client: Client, job_id: str) -> list[dict[str, Any]]:
    """The tries at a job; none where they are not the caller's to see."""
    try:
        reply = client.call("GET", f"/v1/jobs/{job_id}/attempts")
    except Refused:
        return []
    attempts: list[dict[str, Any]] = reply.data["attempts"]
    return attempts


def for_each(
    parsed: Parsed,
    client: Client,
    describe: Callable[[str], str],
    ask: Callable[[str], Reply],
    *,
    between: str = "",
) -> int:
    """Does a verb for each job that is named; a refused one does not keep it from the others.

    The exit status is the highest of theirs.
    """
    ids = resolve(parsed.words, client)
    if parsed.flag("json") and len(ids) == 1:
        print_json(ask(ids[0]))
        return 0
    status, answers = 0, []
    for number, job_id in enumerate(ids):
        try:
            if parsed.flag("json"):
                answers.append(ask(job_id).data)
            else:
                print((between if number else "") + describe(job_id), flush=True)
        except Refused as refused:
            complain(refused.sentence if len(ids) == 1 else f"job {job_id}: {refused.sentence}")
            status = max(status, refused.exit_code)
    if parsed.flag("json"):
        print(json.dumps({"jobs": answers}))
    return status


ACTIONS: dict[str, Callable[[Parsed, Client], int]] = {
    "ls": list_jobs,
    "history": history,
    "usage": usage,
    "show": show,
    "why": why,
    "logs": logs,
    "wait": wait,
    "gpus": gpus,
    "top": top,
    "gpu": gpu,
    "whoami": whoami,
    "backup": backup,
    "clean": clean,
    "events": events,
    "token": token,
    "unplug": unplug,
}
