"""What an attempt's cgroup is told; where the kernel lacks a controller nothing is in the way.

Source: the kernel's admin-guide/cgroup-v2, memory.max, memory.oom.group and cpu.max.
"""

from pathlib import Path

from harness import Daemon
from traind.runner.cgroup import limit


def told(group: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in group.iterdir() if file.is_file()}


def test_a_job_gets_no_more_than_it_asked_for_and_all_together_no_more_than_the_host_gives(
    tmp_path: Path,
) -> None:
    group = tmp_path / "42.1"
    group.mkdir()
    limit(str(group), memory_mib=3, cpus=2, all_memory_mib=5)
    assert told(group) == {
        "memory.max": "3145728",
        "memory.oom.group": "1",
        "cpu.max": "200000 100000",
    }
    assert told(tmp_path) == {"memory.max": "5242880"}


def test_what_a_job_did_not_ask_for_is_not_bounded(tmp_path: Path) -> None:
    group = tmp_path / "42.1"
    group.mkdir()
    limit(str(group), memory_mib=None, cpus=None, all_memory_mib=5)
    assert told(group) | {"memory.oom.group": "1"} == {
        "memory.max": "max",
        "memory.oom.group": "1",
        "cpu.max": "max",
    }


def test_a_job_with_limits_runs_where_the_kernel_has_no_controllers(daemon: Daemon) -> None:
    number = daemon.submit("exit 3", memory="256MiB", cpus=1)
    daemon.wait(number, exit_code=3)
