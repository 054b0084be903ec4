"""Submitting, looking and cancelling over real sockets, as the contract has it."""

import contextlib
import json
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from contract import FAR, CheckedDaemon
from harness import Daemon, UnixConnection, daemon_in, eventually

INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def test_a_submitted_job_is_answered_whole_with_its_location(box: CheckedDaemon) -> None:
    order = {"command": "true", "begin_at": FAR, "time_limit": "2h30m", "gpu_memory": "10GiB"}
    order |= {"gpus": 1, "gpu_ids": [0], "labels": {"run": "a b"}, "env": {"SEED": 7, "LR": 0.1}}
    answer = box.ask("POST", "/v1/jobs", order)
    assert answer.status == 201
    job = answer.json
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert (job["state"], job["outcome"], job["attempt"]) == ("queued", None, 0)
    assert (job["time_limit_s"], job["gpu_memory_mib"]) == (9000, 10240)
    assert job["env"] == {"SEED": "7", "LR": "0.1"}
    assert job["gpu_ids"] == ["0"]
    assert (job["name"], job["kind"], job["requeue"]) == ("true", "batch", True)
    assert (job["user"], job["uid"]) == (box.ask("GET", "/v1/whoami").json["user"], os.getuid())
    assert job["checkpoint_dir"] == f"{box.home}/traind/{job['id']}"
    assert "share" in job["warnings"][0]
    assert box.job(job["id"]).keys() == job.keys()


def test_a_field_that_is_null_is_as_if_it_were_not_there(box: CheckedDaemon) -> None:
    for span in (
        {"time_limit": "2h", "time_limit_s": None},
        {"time_limit": None, "time_limit_s": 7200},
    ):
        order = {"command": "true", "argv": None, "begin_at": FAR, **span}
        answer = box.ask("POST", "/v1/jobs", order)
        assert (answer.status, answer.json.get("time_limit_s")) == (201, 7200), answer.body


def test_a_job_that_waits_says_why_from_its_first_moment_on(box: CheckedDaemon) -> None:
    blocker = box.submit("sleep 600", gpus=2)
    box.wait(blocker, "running")
    try:
        answer = box.ask("POST", "/v1/jobs", {"command": "true", "gpus": 1})
        job = answer.json
        assert job["reason"] is not None
        while job["reason"]["code"] != "resources":
            assert job["state"] == "queued"
            assert job["reason"]["detail"]
            job = box.job(job["id"])
        assert f"job {blocker}" in job["reason"]["detail"]
        why = box.ask("GET", f"/v1/jobs/{job['id']}/why").json
        assert (why["reason"], why["detail"]) == (job["reason"], job["reason"]["detail"])
    finally:
        box.ask("DELETE", f"/v1/jobs/{blocker}?now=1")
    ended = box.wait(job["id"], outcome="succeeded")
    assert ended["reason"] is None
    why = box.ask("GET", f"/v1/jobs/{job['id']}/why").json
    assert (why["detail"], why["cause"]["code"]) == ("it exited with code 0", "exit_code")


def test_a_job_that_waits_for_its_time_says_so(box: CheckedDaemon) -> None:
    job = box.job(box.waiting())
    assert job["begin_at"] == job["eligible_at"] == "2099-01-01T00:00:00.000000Z"
    eventually(lambda: box.job(job["id"])["reason"]["code"] == "begin_time", what="its reason")


