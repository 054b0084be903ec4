"""How jobs are stopped: they are asked first, ended at their deadline, and nothing is left over.

Everything here holds with a cgroup per attempt and with subreapers alone.
"""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import SHORT, Daemon, alive, daemon_in, eventually, process_state

STUBBORN = "trap '' TERM; (sleep 600 &); setsid sleep 600 & sleep 600 & touch up; sleep 600"
OBEDIENT = "trap 'cat $TRAIND_STOP_FILE > told; exit {code}' TERM; touch up; sleep 600 & wait"


@pytest.fixture(scope="module", params=["auto", "off"], ids=["cgroups", "subreaper"])
def box(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A daemon that all tests here share."""
    config = SHORT.replace("[jobs]", f'[jobs]\ncgroups = "{request.param}"')
    with daemon_in(tmp_path_factory.mktemp("box"), config=config) as daemon:
        yield daemon.start()


def run(daemon: Daemon, folder: Path, command: str, **fields: Any) -> int:
    """A job that runs in `folder` and said there that it is up."""
    number = daemon.submit(command, workdir=str(folder), **fields)
    eventually((folder / "up").exists, what="the job")
    return number


def run_to_its_limit(daemon: Daemon, folder: Path, command: str, **fields: Any) -> int:
    """A job that said that it is up before its time limit struck, which is as short as can be."""
    up = folder / "up"
    for limit_s in (0.3, 3, 30):
        number = daemon.submit(command, workdir=str(folder), time_limit_s=limit_s, **fields)
        eventually(lambda n=number: up.exists() or daemon.job(n)["state"] == "finished")
        if up.exists():
            return number
    raise AssertionError("half a minute is too short for a shell to set its traps")


def left_of_stubborn(daemon: Daemon, number: int) -> list[int]:
    """The processes of a stubborn job, once all are there, or if they still are."""
    return eventually(lambda: (found := left(daemon, number))[3:] and found, what="its tree")


def cancel(daemon: Daemon, number: int, *, status: int = 202, now: bool = False) -> dict[str, Any]:
    answer = daemon.ask("DELETE", f"/v1/jobs/{number}" + ("?now=1" if now else ""))
    assert answer.status == status, answer.body
    job: dict[str, Any] = answer.json
    return job


def left(daemon: Daemon, number: int) -> list[int]:
    """The processes of a job that live."""
    mark = f"TRAIND_RUN_DIR={daemon.state_dir}/runs/{number}/".encode()
    found = []
    for pid in daemon.processes():
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(pid)
    return found


def pids(folder: Path, count: int) -> list[int]:
    """The process ids that a job wrote down, once there are so many."""
    file = folder / "pids"

    def there() -> list[int] | None:
        text = file.read_text() if file.exists() else ""
        return [int(line) for line in text.split()] if text.count("\n") == count else None

    return eventually(there, what=f"{count} process ids")


def ended_at(daemon: Daemon, number: int) -> float:
    """When the last process of the job's first attempt was gone, in seconds since 1970."""
    record = daemon.record(number, "exit.json")
    assert record is not None
    when: float = record["ended_at"]
    return when


def test_a_cancelled_job_finds_the_stop_file_gets_sigterm_and_ends_by_itself(
    box: Daemon, tmp_path: Path
) -> None:
    number = run(box, tmp_path, OBEDIENT.format(code=5), gpus=1, grace_s=600)
    job = cancel(box, number)
    assert job["state"] == "stopping"
    job = box.wait(number, outcome="cancelled", exit_code=5, signal=None, attempt=1)
    assert job["cause"]["code"] == "cancelled_by"
    stop = json.loads((tmp_path / "told").read_text())
    assert stop.keys() == {"reason", "deadline"}
    assert stop["reason"] == "cancel"
    assert 500 < stop["deadline"] - ended_at(box, number) < 601


def test_a_tree_that_ignores_sigterm_is_killed_when_its_grace_is_over(
    box: Daemon, tmp_path: Path
) -> None:
    number = run(box, tmp_path, STUBBORN, gpus=1, grace_s=0.3)
    left_of_stubborn(box, number)
    cancel(box, number)
    box.wait(number, outcome="cancelled", exit_code=None, signal="KILL", attempt=1)
    assert left(box, number) == []
    stop = box.record(number, "stop")
    assert stop is not None
    assert ended_at(box, number) >= stop["deadline"]
    box.wait(box.submit("true", gpus=2, exclusive=True), outcome="succeeded")


def test_cancel_now_kills_at_once(box: Daemon, tmp_path: Path) -> None:
    number = run(box, tmp_path, STUBBORN, grace_s=1800)
    cancel(box, number, now=True)
    box.wait(number, outcome="cancelled", exit_code=None, signal="KILL")
    assert left(box, number) == []


def test_a_second_cancel_is_harmless_and_may_hurry_the_first(box: Daemon, tmp_path: Path) -> None:
    number = run(box, tmp_path, STUBBORN, grace_s=1800)
    cancel(box, number)
    eventually(lambda: box.record(number, "stop"), what="the stop file")
    cancel(box, number)
    left_of_stubborn(box, number)
    cancel(box, number, now=True)
    box.wait(number, outcome="cancelled", signal="KILL")
    cancel(box, number, status=200)
    events = box.ask("GET", f"/v1/jobs/{number}/events").json["events"]
    assert [event["event"] for event in events].count("finish") == 1


def test_cancelling_again_and_again_does_not_put_off_the_end(box: Daemon, tmp_path: Path) -> None:
    number = run(box, tmp_path, STUBBORN, grace_s=0.3)
    eventually(lambda: box.ask("DELETE", f"/v1/jobs/{number}").status == 200, what="the end")
    box.wait(number, outcome="cancelled", signal="KILL")


def test_the_checkpoint_signal_reaches_all_processes_before_sigterm(
    box: Daemon, tmp_path: Path
) -> None:
    command = (
        "(trap 'echo child >> told' USR1; touch child; while :; do sleep 600 & wait; done) & "
        "trap 'echo main >> told' USR1; "
        "trap 'until grep -q child told; do sleep 0.01; done; echo term >> told; exit 0' TERM; "
        "until [ -e child ]; do sleep 0.01; done; touch up; while :; do wait; done"
    )
    number = run(box, tmp_path, command, checkpoint_signal="USR1", checkpoint_lead_s=1, grace_s=600)
    cancel(box, number)
    box.wait(number, outcome="cancelled", exit_code=0)
    told = (tmp_path / "told").read_text().split()
    assert sorted(told[:2]) == ["child", "main"]
    assert told[2:] == ["term"]


def test_a_stopped_job_still_gets_its_sigterm(box: Daemon, tmp_path: Path) -> None:
    number = run(box, tmp_path, "trap 'exit 5' TERM; touch up; kill -STOP $$", grace_s=600)
    main = box.main_pid(number)
    eventually(lambda: process_state(main) == "T", what="the job stopped")
    cancel(box, number)
    box.wait(number, outcome="cancelled", exit_code=5)


def test_what_the_main_process_leaves_behind_is_ended_and_the_outcome_is_the_mains(
    box: Daemon, tmp_path: Path
) -> None:
    command = (
        "setsid sleep 600 & echo $! >> pids; (sleep 600 & echo $! >> pids); "
        "env -i sleep 600 & echo $! >> pids; (trap '' TERM; exec sleep 600) & echo $! >> pids; "
        "exit 3"
    )
    number = box.submit(command, workdir=str(tmp_path))
    box.wait(number, outcome="failed", exit_code=3, attempt=1)
    assert not any(map(alive, pids(tmp_path, 4)))
    assert left(box, number) == []


def test_a_tree_that_never_ceases_to_fork_is_ended(box: Daemon, tmp_path: Path) -> None:
    fork = "trap '' TERM; while :; do (sleep 600 &); sleep 0.01; done"
    number = run(box, tmp_path, f'setsid sh -c "{fork}" & touch up; {fork}', grace_s=0.1)
    cancel(box, number)
    box.wait(number, outcome="cancelled", signal="KILL")
    assert left(box, number) == []


def test_a_hidden_process_does_not_outlive_its_shim(box: Daemon, tmp_path: Path) -> None:
    command = "(setsid env -i sleep 600 & echo $! >> pids); exec env -i sleep 600"
    number = box.submit(command, workdir=str(tmp_path))
    hidden, main = pids(tmp_path, 1)[0], box.main_pid(number)
    eventually(lambda: b"TRAIND" not in environment(hidden) + environment(main), what="env -i")
    os.kill(box.shim_pid(number), signal.SIGKILL)
    box.wait(number, outcome="lost", exit_code=None)
    eventually(lambda: not alive(hidden) and not alive(main), what="their ends")


def test_a_hidden_main_process_does_not_outlive_shim_and_launcher(
    box: Daemon, tmp_path: Path
) -> None:
    command = "(touch up; exec sleep 600) & exec env -i sleep 600"
    number = run(box, tmp_path, command)
    main = box.main_pid(number)
    eventually(lambda: b"TRAIND" not in environment(main), what="env -i")
    for pid in (*box.launcher_pids(), box.shim_pid(number)):
        os.kill(pid, signal.SIGKILL)
    box.wait(number, outcome="lost", exit_code=None)
    assert not alive(main)
    assert left(box, number) == []


def environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def test_a_job_whose_shim_is_killed_while_it_stops_is_cancelled(
    box: Daemon, tmp_path: Path
) -> None:
    number = run(box, tmp_path, STUBBORN, grace_s=1800)
    cancel(box, number)
    os.kill(box.shim_pid(number), signal.SIGKILL)
    box.wait(number, outcome="cancelled", exit_code=None, attempt=1)
    assert left(box, number) == []


def test_a_job_that_ignores_its_time_limit_is_killed_and_timed_out(
    box: Daemon, tmp_path: Path
) -> None:
    number = run_to_its_limit(box, tmp_path, STUBBORN, grace_s=0.2)
    job = box.wait(number, outcome="timed_out", exit_code=None, signal="KILL", attempt=1)
    assert job["cause"]["code"] == "time_limit"
    stop = box.record(number, "stop")
    assert stop is not None
    assert stop["reason"] == "time_limit"
    assert left(box, number) == []


def test_a_job_that_ends_well_at_its_time_limit_is_timed_out_all_the_same(
    box: Daemon, tmp_path: Path
) -> None:
    number = run_to_its_limit(box, tmp_path, OBEDIENT.format(code=0), grace_s=600)
    box.wait(number, outcome="timed_out", exit_code=0, signal=None, attempt=1)


def test_a_job_that_exits_75_at_its_time_limit_runs_again(box: Daemon, tmp_path: Path) -> None:
    command = f"[ $TRAIND_ATTEMPT = 2 ] && exit 0; {OBEDIENT.format(code=75)}"
    number = run_to_its_limit(box, tmp_path, command, grace_s=600)
    box.wait(number, outcome="succeeded", attempt=2)
    first = box.ask("GET", f"/v1/jobs/{number}/attempts").json["attempts"][0]
    assert (first["exit_code"], first["cause"]["code"]) == (75, "checkpointed")


def test_a_cancel_overrides_a_time_limit(box: Daemon, tmp_path: Path) -> None:
    number = run_to_its_limit(box, tmp_path, STUBBORN, grace_s=1800)
    box.wait(number, "stopping")
    cancel(box, number, now=True)
    box.wait(number, outcome="cancelled", signal="KILL")


@pytest.mark.parametrize("cgroups", ["auto", "off"])
def test_a_new_daemon_kills_at_the_old_deadline(
    new_daemon: Daemon, tmp_path: Path, cgroups: str
) -> None:
    patience = SHORT.replace("[jobs]", f'[jobs]\ncgroups = "{cgroups}"\ncancel_grace = "1s"')
    new_daemon.config = patience
    number = run(new_daemon.start(), tmp_path, STUBBORN, gpus=1)
    cancel(new_daemon, number)
    stop = eventually(lambda: new_daemon.record(number, "stop"), what="the stop file")
    new_daemon.config = patience.replace('cancel_grace = "1s"', 'cancel_grace = "30m"')
    new_daemon.restart()
    new_daemon.wait(number, outcome="cancelled", exit_code=None, signal="KILL", attempt=1)
    assert ended_at(new_daemon, number) >= stop["deadline"]
    assert left(new_daemon, number) == []


def test_a_cancel_that_comes_before_the_start_is_done_right_after_it(new_daemon: Daemon) -> None:
    new_daemon.flags = ("--test-mode",)
    new_daemon.start(TRAIND_STOP_AT="launcher.asked:1.1")
    number = new_daemon.submit("trap 'exit 5' TERM; sleep 600 & wait", grace_s=600)
    launcher = eventually(new_daemon.launcher_pids, what="the launcher")[0]
    eventually(lambda: process_state(launcher) == "T", what="the launcher stopped")
    assert cancel(new_daemon, number)["state"] == "stopping"
    os.kill(launcher, signal.SIGCONT)
    new_daemon.wait(number, outcome="cancelled", attempt=1)


def test_a_cancelled_job_that_never_started_does_not_start_again(new_daemon: Daemon) -> None:
    new_daemon.flags = ("--test-mode",)
    new_daemon.start(TRAIND_STOP_AT="launcher.asked:1.1")
    number = new_daemon.submit("sleep 600")
    launcher = eventually(new_daemon.launcher_pids, what="the launcher")[0]
    eventually(lambda: process_state(launcher) == "T", what="the launcher stopped")
    cancel(new_daemon, number)
    os.kill(launcher, signal.SIGKILL)
    new_daemon.wait(number, outcome="cancelled", attempt=1)
