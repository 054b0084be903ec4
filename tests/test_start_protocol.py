"""Whoever is killed wherever an attempt starts or ends: it is started once at most, and told right.

Each process stops itself at a place of the start protocol and is killed there, alone or with
others; then the next daemon must find out what happened.
"""

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import SHORT, Daemon, alive, command_line, eventually, process_state

COMMAND = 'echo "run $TRAIND_ATTEMPT" >> out; read -r _ < gate; exit 3'
CONFIG = SHORT + "free_requeues = 0\n"
"""No requeue that counts is granted, so one that comes was not counted."""

WITHOUT_CGROUPS = CONFIG.replace("[jobs]", '[jobs]\ncgroups = "off"')

AGAIN, ONCE, LOST = "started again", "runs once", "lost"
FOUND = {
    AGAIN: ((1, "lost", "never_started", None), (2, "failed", "exit_code", 3)),
    ONCE: ((1, "failed", "exit_code", 3),),
    LOST: ((1, "lost", "shim_lost", None),),
}
"""By what becomes of a job, its attempts: number, outcome, cause, exit code."""

RUNS = {AGAIN: {"run 2": 1}, ONCE: {"run 1": 1}, LOST: {"run 1": 1}}

PLACES = {
    "1 daemon.claimed": (AGAIN, AGAIN, AGAIN),
    "2 launcher.laid_out": (AGAIN, AGAIN, AGAIN),
    "3 launcher.forked": (ONCE, ONCE, LOST),
    "4 shim.recorded": (AGAIN, AGAIN, AGAIN),
    "5 shim.opened": (LOST, LOST, LOST),
    "6 daemon.started": (ONCE, ONCE, LOST),
    "7 shim.wrote": (ONCE, ONCE, ONCE),
    "8 daemon.finished": (ONCE, ONCE, ONCE),
}
"""By row and place, what becomes of a job whose actor is killed there: alone, with the daemon (the
launcher where the actor is the daemon), and together with everybody.
"""

KILLED = ("alone", "and", "everybody")
BETWEEN = [
    ("launcher.asked", "everybody", AGAIN),
    ("shim.intended", "alone", LOST),
    ("shim.intended", "everybody", LOST),
    ("daemon.launched", "everybody", LOST),
    ("shim.ended", "alone", LOST),
    ("shim.ended", "everybody", LOST),
    ("daemon.taken", "alone", ONCE),
]
"""Places inside of rows, who is killed there, and what becomes of the job."""

AFTER_THE_JOB = ("shim.ended", "shim.wrote", "daemon.taken", "daemon.finished")
"""Places that are only come to once the job has ended."""

CASES = [
    pytest.param(row[2:], killed, found, id=f"row {row}, {killed}")
    for row, outcomes in PLACES.items()
    for killed, found in zip(KILLED, outcomes, strict=True)
] + [pytest.param(*case, id=", ".join(case[:2])) for case in BETWEEN]


@pytest.fixture
def gate(new_daemon: Daemon) -> Iterator[int]:
    """A pipe that each run of the job reads a line from; writing to it lets one run go on."""
    path = new_daemon.home / "gate"
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def let_go(gate: int) -> None:
    os.write(gate, b"\n" * 5)


def begin(daemon: Daemon, stop_at: str, config: str = CONFIG) -> int:
    """Start the daemon and a job that somebody will stop at; the stopped process."""
    daemon.config, daemon.flags = config, ("--test-mode",)
    daemon.start(TRAIND_STOP_AT=f"{stop_at}:1.1")
    assert daemon.submit(COMMAND, workdir=str(daemon.home), gpus=1) == 1
    return eventually(lambda: stopped(daemon), what=f"somebody stopped at {stop_at}")


def stopped(daemon: Daemon) -> int | None:
    own = (p for p in daemon.processes() if process_state(p) == "T")
    return next(own, None)


