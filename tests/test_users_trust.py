"""Whose word counts: of the settings, of an order, of a header; and what is written down of it."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from accounts import MARKS, SharedDaemon
from harness import SHORT, eventually
from test_users_sight import VERBS
from traind.api.server import ROUTES

pytestmark = MARKS

READS = {"", "/log", "/why", "/attempts", "/events", "/metrics", "/samples"}
"""What can be asked of a job: of each it is tested what another person sees."""


def test_every_call_about_a_job_is_among_those_that_are_tried_by_others() -> None:
    tried = {("GET", path) for path in READS}
    tried |= {(method, verb.partition("?")[0]) for method, verb, _ in VERBS}
    of_jobs = [route for route in ROUTES if route.path.startswith("/v1/jobs/{id}")]
    assert tried == {(r.method, r.path.removeprefix("/v1/jobs/{id}")) for r in of_jobs}


@pytest.mark.parametrize(
    "claim",
    [
        *({"user": "root"}, {"uid": 0}, {"gid": 0}, {"groups": [0]}, {"fenced": True}),
        *({"owner": "root"}, {"as": "root"}, {"limits": {}}, {"operator": True}),
    ],
    ids=lambda claim: next(iter(claim)),
)
def test_nobody_says_in_an_order_who_they_are(shared: SharedDaemon, claim: dict[str, Any]) -> None:
    bob = shared.people.bob
    (field,) = claim
    refused = shared.asked_by(bob, "POST", "/v1/jobs", {"command": "id", **claim})
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, field)
    query = f"/v1/jobs?{field}={claim[field]}"
    refused = shared.asked_by(bob, "POST", query, {"command": "id"})
    assert refused.status == 422, query


def test_nobody_says_in_a_header_who_they_are(shared: SharedDaemon) -> None:
    bob, alice = shared.people.bob, shared.people.alice
    names = ("X-Forwarded-User", "X-Remote-User", "Remote-User", "X-Traind-User", "From")
    headers = dict.fromkeys(names, alice.name) | {"Authorization": "Basic cm9vdDo="}
    for method, path, body in (
        ("GET", "/v1/whoami", None),
        ("POST", "/v1/jobs", {"command": "id"}),
    ):
        told = shared.asked_by(bob, method, path, body, headers=headers)
        assert told.status in (200, 201, 401), told.body
        if told.status != 401:
            assert (told.json["user"], told.json["uid"]) == (bob.name, bob.uid)


@pytest.mark.parametrize(
    ("owner", "group", "mode", "mend"),
    [
        ("root", "root", 0o644, None),
        ("root", "root", 0o664, None),
        ("daemon", "root", 0o600, None),
        ("root", "bob", 0o664, "chmod go-w"),
        ("root", "root", 0o646, "chmod go-w"),
        ("bob", "root", 0o644, "chown root"),
    ],
)
def test_settings_that_others_could_have_written_are_not_believed(
    new_shared: SharedDaemon, owner: str, group: str, mode: int, mend: str | None
) -> None:
    file = new_shared.home / "config.toml"
    file.touch()
    os.chown(file, getattr(new_shared.people, owner).uid, getattr(new_shared.people, group).gid)
    file.chmod(mode)
    if mend is None:
        assert new_shared.start().ask("GET", "/healthz").status == 200
        return
    assert new_shared.refuses_to_start() == 78
    assert f"{mend} {file}" in new_shared.log.read_text()


def test_a_job_has_no_say_in_its_cgroup(shared: SharedDaemon) -> None:
    number = shared.ordered(shared.people.bob, "sleep 600")
    shared.main_pid(number)
    record = shared.record(number, "shim.json")
    shared.asked_by(shared.people.bob, "DELETE", f"/v1/jobs/{number}?now=1")
    if record is None or record["cgroup"] is None:
        pytest.skip("no cgroup can be made here")
    above = Path(record["cgroup"]).parent
    tries = "; ".join(
        f"(echo {value} > {folder}/{name}) && exit 9"
        for folder in (above, f"{above}/$TRAIND_JOB_ID.1", above.parent)
        for name, value in (("cgroup.procs", 0), ("cgroup.kill", 1), ("cgroup.freeze", 1))
    )
    ended = shared.wait(shared.ordered(shared.people.bob, f"{tries}; exit 0"))
    assert ended["exit_code"] == 0, shared.log_of(ended["id"])


def test_many_at_once_get_no_more_into_the_queue_than_one_may_have(
    new_shared: SharedDaemon,
) -> None:
    new_shared.config = SHORT.replace("[queue]", "[queue]\njobs_per_user = 5")
    daemon, statuses = new_shared.start(), list[int]()
    gate = threading.Barrier(20)

    def submit() -> None:
        gate.wait()
        order = {"command": "true", "hold": True}
        statuses.append(daemon.ask("POST", "/v1/jobs", order).status)

    with daemon.people.bob.acting():
        threads = [threading.Thread(target=submit) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(statuses) == [201] * 5 + [409] * 15
    order = {"command": "true", "hold": True}
    assert daemon.asked_by(daemon.people.alice, "POST", "/v1/jobs", order).status == 201


def test_the_log_of_the_daemon_takes_no_lines_and_no_secrets_from_jobs(
    new_shared: SharedDaemon,
) -> None:
    new_shared.config = SHORT + '[daemon]\nlog_level = "debug"\nhttp = "127.0.0.1:0"\n'
    daemon, alice = new_shared.start(), new_shared.people.alice
    forged = 'level=error event="forged by a job"'
    secret = "hush-4c11"
    token = daemon.asked_by(alice, "POST", "/v1/tokens", {"name": "mine"}).json["token"]
    env = {"PASSWORD": secret}
    daemon.wait(daemon.ordered(alice, "true", env=env), outcome="succeeded")
    number = daemon.ordered(alice, "true", workdir=f"/no\n{forged}")
    daemon.wait(number, outcome="launch_failed")
    daemon.asked_by(alice, "GET", f"/v1/jobs?q=a%0a{forged.replace(' ', '%20')}")
    daemon.asked_by(alice, "GET", f"/v1/jobs?token={token}")
    daemon.asked_by(alice, "GET", "/v1/jobs", headers={"Authorization": f"Bearer {token}"})
    said = eventually(lambda: f"job={number}" in (text := daemon.log.read_text()) and text)
    assert not [line for line in said.splitlines() if line.startswith(forged)]
    assert secret not in said
    assert token not in said
