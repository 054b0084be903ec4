"""Which of several free GPUs a job gets, by where they sit and who looks at them."""

from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract import CheckedDaemon
from gpu_scene import LONG, closed, gpu_of, reason, scene
from traind.gpu import Gpu, GpuPlace, GpuProcess, GpuReading
from traind.job import Request
from traind.scheduler import Holding, Host, SharingPolicy, World, plan

NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)
CARD = 24564
POLICY = SharingPolicy(safety_mib=512, safety_pct=2.0, max_jobs=4, ramp_s=60.0)
Near = Mapping[tuple[int, int], int]
"""How near two GPUs are, by their indices."""


def reading(index: int, near: Near, **place: Any) -> GpuReading:
    gpu = Gpu(uuid=f"GPU-{index}", index=index, name="A", memory_mib=CARD, reserved_mib=0)
    others = [(sum(pair) - index, weight) for pair, weight in near.items() if index in pair]
    known = tuple((f"GPU-{other}", weight) for other, weight in others)
    processes = place.pop("processes", ())
    place = {"near": known, **place}
    return GpuReading(gpu=gpu, used_mib=0, processes=processes, place=GpuPlace(**place))


def chosen(
    readings: list[GpuReading], *, gpus: int, busy: tuple[int, ...] = (), **facts: Any
) -> list[int]:
    """The indices of the GPUs that a job of so many gets while others hold those of `busy`."""
    request = Request(job_id=9, user="bob", priority=0, eligible_at=NOW, gpus=gpus)
    holdings = tuple(
        Holding(gpu_uuid=f"GPU-{i}", job_id=i, user="a", memory_mib=CARD, exclusive=True)
        for i in busy
    )
    world = World(
        now=NOW,
        host=Host(cpus=8, memory_mib=65536),
        policy=POLICY,
        readings=tuple(readings),
        holdings=holdings,
        waiting=(request,),
        **facts,
    )
    (start,) = plan(world).starts
    return sorted(grant.gpu.index for grant in start.grants)


PAIRS: Near = {(0, 3): 200, (1, 2): 200, (0, 1): 20, (2, 3): 20}


def test_two_gpus_of_a_job_are_a_pair() -> None:
    four = [reading(index, PAIRS) for index in range(4)]
    assert chosen(four, gpus=2) == [0, 3]
    assert chosen(four, gpus=2, busy=(0,)) == [1, 2]
    assert chosen(four, gpus=2, busy=(0, 2)) == [1, 3]
    assert chosen(four, gpus=3) == [0, 1, 2]
    assert chosen(four, gpus=4) == [0, 1, 2, 3]


def test_one_gpu_is_taken_where_it_breaks_no_pair() -> None:
    four = [reading(index, PAIRS) for index in range(4)]
    assert chosen(four, gpus=1) == [0]
    assert chosen(four, gpus=1, busy=(1,)) == [2]
    assert chosen(four, gpus=1, busy=(3,)) == [0]


def test_a_gpu_that_somebody_looks_at_is_given_out_last() -> None:
    drawn = (GpuProcess(pid=5, memory_mib=90, kind="graphics"),)
    for screen in (reading(0, {}, display=True), reading(0, {}, processes=drawn)):
        assert chosen([screen, reading(1, {})], gpus=1) == [1]
        assert chosen([screen, reading(1, {})], gpus=2) == [0, 1]
        assert chosen([screen, reading(1, {}), reading(2, {})], gpus=2) == [1, 2]
    near: Near = {(0, 1): 200}
    three = [reading(0, near, display=True), reading(1, near), reading(2, near)]
    assert chosen(three, gpus=2) == [1, 2], "a display outweighs nearness"
    assert chosen(three, gpus=2, suspect=frozenset({"GPU-2"})) == [0, 1]


