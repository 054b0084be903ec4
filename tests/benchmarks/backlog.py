"""Jobs that wait all through a benchmark: for a GPU another job has, in a band below others."""

from benchmarks.lean import Connection, request
from harness import Daemon

LIST_JOBS = 1000
"""A list body takes no more."""

WAITING = {"argv": ["true"], "gpus": 1, "priority": -1}


def take_all_gpus(daemon: Daemon) -> None:
    """Let one job have both simulated GPUs for as long as the daemon is there."""
    daemon.wait(daemon.submit(["sleep", "600"], gpus=2), "running")


def fill(connection: Connection, count: int) -> None:
    """Put so many jobs in the queue."""
    while count > 0:
        size = min(count, LIST_JOBS)
        connection.ask(request("POST", "/v1/jobs", [WAITING] * size), status=201)
        count -= size
