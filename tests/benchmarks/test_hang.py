"""Row 12: how long anybody waits for an answer while the GPU driver answers nobody."""

from collections.abc import Callable
from pathlib import Path

from benchmarks.conftest import Starter
from benchmarks.measure import Series, in_turns, timed
from benchmarks.report import Line, Reach, Report
from gpu_scene import CARD, describe
from harness import Daemon, eventually

ROUNDS = 60
WORSE_AT_MOST = 1.5


def test_a_driver_that_hangs_holds_up_no_answer(
    start: Starter, report: Report, tmp_path: Path
) -> None:
    scene = describe(tmp_path / "gpus.json", {"memory_mib": CARD}, {"memory_mib": CARD})
    daemon = start("box", cpus=1, simulate=scene)
    daemon.wait(daemon.submit("exec sleep 600", gpus=1), "running")
    well = _latencies(daemon)
    describe(scene, {"memory_mib": CARD, "hang_s": 600}, {"memory_mib": CARD})
    eventually(lambda: daemon.ask("GET", "/v1/gpus").json["fault"], what="the hang to be noticed")
    hung = _latencies(daemon)
    for name, series in hung.items():
        report.add(
            Line(
                row=12,
                measure=f"{name} while NVML hangs, p95 (floor: before)",
                unit="ms",
                figure=series.p95,
                floor=well[name].p95,
                reach=Reach(figure=WORSE_AT_MOST * well[name].p95),
                raw={"well": well[name].raw, "hung": series.raw},
            )
        )


def _latencies(daemon: Daemon) -> dict[str, Series]:
    def asked(method: str, path: str, body: object = None) -> Callable[[], object]:
        return lambda: daemon.ask(method, path, body)

    calls = {
        "GET /v1/gpus": asked("GET", "/v1/gpus"),
        "GET /v1/jobs": asked("GET", "/v1/jobs"),
        "POST /v1/jobs": asked("POST", "/v1/jobs", {"command": "true", "hold": True}),
    }
    return in_turns({name: timed(call) for name, call in calls.items()}, rounds=ROUNDS)
