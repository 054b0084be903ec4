"""Row 11: how long anybody waits for the event loop while a crowd reads and submits."""

from concurrent.futures import ThreadPoolExecutor

from benchmarks.conftest import Starter
from benchmarks.report import Line, Reach, Report
from crowd import TALK, all_at_once, follow, lags, longest_lag_s, submit

READERS = 10
SUBMITTERS = 200


def test_a_crowd_holds_up_nobody(start: Starter, report: Report) -> None:
    daemon = start("box", cpus=1)
    number = daemon.submit(TALK)
    daemon.wait(number, "running")
    before = lags(daemon)
    with ThreadPoolExecutor(READERS) as pool:
        readers = [pool.submit(follow, daemon, number) for _ in range(READERS)]
        ids = all_at_once(lambda: submit(daemon), SUBMITTERS)
        assert len({reader.result() for reader in readers}) == 1
    assert len(set(ids)) == SUBMITTERS
    after = lags(daemon)
    report.add(
        Line(
            row=11,
            measure="event loop lag under 10 log readers and 200 submitters, max",
            unit="ms",
            figure=longest_lag_s(before, after) * 1000,
            reach=Reach(figure=100),
            raw={"within_s": {str(bound): after[bound] - before[bound] for bound in after}},
            note="the least bound of traind_event_loop_lag_seconds that no stretch went beyond",
        )
    )