def test_instants_have_six_decimals_and_a_z_always(box: CheckedDaemon) -> None:
    number = box.submit("true", gpus=1)
    job = box.wait(number, outcome="succeeded")
    instants = [job[name] for name in ("submitted_at", "eligible_at", "started_at", "finished_at")]
    attempt = box.ask("GET", f"/v1/jobs/{number}/attempts").json["attempts"][0]
    instants += [attempt[name] for name in ("claimed_at", "started_at", "ended_at")]
    instants += [e["at"] for e in box.ask("GET", f"/v1/jobs/{number}/events").json["events"]]
    instants += [box.ask("GET", "/v1/gpus").json["read_at"]]
    instants += [box.ask("GET", "/v1/status").json["started_at"]]
    assert all(INSTANT.fullmatch(instant) for instant in instants), instants
    early = box.ask("POST", "/v1/jobs", {"command": "true", "begin_at": "0001-01-01T00:00:00Z"})
    assert early.json["begin_at"] == "0001-01-01T00:00:00.000000Z"
    other = box.ask(
        "POST", "/v1/jobs", {"command": "true", "begin_at": "2099-01-01T05:30:00+05:30"}
    )
    assert other.json["begin_at"] == "2099-01-01T00:00:00.000000Z"
    assert box.wait(early.json["id"], outcome="succeeded")["begin_at"] == early.json["begin_at"]


def test_a_list_is_answered_as_a_list_in_its_order(box: CheckedDaemon) -> None:
    orders = [{"command": f"echo {n}", "begin_at": FAR} for n in range(5)]
    answer = box.ask("POST", "/v1/jobs", orders)
    assert answer.status == 201
    jobs = answer.json["jobs"]
    assert [job["command"] for job in jobs] == [order["command"] for order in orders]
    first = jobs[0]["id"]
    assert [job["id"] for job in jobs] == list(range(first, first + 5))


def test_defaults_are_put_into_every_job_and_overridden_by_its_own(box: CheckedDaemon) -> None:
    defaults = {"begin_at": FAR, "gpus": 1, "env": {"A": "1"}}
    orders = [{"command": "true"}, {"command": "false", "gpus": 2, "env": {"B": "2"}}]
    answer = box.ask("POST", "/v1/jobs", {"defaults": defaults, "jobs": orders})
    assert answer.status == 201
    first, second = answer.json["jobs"]
    assert (first["gpus"], first["env"]) == (1, {"A": "1"})
    assert (second["gpus"], second["env"]) == (2, {"B": "2"})


def test_one_bad_job_among_good_ones_stores_none_of_them(box: CheckedDaemon) -> None:
    before = box.newest()
    orders = [{"command": "true"} for _ in range(5)]
    orders[3] = {"command": "true", "gpus": 99}  # type: ignore[dict-item]
    refused = box.ask("POST", "/v1/jobs", orders)
    assert list(box.fields(refused)) == ["jobs.3.gpus"]
    orders[1] = {"command": "true", "cwd": "/"}
    assert list(box.fields(box.ask("POST", "/v1/jobs", orders))) == ["jobs.1.cwd", "jobs.3.gpus"]
    refused = box.ask("POST", "/v1/jobs", {"defaults": {"gpus": -1}, "jobs": orders[:1]})
    assert list(box.fields(refused)) == ["jobs.0.gpus"]
    assert box.newest() == before


def test_the_same_idempotency_key_gives_the_first_answer_again(box: CheckedDaemon) -> None:
    order = {"command": "true", "begin_at": FAR}
    key = {"Idempotency-Key": "first"}
    one = box.ask("POST", "/v1/jobs", order, key)
    again = box.ask("POST", "/v1/jobs", order, key)
    assert (one.status, again.status) == (201, 200)
    assert one.json["id"] == again.json["id"]
    assert one.headers["Location"] == again.headers["Location"]
    box.ask("DELETE", f"/v1/jobs/{one.json['id']}")
    assert box.ask("POST", "/v1/jobs", order, key).json["state"] == "finished"
    other = box.ask("POST", "/v1/jobs", {"command": "false"}, key)
    assert other.status == 422
    assert "Idempotency-Key" in other.json["detail"]
    several = box.ask("POST", "/v1/jobs", [order, order], {"Idempotency-Key": "list"}).json
    repeated = box.ask("POST", "/v1/jobs", [order, order], {"Idempotency-Key": "list"})
    assert repeated.status == 200
    assert [j["id"] for j in repeated.json["jobs"]] == [j["id"] for j in several["jobs"]]


