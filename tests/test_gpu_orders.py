"""What operators say of GPUs: cordoned, drained, cleared, forgotten; strangers that are let be."""

import json
from pathlib import Path
from typing import Any

import pytest

from contract import CheckedDaemon
from gpu_scene import CARD, closed, describe, gpu_of, health, reason, running, scene, xid
from harness import Daemon, eventually


def order(daemon: Daemon, which: str, **body: Any) -> Any:
    answer = daemon.ask("PATCH", f"/v1/gpus/{which}", body)
    assert answer.status == 200, answer.body
    return answer.json


def test_a_cordoned_gpu_gets_no_new_job_says_who_and_why_and_stays_so_over_kill_9(
    gpu_daemon: Daemon,
) -> None:
    daemon = gpu_daemon.start()
    me = daemon.ask("GET", "/v1/whoami").json["user"]
    number, _ = running(daemon, gpu_ids=[0])
    view = order(daemon, "0", cordoned=True, reason="its fan is being changed")
    assert (view["index"], view["cordoned"]["by"]) == (0, me)
    assert view["cordoned"]["reason"] == "its fan is being changed"
    waiting = daemon.submit("true", gpus=1, gpu_ids=[0])
    sentence = reason(daemon, waiting, "gpu_unhealthy")
    assert f"cordoned by {me}: its fan is being changed" in sentence
    daemon.restart()
    assert daemon.job(number)["state"] == "running"
    assert "fan" in closed(daemon, 0)
    daemon.ask("DELETE", f"/v1/jobs/{number}?now=1")
    reason(daemon, waiting, "gpu_unhealthy")
    assert order(daemon, "0", cordoned=False)["cordoned"] is None
    daemon.wait(waiting, outcome="succeeded")


def test_a_drained_gpu_sends_its_jobs_elsewhere_with_grace(gpu_daemon: Daemon) -> None:
    daemon = gpu_daemon.start()
    ready = daemon.home / "ready"
    command = f"trap 'echo saved; exit 0' TERM; touch {ready}; while :; do sleep 0.05; done"
    number = daemon.submit(command, gpus=1)
    daemon.wait(number, "running")
    eventually(ready.exists, what="its trap")
    (first,) = gpu_of(daemon.job(number))
    uuid = daemon.ask("GET", "/v1/gpus").json["gpus"][first]["uuid"]
    assert order(daemon, uuid, drain=True)["cordoned"]["drains"]
    moved = daemon.wait(number, "running", attempt=2)
    assert gpu_of(moved) == [1 - first]
    assert daemon.log_of(number, "?attempt=1") == "saved\n"
    daemon.restart()
    assert not health(daemon, first)["allocatable"]


def test_a_process_that_is_to_be_ignored_keeps_no_job_away(gpu_daemon: Daemon) -> None:
    stranger = {"processes": [{"pid": 1, "memory_mib": 20480}]}
    scene(gpu_daemon, stranger, {})
    daemon = gpu_daemon.start()
    number = daemon.submit("true", gpus=2)
    reason(daemon, number, "gpu_foreign")
    assert order(daemon, "0", ignore_pid=1)["foreign"][0]["ignored"]
    daemon.wait(number, outcome="succeeded")
    daemon.restart()
    daemon.wait(daemon.submit("true", gpus=2), outcome="succeeded")


def test_a_gpu_that_is_gone_for_good_is_forgotten_and_one_that_is_there_is_not(
    gpu_daemon: Daemon,
) -> None:
    daemon = gpu_daemon.start()
    there = daemon.ask("PATCH", "/v1/gpus/1", {"forget": True})
    assert there.status == 409
    assert "is there" in there.json["detail"]
    describe(Path(str(daemon.simulate)), {"memory_mib": CARD})
    assert "is gone" in closed(daemon, 1)
    order(daemon, "1", forget=True)
    assert len(daemon.ask("GET", "/v1/gpus").json["gpus"]) == 1
    daemon.restart()
    assert len(daemon.ask("GET", "/v1/gpus").json["gpus"]) == 1
    assert daemon.ask("PATCH", "/v1/gpus/1", {"cordoned": True}).status == 404
    assert daemon.ask("POST", "/v1/jobs", {"command": "true", "gpus": 2}).status == 422


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "cordoned"),
        ({"cordoned": True, "clear": True}, "clear"),
        ({"clear": False}, "clear"),
        ({"cordoned": "yes"}, "cordoned"),
        ({"ignore_pid": 0}, "ignore_pid"),
        ({"ignore_pid": 2**40}, "ignore_pid"),
        ({"clear": True, "reason": "mended"}, "reason"),
        ({"cordon": True}, "cordon"),
    ],
)
def test_a_wrong_order_is_refused_by_the_name_of_its_field(
    box: CheckedDaemon, body: dict[str, Any], field: str
) -> None:
    assert field in box.fields(box.ask("PATCH", "/v1/gpus/0", body))


def test_a_gpu_that_is_not_there_is_not_found(box: CheckedDaemon) -> None:
    for which in ("7", "GPU-none", "-1", "%20"):
        refused = box.ask("PATCH", f"/v1/gpus/{which}", {"clear": True})
        assert refused.status == 404
        assert "this box has 0, 1" in refused.json["detail"]


def test_the_command_line_says_and_shows_it(gpu_daemon: Daemon) -> None:
    daemon = gpu_daemon.start()
    done = daemon.cli("gpu", "cordon", "0", "--reason", "a new fan")
    assert (done.code, done.out) == (0, "GPU 0 (Simulated GPU) gets no new job\n")
    assert "a new fan" in daemon.cli("gpus").out
    assert daemon.cli("gpu", "uncordon", "0").out == "GPU 0 (Simulated GPU) may get jobs again\n"
    assert "a new fan" not in daemon.cli("gpus").out
    scene(daemon, xid(79), {})
    closed(daemon, 0)
    assert "XID 79" in daemon.cli("gpus").out
    cleared = json.loads(daemon.cli("gpu", "clear", "0", "--json").out)
    assert cleared["health"]["allocatable"]
    assert daemon.cli("gpu", "drain", "1").code == 0
    assert daemon.cli("gpu", "ignore-pid", "1", "4242").code == 0
    gone = daemon.cli("gpu", "forget", "1")
    assert (gone.code, "cannot be forgotten" in gone.err) == (3, True)
    assert daemon.cli("gpu", "clear", "9").code == 5
    for words in (
        ("gpu",),
        ("gpu", "clear"),
        ("gpu", "melt", "0"),
        ("gpu", "ignore-pid", "0", "x"),
    ):
        wrong = daemon.cli(*words)
        assert (wrong.code, "traind gpu" in wrong.err) == (2, True)
    assert daemon.cli("gpu", "clear", "0", "--reason", "x").code == 2
