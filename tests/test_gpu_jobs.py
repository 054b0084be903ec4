"""GPUs through the real daemon: shared by memory, alone when asked, never given out when sick."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gpu_scene import CARD, LONG, describe, reason
from harness import Daemon, eventually


@pytest.fixture
def scene(new_daemon: Daemon) -> Path:
    """The file that says what GPUs there are: one of 24564 MiB to begin with."""
    path = describe(new_daemon.home / "gpus.json", {"memory_mib": CARD})
    new_daemon.simulate = str(path)
    return path


def _names(daemon: Daemon, number: int, other: str) -> dict[str, Any] | None:
    """The reason of a job that waits, once it names another one."""
    found: dict[str, Any] = daemon.job(number)["reason"]
    return found if other in found["detail"] else None


def test_two_jobs_of_10_gib_share_a_card_and_the_third_says_why_it_waits(
    new_daemon: Daemon, scene: Path
) -> None:
    daemon = new_daemon.start()
    first, second, third = (daemon.submit(LONG, gpus=1, gpu_memory="10GiB") for _ in range(3))
    daemon.wait(first, "running")
    daemon.wait(second, "running")
    sentence = reason(daemon, third, "resources")
    assert "10 GiB" in sentence
    assert "GPU 0" in sentence
    assert daemon.job(third)["state"] == "queued"
    lease = daemon.job(first)["gpus_allotted"][0]
    assert (lease["index"], lease["memory_mib"]) == (0, 10240)
    daemon.ask("DELETE", f"/v1/jobs/{first}?now=1")
    daemon.wait(third, "running")


def test_an_exclusive_job_waits_for_an_empty_card_and_is_not_overtaken(
    new_daemon: Daemon, scene: Path
) -> None:
    daemon = new_daemon.start()
    shared = daemon.submit(LONG, gpus=1, gpu_memory="2GiB")
    daemon.wait(shared, "running")
    alone = daemon.submit(LONG, gpus=1)
    reason(daemon, alone, "resources", says=f"job {shared}")
    behind = daemon.submit(LONG, gpus=1, gpu_memory="2GiB")
    reason(daemon, behind, "priority", says=f"job {alone}")
    daemon.ask("DELETE", f"/v1/jobs/{shared}?now=1")
    daemon.wait(alone, "running")
    assert daemon.job(behind)["state"] == "queued"


def test_jobs_that_join_the_queue_say_why_they_wait_and_start_in_their_turn(
    new_daemon: Daemon, scene: Path
) -> None:
    daemon = new_daemon.start()
    holder = daemon.submit(LONG, gpus=1)
    daemon.wait(holder, "running")
    first = daemon.submit("true", gpus=1)
    assert f"job {holder}" in reason(daemon, first, "resources")
    second, last = daemon.submit("true", gpus=1), daemon.submit("true", gpus=1, priority=-1)
    behind = [eventually(partial(_names, daemon, n, f"job {first}")) for n in (second, last)]
    assert all(told["code"] == "priority" for told in behind)
    sooner = daemon.submit("true", gpus=1, priority=5)
    assert f"job {holder}" in reason(daemon, sooner, "resources")
    assert f"job {sooner}" in reason(daemon, first, "priority")
    daemon.ask("DELETE", f"/v1/jobs/{holder}?now=1")
    turns = {n: daemon.wait(n)["started_at"] for n in (first, second, last, sooner)}
    assert sorted(turns, key=turns.__getitem__) == [sooner, first, second, last]


def test_a_job_behind_what_one_pass_looks_at_says_how_many_are_ahead(
    new_daemon: Daemon, scene: Path
) -> None:
    new_daemon.config = new_daemon.config.replace("[queue]\n", "[queue]\nfront = 1\n")
    daemon = new_daemon.start()
    daemon.wait(daemon.submit(LONG, gpus=1), "running")
    first, second, third, _ = (daemon.submit("true", gpus=1) for _ in range(4))
    reason(daemon, first, "resources")
    reason(daemon, second, "priority", says="1 job is ahead of it in the queue")
    reason(daemon, third, "priority", says="2 jobs are ahead of it in the queue")


def test_a_24564_mib_card_is_a_24_gib_card(new_daemon: Daemon, scene: Path) -> None:
    daemon = new_daemon.start()
    number = daemon.submit("true", gpus=1, gpu_min_memory="24GiB")
    daemon.wait(number, outcome="succeeded")
    whole = daemon.submit("true", gpus=1, gpu_memory="24GiB")
    daemon.wait(whole, outcome="succeeded")
    answer = daemon.ask("POST", "/v1/jobs", {"command": "true", "gpus": 1, "gpu_memory": "40GiB"})
    assert answer.status == 422


def test_a_job_sees_the_gpus_that_are_its_own(new_daemon: Daemon, scene: Path) -> None:
    describe(scene, *({"memory_mib": CARD} for _ in range(3)))
    daemon = new_daemon.start()
    number = daemon.submit("echo $CUDA_VISIBLE_DEVICES $TRAIND_GPUS", gpus=2, gpu_exclude=[1])
    daemon.wait(number, outcome="succeeded")
    assert daemon.log_of(number) == "0,2 0,2\n"
    blind = daemon.submit('echo "[$CUDA_VISIBLE_DEVICES]" $NVIDIA_VISIBLE_DEVICES')
    daemon.wait(blind, outcome="succeeded")
    assert daemon.log_of(blind) == "[] void\n"


def test_a_lost_gpu_is_not_given_out_and_says_why(new_daemon: Daemon, scene: Path) -> None:
    describe(scene, {"memory_mib": CARD, "lost": True}, {"memory_mib": CARD})
    daemon = new_daemon.start()
    first = daemon.submit(LONG, gpus=1)
    assert [gpu["index"] for gpu in daemon.wait(first, "running")["gpus_allotted"]] == [1]
    both = daemon.submit(LONG, gpus=2)
    assert "fallen off the bus" in reason(daemon, both, "gpu_unhealthy")
    sick = daemon.ask("GET", "/v1/gpus").json["gpus"][0]
    assert not sick["health"]["allocatable"]
    assert "fallen off the bus" in sick["health"]["sentence"]
    describe(scene, {"memory_mib": CARD}, {"memory_mib": CARD})
    other = daemon.submit(LONG, gpus=1)
    read = daemon.ask("GET", "/v1/gpus").json["read_at"]
    eventually(lambda: daemon.ask("GET", "/v1/gpus").json["read_at"] not in (read, None))
    assert not daemon.ask("GET", "/v1/gpus").json["gpus"][0]["health"]["allocatable"]
    daemon.ask("PATCH", "/v1/gpus/0", {"clear": True})
    eventually(lambda: daemon.ask("GET", "/v1/gpus").json["gpus"][0]["health"]["allocatable"])
    daemon.ask("DELETE", f"/v1/jobs/{first}?now=1")
    daemon.wait(both, "running")
    assert daemon.job(other)["state"] == "queued"


def test_while_the_driver_hangs_no_gpu_job_starts_and_everything_else_goes_on(
    new_daemon: Daemon, scene: Path
) -> None:
    # A worker that is started while the driver hangs is given up soon, too.
    quick = '[gpus]\nanswer_deadline = "500ms"\nfirst_answer_deadline = "10s"\n'
    new_daemon.config = new_daemon.config.replace("[gpus]\n", quick)
    daemon = new_daemon.start()
    running = daemon.submit(LONG, gpus=1, gpu_memory="2GiB")
    daemon.wait(running, "running")
    describe(scene, {"memory_mib": CARD, "hang_s": 600})
    eventually(lambda: daemon.ask("GET", "/v1/gpus").json["fault"], what="the hang noticed")
    waiting = daemon.submit("true", gpus=1, gpu_memory="2GiB")
    sentence = reason(daemon, waiting, "gpu_monitor")
    assert "not answered since" in sentence
    on_cpu = daemon.submit("true")
    daemon.wait(on_cpu, outcome="succeeded")
    assert daemon.job(running)["state"] == "running"
    assert daemon.ask("GET", "/readyz").status == 503
    describe(scene, {"memory_mib": CARD})
    daemon.wait(waiting, outcome="succeeded")


def test_a_strangers_memory_keeps_an_exclusive_job_waiting(new_daemon: Daemon, scene: Path) -> None:
    stranger = {"pid": 1, "memory_mib": 20480, "kind": "compute"}
    describe(scene, {"memory_mib": CARD, "processes": [stranger]})
    daemon = new_daemon.start()
    number = daemon.submit("true", gpus=1)
    assert "holds 20 GiB and is of no job" in reason(daemon, number, "gpu_foreign")
    assert daemon.ask("GET", "/v1/gpus").json["gpus"][0]["foreign"][0]["pid"] == 1
    describe(scene, {"memory_mib": CARD})
    daemon.wait(number, outcome="succeeded")


def test_memory_that_is_not_given_back_keeps_the_card_until_it_is(
    new_daemon: Daemon, scene: Path
) -> None:
    daemon = new_daemon.start()
    first = daemon.submit(LONG, gpus=1)
    daemon.wait(first, "running")
    describe(scene, {"memory_mib": CARD, "unlisted_mib": 600})
    daemon.ask("DELETE", f"/v1/jobs/{first}?now=1")
    daemon.wait(first, outcome="cancelled")
    second = daemon.submit("true", gpus=1)
    assert "GPU 0" in reason(daemon, second, "gpu_cleaning")
    daemon.restart()
    reason(daemon, second, "gpu_cleaning")
    describe(scene, {"memory_mib": CARD})
    daemon.wait(second, outcome="succeeded")


def test_a_remembered_gpu_is_not_forgotten_when_it_is_gone(new_daemon: Daemon, scene: Path) -> None:
    describe(scene, {"memory_mib": CARD}, {"memory_mib": CARD})
    daemon = new_daemon.start()
    daemon.wait(daemon.submit("true", gpus=2), outcome="succeeded")
    daemon.stop()
    describe(scene, {"memory_mib": CARD})
    daemon.start()
    number = daemon.submit("true", gpus=2)
    reason(daemon, number, "gpu_unhealthy")


def test_a_gpu_job_that_declares_no_memory_waits_until_the_machine_has_some(
    new_daemon: Daemon,
) -> None:
    settings = new_daemon.config
    new_daemon.config = settings.replace("[host]", '[host]\nstart_memory = "64T"')
    daemon = new_daemon.start()
    number = daemon.submit("true", gpus=1)
    assert "to spare now; as it declares no memory" in reason(daemon, number, "resources")
    daemon.wait(daemon.submit("true", gpus=1, memory="16MiB"), "queued")
    daemon.wait(daemon.submit("true"), outcome="succeeded")
    daemon.stop()
    daemon.config = settings
    daemon.start()
    daemon.wait(number, outcome="succeeded")


def test_a_machine_without_a_driver_has_no_gpus_and_runs_the_rest(new_daemon: Daemon) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has an NVIDIA driver")
    new_daemon.simulate = None
    daemon = new_daemon.start()
    told = daemon.ask("GET", "/v1/gpus").json
    assert told == {"gpus": [], "read_at": told["read_at"], "fault": None}
    refused = daemon.ask("POST", "/v1/jobs", {"command": "true", "gpus": 1})
    assert refused.status == 422
    assert "has none" in refused.json["detail"]
    daemon.wait(daemon.submit("true"), outcome="succeeded")


def test_a_job_that_waits_for_a_gpu_is_not_kept_by_the_slow_pace_of_an_idle_box(
    new_daemon: Daemon, scene: Path
) -> None:
    new_daemon.config = new_daemon.config.replace('sample_idle = "1s"', 'sample_idle = "1h"')
    stranger = {"pid": 1, "memory_mib": 20480, "kind": "compute"}
    describe(scene, {"memory_mib": CARD, "processes": [stranger]})
    daemon = new_daemon.start()
    alone = daemon.submit("true", gpus=1)
    reason(daemon, alone, "gpu_foreign")
    describe(scene, {"memory_mib": CARD})
    daemon.wait(alone, outcome="succeeded")
