"""Who may see and do what: owner, another person, operator, root, and who has not signed in."""

import contextlib
import http.client
import json
from typing import Any

import pytest

from accounts import MARKS, Person, SharedDaemon
from harness import DEADLINE_S
from traind.api.server import ROUTES

pytestmark = MARKS

SECRET = "hush-7f3a"
ORDER = {
    "command": f"echo {SECRET}; exec sleep 600",
    "env": {"TOKEN": SECRET},
    "labels": {SECRET: SECRET},
    "workdir": "/",
    "gpus": 1,
}
SAMPLED = {"peak_gpu_memory_mib", "mean_gpu_busy_pct", "peak_memory_mib", "energy_wh"}
PUBLIC = {
    *("id", "name", "user", "uid", "state", "outcome", "gpus", "gpus_allotted"),
    *("submitted_at", "eligible_at", "started_at", "finished_at"),
}


@pytest.fixture(scope="module")
def running(shared: SharedDaemon) -> int:
    """A job of alice's with secrets wherever they can be."""
    number = shared.ordered(shared.people.alice, **ORDER)
    shared.main_pid(number)
    shared.wait(number, "running")
    return number


def test_another_person_sees_that_a_job_runs_and_since_when(
    shared: SharedDaemon, running: int
) -> None:
    job = shared.asked_by(shared.people.bob, "GET", f"/v1/jobs/{running}").json
    assert {name for name, value in job.items() if value is not None} == PUBLIC - {
        "outcome",
        "finished_at",
    }
    mine = shared.asked_by(shared.people.alice, "GET", f"/v1/jobs/{running}").json
    assert job.keys() == mine.keys()
    assert (job["user"], job["state"], job["name"]) == (mine["user"], "running", "job")
    assert job["started_at"] == mine["started_at"]
    assert mine["env"] == {"TOKEN": SECRET}


def test_nothing_that_another_person_can_ask_tells_a_secret(
    shared: SharedDaemon, running: int
) -> None:
    bob = shared.people.bob
    asked = [route.path for route in ROUTES if route.method == "GET"]
    asked += ["/v1/jobs?state=running", f"/v1/events?follow=0&job={running}"]
    asked += [f"/v1/jobs?label={SECRET}&limit=1", f"/v1/jobs?q={SECRET}&limit=1"]
    asked += ["/v1/events?since=0&follow=0", "/v1/usage?by=label"]
    for path in asked:
        if path == "/v1/events":
            continue  # the stream tells the same as follow=0
        answer = shared.asked_by(bob, "GET", path.replace("{id}", str(running)))
        assert SECRET.encode() not in answer.body, path
        if path.startswith(("/v1/jobs?q", "/v1/jobs?label")):
            assert answer.json == {"jobs": [], "next": None}, path
    for path in ("/v1/jobs", f"/v1/jobs/{running}", f"/v1/jobs/{running}/events"):
        for who in (shared.people.alice, shared.people.carol, shared.people.root):
            answer = shared.asked_by(who, "GET", path)
            assert answer.status == 200
    assert SECRET in shared.asked_by(shared.people.alice, "GET", "/v1/jobs").body.decode()
    assert SECRET in shared.asked_by(shared.people.carol, "GET", "/v1/jobs").body.decode()


@pytest.mark.parametrize("what", ["log", "attempts", "events", "metrics", "samples"])
def test_what_a_job_says_and_did_is_its_owners_and_the_operators(
    shared: SharedDaemon, running: int, what: str
) -> None:
    people = shared.people
    path = f"/v1/jobs/{running}/{what}"
    for who in (people.alice, people.carol, people.root):
        assert shared.asked_by(who, "GET", path).status == 200
    refused = shared.asked_by(people.bob, "GET", path)
    assert refused.status == 403
    assert "its owner and the operators" in refused.json["detail"]


