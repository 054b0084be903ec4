"""Changing jobs over real sockets: hold, release, PATCH, requeue, rerun, signal."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from contract import FAR, CheckedDaemon
from harness import Answer, Daemon, eventually


def patch(box: Daemon, number: int, fields: Any, **headers: str) -> Answer:
    return box.ask("PATCH", f"/v1/jobs/{number}", fields, headers)


def post(box: Daemon, number: int, verb: str, body: Any = None) -> Answer:
    return box.ask("POST", f"/v1/jobs/{number}/{verb}", body)


def running(box: Daemon, command: str = "sleep 600", **fields: Any) -> int:
    number = box.submit(command, **fields)
    box.main_pid(number)
    box.wait(number, "running")
    return number


def history(box: Daemon, number: int) -> list[str]:
    events = box.ask("GET", f"/v1/jobs/{number}/events").json["events"]
    return [event["event"] for event in events]


# Hold and release


def test_a_job_submitted_on_hold_starts_once_it_is_released(box: CheckedDaemon) -> None:
    answer = box.ask("POST", "/v1/jobs", {"command": "true", "hold": True})
    assert answer.status == 201
    held = answer.json
    assert (held["state"], held["held_by"], held["hold"]) == ("held", "user", True)
    assert held["reason"]["code"] == "held"
    assert held["user"] in held["reason"]["detail"]
    released = patch(box, held["id"], {"hold": False})
    assert (released.status, released.json["state"], released.json["hold"]) == (
        *(200, "queued", False),
    )
    box.wait(held["id"], outcome="succeeded", held_by=None)


def test_a_queued_job_is_held_and_holding_or_releasing_again_is_harmless(
    box: CheckedDaemon,
) -> None:
    number = box.waiting()
    for _ in range(2):
        held = patch(box, number, {"hold": True}).json
        assert (held["state"], held["held_by"]) == ("held", "user")
    for _ in range(2):
        assert patch(box, number, {"hold": False}).json["state"] == "queued"
    assert history(box, number) == ["submit", "hold", "release"]


def test_a_running_job_cannot_be_held_and_is_told_what_works(box: CheckedDaemon) -> None:
    number = running(box)
    refused = patch(box, number, {"hold": True})
    assert refused.status == 409
    assert "requeue" in refused.json["detail"]
    assert patch(box, number, {"hold": False}).json["state"] == "running"
    box.ask("DELETE", f"/v1/jobs/{number}?now=1")


# PATCH


def test_any_field_of_a_job_that_waits_can_be_changed_and_put_back(box: CheckedDaemon) -> None:
    number = box.waiting(name="before", labels={"a": "1"}, gpu_memory="2GiB", gpus=1)
    changes = {"name": "after", "gpus": 2, "time_limit": "2h", "gpu_memory": "4GiB"}
    changes |= {"priority": 7, "argv": ["echo", "x"], "labels": {"b": "2"}, "memory_mib": 100}
    job = patch(box, number, changes).json
    assert (job["name"], job["gpus"], job["time_limit_s"]) == ("after", 2, 7200)
    assert (job["gpu_memory_mib"], job["memory_mib"], job["priority"]) == (4096, 100, 7)
    assert (job["argv"], job["command"], job["labels"]) == (["echo", "x"], None, {"b": "2"})
    assert job["begin_at"] == job["eligible_at"]
    back = {"gpu_memory": None, "memory_mib": None, "priority": None, "labels": None}
    job = patch(box, number, back | {"name": None, "time_limit": None}).json
    assert (job["gpu_memory_mib"], job["memory_mib"], job["priority"]) == (None, None, 0)
    assert (job["labels"], job["name"], job["time_limit_s"]) == ({}, "echo x", None)
    assert job == box.job(number)
    assert history(box, number) == ["submit", "update", "update"]


def test_a_changed_job_runs_as_it_was_changed(box: CheckedDaemon) -> None:
    number = box.waiting(env={"A": "1"})
    assert patch(box, number, {"command": "echo $A", "env": {"A": "2"}}).status == 200
    job = patch(box, number, {"begin_at": None}).json
    assert job["eligible_at"] < FAR
    box.wait(number, outcome="succeeded")
    assert box.log_of(number) == "2\n"


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"gpus": 3}, ["gpus"]),
        ({"nme": "x"}, ["nme"]),
        ({"nme": None}, ["nme"]),
        ({"gpus": "1", "time_limit": 5}, ["gpus", "time_limit"]),
        ({"time_limit": "1h", "time_limit_s": 5}, ["time_limit"]),
        ({"command": None}, ["command"]),
        ({"hold": 1}, ["hold"]),
        ({"time_limit": "300d"}, ["time_limit"]),
        ({"id": 4}, ["id"]),
    ],
)
def test_a_change_is_refused_as_an_order_would_be(
    box: CheckedDaemon, fields: dict[str, Any], refused: list[str]
) -> None:
    number = box.waiting()
    before = box.job(number)
    assert sorted(box.fields(patch(box, number, fields))) == refused
    assert box.job(number) == before


def test_a_running_job_can_only_change_what_its_processes_do_not_see(box: CheckedDaemon) -> None:
    number = running(box, labels={"a": "1"})
    changes = {"name": "other", "labels": {"a": "2"}, "priority": 3, "time_limit": "1h"}
    job = patch(box, number, changes).json
    assert (job["name"], job["labels"], job["priority"]) == ("other", {"a": "2"}, 3)
    assert (job["time_limit_s"], job["state"]) == (3600, "running")
    refused = patch(box, number, {"name": "third", "gpus": 2})
    assert refused.status == 409
    assert "gpus" in refused.json["detail"]
    assert "requeue" in refused.json["detail"]
    assert box.job(number)["name"] == "other"
    assert list(box.fields(patch(box, number, {"time_limit": "300d"}))) == ["time_limit"]
    box.ask("DELETE", f"/v1/jobs/{number}?now=1")
    box.wait(number)
    refused = patch(box, number, {"name": "late"})
    assert refused.status == 409
    assert "requeue" in refused.json["detail"]


def test_a_time_limit_that_is_lowered_under_a_running_job_ends_it(box: CheckedDaemon) -> None:
    number = running(box, time_limit="1h")
    patch(box, number, {"time_limit_s": 0.001})
    box.wait(number, outcome="timed_out")


def test_a_time_limit_that_is_raised_is_kept(daemon: Daemon, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    number, other = (
        running(daemon, "read < gate", workdir=str(tmp_path), time_limit="1h") for _ in range(2)
    )
    assert patch(daemon, number, {"time_limit": "3h"}).status == 200
    began_earlier(daemon, by_s=2 * 3600)
    daemon.wait(other, outcome="timed_out")
    (tmp_path / "gate").write_text("go\n")
    daemon.wait(number, outcome="succeeded")


def began_earlier(daemon: Daemon, *, by_s: float) -> None:
    """Have all jobs that run be so much older."""
    daemon.stop()
    with closing(sqlite3.connect(daemon.state_dir / "daemon" / "traind.db")) as database:
        statement = "UPDATE attempt SET started_boottime = started_boottime - ?"
        database.execute(statement, (by_s,))
        database.commit()
    daemon.start()


# If-Match, If-None-Match


def test_a_change_of_a_job_that_changed_meanwhile_is_refused(box: CheckedDaemon) -> None:
    number = box.waiting()
    seen = box.ask("GET", f"/v1/jobs/{number}").headers["ETag"]
    changed = patch(box, number, {"name": "one"}, **{"If-Match": seen})
    assert changed.status == 200
    refused = patch(box, number, {"name": "two"}, **{"If-Match": seen})
    assert refused.status == 412
    assert refused.json["code"] == "precondition_failed"
    for verb in ("requeue", "rerun", "signal"):
        body = {"signal": "USR1"} if verb == "signal" else {}
        answer = box.ask("POST", f"/v1/jobs/{number}/{verb}", body, {"If-Match": seen})
        assert answer.status == 412
    assert box.ask("DELETE", f"/v1/jobs/{number}", None, {"If-Match": seen}).status == 412
    new = f"{seen}, {changed.headers['ETag']}"
    assert patch(box, number, {"name": "two"}, **{"If-Match": new}).json["name"] == "two"
    assert patch(box, number, {"name": "three"}, **{"If-Match": "*"}).json["name"] == "three"


def test_who_has_the_job_as_it_is_gets_no_body(box: CheckedDaemon) -> None:
    number = box.waiting()
    seen = box.ask("GET", f"/v1/jobs/{number}").headers["ETag"]
    again = box.ask("GET", f"/v1/jobs/{number}", None, {"If-None-Match": seen})
    assert (again.status, again.body, again.headers["ETag"]) == (304, b"", seen)
    patch(box, number, {"name": "new"})
    now = box.ask("GET", f"/v1/jobs/{number}", None, {"If-None-Match": seen})
    assert (now.status, now.json["name"]) == (200, "new")


# Requeue


def test_a_running_job_is_stopped_and_runs_again_as_a_new_attempt(box: CheckedDaemon) -> None:
    number = running(box, "[ $TRAIND_ATTEMPT = 2 ] || sleep 600", gpus=1)
    answer = post(box, number, "requeue")
    assert (answer.status, answer.json["state"]) == (202, "stopping")
    box.wait(number, outcome="succeeded", attempt=2)
    first, second = box.ask("GET", f"/v1/jobs/{number}/attempts").json["attempts"]
    assert (first["outcome"], first["cause"]["code"]) == ("cancelled", "requeued_by")
    assert box.job(number)["user"] in first["cause"]["detail"]
    assert second["outcome"] == "succeeded"


def test_a_running_job_is_stopped_and_held_by_whom_asked(box: CheckedDaemon) -> None:
    number = running(box)
    assert post(box, number, "requeue", {"hold": True}).status == 202
    held = box.wait(number, "held", held_by="user", attempt=1)
    assert held["reason"]["code"] == "held"
    assert held["cause"]["code"] == "requeued_by"
    refused = post(box, number, "requeue")
    assert refused.status == 409
    assert "release" in refused.json["detail"]
    patch(box, number, {"hold": False})
    box.wait(number, "running", attempt=2)
    box.ask("DELETE", f"/v1/jobs/{number}?now=1")


def test_a_finished_job_is_queued_again_under_its_id(box: CheckedDaemon) -> None:
    number = box.submit("exit $((2 - TRAIND_ATTEMPT))")
    box.wait(number, outcome="failed")
    answer = post(box, number, "requeue")
    assert answer.status == 200
    assert (answer.json["outcome"], answer.json["finished_at"]) == (None, None)
    box.wait(number, outcome="succeeded", attempt=2)
    held = post(box, number, "requeue", {"hold": True}).json
    assert (held["state"], held["held_by"]) == ("held", "user")
    box.ask("DELETE", f"/v1/jobs/{number}")


def test_a_job_that_is_being_cancelled_cannot_be_requeued(box: CheckedDaemon) -> None:
    number = running(box, "trap '' TERM; echo up; while :; do sleep 0.1; done", grace="30m")
    eventually(lambda: "up" in box.log_of(number), what="the trap")
    box.ask("DELETE", f"/v1/jobs/{number}")
    refused = post(box, number, "requeue")
    assert refused.status == 409
    assert "cancel" in refused.json["detail"]
    box.ask("DELETE", f"/v1/jobs/{number}?now=1")
    box.wait(number, outcome="cancelled")


def test_a_cancel_is_stronger_than_a_requeue(box: CheckedDaemon) -> None:
    number = running(box, "trap '' TERM; echo up; while :; do sleep 0.1; done", grace="30m")
    eventually(lambda: "up" in box.log_of(number), what="the trap")
    post(box, number, "requeue", {"hold": True})
    box.ask("DELETE", f"/v1/jobs/{number}?now=1")
    box.wait(number, outcome="cancelled", attempt=1)


def test_a_requeue_with_hold_survives_kill_9(daemon: Daemon) -> None:
    number = running(daemon, "trap '' TERM; echo up; while :; do sleep 0.1; done", grace="2s")
    eventually(lambda: "up" in daemon.log_of(number), what="the trap")
    post(daemon, number, "requeue", {"hold": True})
    daemon.restart()
    daemon.wait(number, "held", held_by="user", attempt=1)


# Rerun


def test_a_rerun_is_a_new_job_with_the_same_order(box: CheckedDaemon) -> None:
    number = box.submit("echo $A; exit 3", name="again", env={"A": "x"}, labels={"l": "v"})
    box.wait(number, outcome="failed")
    answer = post(box, number, "rerun")
    assert answer.status == 201
    copy = answer.json
    assert answer.headers["Location"] == f"/v1/jobs/{copy['id']}"
    assert copy["id"] > number
    for name in ("command", "name", "env", "labels", "workdir", "user"):
        assert copy[name] == box.job(number)[name]
    box.wait(copy["id"], outcome="failed", attempt=1)
    assert box.log_of(copy["id"]) == "x\n"
    assert post(box, 10**9, "rerun").status == 404


def test_a_rerun_with_a_key_happens_once(box: CheckedDaemon) -> None:
    number, path = box.waiting(), "rerun"
    key = {"Idempotency-Key": "rerun once"}
    first, second = (box.ask("POST", f"/v1/jobs/{number}/{path}", None, key) for _ in range(2))
    assert (first.status, second.status) == (201, 200)
    assert first.json["id"] == second.json["id"]


# Signal


def test_a_signal_reaches_all_processes_of_a_running_job(box: CheckedDaemon) -> None:
    inner = "trap 'echo inner; exit 0' USR1; echo up; while :; do sleep 0.05; done"
    outer = f"trap 'echo outer' USR1; bash -c \"{inner}\" & wait; wait; echo end"
    number = running(box, outer)
    eventually(lambda: "up" in box.log_of(number), what="the traps")
    answer = post(box, number, "signal", {"signal": "USR1"})
    assert (answer.status, answer.json["state"]) == (202, "running")
    box.wait(number, outcome="succeeded")
    assert {"outer", "inner"} <= set(box.log_of(number).split())
    assert "signal" in history(box, number)


def test_a_signal_that_could_not_be_sent_is_sent_after_a_restart(daemon: Daemon) -> None:
    number = running(daemon, "trap 'echo got; exit 5' USR1; echo up; while :; do sleep 0.1; done")
    eventually(lambda: "up" in daemon.log_of(number), what="the trap")
    launcher = daemon.launcher_pids()
    for pid in launcher:
        os.kill(pid, 19)
    assert post(daemon, number, "signal", {"signal": "USR1"}).status == 202
    daemon.kill()
    for pid in launcher:
        os.kill(pid, 9)
    daemon.start()
    daemon.wait(number, outcome="failed", exit_code=5)


def test_only_running_jobs_take_signals_and_only_known_ones(box: CheckedDaemon) -> None:
    number = box.waiting()
    refused = post(box, number, "signal", {"signal": "USR1"})
    assert refused.status == 409
    assert "running" in refused.json["detail"]
    assert list(box.fields(post(box, number, "signal", {"signal": "SIGNAL"}))) == ["signal"]
    assert list(box.fields(post(box, number, "signal"))) == ["signal"]
