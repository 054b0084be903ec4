"""A full disk: nothing new is accepted, nothing is lost, and room is all it takes to go on."""

import errno
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract import FAR, CheckedDaemon
from harness import Answer, daemon_in, eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk"),
]


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[CheckedDaemon]:
    """A daemon, not started yet, whose state is on a disk of 6 MiB."""
    disk = tmp_path / "state"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m,mode=700", "traind-test", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        with daemon_in(tmp_path, CheckedDaemon) as daemon:
            yield daemon
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(daemon: CheckedDaemon) -> Path:
    """Take every byte there is; the file to remove to give them back."""
    ballast = daemon.state_dir / "ballast"
    descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        while True:
            os.write(descriptor, bytes(4096))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    finally:
        os.close(descriptor)
    return ballast


def submit_until_refused(daemon: CheckedDaemon, accepted: list[int]) -> Answer:
    """Submit large jobs until one is not stored; those that were are appended to `accepted`."""
    order = {"command": "true", "begin_at": FAR, "env": {f"V{n}": "x" * 100_000 for n in range(4)}}
    for _ in range(50):
        answer = daemon.ask("POST", "/v1/jobs", order)
        if answer.status != 201:
            return answer
        accepted.append(answer.json["id"])
    raise AssertionError("the disk never got full")


def gated(daemon: CheckedDaemon) -> int:
    """A running job that ends with code 3 once something is written to `gate`."""
    os.mkfifo(daemon.home / "gate")
    number = daemon.submit("read < gate; exit 3", gpus=1, workdir=str(daemon.home))
    daemon.main_pid(number)
    daemon.wait(number, "running")
    return number


def test_on_a_full_disk_jobs_run_on_reads_go_on_and_nothing_is_lost(
    cramped: CheckedDaemon,
) -> None:
    daemon = cramped
    daemon.start()
    running = gated(daemon)
    next_up = daemon.submit("true", gpus=2)
    accepted = [running, next_up]
    ballast = fill(daemon)
    refused = submit_until_refused(daemon, accepted)
    assert (refused.status, refused.json["code"]) == (503, "unavailable")
    assert "free some space" in refused.json["detail"]
    assert int(refused.headers["Retry-After"]) >= 1
    assert daemon.ask("GET", "/readyz").status == 503
    (daemon.home / "gate").write_text("go\n")
    exit_record = eventually(lambda: daemon.record(running, "exit.json"), what="the exit")
    assert os.waitstatus_to_exitcode(exit_record["status"]) == 3
    for path in (f"/v1/jobs/{running}", "/v1/jobs", "/v1/queue", "/v1/gpus", "/v1/status"):
        for _ in range(5):
            assert daemon.ask("GET", path).status == 200
    assert daemon.ask("GET", f"/v1/jobs/{running}/log").status == 200
    assert daemon.ask("GET", "/healthz").status == 200
    assert submit_until_refused(daemon, accepted).status == 503
    ballast.unlink()
    daemon.wait(running, outcome="failed", exit_code=3, attempt=1)
    daemon.wait(next_up, outcome="succeeded", attempt=1)
    eventually(lambda: daemon.ask("GET", "/readyz").status == 200, what="ready again")
    accepted.append(daemon.submit("true", begin_at=FAR))
    stored = [job["id"] for job in daemon.ask("GET", "/v1/jobs?limit=1000").json["jobs"]]
    assert stored == sorted(accepted, reverse=True)
    assert daemon.process is not None
    assert daemon.process.poll() is None


REFUSED, AGAIN = "samples not stored", "samples are stored again"


def said_of_samples(daemon: CheckedDaemon) -> list[str]:
    """What the daemon said of whether samples are stored, one after the other."""
    return re.findall(f"{REFUSED}|{AGAIN}", daemon.log.read_text())


def test_samples_that_find_no_room_are_dropped_and_come_again_with_it(
    cramped: CheckedDaemon,
) -> None:
    daemon = cramped
    daemon.config = daemon.config.replace('sample_busy = "1s"', 'sample_busy = "20ms"')
    daemon.start()
    running = gated(daemon)
    ballast = fill(daemon)
    eventually(lambda: said_of_samples(daemon), what="a refused round")
    before = daemon.job(running)
    assert before["state"] == "running"
    ballast.unlink()
    eventually(lambda: said_of_samples(daemon)[-1] == AGAIN, what="a round that is stored")
    since = f"since={before['started_at']}"
    known = len(daemon.ask("GET", f"/v1/jobs/{running}/samples?{since}").json["samples"])
    assert known > 0
    said = said_of_samples(daemon)
    assert said == [REFUSED, AGAIN] * (len(said) // 2), "each change is told once"
    (daemon.home / "gate").write_text("go\n")
    daemon.wait(running, outcome="failed", exit_code=3)


@pytest.mark.slow
def test_a_daemon_that_is_killed_on_a_full_disk_starts_on_it_again(cramped: CheckedDaemon) -> None:
    daemon = cramped
    daemon.start()
    accepted = [gated(daemon)]
    ballast = fill(daemon)
    submit_until_refused(daemon, accepted)
    daemon.restart()
    fill(daemon)
    assert daemon.job(accepted[0])["state"] == "running"
    submit_until_refused(daemon, accepted)
    (daemon.home / "gate").write_text("go\n")
    eventually(lambda: daemon.record(accepted[0], "exit.json"), what="the exit")
    daemon.restart()
    ballast.unlink()
    daemon.wait(accepted[0], outcome="failed", exit_code=3, attempt=1)
    stored = [job["id"] for job in daemon.ask("GET", "/v1/jobs?limit=1000").json["jobs"]]
    assert stored == sorted(accepted, reverse=True)
    assert daemon.stop() == 0


def test_a_first_start_on_a_full_disk_says_so_and_leaves_nothing_in_the_way(
    cramped: CheckedDaemon,
) -> None:
    ballast = fill(cramped)
    refused = cramped.refused()
    assert refused.returncode == 78
    assert "cannot be made" in refused.stderr
    assert "full" in refused.stderr
    assert "Traceback" not in refused.stderr
    ballast.unlink()
    cramped.start()
    cramped.wait(cramped.submit("true"), outcome="succeeded")


def test_a_state_directory_that_cannot_be_written_is_refused(cramped: CheckedDaemon) -> None:
    cramped.start()
    cramped.stop()
    cramped.clean_up()
    remount = ["mount", "-o", "remount,ro", str(cramped.state_dir)]
    subprocess.run(remount, check=True)
    refused = cramped.refused()
    assert refused.returncode == 78
    assert "cannot be used: Read-only file system" in refused.stderr
    assert "Traceback" not in refused.stderr
