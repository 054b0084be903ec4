"""The command line on a real daemon, as somebody types it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import DEADLINE_S, Daemon, daemon_in, eventually


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests of this file."""
    with daemon_in(tmp_path_factory.mktemp("cli")) as daemon:
        yield daemon.start()


def typed(box: Daemon, *args: str) -> "subprocess.Popen[str]":
    """A command line that runs on while the test looks."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(box.home)}
    return subprocess.Popen(
        [sys.executable, "-m", "traind", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=box.home,
        env=environment | {"TRAIND_SOCKET": str(box.socket), "PYTHONUNBUFFERED": "1"},
    )


def submit(box: Daemon, *args: str) -> int:
    done = box.cli("submit", "--parsable", *args)
    assert done.code == 0, done.err
    return int(done.out)


def test_submit_says_the_id_and_where_to_look_next(box: Daemon) -> None:
    done = box.cli("submit", "--gpus", "1", "--", "echo", "hello there")
    assert done.code == 0
    first, second = done.out.splitlines()
    number = int(first.removeprefix("Submitted batch job "))
    assert f"traind logs -f {number}" in second
    box.wait(number, outcome="succeeded")
    assert box.cli("logs", str(number)).out == "hello there\n"


def test_a_job_runs_where_it_was_submitted_with_the_callers_environment(
    box: Daemon, tmp_path: Path
) -> None:
    box.env["GREETING"] = "good morning"
    try:
        done = box.cli("submit", "--parsable", "--wrap", "pwd; echo $GREETING", cwd=tmp_path)
    finally:
        del box.env["GREETING"]
    assert box.cli("wait", done.out.strip()).code == 0
    assert box.log_of(int(done.out)) == f"{tmp_path}\ngood morning\n"


def test_wait_exits_with_the_jobs_code_and_the_highest_of_several(box: Daemon) -> None:
    three = submit(box, "--wrap", "exit 3")
    seven = submit(box, "--wrap", "exit 7")
    killed = submit(box, "--wrap", "kill -TERM $$")
    assert box.cli("wait", str(three)).code == 3
    assert box.cli("wait", f"{three},{seven}").code == 7
    assert box.cli("wait", str(killed)).code == 128 + signal.SIGTERM


def test_run_follows_the_log_and_exits_as_the_job(box: Daemon) -> None:
    done = box.cli("run", "--", "/bin/sh", "-c", "echo one; echo two >&2; exit 4")
    assert (done.code, done.out) == (4, "one\ntwo\n")


def test_ctrl_c_cancels_a_run_with_grace(box: Daemon) -> None:
    script = "trap 'echo saved; exit 0' TERM; echo started; while :; do sleep 0.05; done"
    with typed(box, "run", "--wrap", script) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "started\n"
        running.send_signal(signal.SIGINT)
        rest = running.stdout.read()
        running.wait(DEADLINE_S)
    assert rest == "saved\n"
    job = box.ask("GET", "/v1/jobs?limit=1").json["jobs"][0]
    assert box.wait(job["id"])["outcome"] == "cancelled"


def test_following_a_log_goes_on_through_a_kill_9_of_the_daemon(box: Daemon) -> None:
    gate = box.home / "follow-gate"
    os.mkfifo(gate)
    number = submit(box, "--wrap", f"echo before; read < {gate}; echo after")
    with typed(box, "logs", "-f", str(number)) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "before\n"
        box.restart()
        gate.write_text("go\n")
        assert following.stdout.read() == "after\n"
        assert following.wait(DEADLINE_S) == 0


def test_ctrl_c_in_logs_never_touches_the_job(box: Daemon) -> None:
    number = submit(box, "--wrap", "echo started; sleep 600")
    with typed(box, "logs", "-f", str(number)) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "started\n"
        following.send_signal(signal.SIGINT)
        assert following.wait(DEADLINE_S) == 130
    box.wait(number, "running")
    assert box.cli("cancel", "--now", str(number)).code == 0
    box.wait(number, outcome="cancelled")


def test_ls_why_and_show_tell_what_waits_and_why(box: Daemon) -> None:
    both = submit(box, "--name", "both", "--gpus", "2", "--", "sleep", "600")
    box.wait(both, "running")
    behind = submit(box, "--name", "behind", "--gpus", "1", "--", "true")
    eventually(lambda: box.job(behind)["reason"]["code"] == "resources", what="its reason")
    listed = box.cli("ls").out
    assert "both" in listed
    assert "held by job" in listed
    assert f"job {both}" in box.cli("why", str(behind)).out
    assert "waits" in box.cli("show", "behind").out or "queued" in box.cli("show", "behind").out
    assert json.loads(box.cli("show", "--json", str(behind)).out)["id"] == behind
    assert box.cli("cancel", "--now", f"{both},{behind}").code == 0
    box.wait(both)


def test_names_and_at_mean_my_jobs(box: Daemon) -> None:
    first = submit(box, "--name", "the-only-one", "--", "true")
    last = submit(box, "--", "true")
    box.wait(last)
    assert json.loads(box.cli("show", "--json", "@").out)["id"] == last
    assert json.loads(box.cli("show", "--json", "@~1").out)["id"] == first
    assert json.loads(box.cli("show", "--json", "the-only-one").out)["id"] == first


def test_a_job_file_is_submitted_and_options_override_it(box: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text('name = "from a file"\ncommand = "echo $TRAIND_JOB_NAME"\ntime_limit = "5m"\n')
    done = box.cli("submit", "--parsable", "--name", "overridden", str(file), cwd=tmp_path)
    job = box.wait(int(done.out), outcome="succeeded")
    assert (job["name"], job["time_limit_s"]) == ("overridden", 300.0)


def test_gpus_and_whoami_answer(box: Daemon) -> None:
    assert "Simulated GPU" in box.cli("gpus").out
    assert len(json.loads(box.cli("gpus", "--json").out)["gpus"]) == 2
    assert str(os.getuid()) in box.cli("whoami").out


def test_refusals_have_their_own_exit_codes_and_say_what_to_do(box: Daemon) -> None:
    refused = box.cli("submit", "--gpus", "3", "--", "true")
    assert (refused.code, "this box has 2" in refused.err) == (3, True)
    unknown = box.cli("show", "999999")
    assert (unknown.code, "no job 999999" in unknown.err) == (5, True)
    typo = box.cli("submit", "--gpuz", "1", "--", "true")
    assert (typo.code, "did you mean --gpus" in typo.err) == (2, True)
    verb = box.cli("sumbit")
    assert (verb.code, "traind submit" in verb.err) == (2, True)
    away = box.cli("ls", "--socket", str(box.home / "nobody.sock"))
    assert (away.code, "traind serve" in away.err) == (69, True)


def test_a_hostile_command_cannot_touch_the_terminal(box: Daemon) -> None:
    number = box.submit("true # \x1b]0;owned\x07 \u202eevil", labels={"a": "\x1b[2J"})
    box.wait(number, outcome="succeeded")
    for words in (["show", str(number)], ["ls", "-a"]):
        shown = box.cli(*words).out
        assert not {"\x1b", "\x07", "\u202e"} & set(shown)
        assert "owned" in shown