@pytest.mark.parametrize("key", ["", "k" * 256, "caf\xe9\x85"])
def test_an_idempotency_key_that_is_none_is_refused(box: CheckedDaemon, key: str) -> None:
    refused = box.ask("POST", "/v1/jobs", {"command": "true"}, {"Idempotency-Key": key})
    assert refused.status == 422


def test_requests_with_one_key_at_the_same_time_make_one_job(box: CheckedDaemon) -> None:
    start = threading.Barrier(16)

    def submit(_: int) -> tuple[int, int]:
        start.wait()
        order, key = {"command": "true", "begin_at": FAR}, {"Idempotency-Key": "at once"}
        answer = Daemon.ask(box, "POST", "/v1/jobs", order, key)
        return answer.status, answer.json["id"]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(submit, range(16)))
    assert len({number for _, number in answers}) == 1
    assert sorted(status for status, _ in answers) == [200] * 15 + [201]


def test_an_idempotency_key_survives_kill_9(daemon: Daemon) -> None:
    order, key = {"command": "true", "begin_at": FAR}, {"Idempotency-Key": "kept"}
    number = daemon.ask("POST", "/v1/jobs", order, key).json["id"]
    daemon.restart()
    again = daemon.ask("POST", "/v1/jobs", order, key)
    assert (again.status, again.json["id"]) == (200, number)
    assert daemon.ask("POST", "/v1/jobs", order).json["id"] == number + 1


def test_wait_answers_at_the_end_or_when_its_seconds_are_over(
    box: CheckedDaemon, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "gate")
    number = box.submit("read < gate", workdir=str(tmp_path))
    answer = box.ask("GET", f"/v1/jobs/{number}?wait=0.2")
    assert answer.json["state"] != "finished"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(box.ask, "GET", f"/v1/jobs/{number}?wait=60")
        (tmp_path / "gate").write_text("go\n")
        assert waiting.result().json["outcome"] == "succeeded"
    assert box.ask("GET", f"/v1/jobs/{number}?wait=60").json["outcome"] == "succeeded"


def test_those_who_wait_are_answered_when_the_daemon_stops(daemon: Daemon) -> None:
    number = daemon.submit("true", begin_at=FAR)
    with contextlib.closing(UnixConnection(daemon.socket)) as waiting:
        waiting.request("GET", f"/v1/jobs/{number}?wait=60")
        assert daemon.ask("GET", "/healthz").status == 200  # so the request before it was read
        assert daemon.stop() == 0
        assert json.loads(waiting.getresponse().read())["state"] == "queued"


def test_the_etag_changes_with_the_job_and_only_then(box: CheckedDaemon) -> None:
    number = box.waiting()
    tags = [box.ask("GET", f"/v1/jobs/{number}").headers["ETag"] for _ in range(2)]
    ended = box.ask("DELETE", f"/v1/jobs/{number}").headers["ETag"]
    assert tags[0] == tags[1] != ended == box.ask("GET", f"/v1/jobs/{number}").headers["ETag"]


def test_the_pages_of_a_list_hold_every_job_once(tmp_path: Path) -> None:
    with daemon_in(tmp_path, CheckedDaemon) as daemon:
        daemon.start()
        orders = [{"command": "true", "begin_at": FAR} for _ in range(120)]
        ids = {job["id"] for job in daemon.ask("POST", "/v1/jobs", orders).json["jobs"]}
        page = daemon.ask("GET", "/v1/jobs").json
        assert len(page["jobs"]) == 50
        seen = [job["id"] for job in page["jobs"]]
        while page["next"] is not None:
            late = daemon.submit("true", begin_at=FAR)
            page = daemon.ask("GET", f"/v1/jobs?limit=7&cursor={page['next']}").json
            seen += [job["id"] for job in page["jobs"]]
            assert late not in seen
        assert seen == sorted(ids, reverse=True)
        queue, page = [], daemon.ask("GET", "/v1/queue?limit=50").json
        while page["queue"]:
            queue += [job["id"] for job in page["queue"]]
            if page["next"] is None:
                break
            page = daemon.ask("GET", f"/v1/queue?limit=50&cursor={page['next']}").json
        assert queue[:120] == sorted(ids)
        assert len(queue) == len(set(queue)) == daemon.newest()