def shims(daemon: Daemon) -> list[int]:
    record = daemon.record(1, "shim.json")
    return [record["pid"]] if record is not None and alive(record["pid"]) else []


def kill(daemon: Daemon, *pids: int) -> None:
    """SIGKILL while none of them can act on the end of another, and wait for the ends."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # it was just about to end by itself
                os.kill(pid, number)
    if daemon.pid in pids:
        daemon.reap()
    eventually(lambda: not any(map(alive, pids)), what="the ends of the killed")


def victims(daemon: Daemon, actor: int, killed: str) -> set[int]:
    match killed:
        case "alone":
            return {actor}
        case "and":
            return {actor, daemon.pid, *(daemon.launcher_pids() if actor == daemon.pid else ())}
    worker = (p for p in daemon.processes() if "traind.gpus.worker" in command_line(p))
    return {daemon.pid, *daemon.launcher_pids(), *shims(daemon), *worker}


def runs(daemon: Daemon) -> Counter[str]:
    """How often each attempt was exec'ed."""
    out = daemon.home / "out"
    return Counter(out.read_text().splitlines() if out.exists() else ())


def get(daemon: Daemon, what: str) -> Any:
    return daemon.ask("GET", f"/v1/jobs/1/{what}").json[what]


def see_end(daemon: Daemon, found: str) -> None:
    """The job ends as `found` says, and the promises hold that always hold."""
    job = daemon.wait(1)
    assert [p for p in daemon.processes() if of_job(p)] == []
    attempts = FOUND[found]
    seen = [
        (a["attempt"], a["outcome"], a["cause"]["code"], a["exit_code"])
        for a in get(daemon, "attempts")
    ]
    assert seen == [*attempts]
    assert (job["attempt"], job["outcome"], job["cause"]["code"], job["exit_code"]) == attempts[-1]
    counts = Counter(event["event"] for event in get(daemon, "events"))
    assert (counts["claim"], counts["finish"]) == (len(attempts), 1)
    assert counts["requeue"] == len(attempts) - 1
    assert max(runs(daemon).values(), default=0) <= 1
    assert not any(Path(group).exists() for group in cgroups(daemon))
    following = daemon.submit("true", gpus=2, exclusive=True)
    daemon.wait(following, outcome="succeeded")
    assert sorted(j["id"] for j in daemon.ask("GET", "/v1/jobs").json["jobs"]) == [1, following]


def cgroups(daemon: Daemon) -> list[str]:
    records = (daemon.record(1, "shim.json", attempt) for attempt in (1, 2))
    return [record["cgroup"] for record in records if record is not None and record["cgroup"]]


def of_job(pid: int) -> bool:
    """Whether it is a process of a job, exec'ed."""
    try:
        return b"TRAIND_RUN_DIR=" in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def kill_at(daemon: Daemon, gate: int, place: str, killed: str, found: str, config: str) -> None:
    """One case: the actor of `place` stops there, and whoever `killed` names is killed."""
    over = place in AFTER_THE_JOB
    hangs = found == LOST and not over  # a lost job that hangs must be ended
    if over:
        let_go(gate)
    actor = begin(daemon, place, config)
    if not hangs and not over:  # no sooner: of a job that is over its start is not noted
        let_go(gate)
    if hangs and not place.startswith("shim."):
        eventually(lambda: runs(daemon)["run 1"], what="the job's exec")
    dead = victims(daemon, actor, killed)
    assert actor in dead
    kill(daemon, *dead)
    if daemon.pid in dead:
        daemon.start()
    see_end(daemon, found)
    if place == "shim.intended":
        assert runs(daemon) == {}
    elif place != "shim.opened":  # there its exec and its end run against each other
        assert runs(daemon) == RUNS[found]


@pytest.mark.parametrize(("place", "killed", "found"), CASES)
def test_a_start_survives_the_end_of(
    new_daemon: Daemon, gate: int, place: str, killed: str, found: str
) -> None:
    kill_at(new_daemon, gate, place, killed, found, CONFIG)


