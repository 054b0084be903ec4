"""A machine where traind is installed and systemd runs, and what a test asks of it."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
