"""Row 10: what kill -9 of the daemon costs: no accepted job, no exit code, and how much time."""

import subprocess
import sys
from pathlib import Path

from benchmarks.backlog import fill, take_all_gpus
from benchmarks.conftest import Starter
from benchmarks.lean import Connection, request
from benchmarks.measure import in_turns, timed
from benchmarks.report import Line, Reach, Report
from harness import Daemon, eventually

ORDERS = 20
ROUNDS = 5
WAITING_JOBS = 10_000
_IMPORTS = "import aiohttp.web, pydantic, sqlite_utils"


def test_every_answered_order_survives_kill_9(start: Starter, report: Report) -> None:
    daemon = start("box", cpus=1)
    daemon.wait(daemon.submit(["sleep", "600"]), "running")
    kept = [_kept_of_orders(daemon) for _ in range(ROUNDS)]
    report.add(
        Line(
            row=10,
            measure=f"kill -9: orders kept of {ORDERS}, the worst of {ROUNDS}",
            unit="orders",
            figure=min(kept),
            reach=Reach(figure=ORDERS, most=False),
            raw={"kept": kept},
        )
    )


def _kept_of_orders(daemon: Daemon) -> int:
    order = request("POST", "/v1/jobs", {"argv": ["true"]})
    with Connection(daemon.socket) as connection:
        ids = [connection.json(order, status=201)["id"] for _ in range(ORDERS)]
        daemon.kill()
    daemon.start()
    return sum(daemon.ask("GET", f"/v1/jobs/{number}").status == 200 for number in ids)


def test_exit_codes_and_the_queue_survive_kill_9(
    start: Starter, report: Report, tmp_path: Path
) -> None:
    daemon = start("box", cpus=2)
    gates = [tmp_path / name for name in ("during", "after")]
    running = [
        daemon.submit(f"until [ -e {gate} ]; do sleep 0.02; done; exit {code}")
        for code, gate in enumerate(gates, start=3)
    ]
    for number in running:
        daemon.wait(number, "running")
    queued = daemon.submit(["true"])
    daemon.kill()
    gates[0].touch()
    eventually(lambda: daemon.record(running[0], "exit.json"), what="an end without a daemon")
    daemon.start()
    gates[1].touch()
    codes = [daemon.wait(number)["exit_code"] for number in running]
    right = sum(code == wanted for wanted, code in enumerate(codes, start=3))
    right += daemon.wait(queued)["outcome"] == "succeeded"
    report.add(
        Line(
            row=10,
            measure="kill -9: right ends of a job meanwhile, one after, one queued",
            unit="jobs",
            figure=right,
            reach=Reach(figure=3, most=False),
            raw={"exit_codes": codes},
        )
    )


def test_a_daemon_with_a_long_queue_is_ready_at_once(start: Starter, report: Report) -> None:
    daemon = start("box", cpus=1)
    take_all_gpus(daemon)
    with Connection(daemon.socket) as connection:
        fill(connection, WAITING_JOBS)
    daemon.kill()

    def ready() -> float:
        spent = timed(daemon.start)()
        daemon.kill()
        return spent

    imports = timed(lambda: subprocess.run([sys.executable, "-c", _IMPORTS], check=True))
    found = in_turns({"traind": ready, "floor": imports}, rounds=5)
    report.add(
        Line(
            row=10,
            measure=f"start to ready after kill -9, {WAITING_JOBS:,} waiting, p50",
            unit="ms",
            figure=found["traind"].p50,
            floor=found["floor"].p50,
            reach=Reach(figure=1000),
            raw={name: each.raw for name, each in found.items()},
            note="floor: the interpreter with aiohttp, pydantic and sqlite-utils imported",
        )
    )
