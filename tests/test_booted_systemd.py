"""The installed service under a systemd that really runs: on a machine of its own, booted here."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import eventually
from machine import SOURCE, Machine, machine_in, needs_machine, wheels_in

pytestmark = [pytest.mark.slow, pytest.mark.root, needs_machine, pytest.mark.timeout(300)]
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"}
SETTINGS = """
[gpus]
source = "simulated"
simulate = "2x24GiB"
[host]
cpus = 4
[queue]
requeue_delay = "100ms"
"""
DAEMON, LAUNCHER = "traind.service", "traind-launcher.service"
SCOPE = "/sys/fs/cgroup/traind.slice/traind-jobs.scope"

ALICE = 4321
DROP_INS = {
    # The machine's boot id is a mount of its own, which these settings would cover.
    f"{DAEMON}.d/boot.conf": ("[Service]\nProtectKernelTunables=no\nProtectControlGroups=no\n"),
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """The disk of a machine where traind is installed, and alice has an account."""
    with machine_in(tmp_path_factory.mktemp("installed")) as machine:
        machine.place_source()
        machine.place(wheels_in(tmp_path_factory.mktemp("wheels")), "/wheels")
        machine.start("sleep", "infinity")
        machine.run("make", "-sC", SOURCE, "install", timeout=200, **OFFLINE)
        machine.run("useradd", "--create-home", "--uid", str(ALICE), "alice")
        machine.run("sh", "-c", 'printf "$0" > /etc/traind/config.toml', SETTINGS)
        for name, text in DROP_INS.items():
            path = machine.folder / "upper" / "etc/systemd/system" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return machine


@pytest.fixture
def machine(installed: Machine, tmp_path: Path) -> Iterator[Machine]:
    """It is up, and the service with it."""
    with machine_in(tmp_path / "machine", like=installed) as machine:
        machine.boot()
        eventually(lambda: active(machine), what="the service")
        yield machine


def active(machine: Machine, unit: str = DAEMON) -> bool:
    asked = machine.run("systemctl", "is-active", unit, check=False)
    return asked.stdout.strip() == "active"


def told(machine: Machine, unit: str, name: str) -> str:
    """A property of a unit."""
    return machine.run("systemctl", "show", "--property", name, "--value", unit).stdout.strip()


def submit(machine: Machine, command: str, *options: str) -> int:
    words = ("traind", "submit", "--parsable", "--workdir", "/", *options)
    return int(machine.run(*words, "--wrap", command, user="alice").stdout)


def job(machine: Machine, number: int) -> dict[str, Any]:
    shown = machine.run("traind", "show", str(number), "--json", user="alice")
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


def wait(machine: Machine, number: int) -> int:
    """The exit code of `traind wait`."""
    return machine.run("traind", "wait", str(number), check=False, user="alice").returncode


def waiting_job(machine: Machine, code: int = 3) -> tuple[int, str]:
    """A job that runs until /tmp/go is there and exits with the code; its id and its pid."""
    line = f"echo $$ > /tmp/pid; until test -e /tmp/go; do sleep 0.1; done; exit {code}"
    number = submit(machine, line)
    running = ("cat", "/tmp/pid")
    return number, eventually(lambda: machine.run(*running, check=False).stdout.strip())


def let_go(machine: Machine, number: int, code: int = 3) -> None:
    machine.run("touch", "/tmp/go")
    assert wait(machine, number) == code


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
    number, pid = waiting_job(machine)
    before = told(machine, unit, "MainPID")
    machine.run(*how.format(unit=unit, pid=before).split())
    eventually(lambda: told(machine, unit, "MainPID") not in ("0", before), what="a new process")
    eventually(lambda: active(machine, unit) and active(machine), what="the units")
    machine.run("systemctl", "daemon-reload")
    assert machine.run("test", "-d", f"/proc/{pid}", check=False).returncode == 0
    let_go(machine, number)
    after = job(machine, number)
    assert (after["attempt"], after["exit_code"]) == (1, 3)
    again = submit(machine, "exit 4")
    assert wait(machine, again) == 4


def test_everything_stopped_and_started_finds_its_job_again(machine: Machine) -> None:
    number, _ = waiting_job(machine)
    machine.run("systemctl", "stop", DAEMON, LAUNCHER, "traind-launcher.socket")
    machine.run("touch", "/tmp/go")
    shims = ("pgrep", "-f", "^traind-shim")
    eventually(lambda: not machine.run(*shims, check=False).stdout, what="the end of the shim")
    machine.run("systemctl", "start", DAEMON)
    assert wait(machine, number) == 3
    assert job(machine, number)["attempt"] == 1


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
    eventually(lambda: active(machine), what="the service")
    assert int(told(machine, DAEMON, "NRestarts")) >= 1
    let_go(machine, number)


def test_a_reload_is_taken_and_a_wrong_file_changes_nothing(machine: Machine) -> None:
    pid = told(machine, DAEMON, "MainPID")
    machine.run("sh", "-c", "echo 'no_such = 1' >> /etc/traind/config.toml")
    machine.run("systemctl", "reload", DAEMON)
    said = ("journalctl", "--unit", DAEMON, "--output", "cat")
    eventually(lambda: "reload refused" in machine.run(*said).stdout, what="the refusal")
    assert told(machine, DAEMON, "MainPID") == pid


def comes_back(machine: Machine, number: int) -> None:
    machine.boot()
    eventually(lambda: active(machine), what="the service")
    again = eventually(lambda: (now := job(machine, number))["attempt"] == 2 and now)
    assert again["cause"]["code"] == "reboot"
    eventually(lambda: machine.run("test", "-s", "/tmp/pid", check=False).returncode == 0)
    let_go(machine, number)
    assert job(machine, number)["exit_code"] == 3


def test_a_running_job_comes_back_after_a_reboot(machine: Machine) -> None:
    number, _ = waiting_job(machine)
    machine.shut_down()
    comes_back(machine, number)


def test_a_running_job_comes_back_after_the_power_failed(machine: Machine) -> None:
    number, _ = waiting_job(machine)
    machine.cut()
    comes_back(machine, number)


def test_an_upgrade_while_jobs_run_makes_a_backup_and_leaves_them_alone(machine: Machine) -> None:
    number, pid = waiting_job(machine)
    done = machine.run("make", "-sC", SOURCE, "upgrade", timeout=200, **OFFLINE)
    assert "traind runs" in done.stdout
    assert machine.run("ls", "/var/lib/traind/daemon/backups").stdout.count("traind-") == 1
    assert machine.run("test", "-d", f"/proc/{pid}", check=False).returncode == 0
    let_go(machine, number)
    assert job(machine, number)["attempt"] == 1


def test_it_is_removed_while_it_runs(machine: Machine) -> None:
    done = machine.run("make", "-sC", SOURCE, "uninstall", "PURGE=1", timeout=60)
    assert "checkpoints in people's homes stay" in done.stdout
    assert not active(machine)
    assert not active(machine, "traind-jobs.scope")
    assert machine.run("pgrep", "-f", "traind", check=False).stdout == ""


def checked(machine: Machine, check: str, **env: str) -> tuple[str, str]:
    """What doctor says of one thing: the level, and the sentence with how to mend it."""
    done = machine.run("traind", "doctor", "--json", check=False, user="alice", **env)
    found = {finding["check"]: finding for finding in json.loads(done.stdout)["checks"]}
    return found[check]["level"], f"{found[check]['sentence']}; {found[check]['mend']}"


def test_doctor_finds_the_installed_service_in_order_and_names_logind(machine: Machine) -> None:
    for check in ("daemon", "launcher", "gpus", "state", "open files"):
        assert checked(machine, check)[0] == "ok", checked(machine, check)
    assert "traind-jobs.scope" in checked(machine, "cgroups")[1]
    level, said = checked(machine, "logind")
    assert (level, "RemoveIPC=no" in said) == ("note", True)
    machine.run("mkdir", "/etc/systemd/logind.conf.d")
    keep = "printf '[Login]\\nRemoveIPC=no\\n' > /etc/systemd/logind.conf.d/traind.conf"
    machine.run("sh", "-c", keep)
    assert checked(machine, "logind")[0] == "ok"
    machine.run("chmod", "o+w", "/etc/traind/config.toml")
    assert "chmod go-w /etc/traind/config.toml" in checked(machine, "state")[1]


def test_doctor_compares_driver_and_library_and_tells_who_can_reach_the_gpus(
    machine: Machine,
) -> None:
    loaded = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.82.07  Wed Aug 27 2025"
    machine.run("mount", "-t", "tmpfs", "tmpfs", "/proc/driver")
    machine.run("mkdir", "/proc/driver/nvidia", "/libs")
    machine.run("sh", "-c", 'echo "$0" > /proc/driver/nvidia/version', loaded)
    assert "no libnvidia-ml.so.1" in checked(machine, "driver")[1]
    for version, level in (("580.65.06", "WRONG"), ("580.82.07", "ok")):
        library = f"/libs/libnvidia-ml.so.{version}"
        machine.run("sh", "-c", f"cp /lib/*/libz.so.1 {library}")
        machine.run("ln", "-sf", library, "/libs/libnvidia-ml.so.1")
        found, said = checked(machine, "driver", LD_LIBRARY_PATH="/libs")
        assert found == level, said
    assert "nvidia-modprobe" in checked(machine, "devices")[1]
    devices = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia-uvm")
    machine.run("sh", "-c", f"touch {' '.join(devices)}; chmod 666 {' '.join(devices)}")
    assert checked(machine, "devices")[0] == "ok"
    machine.run("sh", "-c", "chgrp video /dev/nvidia0; chmod 660 /dev/nvidia0")
    assert "/dev/nvidia0 (group video)" in checked(machine, "devices")[1]


def test_anybody_on_the_machine_submits_with_curl_and_runs_as_themselves(machine: Machine) -> None:
    order = {"command": "id -un; pwd; echo $HOME", "name": "mine"}
    curl = ("curl", "--silent", "--unix-socket", "/run/traind/traind.sock")
    posted = machine.run(
        *(*curl, "http://traind/v1/jobs", "--data", json.dumps(order)), user="alice"
    )
    accepted = json.loads(posted.stdout)
    assert (accepted["user"], accepted["uid"]) == ("alice", ALICE)
    number = accepted["id"]
    ended = machine.run(*curl, f"http://traind/v1/jobs/{number}?wait=20", user="alice")
    assert json.loads(ended.stdout)["outcome"] == "succeeded"
    log = machine.run(*curl, f"http://traind/v1/jobs/{number}/log", user="alice").stdout
    assert log == "alice\n/home/alice\n/home/alice\n"


def test_an_account_has_a_daemon_of_its_own_by_its_own_systemd(machine: Machine) -> None:
    machine.run("systemctl", "disable", "--now", DAEMON, "traind-launcher.socket")
    machine.run("loginctl", "enable-linger", "alice")
    own = {"HOME": "/home/alice", "XDG_RUNTIME_DIR": f"/run/user/{ALICE}"}

    def as_alice(*command: str, code: int = 0, **env: str) -> str:
        done = machine.run(*command, check=False, user="alice", timeout=200, **own, **env)
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
