"""The installed service under a systemd that really runs: on a machine of its own, booted here."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from booted import (
    ALICE,
    DAEMON,
    LAUNCHER,
    MAKE_S,
    OFFLINE,
    SCOPE,
    SETTINGS,
    active,
    booted,
    comes_back,
    job,
    let_go,
    start_again_beside_a_job,
    stop_all_beside_a_job,
    submit,
    told,
    wait,
    wait_until_active,
    waiting_job,
)
from harness import eventually
from machine import SOURCE, Machine, needs_machine

pytestmark = [pytest.mark.slow, pytest.mark.root, needs_machine, pytest.mark.timeout(900)]


@pytest.fixture
def machine(installed: Machine, tmp_path: Path) -> Iterator[Machine]:
    with booted(installed, tmp_path) as machine:
        yield machine


def test_the_service_comes_up_with_the_machine(machine: Machine) -> None:
    assert told(machine, DAEMON, "Type") == "notify"
    assert told(machine, DAEMON, "StatusText") == "0 jobs running, 0 queued"
    assert told(machine, LAUNCHER, "ActiveState") == "active"
    assert not machine.run("systemctl", "--failed", "--plain", "--no-legend").stdout
    number = submit(machine, "exit 7", "--gpus", "1")
    assert wait(machine, number) == 7


def test_jobs_live_in_a_scope_that_no_unit_of_traind_can_end(machine: Machine) -> None:
    number, pid = waiting_job(machine)
    where = machine.run("grep", "^0::", f"/proc/{pid}/cgroup").stdout
    assert "/traind.slice/traind-jobs.scope/traind-" in where
    assert where.endswith(f"/{number}.1\n")
    assert told(machine, "traind-jobs.scope", "Delegate") == "yes"
    assert machine.run("cat", f"{SCOPE}/cgroup.procs").stdout == "", "the keeper is in a leaf"
    let_go(machine, number)


@pytest.mark.parametrize("unit", [DAEMON, LAUNCHER])
@pytest.mark.parametrize("how", ["systemctl restart {unit}", "kill -KILL {pid}"])
def test_a_unit_that_is_started_again_leaves_jobs_alone(
    machine: Machine, unit: str, how: str
) -> None:
    start_again_beside_a_job(machine, unit, how)


def test_everything_stopped_and_started_finds_its_job_again(machine: Machine) -> None:
    stop_all_beside_a_job(machine)


def test_a_daemon_that_hangs_is_started_again_and_jobs_go_on(machine: Machine) -> None:
    number, _ = waiting_job(machine)
    machine.run("sh", "-c", f"mkdir -p /run/systemd/system/{DAEMON}.d")
    short = f"printf '[Service]\\nWatchdogSec=10\\n' > /run/systemd/system/{DAEMON}.d/watchdog.conf"
    machine.run("sh", "-c", short)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", DAEMON)
    pid = told(machine, DAEMON, "MainPID")
    machine.run("kill", "-STOP", pid)
    eventually(lambda: told(machine, DAEMON, "MainPID") not in ("0", pid), what="a new daemon")
    wait_until_active(machine)
    assert int(told(machine, DAEMON, "NRestarts")) >= 1
    let_go(machine, number)


def test_a_reload_is_taken_and_a_wrong_file_changes_nothing(machine: Machine) -> None:
    pid = told(machine, DAEMON, "MainPID")
    machine.run("sh", "-c", "echo 'no_such = 1' >> /etc/traind/config.toml")
    machine.run("systemctl", "reload", DAEMON)
    said = ("journalctl", "--unit", DAEMON, "--output", "cat")
    eventually(lambda: "reload refused" in machine.run(*said).stdout, what="the refusal")
    assert told(machine, DAEMON, "MainPID") == pid


def test_a_running_job_comes_back_after_a_reboot(machine: Machine) -> None:
    number, _ = waiting_job(machine)
    machine.shut_down()
    machine.boot()
    comes_back(machine, number)


def test_a_running_job_comes_back_after_the_power_failed(machine: Machine) -> None:
    number, _ = waiting_job(machine)
    machine.cut()
    machine.boot()
    comes_back(machine, number)


def test_an_upgrade_while_jobs_run_makes_a_backup_and_leaves_them_alone(machine: Machine) -> None:
    number, pid = waiting_job(machine)
    done = machine.run("make", "-sC", SOURCE, "upgrade", timeout=MAKE_S, **OFFLINE)
    assert "traind runs" in done.stdout
    assert machine.run("ls", "/var/lib/traind/daemon/backups").stdout.count("traind-") == 1
    assert machine.run("test", "-d", f"/proc/{pid}", check=False).returncode == 0
    let_go(machine, number)
    assert job(machine, number)["attempt"] == 1


def test_it_is_removed_while_it_runs(machine: Machine) -> None:
    done = machine.run("make", "-sC", SOURCE, "uninstall", "PURGE=1", timeout=MAKE_S)
    assert "checkpoints in people's homes stay" in done.stdout
    assert not active(machine)
    assert not active(machine, "traind-jobs.scope")
    assert machine.run("pgrep", "-f", "traind", check=False).stdout == ""


def test_anybody_on_the_machine_submits_with_curl_and_runs_as_themselves(machine: Machine) -> None:
    order = {"command": "id -un; pwd; echo $HOME", "name": "mine"}
    curl = ("curl", "--silent", "--unix-socket", "/run/traind/traind.sock")
    posted = machine.run(
        *(*curl, "http://traind/v1/jobs", "--data", json.dumps(order)), user="alice"
    )
    accepted = json.loads(posted.stdout)
    assert (accepted["user"], accepted["uid"]) == ("alice", ALICE)
    number = accepted["id"]
    ended = machine.run(*curl, f"http://traind/v1/jobs/{number}?wait=60", user="alice")
    assert json.loads(ended.stdout)["outcome"] == "succeeded"
    log = machine.run(*curl, f"http://traind/v1/jobs/{number}/log", user="alice").stdout
    assert log == "alice\n/home/alice\n/home/alice\n"


def test_an_account_has_a_daemon_of_its_own_by_its_own_systemd(machine: Machine) -> None:
    machine.run("systemctl", "disable", "--now", DAEMON, "traind-launcher.socket")
    machine.run("loginctl", "enable-linger", "alice")
    own = {"HOME": "/home/alice", "XDG_RUNTIME_DIR": f"/run/user/{ALICE}"}

    def as_alice(*command: str, code: int = 0, **env: str) -> str:
        done = machine.run(*command, check=False, user="alice", timeout=MAKE_S, **own, **env)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout.strip()

    reach = ("systemctl", "--user", "is-system-running")
    ready = ("running", "degraded")
    eventually(
        lambda: machine.run(*reach, check=False, user="alice", **own).stdout.strip() in ready
    )
    settings = 'mkdir -p ~/.config/traind; printf "$0" > ~/.config/traind/config.toml'
    as_alice("sh", "-c", settings, SETTINGS)
    said = as_alice("make", "-sC", SOURCE, "install-user", **OFFLINE)
    assert "enable-linger" not in said, "she has it"
    program = "/home/alice/.local/bin/traind"
    assert json.loads(as_alice(program, "gpus", "--json"))["gpus"], "her settings are in force"
    until = "until test -e /tmp/go; do sleep 0.1; done; exit 3"
    number = as_alice(program, "submit", "--parsable", "--wrap", until)
    main = ("systemctl", "--user", "show", "--property=MainPID", "--value", DAEMON)
    before = as_alice(*main)
    as_alice("systemctl", "--user", "restart", DAEMON)
    assert as_alice(*main) != before
    slices = f"/sys/fs/cgroup/user.slice/user-{ALICE}.slice/user@{ALICE}.service/traind.slice"
    assert machine.run("find", slices, "-name", f"{number}.1").stdout, "it lives in her scope"
    machine.run("touch", "/tmp/go")
    as_alice(program, "wait", number, code=3)
    as_alice("make", "-sC", SOURCE, "uninstall-user")
    as_alice("systemctl", "--user", "is-active", DAEMON, code=3)
