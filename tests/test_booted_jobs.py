"""What systemd and logind may do to jobs that run, on a machine of its own, booted here."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from booted import (
    ALICE,
    LAUNCHER,
    SCOPE,
    active,
    booted,
    job,
    let_go,
    submit,
    told,
    wait,
    waiting_job,
)
from harness import eventually
from machine import Machine, needs_machine

pytestmark = [pytest.mark.slow, pytest.mark.root, needs_machine, pytest.mark.timeout(300)]


@pytest.fixture
def machine(installed: Machine, tmp_path: Path) -> Iterator[Machine]:
    with booted(installed, tmp_path) as machine:
        yield machine


def shims(machine: Machine) -> list[str]:
    return machine.run("pgrep", "-f", "^traind-shim", check=False).stdout.split()


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
def test_a_signal_to_all_of_the_launchers_unit_reaches_no_job_and_no_shim(
    machine: Machine, signal: str
) -> None:
    number, pid = waiting_job(machine)
    (shim,) = shims(machine)
    where = machine.run("cat", f"/proc/{shim}/cgroup").stdout
    assert where.rstrip().endswith("/traind.slice/traind-jobs.scope/keeper")
    before = told(machine, LAUNCHER, "MainPID")
    machine.run("systemctl", "kill", f"--signal={signal}", LAUNCHER)
    eventually(lambda: told(machine, LAUNCHER, "MainPID") not in ("0", before), what="a new one")
    eventually(lambda: active(machine, LAUNCHER) and active(machine), what="the units")
    assert shims(machine) == [shim]
    assert machine.run("test", "-d", f"/proc/{pid}", check=False).returncode == 0
    let_go(machine, number)
    assert (job(machine, number)["attempt"], job(machine, number)["exit_code"]) == (1, 3)
    assert wait(machine, submit(machine, "exit 5")) == 5


def test_a_scope_that_is_stopped_ends_its_jobs_and_the_next_one_takes_new_ones(
    machine: Machine,
) -> None:
    number, _ = waiting_job(machine)
    machine.run("systemctl", "stop", "traind-jobs.scope")
    eventually(lambda: not shims(machine), what="the end of the shim")
    assert wait(machine, number) != 0
    machine.run("systemctl", "restart", LAUNCHER)
    assert wait(machine, submit(machine, "exit 5")) == 5
    assert machine.run("test", "-d", f"{SCOPE}/keeper", check=False).returncode == 0


SHARED = "/dev/shm/of-a-job"


def test_whoever_logs_out_leaves_the_shared_memory_to_their_jobs(machine: Machine) -> None:
    """logind clears up after a user once they are gone: here, once they linger no more."""
    line = f"echo data > {SHARED}; echo $$ > /tmp/pid; until test -e /tmp/go; do sleep 0.1; done"
    number = submit(machine, f"{line}; cat {SHARED} || exit 9")
    eventually(lambda: machine.run("cat", "/tmp/pid", check=False).stdout.strip())
    log_in_and_out(machine)
    let_go(machine, number, code=0)


def test_without_trainds_word_logind_removes_the_shared_memory_of_who_logs_out(
    machine: Machine,
) -> None:
    """What the other test would not see if it were never so."""
    machine.run("rm", "/usr/local/lib/systemd/logind.conf.d/traind.conf")
    machine.run("systemctl", "kill", "--signal=HUP", "systemd-logind.service")
    machine.run("sh", "-c", f"echo data > {SHARED}", user="alice")
    log_in_and_out(machine)
    gone = ("test", "-e", SHARED)
    eventually(lambda: machine.run(*gone, check=False).returncode == 1, what="its end")


def log_in_and_out(machine: Machine) -> None:
    """Have logind see alice come and go; a systemd of hers starts and stops for that."""
    there = ("test", "-e", f"/run/systemd/users/{ALICE}")
    machine.run("loginctl", "enable-linger", "alice")
    eventually(lambda: machine.run(*there, check=False).returncode == 0, what="alice")
    running = ("systemctl", "is-active", f"user@{ALICE}.service")
    eventually(lambda: machine.run(*running, check=False).returncode == 0, deadline_s=90)
    machine.run("loginctl", "disable-linger", "alice")
    eventually(lambda: machine.run(*there, check=False).returncode == 1, deadline_s=90)
