"""A job has the limits and the umask of a login, which is what PAM gives who comes by su(1)."""

from collections.abc import Iterator

import pytest

from booted import booted, job, submit, wait
from machine import Machine, needs_machine

pytestmark = [pytest.mark.slow, pytest.mark.root, needs_machine, pytest.mark.timeout(900)]
LIMITS = "/etc/security/limits.d/scene.conf"
PAM, DEFS = "/etc/pam.d/common-session", "/etc/login.defs"
SHOW = "grep --invert-match locked /proc/self/limits"
"""All limits but one: the launcher's unit takes it away, as jobs pin memory for the GPU."""

CONFS = {
    "all": """
* - fsize 1000000
* soft nofile 300
* hard nofile 400
* Soft Core UNLIMITED
* hard core 7
""",
    "name before group before all": """
alice soft nofile 250
@alice - nofile 333
* - nofile 444
@crew - sigpending 99 # of the crew
""",
    "ranges": """
4000:5000 - cpu 60
:4321 - fsize 5000
5000: - as 1
@4000: - msgqueue 4096
@:4400 - data 900000
@4401:4500 - stack 1
""",
    "what means nothing": """
%crew - fsize 2
alice hand fsize 3
alice - fsize
alice soft nproc -
""",
    "taken out by name": """
* - fsize 1000
alice -
alice - nofile 99
""",
    "taken out by group": """
* - fsize 1000
@crew -
""",
}


@pytest.fixture(scope="module")
def machine(installed: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with booted(installed, tmp_path_factory.mktemp("login")) as machine:
        machine.run("groupadd", "--gid", "4400", "crew")
        machine.run("usermod", "--append", "--groups", "crew", "alice")
        yield machine


def write(machine: Machine, path: str, text: str) -> None:
    machine.run("sh", "-c", 'printf "%s" "$1" > "$0"', path, text)


def of_a_login(machine: Machine, command: str) -> str:
    return machine.run("su", "--login", "alice", "--command", command).stdout


def of_a_job(machine: Machine, command: str) -> str:
    number = submit(machine, command)
    assert wait(machine, number) == 0, job(machine, number)["cause"]
    return machine.run("traind", "logs", str(number), user="alice").stdout


@pytest.mark.parametrize("conf", CONFS)
def test_a_job_has_the_limits_of_a_login(machine: Machine, conf: str) -> None:
    write(machine, LIMITS, CONFS[conf])
    assert of_a_job(machine, SHOW) == of_a_login(machine, SHOW)


@pytest.mark.parametrize("module", ["", "umask=0027", "usergroups", "nousergroups", "umask=junk"])
@pytest.mark.parametrize(
    "defs", ["UMASK 022\nUSERGROUPS_ENAB yes\n", "UMASK 077\nUSERGROUPS_ENAB no\n", ""]
)
def test_a_job_has_the_umask_of_a_login(machine: Machine, module: str, defs: str) -> None:
    before = machine.run("cat", PAM).stdout, machine.run("cat", DEFS).stdout
    try:
        write(machine, PAM, f"{before[0]}session optional pam_umask.so {module}\n")
        write(machine, DEFS, defs)
        assert of_a_job(machine, "umask") == of_a_login(machine, "umask")
    finally:
        for path, text in zip((PAM, DEFS), before, strict=True):
            write(machine, path, text)
