"""Everything stops now, nothing is lost, and nothing starts by itself."""

from typing import Any

import pytest

from contract import FAR
from gpu_scene import reason
from harness import Daemon, alive, eventually


def paused(daemon: Daemon) -> Any:
    return daemon.ask("GET", "/v1/status").json["paused"]


def running(daemon: Daemon, command: str = "exec sleep 600", **fields: Any) -> tuple[int, int]:
    number = daemon.submit(command, gpus=1, **fields)
    daemon.wait(number, "running")
    return number, daemon.main_pid(number)


def test_what_ran_is_held_and_what_waited_waits_on(daemon: Daemon) -> None:
    number, main = running(daemon, grace_s=600)
    host_only = daemon.submit("exec sleep 600")
    daemon.wait(host_only, "running")
    first = daemon.submit("true", gpus=2)
    later = daemon.submit("true", begin_at=FAR)
    answer = daemon.ask("POST", "/v1/unplug", {})
    assert (answer.status, answer.json["stopping"]) == (202, [number, host_only])
    assert answer.json["paused"] == paused(daemon)
    me = daemon.ask("GET", "/v1/whoami").json["user"]
    assert paused(daemon)["by"] == me
    for each in (number, host_only):
        held = daemon.wait(each, "held", outcome=None, held_by="system", attempt=1)
        assert held["cause"]["code"] == "unplugged"
        assert held["reason"]["code"] == "held"
    assert not alive(main)
    assert "unplug --resume" in reason(daemon, first, "paused")
    assert daemon.job(first)["reason"]["facts"] == {"by": me}
    reason(daemon, later, "begin_time")
    assert daemon.ask("DELETE", "/v1/unplug").json == {"paused": None, "stopping": []}
    daemon.wait(first, outcome="succeeded")
    assert paused(daemon) is None
    assert daemon.job(number)["state"] == daemon.job(host_only)["state"] == "held"


def test_the_pause_survives_kill_9_and_so_do_the_orders_to_stop(daemon: Daemon) -> None:
    number, main = running(daemon)
    waiting = daemon.submit("true", gpus=2)
    since = daemon.ask("POST", "/v1/unplug").json["paused"]
    daemon.restart()
    assert daemon.wait(number, "held")["cause"]["code"] == "unplugged"
    assert not alive(main)
    assert paused(daemon) == since
    assert "unplug" in reason(daemon, waiting, "paused")
    daemon.ask("DELETE", "/v1/unplug")
    daemon.restart()
    assert paused(daemon) is None
    daemon.wait(waiting, outcome="succeeded")


def test_with_grace_jobs_may_end_well(daemon: Daemon) -> None:
    command = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
    number, _ = running(daemon, command)
    eventually(lambda: daemon.log_of(number) == "ready\n", what="its trap")
    daemon.ask("POST", "/v1/unplug", {"grace": "60s"})
    held = daemon.wait(number, "held")
    assert held["cause"]["code"] == "unplugged"
    assert daemon.log_of(number).endswith("bye\n")


def test_with_checkpoint_those_that_asked_get_their_signal_first(daemon: Daemon) -> None:
    command = "trap 'echo saved; exit 0' USR1; echo ready; while :; do sleep 0.05; done"
    number, _ = running(daemon, command, checkpoint_signal="USR1", checkpoint_lead_s=60)
    eventually(lambda: daemon.log_of(number) == "ready\n", what="its trap")
    daemon.ask("POST", "/v1/unplug", {"grace_s": 0, "checkpoint": True})
    daemon.wait(number, "held")
    assert daemon.log_of(number).endswith("saved\n")


def test_a_stop_with_patience_is_cut_short(daemon: Daemon) -> None:
    command = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    number, main = running(daemon, command, grace_s=600)
    eventually(lambda: daemon.log_of(number) == "ready\n", what="its trap")
    assert daemon.ask("DELETE", f"/v1/jobs/{number}").status == 202
    assert daemon.ask("POST", "/v1/unplug", {}).json["stopping"] == [number]
    assert daemon.wait(number, outcome="cancelled")["cause"]["code"] == "cancelled_by"
    assert not alive(main)


def test_no_job_slips_through_that_is_just_being_started(daemon: Daemon) -> None:
    orders = [{"command": "exec sleep 600"} for _ in range(8)]
    ids = [job["id"] for job in daemon.ask("POST", "/v1/jobs", orders).json["jobs"]]
    stopped = daemon.ask("POST", "/v1/unplug").json["stopping"]
    for number in ids:
        daemon.wait(number, "held" if number in stopped else "queued")
    for number in ids:
        job = daemon.job(number)
        assert (job["state"], job["attempt"]) == (
            ("held", 1) if number in stopped else ("queued", 0)
        )


def test_unplugging_and_resuming_twice_is_harmless(daemon: Daemon) -> None:
    for _ in range(2):
        assert daemon.ask("POST", "/v1/unplug").json["stopping"] == []
    for _ in range(2):
        assert daemon.ask("DELETE", "/v1/unplug").status == 200
    daemon.wait(daemon.submit("true"), outcome="succeeded")


@pytest.mark.parametrize(
    ("order", "field"),
    [
        ({"grace": 0}, "grace"),
        ({"grace": "31m"}, "grace_s"),
        ({"grace_s": -1}, "grace_s"),
        ({"checkpoint": 1}, "checkpoint"),
        ({"now": True}, "now"),
    ],
)
def test_a_wrong_order_stops_nothing(box: Any, order: dict[str, Any], field: str) -> None:
    assert field in box.fields(box.ask("POST", "/v1/unplug", order))
    assert paused(box) is None


def test_the_answers_are_what_the_document_says(box: Any) -> None:
    assert box.ask("POST", "/v1/unplug", {"grace": "1s"}).status == 202
    box.ask("GET", "/v1/status")
    assert box.ask("DELETE", "/v1/unplug").status == 200


def test_the_command_line_unplugs_and_resumes(daemon: Daemon) -> None:
    number, _ = running(daemon)
    done = daemon.cli("unplug", "--grace", "1s")
    assert (done.code, done.out) == (0, f"stopping and holding job {number}; the queue is paused\n")
    assert "--resume" in done.err
    daemon.wait(number, "held")
    assert daemon.cli("unplug", "--resume", "--grace", "1s").code == 2
    assert daemon.cli("unplug", "--resume").code == 0
    assert paused(daemon) is None
