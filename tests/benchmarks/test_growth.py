"""Row 9: whether a long queue slows down what does not need to look at it."""

import os
from functools import partial
from pathlib import Path

import pytest

from benchmarks import chain
from benchmarks.backlog import WAITING, fill, take_all_gpus
from benchmarks.conftest import Starter
from benchmarks.lean import Connection, request
from benchmarks.measure import Series, in_turns, series, timed
from benchmarks.report import Line, Reach, Report
from benchmarks.stamp import Stamper

PAGE = 100
Figures = dict[str, Series]


@pytest.mark.timeout(600)
def test_a_long_queue_is_as_fast_as_an_empty_one(
    start: Starter, stamper: Stamper, report: Report, tmp_path: Path
) -> None:
    sizes = [10_000, *([100_000] if os.environ.get("BENCH_FULL") else [])]
    empty, full = start("empty", cpus=1), start("full", cpus=1)
    for daemon in (empty, full):
        take_all_gpus(daemon)
    waiting = 0
    with Connection(empty.socket) as few, Connection(full.socket) as many:
        fill(few, PAGE)
        for size in sizes:
            fill(many, size - waiting)
            waiting = size
            calls = _call_both(few, many)
            folder = tmp_path / str(size)
            folder.mkdir()
            calls |= _hand_over_both(few, many, stamper, folder)
            _tell(report, size, calls)


def _call_both(few: Connection, many: Connection) -> Figures:
    """An order and a page, in turns on the empty and on the full queue."""
    order = request("POST", "/v1/jobs", WAITING)
    page = request("GET", f"/v1/jobs?state=queued&limit={PAGE}")
    samplers = {}
    for name, connection in (("empty", few), ("full", many)):
        samplers[f"submit {name}"] = timed(partial(connection.ask, order, status=201))
        samplers[f"page {name}"] = timed(partial(connection.ask, page, status=200))
    return in_turns(samplers, rounds=20, each=5)


def _hand_over_both(few: Connection, many: Connection, stamper: Stamper, folder: Path) -> Figures:
    found: dict[str, list[float]] = {"hand-over empty": [], "hand-over full": []}
    for turn in range(2):
        for name, connection in (("empty", few), ("full", many)):
            stamps = folder / f"{name}{turn}"
            found[f"hand-over {name}"] += chain.on_box(connection, stamper, stamps, count=15)
    return {name: series(samples) for name, samples in found.items()}


def _tell(report: Report, size: int, calls: Figures) -> None:
    raw = {name: each.raw for name, each in calls.items()}
    submits = 1.2 if size <= 10_000 else 1.5
    for measure, ratio in (("submit", submits), ("hand-over", 1.5)):
        bare = calls[f"{measure} empty"].p50
        report.add(
            Line(
                row=9,
                measure=f"growth: {measure} p50, {size:,} waiting (floor: empty)",
                unit="ms",
                figure=calls[f"{measure} full"].p50,
                floor=bare,
                reach=Reach(figure=ratio * bare),
                raw=raw if measure == "submit" else {},
            )
        )
    report.add(
        Line(
            row=9,
            measure=f"growth: page of {PAGE} p50, {size:,} waiting (floor: empty)",
            unit="ms",
            figure=calls["page full"].p50,
            floor=calls["page empty"].p50,
            reach=Reach(figure=5),
        )
    )