def test_a_page_ends_early_where_its_scripts_are_large(box: CheckedDaemon) -> None:
    script = "#!/bin/sh\n" + "#" * (500 << 10)
    order = {"script": script, "begin_at": FAR, "name": "large"}
    ids = [
        job["id"]
        for _ in range(2)
        for job in box.ask("POST", "/v1/jobs", [order] * 20).json["jobs"]
    ]
    for path, name, all_of_them in (
        ("/v1/jobs?q=large", "jobs", ids[::-1]),
        ("/v1/queue?", "queue", ids),
    ):
        seen, following, pages = [], "", 0
        while following is not None:
            page = box.ask("GET", f"{path}&limit=1000{following and f'&cursor={following}'}")
            assert len(page.body) < 18 << 20
            seen += [job["id"] for job in page.json[name] if job["name"] == "large"]
            assert all(job["script"] == script for job in page.json[name] if job["id"] in ids)
            following, pages = page.json["next"], pages + 1
        assert seen == all_of_them
        assert pages == 2
    assert str(ids[-36]) in box.cli("show", "@~35").out
    assert box.cli("cancel", f"{ids[0]}-{ids[-1]}").code == 0


def test_a_list_can_be_narrowed(box: CheckedDaemon) -> None:
    succeeded, failed = box.submit("true"), box.submit("false")
    waits = box.waiting()
    for number in (succeeded, failed):
        box.wait(number)

    def found(query: str) -> set[int]:
        jobs = box.ask("GET", f"/v1/jobs?limit=1000&{query}").json["jobs"]
        return {job["id"] for job in jobs}

    assert {succeeded, failed, waits} <= found("")
    assert found("outcome=failed") & {succeeded, failed, waits} == {failed}
    assert found("outcome=failed,succeeded") & {succeeded, failed, waits} == {succeeded, failed}
    assert found("state=queued") & {succeeded, failed, waits} == {waits}
    assert found("state=queued,finished") >= {succeeded, failed, waits}
    assert waits in found(f"state=queued&user={box.ask('GET', '/v1/whoami').json['user']}")
    assert found("user=nobody-at-all") == set()
    assert found("state=queued&outcome=failed") == set()
    for query, field in (("state=waiting", "state"), ("outcome=dead", "outcome")):
        assert list(box.fields(box.ask("GET", f"/v1/jobs?{query}"))) == [field]


def test_cancelling_tells_what_became_of_the_job(box: CheckedDaemon) -> None:
    waiting, running = box.waiting(), box.submit("sleep 600", gpus=1)
    answer = box.ask("DELETE", f"/v1/jobs/{waiting}")
    assert (answer.status, answer.json["outcome"]) == (200, "cancelled")
    assert answer.json["cause"]["code"] == "cancelled_by"
    box.main_pid(running)
    box.wait(running, "running")
    answer = box.ask("DELETE", f"/v1/jobs/{running}")
    assert (answer.status, answer.json["state"], answer.json["outcome"]) == (202, "stopping", None)
    ended = box.wait(running, outcome="cancelled", signal="TERM", exit_code=None)
    for number in (waiting, running):
        assert box.ask("DELETE", f"/v1/jobs/{number}?now=1").status == 200
    assert box.job(running) == ended
    unknown = box.ask("DELETE", "/v1/jobs/999999")
    assert unknown.status == 404
    assert "999999" in unknown.json["detail"]


