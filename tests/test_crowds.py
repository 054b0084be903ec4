"""Crowds: who submits gets a job, who reads gets the whole log, and everybody is answered."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from crowd import LOG_BYTES, TALK, all_at_once, follow, lags, longest_lag_s, submit
from harness import Daemon

SUBMITTERS = 200
READERS = 10


def test_two_hundred_who_submit_at_once_all_get_a_job(daemon: Daemon) -> None:
    ids = all_at_once(lambda: submit(daemon), SUBMITTERS)
    assert len(set(ids)) == SUBMITTERS
    daemon.restart()  # a 201 is on disk
    kept = daemon.ask("GET", "/v1/jobs?limit=1000").json["jobs"]
    assert {str(job["id"]) for job in kept} == set(ids)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ten_who_read_a_huge_log_get_it_whole_and_hold_up_nobody(daemon: Daemon) -> None:
    number = daemon.submit(TALK)
    daemon.wait(number, "running")
    before = lags(daemon)
    with ThreadPoolExecutor(READERS) as pool:
        readers = [pool.submit(follow, daemon, number) for _ in range(READERS)]
        answered = 0
        while not all(reader.done() for reader in readers):
            assert daemon.ask("GET", f"/v1/jobs/{number}").status == 200
            answered += 1
        digests = {reader.result() for reader in readers}
    log = (daemon.run_dir(number) / "log").read_bytes()
    assert len(log) == LOG_BYTES
    assert digests == {hashlib.sha256(log).hexdigest()}
    assert answered > 10
    assert longest_lag_s(before, lags(daemon)) <= 1
