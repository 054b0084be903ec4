"""`submit` and `run`: an order made of a command line, sent once, and followed if asked."""

from __future__ import annotations

import os
import sys

from traind.cli.errors import UsageError
from traind.cli.orders import Caller, order_of
from traind.cli.terminal import complain, safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from traind.cli.arguments import Parsed
    from traind.cli.client import Client, Reply
    from traind.cli.orders import Order


def submit(parsed: Parsed, client: Client) -> int:
    """Submits a job, or several, and says their ids; waits for their end if asked."""
    if parsed.flag("test_only"):
        return _rehearse(parsed, client)
    order = _read(parsed)
    reply = _send(order, client)
    ids = [job["id"] for job in _jobs(order, reply)]
    if parsed.flag("json"):
        print_json(reply)
    elif parsed.flag("parsable"):
        print(*ids, sep="\n")
    elif order.several:
        print(f"Submitted batch jobs {ranges(ids)}")
        print("How they stand: traind ls --me")
    else:
        print(f"Submitted batch job {ids[0]}")
        print(f"Its log: traind logs -f {ids[0]}")
    sys.stdout.flush()
    return _wait(client, ids) if parsed.flag("wait") else 0


def _wait(client: Client, ids: Sequence[int]) -> int:
    """The highest exit status of the jobs, once all are finished."""
    from traind.cli.follow import exit_status, say_outcome, wait_for

    highest = 0
    for job_id in ids:
        job = wait_for(client, job_id)
        say_outcome(job)
        highest = max(highest, exit_status(job))
    return highest


def _rehearse(parsed: Parsed, client: Client) -> int:
    """Says where each job would start now, or why it would wait."""
    order = _read(parsed)
    reply = client.call("POST", "/v1/jobs", query={"dry_run": 1}, body=order.body)
    if parsed.flag("json"):
        print_json(reply)
        return 0
    jobs = _jobs(order, reply)
    _warn(jobs)
    for job in jobs:
        reason = job["reason"]
        starts = reason["code"] == "starts"
        sentence = reason["detail"] if starts else f"it would wait: {reason['detail']}"
        print(safe(f"{job['name']}: {sentence}" if order.several else sentence))
    return 0


def run(parsed: Parsed, client: Client) -> int:
    """Submits a job, follows its log to its end, and exits as it did.

    With `--json` the log goes to stderr, and the finished job to stdout.
    """
    from traind.cli.follow import Interrupts, exit_status, follow, say_outcome, wait_for
    from traind.cli.terminal import LogOutput

    as_json = parsed.flag("json")
    order = _read(parsed)
    if order.several:
        raise UsageError("`traind run` follows one job; `traind submit --wait` takes several")
    with Interrupts(client) as interrupts:
        job_id = _send(order, client).data["id"]
        complain(f"submitted job {job_id}")
        interrupts.attend(job_id)
        output = LogOutput(sys.stderr if as_json else sys.stdout)
        try:
            follow(client, job_id, output.write)
        finally:
            output.close()
        job = wait_for(client, job_id)
    if as_json:
        print_json(client.call("GET", f"/v1/jobs/{job_id}"))
    say_outcome(job)
    return exit_status(job)


def print_json(reply: Reply) -> None:
    """The API's JSON as it came, on a line."""
    from traind.cli.terminal import safe_prose

    text = reply.raw.decode("utf-8", "replace").rstrip("\n")
    print(safe_prose(text) if sys.stdout.isatty() else text)


def _read(parsed: Parsed) -> Order:
    """The jobs that the command line means, and on stderr what of them means nothing."""
    if sys.stdin is not None and sys.stdin.isatty() and parsed.words[:1] == ["-"]:
        complain("reading a job from the terminal; Ctrl-D ends it")
    stdin = getattr(sys.stdin, "buffer", None)
    order = order_of(parsed, Caller(os.environ, os.getcwd(), stdin))
    for warning in order.warnings:
        complain(f"warning: {warning}")
    return order


def _send(order: Order, client: Client) -> Reply:
    reply = client.submit(order.body)
    _warn(_jobs(order, reply))
    return reply


def _jobs(order: Order, reply: Reply) -> Sequence[Mapping[str, Any]]:
    jobs: Sequence[Mapping[str, Any]] = reply.data["jobs"] if order.several else [reply.data]
    return jobs


def _warn(jobs: Sequence[Mapping[str, Any]]) -> None:
    """Says on stderr what the daemon warns of, each sentence once."""
    for warning in dict.fromkeys(w for job in jobs for w in job.get("warnings") or ()):
        complain(f"warning: {warning}")


def ranges(ids: Sequence[int]) -> str:
    """The ids in their order, such as '41-43,45'."""
    parts: list[list[int]] = []
    for number in ids:
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)
