"""Jobs that run one after the other: how a box, a peer or a bare loop hands over between them."""

import os
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks import stamp
from benchmarks.lean import Connection, request
from benchmarks.ledger import Commit
from benchmarks.stamp import Stamper
from harness import eventually

BUSY_MS = 20
"""How long each job of a chain runs: long enough that its own start is over and stored."""

PATIENCE_S = 30.0


def gaps(stamps: Path) -> list[float]:
    """Milliseconds between the end of each job and the begin of the next."""
    ran = stamp.read(stamps)
    return [(later[0] - earlier[1]) / 1e6 for earlier, later in pairwise(ran)]


def on_box(connection: Connection, stamper: Stamper, stamps: Path, *, count: int) -> list[float]:
    """The gaps between jobs of a box with one core for jobs."""
    orders = [{"argv": stamper.argv(stamps, busy_ms=BUSY_MS)}] * count
    jobs = connection.json(request("POST", "/v1/jobs", orders), status=201)["jobs"]
    connection.ask(request("GET", f"/v1/jobs/{jobs[-1]['id']}?wait=90"), status=200)
    return gaps(stamps)


def bare(commit: Commit, stamper: Stamper, stamps: Path, *, count: int) -> list[float]:
    """The gaps of the least loop there is: it waits, stores an end and a start, and spawns."""
    command = stamper.argv(stamps, busy_ms=BUSY_MS)
    for _ in range(count):
        commit()
        os.waitpid(os.posix_spawn(command[0], command, os.environ), 0)
        commit()
    return gaps(stamps)


def by_command(
    submit: Callable[[Sequence[str]], None], stamper: Stamper, stamps: Path, *, count: int
) -> list[float]:
    """The gaps between jobs of a peer that takes orders on its command line."""
    for _ in range(count):
        submit(stamper.argv(stamps, busy_ms=BUSY_MS))
    eventually(
        lambda: len(stamp.read(stamps)) == count, what="the peer's chain", deadline_s=PATIENCE_S
    )
    return gaps(stamps)


def drain(connection: Connection, argv: Sequence[str], *, count: int) -> float:
    """Jobs per second of a box that is given so many at once."""
    orders = request("POST", "/v1/jobs", [{"argv": list(argv)}] * count)
    newest = connection.json(orders, status=201)["jobs"][-1]["id"]
    began = time.perf_counter()
    unfinished = request("GET", "/v1/jobs?state=queued,starting,running,stopping&limit=1")
    connection.ask(request("GET", f"/v1/jobs/{newest}?wait=110"), status=200)
    eventually(lambda: not connection.json(unfinished, status=200)["jobs"], what="the last job")
    return count / (time.perf_counter() - began)


def bare_drain(commit: Commit, argv: Sequence[str], *, count: int, slots: int) -> float:
    """Jobs per second of the least loop there is, on so many slots."""
    began = time.perf_counter()
    running = started = 0
    while running or started < count:
        if running < slots and started < count:
            commit()
            os.posix_spawn(argv[0], list(argv), os.environ)
            running, started = running + 1, started + 1
            continue
        os.wait()
        commit()
        running -= 1
    return count / (time.perf_counter() - began)
