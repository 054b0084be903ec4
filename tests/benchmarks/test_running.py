"""Row 8: what a running job costs beyond itself."""

from pathlib import Path

from benchmarks.conftest import Starter
from benchmarks.report import Line, Reach, Report
from harness import Daemon, command_line

JOBS = 16


def test_a_running_job_costs_next_to_nothing(start: Starter, report: Report) -> None:
    daemon = start("box", cpus=JOBS)
    daemon.wait(daemon.submit(["true"]))
    idle = _own(daemon)
    ids = [daemon.submit(["sleep", "600"]) for _ in range(JOBS)]
    for number in ids:
        daemon.wait(number, "running")
        daemon.main_pid(number)
    busy = _own(daemon)
    mib = (sum(busy.values()) - sum(idle.values())) / JOBS / 1024
    raw = {"idle_kib": sorted(idle.values()), "busy_kib": sorted(busy.values())}
    for measure, unit, figure, reach in (
        ("PSS per running job", "MiB", mib, 1.5),
        ("processes per running job", "processes", (len(busy) - len(idle)) / JOBS, 1.0),
    ):
        report.add(
            Line(
                row=8,
                measure=measure,
                unit=unit,
                figure=figure,
                reach=Reach(figure=reach),
                raw=raw,
            )
        )


def _own(daemon: Daemon) -> dict[int, int]:
    """The proportional share, in KiB, of each process of the daemon that is not a job itself."""
    own = [pid for pid in daemon.processes() if "sleep 600" not in command_line(pid)]
    return {pid: _pss_kib(pid) for pid in own}


def _pss_kib(pid: int) -> int:
    """Source: proc(5), /proc/pid/smaps_rollup."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