def test_the_history_and_the_attempts_of_a_job_are_in_order(box: CheckedDaemon) -> None:
    number = box.submit("exit 75", gpus=1)
    box.wait(number, "held")
    events = box.ask("GET", f"/v1/jobs/{number}/events").json
    names = [event["event"] for event in events["events"]]
    assert names == ["submit", *["claim", "started", "requeue"] * 3]
    assert [event["state"] for event in events["events"][:4]] == [
        *("queued", "starting", "running", "queued")
    ]
    ids = [event["id"] for event in events["events"]]
    assert ids == sorted(set(ids))
    assert events["next"] is None
    page, walked = {"next": "0"}, []
    while page["next"] is not None:
        page = box.ask("GET", f"/v1/jobs/{number}/events?limit=3&cursor={page['next']}").json
        walked += [event["id"] for event in page["events"]]
    assert walked == ids
    attempts = box.ask("GET", f"/v1/jobs/{number}/attempts").json["attempts"]
    assert [attempt["attempt"] for attempt in attempts] == [1, 2, 3]
    for attempt in attempts:
        assert (attempt["exit_code"], attempt["cause"]["code"]) == (75, "checkpointed")
        assert attempt["gpus_allotted"][0]["memory_mib"] == 24 * 1024
        assert attempt["log_path"] == str(box.run_dir(number, attempt["attempt"]) / "log")
    held = box.job(number)
    assert (held["held_by"], held["reason"]["code"]) == ("system", "crash_loop")
    box.ask("DELETE", f"/v1/jobs/{number}")


def test_the_queue_is_in_the_order_of_starting_each_with_its_reason(box: CheckedDaemon) -> None:
    ids = [box.waiting(priority=priority) for priority in (0, 50, -3, 50, 100, 0)]
    queue = box.ask("GET", "/v1/queue?limit=1000").json["queue"]
    mine = [job["id"] for job in queue if job["id"] in ids]
    assert mine == [ids[4], ids[1], ids[3], ids[0], ids[5], ids[2]]
    assert all(job["reason"]["detail"] and job["state"] == "queued" for job in queue)
    for number in ids:
        box.ask("DELETE", f"/v1/jobs/{number}")


def test_the_gpus_are_listed_with_who_holds_what(box: CheckedDaemon) -> None:
    number = box.submit("sleep 600", name="holder", gpus=1, gpu_memory="8GiB", gpu_ids=["1"])
    box.wait(number, "running")
    answer = box.ask("GET", "/v1/gpus").json
    assert [gpu["index"] for gpu in answer["gpus"]] == [0, 1]
    assert answer["fault"] is None
    first, second = answer["gpus"]
    assert [lease["job_id"] for lease in first["leases"] if lease["state"] == "held"] == []
    lease = next(lease for lease in second["leases"] if lease["job_id"] == number)
    assert (lease["memory_mib"], lease["name"], lease["exclusive"]) == (8192, "holder", False)
    allotted = box.job(number)["gpus_allotted"]
    assert [(gpu["index"], gpu["uuid"]) for gpu in allotted] == [(1, second["uuid"])]
    box.ask("DELETE", f"/v1/jobs/{number}?now=1")


def test_the_daemon_tells_about_itself(box: CheckedDaemon) -> None:
    status = box.ask("GET", "/v1/status").json
    assert (status["pid"], status["state_dir"]) == (box.pid, str(box.state_dir))
    assert (status["socket"], status["http"], status["gpus"]) == (str(box.socket), None, 2)
    assert status["jobs"].keys() == {"held", "queued", "starting", "running", "stopping"}
    assert box.ask("GET", "/v1/whoami").json["operator"] is True
    assert box.ask("GET", "/healthz").json == {"alive": True}
    checks = box.await_launcher()
    assert checks == {"ready": True, "checks": {"store": None, "launcher": None, "gpus": None}}


def test_twenty_who_submit_at_once_all_get_ids_of_their_own(box: CheckedDaemon) -> None:
    def submit(_: int) -> list[int]:
        order = {"command": "true", "begin_at": FAR}
        answers = [Daemon.ask(box, "POST", "/v1/jobs", order) for _ in range(10)]
        assert [answer.status for answer in answers] == [201] * 10
        return [answer.json["id"] for answer in answers]

    before = box.newest()
    with ThreadPoolExecutor(20) as pool:
        ids = [number for some in pool.map(submit, range(20)) for number in some]
    assert sorted(ids) == list(range(before + 1, before + 201))
