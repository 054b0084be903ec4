"""Rows 4 to 6: how soon a job starts, how soon the next one does, how many do in a second."""

import os
import shutil
import time
from pathlib import Path

import pytest

from benchmarks import chain, stamp
from benchmarks.conftest import PeerStarter, Starter
from benchmarks.lean import Connection, request
from benchmarks.ledger import ledger
from benchmarks.measure import in_turns, series, timed
from benchmarks.peers import Peer
from benchmarks.report import Line, Reach, Report
from benchmarks.stamp import Stamper
from harness import eventually

EMPTY_JOBS = 500
SLOTS = 2
STARTS = 10


def test_a_job_starts_at_once_on_an_idle_box(
    start: Starter, stamper: Stamper, start_peers: PeerStarter, report: Report, tmp_path: Path
) -> None:
    daemon = start("box", cpus=1)
    stamps, spawned = tmp_path / "stamps", tmp_path / "spawned"
    order = request("POST", "/v1/jobs", {"argv": stamper.argv(stamps)})
    command = stamper.argv(spawned)

    def reply_to_first_instruction() -> float:
        job = connection.json(order, status=201)
        answered = time.time_ns()
        connection.ask(request("GET", f"/v1/jobs/{job['id']}?wait=30"), status=200)
        return (stamp.read(stamps)[-1][0] - answered) / 1e6

    def spawn_to_first_instruction() -> float:
        began = time.time_ns()
        os.waitpid(os.posix_spawn(command[0], command, os.environ), 0)
        return (stamp.read(spawned)[-1][0] - began) / 1e6

    with Connection(daemon.socket) as connection, ledger(tmp_path / "floor.db") as commit:
        found = in_turns(
            {
                "traind": reply_to_first_instruction,
                "spawn": spawn_to_first_instruction,
                "commit": timed(commit),
            },
            rounds=60,
        )
    least = found["spawn"].p50 + found["commit"].p50
    raw = {name: each.raw for name, each in found.items()}
    spawn, stored = found["spawn"].p50, found["commit"].p50
    report.add(
        Line(
            row=4,
            measure="dispatch: reply to first instruction, p50",
            unit="ms",
            figure=found["traind"].p50,
            floor=least,
            reach=Reach(figure=8, floor=1.3),
            peers=start_peers(1).each(
                lambda peer: _peer_start(peer, stamper, tmp_path / f"ran-{peer.name}")
            ),
            raw=raw,
            note=f"floor: posix_spawn {spawn:.2f} ms and one full commit {stored:.2f} ms; "
            "a peer's time counts from the end of its submitting command; its job may begin before",
        )
    )
    report.add(
        Line(
            row=4,
            measure="dispatch: reply to first instruction, p95",
            unit="ms",
            figure=found["traind"].p95,
            floor=least,
            reach=Reach(figure=20, floor=1.3),
        )
    )


def _peer_start(peer: Peer, stamper: Stamper, stamps: Path) -> float:
    def one(number: int) -> float:
        peer.submit(stamper.argv(stamps))
        answered = time.time_ns()
        eventually(lambda: len(stamp.read(stamps)) == number, what="the peer's job")
        return (stamp.read(stamps)[-1][0] - answered) / 1e6

    return series(one(number) for number in range(1, STARTS + 1)).p50


def test_the_next_job_starts_as_soon_as_one_ends(
    start: Starter, stamper: Stamper, start_peers: PeerStarter, report: Report, tmp_path: Path
) -> None:
    daemon = start("box", cpus=1)
    ours: list[float] = []
    least: list[float] = []
    with Connection(daemon.socket) as connection, ledger(tmp_path / "floor.db") as commit:
        for turn in range(3):
            ours += chain.on_box(connection, stamper, tmp_path / f"box{turn}", count=20)
            least += chain.bare(commit, stamper, tmp_path / f"bare{turn}", count=20)

    def of_peer(peer: Peer) -> float:
        stamps = tmp_path / f"chain-{peer.name}"
        return series(chain.by_command(peer.submit, stamper, stamps, count=peer.chain)).p50

    found, floor = series(ours), series(least)
    report.add(
        Line(
            row=5,
            measure="hand-over: end to next start, both durable, p50",
            unit="ms",
            figure=found.p50,
            floor=floor.p50,
            reach=Reach(figure=8, floor=2.2),
            peers=start_peers(1).each(of_peer),
            raw={"traind": found.raw, "floor": floor.raw},
            note=f"traind p95 {found.p95:.1f} ms; peers keep no record; floor: a loop with two "
            "full commits between the jobs",
        )
    )


@pytest.mark.timeout(300)
def test_hundreds_of_empty_jobs_are_drained(
    start: Starter, start_peers: PeerStarter, report: Report, tmp_path: Path
) -> None:
    argv = [shutil.which("true") or "true"]
    daemon = start("box", cpus=SLOTS)
    with Connection(daemon.socket) as connection:
        ours = chain.drain(connection, argv, count=EMPTY_JOBS)
    with ledger(tmp_path / "floor.db") as commit:
        least = chain.bare_drain(commit, argv, count=EMPTY_JOBS, slots=SLOTS)
    report.add(
        Line(
            row=6,
            measure=f"drain of {EMPTY_JOBS} empty jobs on {SLOTS} slots",
            unit="jobs/s",
            figure=ours,
            floor=least,
            reach=Reach(figure=100, floor=800, most=False),
            peers=start_peers(SLOTS).each(lambda peer: _peer_drain(peer, tmp_path)),
        )
    )


def _peer_drain(peer: Peer, folder: Path) -> float | None:
    """Jobs per second once all slots, taken while the jobs are submitted, are given free."""
    if not peer.drains:
        return None
    gate, done = folder / "gate", folder / "done"
    os.mkfifo(gate)
    for _ in range(SLOTS):
        peer.submit(["cat", str(gate)])
    for _ in range(EMPTY_JOBS):
        peer.submit(["true"])
    peer.submit(["touch", str(done)])
    began = time.perf_counter()
    for _ in range(SLOTS):
        gate.write_text("go")
    eventually(done.exists, what="the peer's last job")
    return EMPTY_JOBS / (time.perf_counter() - began)
