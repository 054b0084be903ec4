"""What `traind doctor` says of a machine where traind is installed; a real one, booted here."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from booted import DAEMON, booted, submit, wait
from machine import Machine, needs_machine

pytestmark = [pytest.mark.slow, pytest.mark.root, needs_machine, pytest.mark.timeout(900)]


@pytest.fixture
def machine(installed: Machine, tmp_path: Path) -> Iterator[Machine]:
    with booted(installed, tmp_path) as machine:
        yield machine


def checked(machine: Machine, check: str, **env: str) -> tuple[str, str]:
    """What doctor says of one thing: the level, and the sentence with how to mend it."""
    done = machine.run("traind", "doctor", "--json", check=False, user="alice", **env)
    found = {finding["check"]: finding for finding in json.loads(done.stdout)["checks"]}
    return found[check]["level"], f"{found[check]['sentence']}; {found[check]['mend']}"


def test_doctor_finds_the_installed_service_in_order_and_names_logind(machine: Machine) -> None:
    for check in ("daemon", "launcher", "gpus", "state", "open files"):
        assert checked(machine, check)[0] == "ok", checked(machine, check)
    assert "traind-jobs.scope" in checked(machine, "cgroups")[1]
    assert checked(machine, "logind")[0] == "ok"
    machine.run("mkdir", "/etc/systemd/logind.conf.d")
    remove = "printf '[Login]\\nRemoveIPC=yes\\n' > /etc/systemd/logind.conf.d/zz.conf"
    machine.run("sh", "-c", remove)
    level, said = checked(machine, "logind")
    assert (level, "RemoveIPC=no" in said) == ("note", True)
    machine.run("chmod", "o+w", "/etc/traind/config.toml")
    assert "chmod go-w /etc/traind/config.toml" in checked(machine, "state")[1]


def load_driver(machine: Machine) -> None:
    """Let it look as if the kernel had NVIDIA's driver."""
    loaded = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.82.07  Wed Aug 27 2025"
    machine.run("mount", "-t", "tmpfs", "tmpfs", "/proc/driver")
    machine.run("mkdir", "/proc/driver/nvidia")
    machine.run("sh", "-c", 'echo "$0" > /proc/driver/nvidia/version', loaded)


def test_doctor_compares_driver_and_library_and_tells_who_can_reach_the_gpus(
    machine: Machine,
) -> None:
    load_driver(machine)
    machine.run("mkdir", "/libs")
    assert "no libnvidia-ml.so.1" in checked(machine, "driver")[1]
    for version, level in (("580.65.06", "WRONG"), ("580.82.07", "ok")):
        library = f"/libs/libnvidia-ml.so.{version}"
        machine.run("sh", "-c", f"cp /lib/*/libz.so.1 {library}")
        machine.run("ln", "-sf", library, "/libs/libnvidia-ml.so.1")
        found, said = checked(machine, "driver", LD_LIBRARY_PATH="/libs")
        assert found == level, said
    assert "nvidia-modprobe" in checked(machine, "devices")[1]
    make_devices(machine)
    assert checked(machine, "devices")[0] == "ok"
    machine.run("sh", "-c", "chgrp video /dev/nvidia0; chmod 660 /dev/nvidia0")
    assert "/dev/nvidia0 (mode 660, group video)" in checked(machine, "devices")[1]


def make_devices(machine: Machine) -> None:
    """What stands for the files of one GPU, open to everybody."""
    devices = "/dev/nvidiactl /dev/nvidia0 /dev/nvidia-uvm"
    machine.run("sh", "-c", f"echo a GPU | tee {devices}; chmod 666 {devices}")


def test_doctor_tells_how_the_fence_stands_and_who_gets_over_it(machine: Machine) -> None:
    load_driver(machine)
    make_devices(machine)
    machine.run("sed", "-i", 's/^.gpus.$/&\\nfence = "group"/', "/etc/traind/config.toml")
    machine.run("systemctl", "restart", DAEMON)
    level, said = checked(machine, "devices")
    assert level == "WRONG"
    assert "/dev/nvidia0 (mode 666, group root)" in said
    assert "/dev/nvidia-uvm" not in said, "it is of no use without the others"
    assert "sudo make fence" in said

    machine.run("sh", "-c", "chgrp traind-gpu /dev/nvidia0 /dev/nvidiactl")
    machine.run("chmod", "660", "/dev/nvidia0", "/dev/nvidiactl")
    assert checked(machine, "devices")[0] == "ok"
    look = ("cat", "/dev/nvidia0")
    assert machine.run(*look, check=False, user="alice").returncode == 1
    assert wait(machine, submit(machine, " ".join(look))) == 1
    assert wait(machine, submit(machine, " ".join(look), "--gpus", "1")) == 0
    assert "traind-gpu" in machine.run("id", "-Gn", "traind").stdout, "it reads the GPUs"

    machine.run("usermod", "--append", "--groups", "traind-gpu", "alice")
    level, said = checked(machine, "fence")
    assert level == "note"
    assert said.startswith("alice can reach the GPUs without a job")
    assert "gpasswd -d alice traind-gpu" in said
    machine.run("/usr/bin/python3", "-c", ACL, "/dev/nvidia0")
    assert (
        "/dev/nvidia0 (mode 660, group traind-gpu, with an ACL)" in checked(machine, "devices")[1]
    )


ACL = """
import os, struct, sys
entries = [(1, 6, -1), (2, 6, 4321), (4, 6, -1), (16, 6, -1), (32, 0, -1)]
packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
os.setxattr(sys.argv[1], "system.posix_acl_access", packed)
"""
"""Lets alice in beside owner and group. Source: linux/posix_acl_xattr.h."""
