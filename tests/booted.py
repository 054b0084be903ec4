"""A machine where traind is installed and systemd runs, and what a test asks of it."""

import contextlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

from harness import eventually
from machine import SOURCE, Machine, machine_in, wheels_in

MAKE_S = 600
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


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """The disk of a machine where traind is installed, and alice has an account."""
    with machine_in(tmp_path_factory.mktemp("installed")) as machine:
        machine.place_source()
        machine.place(wheels_in(tmp_path_factory.mktemp("wheels")), "/wheels")
        machine.start("sleep", "infinity")
        machine.run("make", "-sC", SOURCE, "install", timeout=MAKE_S, **OFFLINE)
        machine.run("useradd", "--create-home", "--uid", str(ALICE), "alice")
        machine.run("sh", "-c", 'printf "$0" > /etc/traind/config.toml', SETTINGS)
        for name, text in DROP_INS.items():
            path = machine.folder / "upper" / "etc/systemd/system" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return machine


@contextlib.contextmanager
def booted(installed: Machine, folder: Path) -> Iterator[Machine]:
    """It is up, and the service with it."""
    with machine_in(folder / "machine", like=installed) as machine:
        machine.boot()
        wait_until_active(machine)
        yield machine


class Box(Protocol):
    """A machine with traind and systemd, where alice has an account."""

    patience_s: float
    """How long a test waits for what must happen on it."""

    def run(
        self,
        *command: str,
        check: bool = True,
        timeout: float = ...,
        user: str | None = None,
        **env: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on it, as root or as one of its users."""
        ...


def succeeds(box: Box, *command: str) -> bool:
    return box.run(*command, check=False).returncode == 0


def active(box: Box, unit: str = DAEMON) -> bool:
    asked = box.run("systemctl", "is-active", unit, check=False)
    return asked.stdout.strip() == "active"


def wait_until_active(box: Box, unit: str = DAEMON) -> None:
    eventually(lambda: active(box, unit), what=unit, deadline_s=box.patience_s)


def told(box: Box, unit: str, name: str) -> str:
    """A property of a unit."""
    return box.run("systemctl", "show", "--property", name, "--value", unit).stdout.strip()


def submit(box: Box, command: str, *options: str) -> int:
    words = ("traind", "submit", "--parsable", "--workdir", "/", *options)
    return int(box.run(*words, "--wrap", command, user="alice").stdout)


def job(box: Box, number: int) -> dict[str, Any]:
    shown = box.run("traind", "show", str(number), "--json", user="alice")
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


def wait(box: Box, number: int) -> int:
    """The exit code of `traind wait`."""
    return box.run("traind", "wait", str(number), check=False, user="alice").returncode


def waiting_job(box: Box, code: int = 3, options: Sequence[str] = ()) -> tuple[int, str]:
    """A job that runs until /tmp/go is there and exits with the code; its id and its pid."""
    box.run("rm", "-f", "/tmp/go", "/tmp/pid")
    line = f"echo $$ > /tmp/pid; until test -e /tmp/go; do sleep 0.1; done; exit {code}"
    return submit(box, line, *options), pid_of_waiting_job(box)


def pid_of_waiting_job(box: Box) -> str:
    return eventually(
        lambda: box.run("cat", "/tmp/pid", check=False).stdout.strip(),
        what="the waiting job's start",
        deadline_s=box.patience_s,
    )


def let_go(box: Box, number: int, code: int = 3) -> None:
    box.run("touch", "/tmp/go")
    assert wait(box, number) == code


def start_again_beside_a_job(box: Box, unit: str, how: str) -> None:
    """Have a unit started again `how`, which leaves a job alone and the service in order."""
    number, pid = waiting_job(box)
    before = told(box, unit, "MainPID")
    box.run(*how.format(unit=unit, pid=before).split())
    eventually(
        lambda: told(box, unit, "MainPID") not in ("0", before),
        what="a new process",
        deadline_s=box.patience_s,
    )
    wait_until_active(box, unit)
    wait_until_active(box)
    box.run("systemctl", "daemon-reload")
    assert succeeds(box, "test", "-d", f"/proc/{pid}")
    let_go(box, number)
    after = job(box, number)
    assert (after["attempt"], after["exit_code"]) == (1, 3)
    again = submit(box, "exit 4")
    assert wait(box, again) == 4


def stop_all_beside_a_job(box: Box) -> None:
    """Stop everything of traind; a job that ends meanwhile is found again with its exit code."""
    number, _ = waiting_job(box)
    box.run("systemctl", "stop", DAEMON, LAUNCHER, "traind-launcher.socket")
    box.run("touch", "/tmp/go")
    eventually(
        lambda: not box.run("pgrep", "-f", "^traind-shim", check=False).stdout,
        what="the end of the shim",
        deadline_s=box.patience_s,
    )
    box.run("systemctl", "start", DAEMON)
    assert wait(box, number) == 3
    assert job(box, number)["attempt"] == 1


def comes_back(box: Box, number: int) -> None:
    """The machine is up again: a job that ran when it went down runs once more, to its end."""
    wait_until_active(box)
    again = eventually(
        lambda: (now := job(box, number))["attempt"] == 2 and now,
        what="the second attempt",
        deadline_s=box.patience_s,
    )
    assert again["cause"]["code"] == "reboot"
    pid_of_waiting_job(box)
    let_go(box, number)
    assert job(box, number)["exit_code"] == 3
