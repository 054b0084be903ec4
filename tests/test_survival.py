"""What outlives what: jobs outlive daemon and launcher, and what is lost is said to be lost."""

import os
import signal

import pytest

from harness import Daemon, alive, eventually

GPU = {"gpus": 1}


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_a_job_runs_and_its_exit_code_is_told(daemon: Daemon) -> None:
    number = daemon.submit("echo out; echo err >&2; exit 3", **GPU)
    job = daemon.wait(number, outcome="failed", exit_code=3, attempt=1)
    assert job["cause"] == {"code": "exit_code", "detail": "it exited with code 3"}
    assert daemon.log_of(number) == "out\nerr\n"


def test_a_job_outlives_kill_9_of_the_daemon(daemon: Daemon) -> None:
    number = daemon.submit("read < gate; exit 3", **gate(daemon))
    main = daemon.main_pid(number)
    daemon.restart()
    assert daemon.wait(number, "running")["attempt"] == 1
    assert alive(main)
    open_gate(daemon)
    daemon.wait(number, outcome="failed", exit_code=3, attempt=1)


def test_a_job_that_ends_while_the_daemon_is_down_is_told_right(daemon: Daemon) -> None:
    number = daemon.submit("read < gate; exit 3", **gate(daemon))
    daemon.main_pid(number)
    shim = daemon.shim_pid(number)
    daemon.kill()
    open_gate(daemon)
    eventually(lambda: not alive(shim), what="the shim's end")
    daemon.start()
    daemon.wait(number, outcome="failed", exit_code=3, attempt=1)


@pytest.mark.parametrize("daemon_too", [False, True], ids=["launcher", "launcher and daemon"])
def test_a_job_outlives_kill_9_of_the_launcher(daemon: Daemon, daemon_too: bool) -> None:
    number = daemon.submit("read < gate; exit 3", **gate(daemon))
    main = daemon.main_pid(number)
    kill(*daemon.launcher_pids())
    if daemon_too:
        daemon.restart()
    assert alive(main)
    other = daemon.submit("exit 4", **GPU)
    daemon.wait(other, outcome="failed", exit_code=4)
    open_gate(daemon)
    daemon.wait(number, outcome="failed", exit_code=3, attempt=1)


@pytest.mark.parametrize("with_it", ["nothing", "daemon", "launcher", "both"])
def test_a_killed_shim_is_lost_and_nothing_of_the_job_lives(daemon: Daemon, with_it: str) -> None:
    tree = "(setsid sleep 600 &) ; (sleep 600 & sleep 600 &) ; sleep 600; exit 0"
    number = daemon.submit(tree, requeue=False, **GPU)
    main, shim = daemon.main_pid(number), daemon.shim_pid(number)
    eventually(lambda: len(daemon.processes()) >= 8, what="the job's tree")
    if with_it in ("daemon", "both"):
        daemon.kill()
    kill(shim, *(daemon.launcher_pids() if with_it in ("launcher", "both") else ()))
    if with_it in ("daemon", "both"):
        daemon.start()
    job = daemon.wait(number, outcome="lost", exit_code=None, signal=None, attempt=1)
    assert job["cause"]["code"] == "shim_lost"
    assert not alive(main)
    mark = f"TRAIND_RUN_DIR={daemon.run_dir(number)}/work".encode()
    assert not [p for p in daemon.processes() if mark in environment(p)]
    again = daemon.submit("exit 0", gpus=2, exclusive=True)
    daemon.wait(again, outcome="succeeded")


def environment(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read()
    except OSError:
        return b""


def test_twenty_acknowledged_jobs_survive_kill_9_at_once(daemon: Daemon) -> None:
    numbers = [daemon.submit("true", gpus=1) for _ in range(20)]
    daemon.restart()
    assert len(set(numbers)) == 20
    for number in numbers:
        daemon.wait(number, outcome="succeeded")
    assert len(daemon.ask("GET", "/v1/jobs?limit=100").json["jobs"]) == 20


def test_a_clean_stop_leaves_jobs_alone(daemon: Daemon) -> None:
    number = daemon.submit("read < gate; exit 3", **gate(daemon))
    main = daemon.main_pid(number)
    assert daemon.stop() == 0
    assert alive(main)
    daemon.start()
    open_gate(daemon)
    daemon.wait(number, outcome="failed", exit_code=3, attempt=1)


def gate(daemon: Daemon) -> dict[str, object]:
    """Fields of a job that waits until `open_gate`."""
    os.mkfifo(daemon.home / "gate")
    return {"gpus": 1, "workdir": str(daemon.home)}


def open_gate(daemon: Daemon) -> None:
    """Let the job that waits at the gate go on."""
    (daemon.home / "gate").write_text("go\n")
