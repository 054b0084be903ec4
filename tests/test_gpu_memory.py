"""The memory of a GPU as jobs really use it: what is kept for each, and what of it comes back."""

import os
from pathlib import Path
from typing import Any

import pytest

from gpu_scene import (
    CARD,
    codes,
    describe,
    health,
    read_anew,
    reason,
    running,
    scene,
    settle,
    using,
)
from harness import Daemon, eventually
from traind.gpu import Ailment, Gpu, GpuProcess, GpuReading
from traind.gpus.remains import Remains, remains, stranded
from traind.job import Lease


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


def test_a_job_that_never_takes_up_its_memory_keeps_the_next_one_waiting_for_the_ramp_only(
    gpu_daemon: Daemon,
) -> None:
    describe(Path(str(gpu_daemon.simulate)), {"memory_mib": CARD}, job_memory="none")
    daemon = gpu_daemon.start()
    first, _ = running(daemon, gpu_memory="4GiB")
    second = daemon.submit("true", gpus=1, gpu_memory="4GiB")
    daemon.wait(second, outcome="succeeded")
    assert daemon.job(first)["state"] == "running"


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


# What is left of a job on its GPU


def cancelled(daemon: Daemon, number: int) -> None:
    daemon.ask("DELETE", f"/v1/jobs/{number}?now=1")
    daemon.wait(number, outcome="cancelled")


def test_memory_that_no_process_has_after_a_job_closes_the_gpu_until_it_is_back(
    gpu_daemon: Daemon,
) -> None:
    settle(gpu_daemon, release_wait="0s")
    daemon = gpu_daemon.start()
    number, _ = running(daemon, gpu_ids=[0])
    scene(daemon, {"unlisted_mib": 18432}, {})
    read_anew(daemon)
    cancelled(daemon, number)
    waits = daemon.submit("true", gpus=1, gpu_ids=[0])
    sentence = reason(daemon, waits, "gpu_unhealthy")
    assert f"18 GiB are in use by no process since job {number} of " in sentence
    assert "nvidia-smi --gpu-reset -i 0" in sentence
    assert codes(daemon, 0) == ["stranded"]
    assert not health(daemon, 0)["allocatable"]
    assert (lease(daemon, number) or {})["state"] == "cleaning"
    daemon.restart()
    assert "18 GiB" in reason(daemon, waits, "gpu_unhealthy")
    scene(daemon, {}, {})
    daemon.wait(waits, outcome="succeeded")
    assert lease(daemon, number) is None


def test_an_operator_may_put_up_with_what_is_stranded(gpu_daemon: Daemon) -> None:
    settle(gpu_daemon, release_wait="0s")
    daemon = gpu_daemon.start()
    number, _ = running(daemon, gpu_ids=[0])
    scene(daemon, {"unlisted_mib": 3000}, {})
    read_anew(daemon)
    cancelled(daemon, number)
    waits = daemon.submit("true", gpus=1, gpu_ids=[0], gpu_memory="16GiB")
    too_big = daemon.submit("true", gpus=1, gpu_ids=[0], gpu_memory="21GiB")
    reason(daemon, waits, "gpu_unhealthy")
    assert daemon.cli("gpu", "clear", "0").code == 0
    daemon.wait(waits, outcome="succeeded")
    reason(daemon, too_big, "resources")
    assert codes(daemon, 0) == []


def test_a_little_that_is_stranded_is_told_and_the_rest_is_given_out(gpu_daemon: Daemon) -> None:
    settle(gpu_daemon, release_wait="0s")
    daemon = gpu_daemon.start()
    number, _ = running(daemon, gpu_ids=[0])
    scene(daemon, {"unlisted_mib": 600}, {})
    read_anew(daemon)
    cancelled(daemon, number)
    daemon.wait(daemon.submit("true", gpus=1, gpu_ids=[0]), outcome="succeeded")
    told = health(daemon, 0)
    assert told["allocatable"]
    assert told["conditions"][0]["ailment"] == "warn"
    assert "600 MiB are in use by no process" in told["sentence"]
    assert "not given out" in told["sentence"]