@pytest.mark.parametrize("wanted", [2, 3, 8, 31, 63, 64])
def test_many_gpus_are_chosen_without_comparing_every_group(wanted: int) -> None:
    near = {pair: 50 for pair in combinations(range(64), 2) if pair[0] // 8 == pair[1] // 8}
    found = chosen([reading(index, near) for index in range(64)], gpus=wanted)
    assert len(set(found)) == wanted
    assert len({index // 8 for index in found}) == -(-wanted // 8)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_no_group_is_nearer_than_the_one_that_is_chosen(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 6))
    weights = st.sampled_from([0, 10, 50, 100])
    near = {pair: data.draw(weights) for pair in combinations(range(count), 2)}
    wanted = data.draw(st.integers(2, count))
    found = chosen([reading(index, near) for index in range(count)], gpus=wanted)

    def closeness(group: Any) -> int:
        return sum(near[pair] for pair in combinations(sorted(group), 2))

    best = max(closeness(group) for group in combinations(range(count), wanted))
    assert closeness(found) == best


def test_a_job_gets_what_is_near_and_finds_the_cores_next_to_it(gpu_daemon: CheckedDaemon) -> None:
    left = {"numa_node": 0, "cpus": "0-7,16-23"}
    right = {"numa_node": 1, "cpus": "8-15"}
    scene(
        gpu_daemon,
        left | {"display": True},
        right | {"near": [{"gpu": 2, "weight": 10}, {"gpu": 3, "weight": 100}]},
        left | {"near": [{"gpu": 1, "weight": 10}]},
        right | {"near": [{"gpu": 1, "weight": 100}]},
    )
    daemon = gpu_daemon.start()
    command = "echo $TRAIND_GPU_CPUS"
    number = daemon.submit(f"{command}; exec {LONG}", gpus=2)
    assert gpu_of(daemon.wait(number, "running")) == [1, 3]
    beside = daemon.submit(command, gpus=1)
    assert gpu_of(daemon.wait(beside, outcome="succeeded")) == [2]
    last = daemon.submit(command, gpus=2)
    daemon.ask("DELETE", f"/v1/jobs/{number}?now=1")
    daemon.wait(number, outcome="cancelled")
    daemon.wait(last, outcome="succeeded")
    assert [daemon.log_of(job) for job in (number, beside)] == ["8-15\n", "0-7,16-23\n"]
    wide = daemon.submit(command, gpus=2, gpu_ids=[0, 1])
    daemon.wait(wide, outcome="succeeded")
    assert daemon.log_of(wide) == "0-7,16-23,8-15\n"
    gpus = daemon.ask("GET", "/v1/gpus").json["gpus"]
    assert [gpu["display"] for gpu in gpus] == [True, None, None, None]
    assert (gpus[1]["numa_node"], gpus[1]["cpus"]) == (1, "8-15")
    assert "ok, with a display" in daemon.cli("gpus").out


def test_where_all_cores_are_alike_a_job_hears_nothing_of_them(gpu_daemon: CheckedDaemon) -> None:
    scene(gpu_daemon, {"numa_node": 0, "cpus": "0-7"}, {"numa_node": 0, "cpus": "0-7"})
    daemon = gpu_daemon.start()
    number = daemon.submit("env", gpus=2)
    daemon.wait(number, outcome="succeeded")
    assert "TRAIND_GPU_CPUS" not in daemon.log_of(number)


def test_a_gpu_that_is_divided_is_shown_and_not_given_out(gpu_daemon: CheckedDaemon) -> None:
    scene(gpu_daemon, {"mig": True}, {"mig": False})
    daemon = gpu_daemon.start()
    assert "divided into instances (MIG)" in closed(daemon, 0)
    assert gpu_of(daemon.wait(daemon.submit("true", gpus=1), outcome="succeeded")) == [1]
    waiting = daemon.submit("true", gpus=1, gpu_ids=[0])
    assert "MIG" in reason(daemon, waiting, "gpu_unhealthy")
    assert [gpu["mig"] for gpu in daemon.ask("GET", "/v1/gpus").json["gpus"]] == [True, False]
    scene(daemon, {"mig": False}, {"mig": False})
    daemon.wait(waiting, outcome="succeeded")
