"""Many jobs at once, finding jobs, and rehearsed submissions, over real sockets."""

from pathlib import Path
from typing import Any

import pytest

from contract import FAR, CheckedDaemon
from harness import daemon_in, eventually


def running(box: CheckedDaemon, command: str = "sleep 600", **fields: Any) -> int:
    number = box.submit(command, **fields)
    box.main_pid(number)
    box.wait(number, "running")
    return number


# Many at once


def act(box: CheckedDaemon, action: str, select: dict[str, Any], **more: Any) -> dict[int, Any]:
    body = {"action": action, "select": select, **more}
    answer = box.ask("POST", "/v1/jobs/actions", body)
    assert answer.status == 200, answer.body
    return {job["id"]: job for job in answer.json["jobs"]}


def test_an_action_tells_what_it_would_do_and_then_does_it(box: CheckedDaemon) -> None:
    label = {"labels": {"sweep": "one"}}
    waits, held = box.waiting(**label), box.waiting(hold=True, **label)
    runs, ended = running(box, **label), box.submit("true", **label)
    box.wait(ended)
    box.waiting(labels={"sweep": "two"})
    select = {"label": "sweep=one", "user": box.job(runs)["user"]}
    before = [box.job(number)["state"] for number in (waits, held, runs)]
    would = act(box, "cancel", select, dry_run=True)
    assert {n: job["did"] for n, job in would.items()} == {
        waits: "cancelled",
        held: "cancelled",
        runs: "stopping",
    }
    assert [box.job(number)["state"] for number in (waits, held, runs)] == before
    assert {n: job["did"] for n, job in act(box, "cancel", select).items()} == {
        waits: "cancelled",
        held: "cancelled",
        runs: "stopping",
    }
    for number in (waits, held, runs):
        box.wait(number, outcome="cancelled")
    assert act(box, "cancel", select) == {}


def test_each_job_of_an_action_has_its_own_error(box: CheckedDaemon) -> None:
    waits, runs = box.waiting(), running(box)
    select = {"ids": [waits, runs, 10**9]}
    for dry_run in (True, False):
        done = act(box, "hold", select, dry_run=dry_run)
        assert (done[waits]["did"], done[waits]["error"]) == ("held", None)
        assert (done[runs]["did"], done[runs]["error"]["code"]) == (None, "conflict")
        assert "requeue" in done[runs]["error"]["detail"]
        assert done[10**9]["error"]["code"] == "not_found"
    assert box.job(waits)["state"] == "held"
    assert act(box, "release", select)[waits]["did"] == "released"
    assert act(box, "release", select)[waits]["did"] == "nothing"
    assert act(box, "signal", select, signal="STOP")[runs]["did"] == "signalled"
    assert act(box, "requeue", select, hold=True)[runs]["did"] == "stopping"
    act(box, "cancel", select, now=True)
    box.wait(runs, outcome="cancelled")


def test_failed_jobs_can_be_run_again_together(box: CheckedDaemon) -> None:
    label = {"labels": {"again": "yes"}}
    failed, good = box.submit("false", **label), box.submit("true", **label)
    for number in (failed, good):
        box.wait(number)
    select = {"label": "again", "outcome": "failed"}
    assert act(box, "rerun", select, dry_run=True)[failed]["new_id"] is None
    done = act(box, "rerun", select)
    assert list(done) == [failed]
    copy = box.wait(done[failed]["new_id"], outcome="failed")
    assert copy["command"] == "false"


def test_a_finished_job_waits_again_only_where_there_is_room(tmp_path: Path) -> None:
    with daemon_in(tmp_path, CheckedDaemon) as daemon:
        daemon.config = daemon.config.replace("[queue]\n", "[queue]\njobs_per_user = 2\n")
        daemon.start()
        ended = [daemon.submit("true") for _ in range(2)]
        for number in ended:
            daemon.wait(number)
        waits = [daemon.waiting() for _ in range(2)]
        refused = daemon.ask("POST", f"/v1/jobs/{ended[0]}/requeue", {})
        assert (refused.status, refused.json["code"]) == (409, "conflict")
        assert "2 jobs waiting" in refused.json["detail"]
        daemon.ask("DELETE", f"/v1/jobs/{waits[0]}")
        done = act(daemon, "requeue", {"ids": ended}, hold=True)
        assert sorted((job["state"], job["did"]) for job in done.values()) == [
            ("finished", None),
            ("held", "requeued"),
        ]
        errors = [job["error"]["code"] for job in done.values() if job["error"]]
        assert errors == ["conflict"]