def test_labels_are_counted_for_their_owner_and_the_operators(
    shared: SharedDaemon, running: int
) -> None:
    people, label = shared.people, f"{SECRET}={SECRET}"
    ids = [
        shared.ordered(who, "true", labels={"of": who.name}) for who in (people.alice, people.bob)
    ]
    for number in ids:
        shared.wait(number, outcome="succeeded")
    theirs = {f"of={people.alice.name}", label}
    mine = {f"of={people.bob.name}"}
    for who, labels in (
        (people.alice, theirs),
        (people.bob, mine),
        (people.carol, theirs | mine),
        (people.root, theirs | mine),
    ):
        used = shared.asked_by(who, "GET", "/v1/usage?by=label").json["usage"]
        assert {each["name"] for each in used} == labels, who
    names = shared.asked_by(people.bob, "GET", "/v1/usage").json["usage"]
    assert {each["name"] for each in names} >= {people.alice.name, people.bob.name}


def test_who_holds_a_gpu_is_told_to_everybody_and_the_job_by_its_public_name(
    shared: SharedDaemon, running: int
) -> None:
    for who, name in (
        (shared.people.bob, "job"),
        (shared.people.alice, shared.job(running)["name"]),
    ):
        gpus = shared.asked_by(who, "GET", "/v1/gpus").json["gpus"]
        leases = [lease for gpu in gpus for lease in gpu["leases"] if lease["job_id"] == running]
        told = [(lease["user"], lease["name"]) for lease in leases]
        assert told == [(shared.people.alice.name, name)]


VERBS: list[tuple[str, str, Any]] = [
    ("PATCH", "", {"name": "mine"}),
    ("PATCH", "", {"hold": True}),
    ("DELETE", "", None),
    ("DELETE", "?now=1", None),
    ("POST", "/requeue", {}),
    ("POST", "/rerun", {}),
    ("POST", "/signal", {"signal": "USR1"}),
]


@pytest.mark.parametrize(("method", "verb", "body"), VERBS)
def test_nobody_changes_another_persons_job(
    shared: SharedDaemon, running: int, method: str, verb: str, body: Any
) -> None:
    before = unsampled(shared.job(running))
    refused = shared.asked_by(shared.people.bob, method, f"/v1/jobs/{running}{verb}", body)
    assert refused.status == 403
    assert shared.people.alice.name in refused.json["detail"]
    assert unsampled(shared.job(running)) == before


def unsampled(job: dict[str, Any]) -> dict[str, Any]:
    """The job without what its samples add up to while it runs."""
    return {name: value for name, value in job.items() if name not in SAMPLED}


@pytest.mark.parametrize("action", ["cancel", "hold", "release", "requeue", "rerun", "signal"])
def test_an_action_on_many_is_one_on_ones_own(
    shared: SharedDaemon, running: int, action: str
) -> None:
    bob, extra = shared.people.bob, {"signal": "USR1"} if action == "signal" else {}
    order = {"action": action, "select": {"ids": [running]}, **extra}
    (told,) = shared.asked_by(bob, "POST", "/v1/jobs/actions", order).json["jobs"]
    assert (told["error"]["code"], told["name"]) == ("forbidden", "job")
    order["select"] = {"state": "running"}
    assert shared.asked_by(bob, "POST", "/v1/jobs/actions", order).json["jobs"] == []
    order["select"] = {"label": SECRET, "user": shared.people.alice.name}
    assert shared.asked_by(bob, "POST", "/v1/jobs/actions", order).status == 403
    assert shared.job(running)["state"] == "running"


