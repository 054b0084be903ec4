"""Tokens and the TCP door: who comes without one sees nothing, who has one what it allows."""

import contextlib
import http.client
import json
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from contract import CheckedDaemon
from harness import DEADLINE_S, SHORT, Answer, Daemon, daemon_in
from traind.access import Scope
from traind.api.server import ROUTES

TCP = ("--http", "127.0.0.1:0")
PATHS = [(route.method, route.path, route.scope) for route in ROUTES]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CheckedDaemon]:
    with daemon_in(tmp_path_factory.mktemp("tokens"), CheckedDaemon, flags=TCP) as daemon:
        daemon.start()
        daemon.await_launcher()
        yield daemon


def address(daemon: Daemon) -> str:
    found: str = daemon.ask("GET", "/v1/status").json["http"]
    return found


def over_tcp(
    daemon: Daemon,
    method: str,
    path: str,
    *,
    token: str | None = None,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One call over TCP; of a stream only its head."""
    with contextlib.closing(
        http.client.HTTPConnection(address(daemon), timeout=DEADLINE_S)
    ) as connection:
        head = {} if token is None else {"Authorization": f"Bearer {token}"}
        head |= {} if body is None else {"Content-Type": "application/json"}
        connection.request(method, path, body, head | dict(headers or {}))
        answer = connection.getresponse()
        stream = answer.headers["Content-Type"] == "text/event-stream"
        return Answer(answer.status, dict(answer.headers), b"" if stream else answer.read())


def make(daemon: Daemon, name: str, **fields: Any) -> dict[str, Any]:
    answer = daemon.ask("POST", "/v1/tokens", {"name": name, **fields})
    assert answer.status == 201, answer.body
    made: dict[str, Any] = answer.json
    return made


@pytest.fixture(scope="module")
def secrets(box: CheckedDaemon) -> dict[Scope, str]:
    """A token of each scope."""
    return {scope: make(box, f"walk {scope}", scopes=[scope])["token"] for scope in Scope}


@pytest.mark.parametrize(("method", "path", "scope"), PATHS, ids=lambda part: str(part))
def test_every_call_over_tcp_needs_its_scope(
    box: CheckedDaemon, secrets: dict[Scope, str], method: str, path: str, scope: Scope | None
) -> None:
    target = path.replace("{id}", "999999").replace("{gpu}", "999999")
    body = b"[" if method in ("POST", "PATCH", "PUT") else None
    for bearer, secret in (None, None), *secrets.items():
        status = over_tcp(box, method, target, token=secret, body=body).status
        if scope is None:
            assert status == 200, bearer
        elif bearer is None:
            assert status == 401
        elif scope.within([bearer]):
            assert status not in (401, 403), bearer
        else:
            assert status == 403, bearer


def test_every_route_is_in_the_document_with_its_refusals(box: CheckedDaemon) -> None:
    paths = box.ask("GET", "/openapi.json").json["paths"]
    told = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert told == {(method, path) for method, path, _ in PATHS}
    for method, path, scope in PATHS:
        statuses = paths[path][method.lower()]["responses"]
        assert ("401" in statuses) == (scope is not None)


def test_only_what_tells_nothing_is_open_to_everybody() -> None:
    assert {path for _, path, scope in PATHS if scope is None} == {"/healthz", "/readyz"}


def test_a_token_is_told_once_and_only_its_hash_is_stored(daemon: Daemon) -> None:
    made = make(daemon, "once")
    secret = made.pop("token")
    assert len(secret) > 43
    assert made["scopes"] == ["read", "submit"]
    assert daemon.ask("GET", "/v1/tokens").json["tokens"] == [made]
    assert secret not in daemon.ask("GET", "/v1/tokens").body.decode()
    assert daemon.stop() == 0
    for file in (*daemon.state_dir.rglob("*"), daemon.log):
        if file.is_file():
            assert secret.encode() not in file.read_bytes(), file
    with contextlib.closing(sqlite3.connect(daemon.state_dir / "daemon" / "traind.db")) as db:
        assert db.execute("SELECT length(hash), name FROM token").fetchall() == [(32, "once")]


def test_a_token_outlives_kill_9_and_says_when_it_was_used(new_daemon: Daemon) -> None:
    new_daemon.flags = TCP
    new_daemon.start()
    made = make(new_daemon, "kept")
    assert made["last_used_at"] is None
    new_daemon.restart()
    who = over_tcp(new_daemon, "GET", "/v1/whoami", token=made["token"]).json
    mine = new_daemon.ask("GET", "/v1/whoami").json
    assert who == mine | {"operator": False}
    new_daemon.restart()
    (kept,) = new_daemon.ask("GET", "/v1/tokens").json["tokens"]
    assert kept["last_used_at"] > kept["created_at"]


def test_a_revoked_or_expired_token_lets_nobody_in(box: CheckedDaemon) -> None:
    made = make(box, "revoked")
    assert over_tcp(box, "GET", "/v1/jobs", token=made["token"]).status == 200
    assert box.ask("DELETE", f"/v1/tokens/{made['id']}").json["name"] == "revoked"
    assert over_tcp(box, "GET", "/v1/jobs", token=made["token"]).status == 401
    assert box.ask("DELETE", f"/v1/tokens/{made['id']}").status == 404
    short = make(box, "short", expires_s=1e-6)
    assert over_tcp(box, "GET", "/v1/jobs", token=short["token"]).status == 401
    assert make(box, "short")["id"] != short["id"]


def test_a_name_stands_for_one_token(box: CheckedDaemon) -> None:
    make(box, "taken")
    refused = box.ask("POST", "/v1/tokens", {"name": "taken"})
    assert refused.status == 409
    assert "taken" in refused.json["detail"]


@pytest.mark.parametrize(
    ("order", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x\n"}, "name"),
        ({"name": "x", "scopes": []}, "scopes"),
        ({"name": "x", "scopes": ["root"]}, "scopes.0"),
        ({"name": "x", "expires": 90}, "expires"),
        ({"name": "x", "expires": "soon"}, "expires"),
        ({"name": "x", "expires": "90d", "expires_s": 1}, "expires"),
        ({"name": "x", "expires_s": -1}, "expires_s"),
        ({"name": "x", "scope": "read"}, "scope"),
    ],
)
def test_a_wrong_order_for_a_token_names_its_field(
    box: CheckedDaemon, order: dict[str, Any], field: str
) -> None:
    assert field in box.fields(box.ask("POST", "/v1/tokens", order))


@pytest.mark.parametrize(
    "bearer", ["", "Bearer", "Bearer ", "Basic abc", "Bearer wrong", "Bearer caf\xe9", "x" * 4000]
)
def test_what_is_no_token_is_a_401_that_says_how_to_get_one(
    box: CheckedDaemon, bearer: str
) -> None:
    refused = over_tcp(box, "GET", "/v1/jobs", headers={"Authorization": bearer})
    assert refused.status == 401
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    assert "traind token create" in refused.json["detail"]


def test_a_token_in_the_address_is_refused(box: CheckedDaemon, secrets: dict[Scope, str]) -> None:
    assert over_tcp(box, "GET", f"/v1/jobs?token={secrets[Scope.OPERATE]}").status == 401


def test_who_tries_wrong_tokens_has_to_wait_and_who_has_one_has_not(new_daemon: Daemon) -> None:
    new_daemon.flags = TCP
    new_daemon.config = SHORT + "[api]\nfailed_signins = 3\n"
    new_daemon.start()
    good = make(new_daemon, "good")["token"]
    statuses = [over_tcp(new_daemon, "GET", "/v1/jobs", token="wrong").status for _ in range(5)]
    assert statuses == [401, 401, 401, 429, 429]
    refused = over_tcp(new_daemon, "GET", "/v1/jobs", token="wrong")
    assert 0 < int(refused.headers["Retry-After"]) <= 61
    assert refused.json["code"] == "too_many"
    assert over_tcp(new_daemon, "GET", "/v1/jobs", token=good).status == 200
    assert over_tcp(new_daemon, "GET", "/v1/jobs").status == 401
    assert over_tcp(new_daemon, "GET", "/healthz").status == 200


def test_a_token_submits_as_its_person_but_not_with_an_operators_priority(
    box: CheckedDaemon, secrets: dict[Scope, str]
) -> None:
    order = {"command": "true", "begin_at": "2099-01-01T00:00:00Z"}
    for scope, priority, status in (
        (Scope.SUBMIT, 0, 201),
        (Scope.SUBMIT, 5, 422),
        (Scope.OPERATE, 5, 201),
    ):
        body = json.dumps(order | {"priority": priority}).encode()
        answer = over_tcp(box, "POST", "/v1/jobs", token=secrets[scope], body=body)
        assert answer.status == status
        if status == 201:
            assert answer.json["user"] == box.ask("GET", "/v1/whoami").json["user"]


def test_another_name_or_site_is_refused_on_tcp_as_well(
    box: CheckedDaemon, secrets: dict[Scope, str]
) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        refused = over_tcp(box, "GET", "/v1/jobs", token=secrets[Scope.READ], headers=headers)
        assert refused.status == 403


def test_the_command_line_makes_uses_and_revokes_a_token(box: CheckedDaemon) -> None:
    made = box.cli("token", "create", "laptop", "--expires", "2d", "--scopes", "submit")
    assert (made.code, len(made.out.split())) == (0, 1)
    assert "shown only now" in made.err
    box.env = {"TRAIND_URL": f"http://{address(box)}", "TRAIND_TOKEN": made.out.strip()}
    try:
        done = box.cli("run", "--", "echo", "over", "tcp")
        assert (done.code, done.out) == (0, "over tcp\n")
        refused = box.cli("token", "ls")
        assert refused.code == 4
        assert "--scopes operate" in refused.err
        listed = box.cli("token", "ls", "--socket", str(box.socket))
        assert "laptop" in listed.out
        revoked = box.cli("token", "revoke", "laptop", "--socket", str(box.socket))
        assert (revoked.code, revoked.out) == (0, "token laptop is revoked\n")
        assert box.cli("ls").code == 4
        box.env["TRAIND_URL"] = "https://box:1"
        assert box.cli("ls").code == 2
        box.env["TRAIND_URL"] = "http://127.0.0.1:1"
        assert box.cli("ls").code == 69
    finally:
        box.env = {}
    assert box.cli("token", "revoke", "laptop").code == 5
    assert box.cli("token").code == 2
