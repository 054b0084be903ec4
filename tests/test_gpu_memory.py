"""The memory of a GPU as jobs really use it: what is kept for each, and what of it comes back."""

import os
from typing import Any

import pytest

from gpu_scene import reason, running, scene
from harness import Daemon, eventually


def lease(daemon: Daemon, number: int, index: int = 0) -> dict[str, Any] | None:
    """What a job holds of a GPU, None when it is no longer there."""
    leases = daemon.ask("GET", "/v1/gpus").json["gpus"][index]["leases"]
    return next((each for each in leases if each["job_id"] == number), None)


def uses(daemon: Daemon, number: int, memory_mib: int) -> None:
    """Wait until a job is seen to use so much of the first GPU."""

    def seen() -> bool:
        found = lease(daemon, number)
        return found is not None and found["observed_mib"] == memory_mib

    eventually(seen, what=f"{memory_mib} MiB of job {number}")


def read_anew(daemon: Daemon) -> None:
    """Wait for a reading that was asked for after this."""
    for _ in range(2):
        before = daemon.ask("GET", "/v1/gpus").json["read_at"]
        eventually(lambda b=before: daemon.ask("GET", "/v1/gpus").json["read_at"] != b)


def using(pid: int, memory_mib: int, *others: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """A GPU on which the process uses so much."""
    return {"processes": [{"pid": pid, "memory_mib": memory_mib}, *others], **facts}


def test_what_a_job_used_once_is_kept_for_it_also_by_a_new_daemon(gpu_daemon: Daemon) -> None:
    daemon = gpu_daemon.start()
    number, main = running(daemon, gpu_ids=[0], gpu_memory="4GiB")
    scene(daemon, using(main, 10240), {})
    eventually(lambda: (daemon.job(number)["peak_gpu_memory_mib"] or 0) >= 10240, what="its peak")
    scene(daemon, using(main, 4096), {})
    uses(daemon, number, 4096)
    waits = daemon.submit("true", gpus=1, gpu_ids=[0], gpu_memory="14GiB")
    reason(daemon, waits, "resources")
    fits = daemon.submit("true", gpus=1, gpu_ids=[1], gpu_memory="14GiB")
    daemon.wait(fits, outcome="succeeded")
    daemon.restart()
    uses(daemon, number, 4096)
    read_anew(daemon)
    assert "13.5 GiB left" in reason(daemon, waits, "resources")
    daemon.ask("DELETE", f"/v1/jobs/{number}?now=1")
    scene(daemon, {}, {})
    daemon.wait(waits, outcome="succeeded")


@pytest.mark.root
def test_a_process_in_the_cgroup_of_a_job_is_the_jobs_whoever_its_parent_is(
    gpu_daemon: Daemon, stranger: int
) -> None:
    daemon = gpu_daemon.start()
    number, _ = running(daemon, gpu_ids=[0], gpu_memory="4GiB")
    cgroup = (eventually(lambda: daemon.record(number, "shim.json")) or {}).get("cgroup")
    if cgroup is None:
        pytest.skip("no cgroup can be made here")
    with open(f"{cgroup}/cgroup.procs", "w") as file:
        file.write(str(stranger))
    scene(daemon, using(stranger, 5000), {})
    uses(daemon, number, 5000)
    assert daemon.ask("GET", "/v1/gpus").json["gpus"][0]["foreign"] == []
    os.kill(stranger, 0)
