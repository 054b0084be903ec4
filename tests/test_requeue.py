"""Second chances: what runs again, what does not, what is counted, and when it is enough."""

import contextlib
import os
import signal
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from harness import SHORT, Daemon, daemon_in, eventually


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that the tests here share."""
    with daemon_in(tmp_path_factory.mktemp("box")) as daemon:
        yield daemon.start()


def attempts(daemon: Daemon, number: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = daemon.ask("GET", f"/v1/jobs/{number}/attempts").json["attempts"]
    return found


def ends(daemon: Daemon, number: int) -> list[tuple[str, str, int | None]]:
    """Outcome, cause and exit code of each attempt."""
    return [(a["outcome"], a["cause"]["code"], a["exit_code"]) for a in attempts(daemon, number)]


def test_exit_code_75_runs_again_with_the_same_checkpoint_directory(
    box: Daemon, tmp_path: Path
) -> None:
    command = (
        'echo "$TRAIND_ATTEMPT $TRAIND_CHECKPOINT_DIR" | tee -a out; '
        "[ -e $TRAIND_CHECKPOINT_DIR/half ] && exit 0; touch $TRAIND_CHECKPOINT_DIR/half; exit 75"
    )
    number = box.submit(command, workdir=str(tmp_path), gpus=1)
    box.wait(number, outcome="succeeded", exit_code=0, attempt=2)
    kept = f"{box.home}/traind/{number}"
    assert (tmp_path / "out").read_text() == f"1 {kept}\n2 {kept}\n"
    assert ends(box, number) == [("failed", "checkpointed", 75), ("succeeded", "exit_code", 0)]
    assert box.log_of(number, "?attempt=1") == f"1 {kept}\n"
    assert box.log_of(number) == f"2 {kept}\n"
    box.wait(box.submit("true", gpus=2, exclusive=True), outcome="succeeded")


def test_a_job_that_asks_to_run_again_three_times_at_once_is_held(box: Daemon) -> None:
    number = box.submit("exit 75", gpus=1)
    job = box.wait(number, "held", attempt=3, held_by="system")
    assert job["reason"]["code"] == "crash_loop"
    assert (job["outcome"], job["finished_at"]) == (None, None)
    assert [exit_code for _, _, exit_code in ends(box, number)] == [75, 75, 75]
    box.wait(box.submit("true", gpus=2, exclusive=True), outcome="succeeded")


def test_a_failure_is_retried_after_its_delay_as_often_as_asked(box: Daemon) -> None:
    retry = {"max": 2, "delay_s": 0.25, "backoff": 2}
    number = box.submit("exit 3", retry=retry)
    box.wait(number, outcome="failed", exit_code=3, attempt=3)
    assert ends(box, number) == [("failed", "exit_code", 3)] * 3
    one, two, three = attempts(box, number)
    assert seconds(one["ended_at"], two["claimed_at"]) >= 0.25
    assert seconds(two["ended_at"], three["claimed_at"]) >= 0.5


def test_a_job_that_fails_at_once_time_and_again_is_held_before_all_retries_are_spent(
    box: Daemon,
) -> None:
    number = box.submit("echo a secret; exit 3", retry={"max": 9, "delay_s": 0})
    job = box.wait(number, "held", attempt=3, held_by="system")
    assert job["reason"]["code"] == "crash_loop"
    assert "failed 3 times in a row" in job["reason"]["detail"]
    assert box.ask("PATCH", f"/v1/jobs/{number}", {"hold": False}).status == 200
    box.wait(number, "held", attempt=6)


def seconds(begin: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


def test_a_job_that_waits_for_its_retry_says_so_and_can_be_cancelled(box: Daemon) -> None:
    number = box.submit("exit 3", retry={"max": 1, "delay": "1h"})
    job = box.wait(number, "queued", attempt=1)
    eventually(lambda: (box.job(number)["reason"] or {}).get("code") == "backoff", what="a reason")
    assert seconds(job["submitted_at"], job["eligible_at"]) > 3599
    assert box.ask("DELETE", f"/v1/jobs/{number}").status == 200
    box.wait(number, outcome="cancelled", attempt=1)


def test_a_success_is_not_retried(box: Daemon) -> None:
    number = box.submit("[ $TRAIND_ATTEMPT = 2 ] || exit 3", retry={"max": 9, "delay_s": 0})
    box.wait(number, outcome="succeeded", attempt=2)


@pytest.mark.parametrize(("on", "last"), [("failed", 1), ("lost", 2)])
def test_a_lost_job_runs_again_only_where_lost_was_asked_for(
    box: Daemon, tmp_path: Path, on: str, last: int
) -> None:
    command = "echo $TRAIND_ATTEMPT >> out; [ $TRAIND_ATTEMPT = 2 ] || sleep 600"
    retry = {"max": 1, "on": [on], "delay_s": 0}
    number = box.submit(command, workdir=str(tmp_path), retry=retry)
    eventually((tmp_path / "out").exists, what="the job")
    os.kill(box.shim_pid(number), signal.SIGKILL)
    box.wait(number, outcome="lost" if last == 1 else "succeeded", attempt=last)
    assert ends(box, number)[0] == ("lost", "shim_lost", None)
    assert (tmp_path / "out").read_text().split() == [str(n + 1) for n in range(last)]


def test_a_command_that_cannot_be_started_is_not_retried(box: Daemon) -> None:
    number = box.submit(["/nowhere/at/all"], retry={"max": 3, "delay_s": 0})
    box.wait(number, outcome="launch_failed", exit_code=127, attempt=1)


def reboot(daemon: Daemon, number: int, attempt: int) -> None:
    """As after a power cut: every process is gone, and the attempt was begun in another boot."""
    for pid in daemon.processes():  # nobody is to see another one die
        os.kill(pid, signal.SIGSTOP)
    daemon.clean_up()
    with contextlib.closing(sqlite3.connect(daemon.state_dir / "daemon" / "traind.db")) as database:
        database.execute(
            "UPDATE attempt SET boot_id = 'an earlier one' WHERE job_id = ? AND number = ?",
            (number, attempt),
        )
        database.commit()
    daemon.start()


def running(daemon: Daemon, attempt: int) -> None:
    daemon.main_pid(1, attempt)
    daemon.wait(1, "running", attempt=attempt)


def test_a_job_comes_back_after_a_reboot_as_often_as_it_is_free(new_daemon: Daemon) -> None:
    new_daemon.config = SHORT + "free_requeues = 1\n"
    new_daemon.start().submit("sleep 600", gpus=1)
    running(new_daemon, 1)
    reboot(new_daemon, 1, 1)
    running(new_daemon, 2)
    assert [a["outcome"] for a in attempts(new_daemon, 1)] == ["lost", None]
    reboot(new_daemon, 1, 2)
    job = new_daemon.wait(1, outcome="lost", exit_code=None, attempt=2)
    assert job["cause"]["code"] == "reboot"
    assert ends(new_daemon, 1) == [("lost", "reboot", None)] * 2
    new_daemon.wait(new_daemon.submit("true", gpus=2, exclusive=True), outcome="succeeded")


def test_a_job_that_forbids_it_does_not_come_back_after_a_reboot(new_daemon: Daemon) -> None:
    new_daemon.start().submit("sleep 600", requeue=False)
    running(new_daemon, 1)
    reboot(new_daemon, 1, 1)
    new_daemon.wait(1, outcome="lost", exit_code=None, attempt=1)
    assert ends(new_daemon, 1) == [("lost", "reboot", None)]


def test_a_cancelled_job_does_not_come_back_after_a_reboot(new_daemon: Daemon) -> None:
    new_daemon.start().submit("trap '' TERM; sleep 600", grace_s=1800)
    running(new_daemon, 1)
    assert new_daemon.ask("DELETE", "/v1/jobs/1").status == 202
    reboot(new_daemon, 1, 1)
    new_daemon.wait(1, outcome="cancelled", exit_code=None, attempt=1)


def test_an_exit_that_was_written_before_a_reboot_counts(new_daemon: Daemon) -> None:
    new_daemon.flags = ("--test-mode",)
    new_daemon.start(TRAIND_STOP_AT="daemon.taken:1.1").submit("exit 3", gpus=1)
    eventually(lambda: new_daemon.record(1, "exit.json"), what="the end of the job")
    reboot(new_daemon, 1, 1)
    new_daemon.wait(1, outcome="failed", exit_code=3, attempt=1)
    new_daemon.wait(new_daemon.submit("true", gpus=2, exclusive=True), outcome="succeeded")
