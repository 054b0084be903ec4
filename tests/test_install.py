"""`make install` and its like, on machines of their own where systemd is not running (images)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from machine import SOURCE, Machine, machine_in, needs_machine, wheels_in

pytestmark = [pytest.mark.slow, pytest.mark.root, needs_machine, pytest.mark.timeout(900)]
MAKE_S = 600
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"}
UNITS = ("traind.service", "traind-launcher.service", "traind-launcher.socket")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """The disk of a machine that has traind's source and wheels, and was never started."""
    machine = Machine(tmp_path_factory.mktemp("source"))
    machine.place_source()
    machine.place(wheels_in(tmp_path_factory.mktemp("wheels")), "/wheels")
    return machine


@pytest.fixture
def machine(source: Machine, tmp_path: Path) -> Iterator[Machine]:
    with machine_in(tmp_path / "machine", like=source) as machine:
        yield machine.start("sleep", "infinity")


def make(
    machine: Machine, target: str, *settings: str, user: str | None = None, **env: str
) -> tuple[int, str]:
    """What make ended with, and all that it said."""
    command = ("make", "--silent", "-C", SOURCE, target, *settings)
    done = machine.run(*command, check=False, timeout=MAKE_S, user=user, **OFFLINE, **env)
    return done.returncode, done.stdout + done.stderr


def test_an_installation_without_systemd_running_is_complete_and_says_what_was_not_started(
    machine: Machine,
) -> None:
    code, said = make(machine, "install")
    assert code == 0, said
    assert "not started: systemd does not run here" in said
    assert machine.run("traind", "--version", user="nobody").stdout.startswith("traind ")
    assert machine.run("/opt/traind/bin/traind-launcher", "--help").returncode == 0
    for path, mode in (
        ("/var/lib/traind", "755 root"),
        ("/var/lib/traind/daemon", "700 traind"),
        ("/var/lib/traind/runs", "711 root"),
        ("/etc/traind/config.toml", "644 root"),
        ("/opt/traind", "755 root"),
    ):
        assert machine.run("stat", "-c", "%a %U", path).stdout.strip() == mode, path
    assert machine.run("getent", "group", "traind-admin").stdout
    enabled = machine.run("systemctl", "is-enabled", "traind.service", "traind-launcher.socket")
    assert enabled.stdout.split() == ["enabled", "enabled"]
    shown = machine.run("traind", "config", "show", "/etc/traind/config.toml").stdout
    own = [line.split()[2] for line in shown.splitlines() if "/etc/traind" in line]
    assert own == ['"127.0.0.1:7979"', "{}"], "one setting and [jobs.env] are not defaults"
    assert "TRAIND(1)" in machine.run("man", "traind").stdout
    machine.run("grep", "complete", "/usr/local/share/bash-completion/completions/traind")
    assert machine.run("ls", f"{SOURCE}/daemon").stdout == "traind\n", "nothing is left in it"
    compiled = machine.run("sh", "-c", "find /opt/traind -name 'app.*.pyc'").stdout
    assert compiled, "the service could not write what it compiles"


def test_an_upgrade_keeps_settings_and_refuses_settings_that_will_not_do(machine: Machine) -> None:
    assert make(machine, "upgrade")[0] != 0, "there is nothing to upgrade"
    assert make(machine, "install")[0] == 0
    machine.run("sh", "-c", "printf '[host]\\ncpus = 3\\n' > /etc/traind/config.toml")
    machine.run("touch", "/opt/traind/stale")
    code, said = make(machine, "upgrade")
    assert code == 0, said
    assert "kept /etc/traind/config.toml" in said
    assert machine.run("cat", "/etc/traind/config.toml").stdout == "[host]\ncpus = 3\n"
    assert machine.run("test", "-e", "/opt/traind/stale", check=False).returncode == 1
    machine.run("sh", "-c", "echo 'no_such = 1' >> /etc/traind/config.toml")
    machine.run("touch", "/opt/traind/kept")
    code, said = make(machine, "upgrade")
    assert code != 0
    assert "no_such" in said
    assert "nothing was changed" in said
    assert machine.run("ls", "/opt/traind/kept").returncode == 0


def test_removing_it_keeps_state_and_settings_unless_told(machine: Machine) -> None:
    assert make(machine, "install")[0] == 0
    before = set(machine.run("find", "/usr/local", "/opt").stdout.split())
    machine.run("touch", "/var/lib/traind/daemon/traind.db")
    code, said = make(machine, "uninstall")
    assert code == 0, said
    assert "Kept: /var/lib/traind, /etc/traind" in said
    assert machine.run("ls", "/var/lib/traind/daemon").stdout == "traind.db\n"
    after = set(machine.run("find", "/usr/local", "/opt", "-not", "-type", "d").stdout.split())
    assert not [path for path in after & before if "traind" in path]
    assert make(machine, "uninstall", "PURGE=1")[0] == 0
    for path in ("/var/lib/traind", "/etc/traind", "/opt/traind"):
        assert machine.run("test", "-e", path, check=False).returncode == 1, path
    for name in ("passwd traind", "group traind", "group traind-admin", "group traind-gpu"):
        assert machine.run("getent", *name.split(), check=False).returncode == 2, name