def test_what_a_stranger_took_while_a_job_ran_is_the_strangers_when_the_job_is_over(
    gpu_daemon: Daemon, stranger: int
) -> None:
    daemon = gpu_daemon.start()
    number, main = running(daemon, gpu_ids=[0])
    beside = {"pid": stranger, "memory_mib": 8192}
    scene(daemon, using(main, 1024, beside), {})
    eventually(
        lambda: (
            [
                each["during_job"] == number
                for each in daemon.ask("GET", "/v1/gpus").json["gpus"][0]["foreign"]
            ]
            == [True]
        ),
        what="the stranger",
    )
    scene(daemon, {"processes": [beside]}, {})
    cancelled(daemon, number)
    alone = daemon.submit("true", gpus=1, gpu_ids=[0])
    sentence = reason(daemon, alone, "gpu_foreign")
    assert f"process {stranger}" in sentence
    assert f"holds 8 GiB; it came while job {number} ran there" in sentence
    shares = daemon.submit("true", gpus=1, gpu_ids=[0], gpu_memory="10GiB")
    daemon.wait(shares, outcome="succeeded")
    scene(daemon, {}, {})
    daemon.wait(alone, outcome="succeeded")


def test_a_process_of_a_job_that_is_over_is_named_while_it_is_still_there(
    gpu_daemon: Daemon,
) -> None:
    settle(gpu_daemon, release_wait="0s")
    daemon = gpu_daemon.start()
    number, main = running(daemon, gpu_ids=[0], gpu_memory="8GiB")
    scene(daemon, using(main, 8192), {})
    uses(daemon, number, 8192)
    cancelled(daemon, number)
    waits = daemon.submit("true", gpus=1, gpu_ids=[0])
    told = f"its process {main} still holds 8 GiB"
    eventually(lambda: told in reason(daemon, waits, "gpu_cleaning"), what=told)
    scene(daemon, {}, {})
    daemon.wait(waits, outcome="succeeded")


A6000 = Gpu(uuid="GPU-a", index=1, name="A6000", memory_mib=40960, reserved_mib=0)


def process(pid: int, memory_mib: int | None) -> GpuProcess:
    return GpuProcess(pid=pid, memory_mib=memory_mib, kind="compute")


@pytest.mark.parametrize(
    ("used_mib", "processes", "exclusive", "ended", "left"),
    [
        (164, [], True, (), None),
        (215, [], True, (), (None, 115)),
        (9000, [], False, (), None),
        (100, [process(5, 10)], True, (), (5, 10)),
        (100, [process(5, None)], False, (), (5, 0)),
        (9000, [process(6, 8950)], True, (), None),
        (9000, [process(6, 8950)], True, (6,), (6, 8950)),
        (160, [process(6, 60)], True, (6,), None),
        (9000, [process(6, 50), process(7, None)], True, (), None),
        (9000, [process(6, 4000)], True, (), (None, 4900)),
    ],
)
def test_what_a_job_has_left_is_of_its_own_process_or_of_none(
    used_mib: int,
    processes: list[GpuProcess],
    exclusive: bool,
    ended: tuple[int, ...],
    left: tuple[int | None, int] | None,
) -> None:
    seen = GpuReading(gpu=A6000, used_mib=used_mib, processes=tuple(processes))
    held = Lease(
        gpu_uuid="GPU-a",
        gpu_index=1,
        gpu_name="A6000",
        memory_mib=40960,
        exclusive=exclusive,
        baseline_mib=100,
        unlisted_mib=100,
    )
    found = remains(seen, held, pids={5}, ended=ended, slack_mib=64)
    assert (None if found is None else (found.pid, found.memory_mib)) == left


def test_from_a_share_of_the_gpu_on_stranded_memory_closes_it() -> None:
    little, much = (Remains(pid=None, memory_mib=mib) for mib in (2048, 2049))
    assert stranded(little, A6000, "job 7 of al", share_pct=5).ailment is Ailment.WARN
    assert stranded(much, A6000, "job 7 of al", share_pct=5).ailment is Ailment.DEGRADED