def test_an_operator_steers_a_job_but_never_says_what_it_runs(shared: SharedDaemon) -> None:
    alice, carol = shared.people.alice, shared.people.carol
    number = shared.ordered(alice, "id -un", hold=True)
    path = f"/v1/jobs/{number}"
    for who in (carol, shared.people.root):
        for change in ({"command": "id"}, {"env": {"A": "b"}}, {"workdir": "/"}, {"argv": ["id"]}):
            refused = shared.asked_by(who, "PATCH", path, change)
            assert refused.status == 403, change
            assert alice.name in refused.json["detail"]
        assert shared.asked_by(who, "PATCH", path, {"priority": 5}).status == 200
    assert shared.asked_by(alice, "PATCH", path, {"priority": 6}).status == 422
    assert shared.asked_by(carol, "PATCH", path, {"hold": False}).status == 200
    shared.wait(number, outcome="succeeded")
    assert shared.log_of(number) == f"{alice.name}\n"
    copy = shared.asked_by(carol, "POST", f"{path}/rerun", {}).json
    assert (copy["user"], copy["uid"]) == (alice.name, alice.uid)


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [(r.method, r.path, r.scope) for r in ROUTES if r.scope == "operate" and not r.personal],
)
def test_the_box_is_the_operators(shared: SharedDaemon, method: str, path: str, scope: str) -> None:
    for who in (shared.people.alice, shared.people.daemon):
        target = path.replace("{id}", "1").replace("{gpu}", "0")
        refused = shared.asked_by(who, method, target, {} if method == "POST" else None)
        assert refused.status == 403, who
        assert "this is for operators: root, and the members of the group" in refused.json["detail"]


def test_why_says_nothing_of_how_another_persons_job_ended(shared: SharedDaemon) -> None:
    alice, bob = shared.people.alice, shared.people.bob
    number = shared.ordered(alice, "true", workdir=f"/{SECRET}")
    shared.wait(number, outcome="launch_failed")
    mine = shared.asked_by(alice, "GET", f"/v1/jobs/{number}/why").json
    assert SECRET in mine["detail"]
    theirs = shared.asked_by(bob, "GET", f"/v1/jobs/{number}/why").json
    assert (theirs["cause"], theirs["detail"]) == (None, "it is finished")
    assert shared.asked_by(bob, "GET", f"/v1/jobs/{number}").json["outcome"] == "launch_failed"
    throw = f"import sys; raise KeyError('{SECRET}')"
    looping = {"argv": ["python3", "-c", throw], "retry": {"max": 9, "delay_s": 0}}
    number = shared.asked_by(alice, "POST", "/v1/jobs", looping).json["id"]
    mine = shared.wait(number, "held")
    assert SECRET in mine["cause"]["detail"]
    for path in (f"/v1/jobs/{number}", f"/v1/jobs/{number}/why", "/v1/jobs?limit=2", "/v1/events"):
        query = "?follow=0" if path == "/v1/events" else ""
        assert SECRET not in shared.asked_by(bob, "GET", path + query).body.decode(), path
    held = shared.ordered(alice, "true", name="known to all", hold=True)
    shown = shared.asked_by(bob, "GET", f"/v1/jobs/{held}").json
    assert shown["reason"]["detail"] == f"it is held by {alice.name} until it is released"
    assert shown["name"] == "known to all"


def test_a_name_that_was_made_of_a_command_follows_it_out_of_sight(shared: SharedDaemon) -> None:
    alice, bob = shared.people.alice, shared.people.bob
    number = shared.ordered(alice, f"echo {SECRET}", hold=True)
    changed = shared.asked_by(alice, "PATCH", f"/v1/jobs/{number}", {"command": "true"})
    assert changed.json["name"] == "true"
    assert shared.asked_by(bob, "GET", f"/v1/jobs/{number}").json["name"] == "job"


def test_keys_of_two_people_are_two_keys(shared: SharedDaemon) -> None:
    ids = set()
    for who in (shared.people.alice, shared.people.bob):
        answers = [
            shared.asked_by(
                who, "POST", "/v1/jobs", {"command": "true"}, headers={"Idempotency-Key": "same"}
            )
            for _ in range(2)
        ]
        assert [answer.status for answer in answers] == [201, 200]
        ids.add(answers[0].json["id"])
        assert answers[1].json["id"] == answers[0].json["id"]
    assert len(ids) == 2


