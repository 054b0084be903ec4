"""`top`: what runs now and what it takes, drawn anew until Ctrl-C."""

import os
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from traind.cli.arguments import Parsed
from traind.cli.client import Client
from traind.cli.render import table
from traind.cli.submit import print_json
from traind.cli.terminal import wants_colour, width_of
from traind.cli.views import gpu_indices, gpus_text, progress, spent
from traind.options import size_text

_HEADERS = ("ID", "NAME", "USER", "STATE", "GPU", "GPU MEMORY", "CPU", "MEMORY", "TIME", "PROGRESS")
_RUNNING: dict[str, str | int] = {"state": "running,starting,stopping", "limit": 100}
_LATELY = timedelta(minutes=1)
"""How old the newest sample may be; a daemon takes them every five seconds."""

_USUAL_PAUSE_S = 2.0

Json = Mapping[str, Any]


def top(parsed: Parsed, client: Client) -> int:
    """`top`: GPUs and running jobs; once where the output is no terminal."""
    if parsed.flag("json"):
        print_json(client.call("GET", "/v1/jobs", query=_RUNNING))
        return 0
    told = parsed.values.get("interval_s")
    pause_s = max(told if isinstance(told, float) else _USUAL_PAUSE_S, 0.2)
    if not sys.stdout.isatty():
        print(_frame(client))
        return 0
    try:
        while True:
            rows = os.get_terminal_size(sys.stdout.fileno()).lines or 24
            lines = _frame(client).splitlines()[: rows - 1]
            print("\x1b[H\x1b[J" + "\n".join(lines), end="\n", flush=True)
            time.sleep(pause_s)
    except KeyboardInterrupt:
        return 0


def _frame(client: Client) -> str:
    """All of it, as it stands now."""
    now, width = datetime.now(UTC), width_of(sys.stdout)
    colour = wants_colour(sys.stdout)
    gpus = client.call("GET", "/v1/gpus").data["gpus"]
    jobs = client.call("GET", "/v1/jobs", query=_RUNNING).data["jobs"]
    waiting = client.call("GET", "/v1/status").data["jobs"]
    parts = [gpus_text(gpus, width=width, colour=colour)] if gpus else []
    rows = [_row(job, _newest(client, job, now), now) for job in jobs]
    flexible = (("NAME", 12), ("USER", 6))
    parts += [table(_HEADERS, rows, width=width, colour=colour, flexible=flexible)]
    counts = ", ".join(f"{waiting.get(state, 0)} {state}" for state in ("queued", "held"))
    return "\n\n".join([*parts, f"{len(jobs)} running, {counts}"])


def _newest(client: Client, job: Json, now: datetime) -> Json:
    """The newest sample of a job, empty before the first; what somebody else's job takes is hidden,
    as is its attempt.
    """
    if job["attempt"] is None:
        return {}
    query = {"since": (now - _LATELY).isoformat()}
    samples = client.call("GET", f"/v1/jobs/{job['id']}/samples", query=query).data["samples"]
    return samples[-1] if samples else {}


def _row(job: Json, sample: Json, now: datetime) -> tuple[object, ...]:
    of_gpus = [gpu["memory_mib"] for gpu in sample.get("gpus") or ()]
    known = [mib for mib in of_gpus if mib is not None]
    cpu, memory = sample.get("cpu_pct"), sample.get("memory_mib")
    return (
        job["id"],
        job.get("name") or "",
        job.get("user") or "",
        job["state"],
        gpu_indices(job),
        size_text(sum(known)) if known else "",
        "" if cpu is None else f"{cpu:.0f}%",
        "" if memory is None else size_text(memory),
        spent(job, now),
        progress(job),
    )
