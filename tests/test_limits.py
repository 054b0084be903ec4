"""What an attempt's cgroup is told; where the kernel lacks a controller nothing is in the way.

Source: the kernel's admin-guide/cgroup-v2, memory.max, memory.oom.group, cpu.max and pids.max.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from harness import SHORT, Daemon
from traind.runner.cgroup import limit

SETTINGS = SHORT.replace("[host]", '[host]\nmemory = "3GiB"').replace(
    "[jobs]", "[jobs]\nmax_threads = 1234"
)


def ordered(daemon: Daemon, **wanted: Any) -> dict[str, dict[str, int | str]]:
    """The limits that the launcher is told of a job."""
    number = daemon.submit("exit 3", **wanted)
    daemon.wait(number, exit_code=3)
    spec = json.loads((daemon.run_dir(number) / "spec").read_text())
    limits: dict[str, dict[str, int | str]] = spec["limits"]
    return limits


@pytest.fixture
def limited(new_daemon: Daemon) -> Daemon:
    new_daemon.config = SETTINGS
    new_daemon.start()
    return new_daemon


def test_a_job_gets_no_more_than_it_asked_for_and_all_together_no_more_than_the_host_gives(
    limited: Daemon,
) -> None:
    limits = ordered(limited, memory="256MiB", cpus=2)
    assert limits["own"] == {
        "memory.max": 256 << 20,
        "memory.oom.group": 1,
        "cpu.max": "200000 100000",
        "cpu.weight": 20,
        "pids.max": 1234,
    }
    most = [Path("/proc/sys/kernel", name).read_text() for name in ("threads-max", "pid_max")]
    assert limits["together"] == {
        "memory.max": 3 << 30,
        "pids.max": int(min(map(int, most)) * 0.75),
    }


def test_what_a_job_did_not_ask_for_is_not_bounded(limited: Daemon) -> None:
    own = ordered(limited)["own"]
    assert (own["memory.max"], own["cpu.max"], own["cpu.weight"]) == ("max", "max", 10)
    one, two = (int(ordered(limited, gpus=n)["own"]["cpu.weight"]) for n in (1, 2))
    assert two == 2 * one, "a GPU counts for its share of the cores"
    assert ordered(limited, gpus=2, cpus=1)["own"]["cpu.weight"] == 10, "what it says counts"


def test_the_kernel_is_told_its_limits_and_nothing_else(tmp_path: Path) -> None:
    group = tmp_path / "all" / "42.1"
    group.mkdir(parents=True)
    own = {"memory.max": 3, "cpu.max": "max", "cgroup.kill": 1, "../../outside": 1}
    limit(str(group), own, {"pids.max": 7, "cgroup.procs": 1})
    found = {
        str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*.*") if p.is_file()
    }
    assert found == {"all/42.1/memory.max": "3", "all/42.1/cpu.max": "max", "all/pids.max": "7"}
    assert not (tmp_path / "outside").exists()