def test_the_gpus_are_fenced_and_open_again_as_root_says(machine: Machine) -> None:
    options = "/etc/modprobe.d/traind.conf"
    assert "sudo make install" in make(machine, "fence")[1]
    assert make(machine, "install")[0] == 0
    code, said = make(machine, "fence")
    assert code != 0
    assert 'first write fence = "group" under [gpus]' in said
    machine.run("sh", "-c", "printf '[gpus]\\nfence = \"group\"\\n' > /etc/traind/config.toml")
    for _ in range(2):
        code, said = make(machine, "fence")
        assert code == 0, said
        assert "traind doctor" in said
    gid = machine.run("getent", "group", "traind-gpu").stdout.split(":")[2]
    wanted = f"NVreg_DeviceFileUID=0 NVreg_DeviceFileGID={gid} NVreg_DeviceFileMode=0660"
    written = machine.run("cat", options).stdout.splitlines()
    assert [line for line in written if not line.startswith("#")] == [f"options nvidia {wanted}"]
    code, said = make(machine, "unfence")
    assert code == 0, said
    assert machine.run("test", "-e", options, check=False).returncode == 1
    assert "there is no fence" in make(machine, "unfence")[1]
    assert make(machine, "fence")[0] == 0
    code, said = make(machine, "uninstall")
    assert code == 0, said
    assert "everybody reaches the GPUs" in said
    assert machine.run("test", "-e", options, check=False).returncode == 1, "nobody could use them"


def test_a_packager_gets_a_tree_that_works_where_it_is_put_and_nothing_else(
    machine: Machine,
) -> None:
    code, said = make(machine, "install", "DESTDIR=/tree", "PREFIX=/usr")
    assert code == 0, said
    assert "systemd-sysusers" in said
    for path in ("/etc/traind", "/opt/traind", "/var/lib/traind"):
        assert machine.run("test", "-e", path, check=False).returncode == 1, path
    assert machine.run("getent", "passwd", "traind", check=False).returncode == 2
    assert machine.run("grep", "-rlI", "/tree/opt", "/tree", check=False).stdout == ""
    for unit in UNITS:
        machine.run("test", "-f", f"/tree/usr/lib/systemd/system/{unit}")
    machine.run("cp", "-a", "/tree/.", "/")
    assert machine.run("traind", "--version").stdout.startswith("traind ")


OLD = """#!/bin/sh
exec /usr/bin/python3 -c "import sys
sys.version_info, sys.version = (3, 9, 2), '3.9.2 (an old one)'
code, sys.argv = sys.argv[2], sys.argv[2:]
exec(code)" "$@"
"""
"""A Python that says it is an old one; nothing else of it is asked."""


def test_a_python_that_will_not_do_is_refused_in_words(machine: Machine) -> None:
    machine.run("sh", "-c", 'echo "$0" > /usr/bin/old && chmod +x /usr/bin/old', OLD)
    code, said = make(machine, "install", "PYTHON=/usr/bin/old")
    assert code != 0
    assert "is 3.9.2, and 3.11 or newer is needed; name another one with PYTHON=" in said
    code, said = make(machine, "install", "PYTHON=/no/python")
    assert (code != 0, "there is no /no/python" in said) == (True, True)
    machine.run("sh", "-c", "install -d -m 700 /closed && cp /usr/bin/python3 /closed/python3")
    code, said = make(machine, "install", "PYTHON=/closed/python3")
    assert code != 0
    assert "/closed, which other accounts may not enter" in said
    assert machine.run("ls", "/opt").stdout.count("traind") == 0


def test_an_ordinary_account_is_told_how_to_install(machine: Machine) -> None:
    machine.run("useradd", "--create-home", "alice")
    code, said = make(machine, "install", user="alice")
    assert code != 0
    assert "sudo make install" in said
    assert "make install-user" in said


def test_an_account_installs_for_itself_without_touching_the_machine(machine: Machine) -> None:
    machine.run("useradd", "--create-home", "alice")
    assert "for everybody: make install" in make(machine, "install-user")[1]
    code, said = make(machine, "install-user", user="alice", HOME="/home/alice")
    assert code == 0, said
    assert "traind serve" in said
    version = machine.run("/home/alice/.local/bin/traind", "--version", user="alice")
    assert version.stdout.startswith("traind ")
    unit = machine.run("cat", "/home/alice/.config/systemd/user/traind.service").stdout
    assert "/home/alice/.local/share/traind/venv/bin/traind" in unit
    assert "/opt/traind" not in unit
    assert make(machine, "uninstall-user", user="alice", HOME="/home/alice")[0] == 0
    left = machine.run("find", "/home/alice", "-name", "*traind*", "-not", "-type", "d").stdout
    assert left == ""
