"""Crowds: who submits gets a job, who reads gets the whole log, and everybody is answered."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from crowd import LOG_BYTES, TALK, all_at_once, follow, submit
from harness import Daemon, eventually

SUBMITTERS = 200
READERS = 10
CALLS = 50
"""How often somebody else asks while the readers read."""


def test_two_hundred_who_submit_at_once_all_get_a_job(daemon: Daemon) -> None:
    ids = all_at_once(lambda: submit(daemon), SUBMITTERS)
    assert len(set(ids)) == SUBMITTERS
    daemon.restart()  # a 201 is on disk
    kept = daemon.ask("GET", "/v1/jobs?limit=1000").json["jobs"]
    assert {str(job["id"]) for job in kept} == set(ids)


@pytest.mark.slow
def test_ten_who_read_a_huge_log_get_it_whole_and_hold_up_nobody(daemon: Daemon) -> None:
    os.mkfifo(daemon.home / "gate")
    number = daemon.submit(f"{TALK}; read -r _ < gate", workdir=str(daemon.home))
    with ThreadPoolExecutor(READERS) as pool:
        readers = [pool.submit(follow, daemon, number) for _ in range(READERS)]
        for _ in range(CALLS):
            assert daemon.ask("GET", f"/v1/jobs/{number}").status == 200
        assert not any(reader.done() for reader in readers)
        eventually(lambda: daemon.job(number)["state"] == "running", what="its start")
        (daemon.home / "gate").write_text("go\n")
        digests = {reader.result() for reader in readers}
    log = (daemon.run_dir(number) / "log").read_bytes()
    assert len(log) == LOG_BYTES
    assert digests == {hashlib.sha256(log).hexdigest()}