@pytest.mark.parametrize(
    ("place", "killed", "found"),
    [
        ("launcher.forked", "everybody", LOST),
        ("shim.intended", "everybody", LOST),
        ("shim.opened", "everybody", LOST),
    ],
)
def test_without_cgroups_a_start_survives_the_end_of(
    new_daemon: Daemon, gate: int, place: str, killed: str, found: str
) -> None:
    kill_at(new_daemon, gate, place, killed, found, WITHOUT_CGROUPS)


@pytest.mark.parametrize("place", ["shim.intended", "shim.ended"])
def test_a_shim_that_is_only_slow_is_waited_for_by_the_next_daemon_and_launcher(
    new_daemon: Daemon, gate: int, place: str
) -> None:
    let_go(gate)
    shim = begin(new_daemon, place)
    kill(new_daemon, new_daemon.pid, *new_daemon.launcher_pids())
    new_daemon.start()
    new_daemon.wait(1, "running", attempt=1)
    os.kill(shim, signal.SIGCONT)
    see_end(new_daemon, ONCE)
    assert runs(new_daemon) == RUNS[ONCE]


def test_a_daemon_that_is_only_slow_takes_up_where_it_stopped(
    new_daemon: Daemon, gate: int
) -> None:
    begin(new_daemon, "daemon.launched")  # while the job waits: the end of one is known sooner
    let_go(gate)
    eventually(lambda: new_daemon.record(1, "exit.json"), what="the end of the job")
    os.kill(new_daemon.pid, signal.SIGCONT)
    see_end(new_daemon, ONCE)
    assert runs(new_daemon) == RUNS[ONCE]


def test_a_start_that_the_launcher_carries_out_after_its_daemon_died_is_adopted(
    new_daemon: Daemon, gate: int
) -> None:
    let_go(gate)
    launcher = begin(new_daemon, "launcher.asked")
    new_daemon.restart()
    os.kill(launcher, signal.SIGCONT)
    see_end(new_daemon, ONCE)
    assert runs(new_daemon) == RUNS[ONCE]


def test_a_start_that_the_launcher_has_not_read_when_its_daemon_dies_is_void(
    new_daemon: Daemon, gate: int
) -> None:
    let_go(gate)
    new_daemon.config = CONFIG
    new_daemon.start()
    eventually(lambda: "launcher connected" in new_daemon.log.read_text(), what="a launcher")
    launcher = new_daemon.launcher_pids()[0]
    os.kill(launcher, signal.SIGSTOP)
    assert new_daemon.submit(COMMAND, workdir=str(new_daemon.home), gpus=1) == 1
    new_daemon.wait(1, "starting")
    new_daemon.restart()
    os.kill(launcher, signal.SIGCONT)
    see_end(new_daemon, AGAIN)
    assert runs(new_daemon) == RUNS[AGAIN]


@pytest.mark.parametrize("how", ["it fails", "it is killed"])
def test_a_main_process_that_ends_before_its_exec_is_told_right(
    new_daemon: Daemon, how: str
) -> None:
    new_daemon.flags = ("--test-mode",)
    new_daemon.start(TRAIND_STOP_AT="shim.intended:1.1")
    workdir = "/nowhere" if how == "it fails" else str(new_daemon.home)
    new_daemon.submit(COMMAND, workdir=workdir)
    shim = eventually(lambda: stopped(new_daemon), what="the shim stopped")
    main = new_daemon.record(1, "exec.intent")["pid"]
    if how == "it is killed":
        os.kill(main, signal.SIGKILL)
    eventually(lambda: not alive(main), what="the end of the main process")
    os.kill(shim, signal.SIGCONT)
    if how == "it fails":
        new_daemon.wait(1, outcome="launch_failed", exit_code=None, attempt=1)
    else:
        new_daemon.wait(1, outcome="failed", exit_code=None, signal="KILL", attempt=1)
    assert runs(new_daemon) == {}
