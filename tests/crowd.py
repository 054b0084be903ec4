"""A crowd of clients of one daemon: many who submit at once, and many who read one log."""

import contextlib
import hashlib
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from harness import DEADLINE_S, Daemon, UnixConnection

ORDER = {"argv": ["true"], "begin_at": "2099-01-01T00:00:00Z"}
LOG_LINE = "0123456789abcdefghijklmnopqrstuvwxyz"
LOG_BYTES = 100_000_000
TALK = f"yes {LOG_LINE} | head -c {LOG_BYTES}"
"""A job's command: what it says makes a log of 100 MB, which takes it a moment only."""


def all_at_once(work: Callable[[], str], count: int) -> list[str]:
    """What `work` gave to each of so many threads that began it together."""
    gate = threading.Barrier(count)

    def one() -> str:
        gate.wait(DEADLINE_S)
        return work()

    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(one) for _ in range(count)]]


def submit(daemon: Daemon) -> str:
    """The id of a job that was submitted over a connection of its own."""
    answer = daemon.ask("POST", "/v1/jobs", ORDER)
    assert answer.status == 201, answer.body
    return str(answer.json["id"])


def follow(daemon: Daemon, number: int) -> str:
    """The SHA-256 of a job's log, followed to its end."""
    digest = hashlib.sha256()
    with contextlib.closing(UnixConnection(daemon.socket, timeout=120)) as connection:
        connection.request("GET", f"/v1/jobs/{number}/log?follow=1")
        answer = connection.getresponse()
        assert answer.status == 200
        while block := answer.read(1 << 18):
            digest.update(block)
    return digest.hexdigest()


def lags(daemon: Daemon) -> dict[float, int]:
    """How often the event loop was busy for at most so many seconds, by these, up to infinity."""
    text = daemon.ask("GET", "/metrics").body.decode()
    bucket = r'^traind_event_loop_lag_seconds_bucket\{le="(.*)"\} (\d+)$'
    found = re.findall(bucket, text, re.MULTILINE)
    return {float(bound): int(count) for bound, count in found}


def longest_lag_s(before: dict[float, int], after: dict[float, int]) -> float:
    """The least bound below which all stretches between two looks at `lags` stayed."""
    new = {bound: after[bound] - before[bound] for bound in after}
    return min(bound for bound, count in new.items() if count == new[float("inf")])