def test_an_action_reaches_every_job_however_long_the_orders_are(box: CheckedDaemon) -> None:
    long = {"script": "#!/bin/sh\n" + "# all of it\n" * 43_000, "begin_at": FAR}
    ids = []
    for _ in range(2):
        body = {"defaults": {**long, "labels": {"long": "yes"}}, "jobs": [{}] * 20}
        answer = box.ask("POST", "/v1/jobs", body)
        assert answer.status == 201, answer.body[:300]
        ids += [job["id"] for job in answer.json["jobs"]]
    for action, did in (("hold", "held"), ("cancel", "cancelled")):
        done = act(box, action, {"label": "long=yes"})
        assert list(done) == sorted(ids, reverse=True)
        assert {job["did"] for job in done.values()} == {did}, "each is met once"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"action": "cancel"}, "select"),
        ({"action": "cancel", "select": {}}, "select"),
        ({"action": "explode", "select": {"ids": [1]}}, "action"),
        ({"action": "signal", "select": {"ids": [1]}}, "signal"),
        ({"action": "cancel", "select": {"ids": [1]}, "hold": True}, "hold"),
        ({"action": "hold", "select": {"ids": [1]}, "now": True}, "now"),
        ({"action": "hold", "select": {"state": "sleeping"}}, "select.state"),
        ({"action": "hold", "select": {"label": "=x"}}, "select.label"),
        ({"action": "hold", "select": {"name": "x"}}, "select.name"),
    ],
)
def test_an_action_that_is_none_is_refused(
    box: CheckedDaemon, body: dict[str, Any], field: str
) -> None:
    assert list(box.fields(box.ask("POST", "/v1/jobs/actions", body))) == [field]


# Finding


def test_jobs_are_found_by_labels_and_parts_of_their_names(box: CheckedDaemon) -> None:
    one = box.waiting(name="Alpha 100%", labels={"run": "a=b", "kind": "x"})
    two = box.waiting(name="alphabet", labels={"run": "c", "kind": "x"})
    three = box.submit("true", name="ALPHA_end", labels={"kind": "x"})
    box.wait(three)

    def found(query: str) -> set[int]:
        jobs = box.ask("GET", f"/v1/jobs?limit=1000&{query}").json["jobs"]
        return {job["id"] for job in jobs} & {one, two, three}

    assert found("q=alpha") == {one, two, three}
    assert found("q=100%25") == {one}
    assert found("q=A_E") == {three}
    assert found("label=run") == {one, two}
    assert found("label=run=a%3Db") == {one}
    assert found("label=run=a=b&label=kind=x") == {one}
    assert found("label=kind=x&state=queued") == {one, two}
    assert found("label=kind&q=alpha&outcome=succeeded") == {three}
    assert found(f"label=kind=x&q=bet&user={box.job(one)['user']}") == {two}
    assert found("label=kind=y") == set()
    page = box.ask("GET", "/v1/jobs?label=kind=x&limit=2").json
    assert [job["id"] for job in page["jobs"]] == [three, two]
    page = box.ask("GET", f"/v1/jobs?label=kind=x&limit=2&cursor={page['next']}").json
    assert [job["id"] for job in page["jobs"]] == [one]
    box.ask("PATCH", f"/v1/jobs/{two}", {"labels": {"kind": "y"}})
    assert found("label=kind=y") == {two}
    assert found("label=run") == {one}
    assert list(box.fields(box.ask("GET", "/v1/jobs?label=%3Dx"))) == ["label"]


# Rehearsal


def test_a_dry_run_tells_where_a_job_would_start_and_stores_nothing(tmp_path: Path) -> None:
    with daemon_in(tmp_path, CheckedDaemon) as box:
        box.start()
        eventually(lambda: box.ask("GET", "/readyz").status == 200, what="the launcher")
        order: dict[str, Any] = {"command": "sleep 600", "gpus": 1, "name": "perhaps"}

        def reason() -> dict[str, Any]:
            told: dict[str, Any] = box.ask("POST", "/v1/jobs?dry_run=1", order).json["reason"]
            return told

        eventually(lambda: reason()["code"] == "starts", what="launcher and GPUs")
        answer = box.ask("POST", "/v1/jobs?dry_run=1", order)
        assert answer.status == 200
        assert (answer.json["id"], answer.json["name"]) == (0, "perhaps")
        assert answer.json["state"] == "queued"
        assert answer.json["reason"]["code"] == "starts"
        assert answer.json["reason"]["facts"] == {"gpus": [0]}
        many = box.ask("POST", "/v1/jobs?dry_run=1", [order, order, order]).json["jobs"]
        assert [job["reason"]["code"] for job in many] == ["starts", "starts", "resources"]
        assert box.newest() == 0
        blocker = running(box, gpus=2)
        waits = reason()
        assert waits["code"] == "resources"
        assert f"job {blocker}" in waits["detail"]
        held = box.ask("POST", "/v1/jobs?dry_run=1", order | {"hold": True}).json
        assert (held["state"], held["reason"]["code"]) == ("held", "held")
        later = box.ask("POST", "/v1/jobs?dry_run=1", order | {"begin_at": FAR}).json
        assert later["reason"]["code"] == "begin_time"
        refused = box.ask("POST", "/v1/jobs?dry_run=1", order | {"gpus": 3})
        assert list(box.fields(refused)) == ["gpus"]
        assert box.submit("true") == blocker + 1