def test_everybody_makes_tokens_for_themselves_that_let_in_as_far_as_they_go(
    new_shared: SharedDaemon,
) -> None:
    new_shared.flags = ("--http", "127.0.0.1:0")
    daemon = new_shared.start()
    alice, bob, carol = daemon.people.alice, daemon.people.bob, daemon.people.carol
    number = daemon.ordered(alice, "sleep 600", env={"TOKEN": SECRET})
    refused = daemon.asked_by(alice, "POST", "/v1/tokens", {"name": "x", "scopes": ["operate"]})
    assert refused.status == 403
    made = {
        who.name: daemon.asked_by(who, "POST", "/v1/tokens", {"name": "mine"}).json
        for who in (alice, bob)
    }
    high = daemon.asked_by(carol, "POST", "/v1/tokens", {"name": "c", "scopes": ["operate"]}).json
    listed = daemon.asked_by(bob, "GET", "/v1/tokens").json["tokens"]
    assert [token["user"] for token in listed] == [bob.name]
    theirs = made[alice.name]["id"]
    assert daemon.asked_by(bob, "DELETE", f"/v1/tokens/{theirs}").status == 404
    path = f"/v1/jobs/{number}"
    for secret, who, sees in (
        (made[alice.name]["token"], alice, True),
        (made[bob.name]["token"], bob, False),
        (high["token"], carol, True),
    ):
        assert over_tcp(daemon, "GET", "/v1/whoami", secret)[1]["user"] == who.name
        job = over_tcp(daemon, "GET", path, secret)[1]
        assert (job["env"] == {"TOKEN": SECRET}) == sees
        assert over_tcp(daemon, "GET", f"{path}/attempts", secret)[0] == (200 if sees else 403)
        assert over_tcp(daemon, "POST", "/v1/tokens", secret)[0] == (422 if who == carol else 403)
    order = json.dumps({"command": "id -un"}).encode()
    status, job = over_tcp(daemon, "POST", "/v1/jobs", made[bob.name]["token"], order)
    assert (status, job["user"], job["uid"]) == (201, bob.name, bob.uid)
    assert over_tcp(daemon, "GET", path, None)[0] == 401
    assert over_tcp(daemon, "DELETE", path, None)[0] == 401


def over_tcp(
    daemon: SharedDaemon, method: str, path: str, secret: str | None, body: bytes | None = None
) -> tuple[int, Any]:
    """The status and the JSON of a call over TCP."""
    address = daemon.ask("GET", "/v1/status").json["http"]
    with contextlib.closing(http.client.HTTPConnection(address, timeout=DEADLINE_S)) as connection:
        head = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        body = b"{}" if body is None and method == "POST" else body
        head |= {} if body is None else {"Content-Type": "application/json"}
        connection.request(method, path, body, head)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_the_command_line_shows_all_jobs_and_what_of_them_is_ones_own(
    shared: SharedDaemon, running: int
) -> None:
    alice, bob = shared.people.alice, shared.people.bob
    listed = shared.cli_of(bob, "ls")
    assert listed.returncode == 0, listed.stderr
    assert alice.name in listed.stdout
    assert SECRET not in listed.stdout
    shown = shared.cli_of(bob, "show", str(running))
    assert shown.returncode == 0, shown.stderr
    assert SECRET not in shown.stdout
    live = shared.cli_of(bob, "top")
    assert live.returncode == 0, live.stderr
    assert alice.name in live.stdout
    assert SECRET not in live.stdout
    for verb in ("logs", "cancel"):
        refused = shared.cli_of(bob, verb, str(running))
        assert refused.returncode == 4, refused.stdout
        assert "its owner and the operators" in refused.stderr
    done = shared.cli_of(bob, "run", "--", "id", "-un")
    assert (done.returncode, done.stdout) == (0, f"{bob.name}\n")
    seen: list[Person] = [alice, bob]
    assert all(who.name in shared.cli_of(alice, "ls", "-a").stdout for who in seen)
