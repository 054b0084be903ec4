"""The doors: which names, pages, methods and paths they take, and the document that says so."""

import contextlib
import http.client
import os
import re
import shutil
import socket
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from contract import CheckedDaemon
from harness import DEADLINE_S, Answer, UnixConnection, daemon_in, eventually
from traind.api.server import ROUTES
from traind.jobspec import NOT_BUILT, SHORT_NAMES, JobSpec

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


def document(box: CheckedDaemon) -> dict[str, Any]:
    found: dict[str, Any] = box.ask("GET", "/openapi.json").json
    return found


def test_the_document_is_openapi_3_1_and_its_schemas_are_schemas(box: CheckedDaemon) -> None:
    whole = document(box)
    assert whole.keys() == {"openapi", "info", "paths", "components"}
    assert whole["openapi"] == "3.1.0"
    validate(whole, cls=OpenAPIV31SpecValidator)
    assert whole["info"].keys() == {"title", "version"}
    seen = set()
    for path, item in whole["paths"].items():
        in_path = {part[1:-1] for part in path.split("/") if part.startswith("{")}
        for operation in item.values():
            named = {(p["name"], p["in"]) for p in operation["parameters"]}
            assert len(named) == len(operation["parameters"])
            assert {name for name, where in named if where == "path"} == in_path
            assert all(p["required"] for p in operation["parameters"] if p["in"] == "path")
            assert all(list(need) == ["token"] for need in operation["security"])
            assert operation["operationId"] not in seen
            seen.add(operation["operationId"])
            for status, response in operation["responses"].items():
                assert 200 <= int(status) < 600
                assert response["description"]
                kinds = response.get("content", {}).keys()
                assert (status == "304") == (not kinds)
                assert ("application/problem+json" in kinds) == (int(status) >= 400)
    for name, schema in whole["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        for reference in references(schema):
            assert reference.rpartition("/")[2] in whole["components"]["schemas"], name


def references(value: object) -> list[str]:
    if isinstance(value, list):
        return [found for part in value for found in references(part)]
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for part in value.values() for found in references(part)]
    return []


def test_the_document_and_the_router_hold_the_same_calls(box: CheckedDaemon) -> None:
    paths = document(box)["paths"]
    told = {(method.upper(), path) for path, item in paths.items() for method in item}
    assert told == {(route.method, route.path) for route in ROUTES}
    assert box.contract is not None
    for path in (name.replace("{id}", "1").replace("{gpu}", "1") for name in paths):
        allowed = {method.upper() for item in box.contract.items(path) for method in item}
        for method in METHODS:
            if method in allowed:
                continue
            answer = box.ask(method, path)
            assert answer.status == 405, (method, path)
            assert set(answer.headers["Allow"].split(", ")) == allowed
            assert all(name in answer.json["detail"] for name in allowed)


def test_the_document_says_of_an_order_what_the_door_takes(box: CheckedDaemon) -> None:
    schemas = document(box)["components"]["schemas"]
    known = {name for name, short in SHORT_NAMES.items() if short.normal in JobSpec.model_fields}
    assert schemas["JobSpec"]["properties"].keys() == JobSpec.model_fields.keys() | known
    assert not schemas["JobSpec"]["properties"].keys() & NOT_BUILT.keys()
    order = {"command": "true", "time_limit": "2h", "retry": {"max": 1, "delay": "5s"}}
    assert box.contract is not None
    box.contract.validate({"$ref": "#/components/schemas/JobSpec"}, order, "an order")
    assert box.ask("POST", "/v1/jobs", order).status == 201


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/v1", "/v1/", "/v2/jobs", "/v1/jobs/", "/v1/jobs/1/logs", "/v1/jobs/1/log/../../2"),
        *("/v1/jobs/%2e%2e/gpus", "/%00", "/v1/jobs/1%2Flog", "//v1/jobs"),
    ],
)
def test_an_unknown_path_is_404_in_words(box: CheckedDaemon, path: str) -> None:
    answer = box.ask("GET", path)
    assert answer.status == 404
    assert answer.json["code"] == "not_found"


@pytest.mark.parametrize(
    "number", ["0", "-1", "1e3", "abc", "999999999999999999", "9" * 500, "٣", "1_0", "+1", "1.0"]
)
def test_what_is_no_job_is_404_wherever_a_job_is_named(box: CheckedDaemon, number: str) -> None:
    quoted = "".join(f"%{byte:02x}" for byte in number.encode())
    for method, rest in (
        *(("GET", rest) for rest in ("", "/log", "/log?follow=1", "/why", "/attempts", "/events")),
        ("DELETE", ""),
    ):
        answer = box.ask(method, f"/v1/jobs/{quoted}{rest}")
        assert (answer.status, answer.json["code"]) == (404, "not_found"), (method, rest)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/v1/jobs?limt=5", "state, outcome, user, label, q, limit, cursor"),
        ("/v1/jobs/1?wiat=5", "wait"),
        ("/v1/jobs/1/log?lines=5", "attempt, tail, follow"),
        ("/v1/jobs/1/events?after=5", "limit, cursor"),
        ("/v1/queue?state=held", "limit, cursor"),
        ("/v1/gpus?x", "none"),
        ("/v1/jobs/1/why?a=b", "none"),
        ("/healthz?verbose", "none"),
        ("/readyz?verbose=1", "none"),
        ("/openapi.json?pretty=1", "none"),
    ],
)
def test_an_unknown_parameter_is_422_naming_the_known_ones(
    box: CheckedDaemon, path: str, named: str
) -> None:
    assert named in next(iter(box.fields(box.ask("GET", path)).values()))


HUGE = "9" * 30


@pytest.mark.parametrize(
    "path",
    [
        *(f"/v1/jobs?limit={n}" for n in ("0", "-1", "1001", "x", "1.5", "", HUGE, "9" * 5000)),
        *(f"/v1/jobs?cursor={n}" for n in ("0", "-1", "x", "1e3", HUGE)),
        *(
            f"/v1/queue?cursor={n}"
            for n in ("x", "1", "1.2.3", f"{HUGE}.1", f"1.{HUGE}", f"-{HUGE}.1")
        ),
        *(f"/v1/jobs/1?wait={n}" for n in ("-1", "3601", "nan", "inf", "1e999", "x", "")),
        *(f"/v1/jobs/1/events?cursor={n}" for n in ("-1", HUGE, "x")),
        *(f"/v1/jobs/1/log?tail={n}" for n in ("-1", HUGE, "x")),
        *(f"/v1/jobs/1/log?{q}" for q in ("attempt=0", "attempt=x", "follow=maybe")),
        "/v1/jobs?limit=5&limit=6",
    ],
)
def test_a_parameter_that_makes_no_sense_is_422_by_its_name(box: CheckedDaemon, path: str) -> None:
    name = path.partition("?")[2].partition("=")[0]
    assert list(box.fields(box.ask("GET", path))) == [name]


def test_the_user_parameter_takes_any_text_for_a_name(box: CheckedDaemon) -> None:
    for text in ("%ff%fe", "%00", "%f0%9f%98%80", "%ed%a0%80", "' OR 1=1 --".replace(" ", "%20")):
        assert box.ask("GET", f"/v1/jobs?user={text}").json == {"jobs": [], "next": None}


@pytest.mark.parametrize("host", ["traind", "localhost", "127.0.0.1:7979", "[::1]", "[::1]:80"])
def test_our_own_names_are_taken(box: CheckedDaemon, host: str) -> None:
    assert box.ask("GET", "/v1/status", headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "traind.evil.example", "localhost.evil:80", "", "127.0.0.1.x", "[::2]"]
)
@pytest.mark.parametrize("path", ["/v1/status", "/healthz", "/openapi.json", "/nothing"])
def test_any_other_name_is_403_on_every_path(box: CheckedDaemon, host: str, path: str) -> None:
    answer = box.ask("GET", path, headers={"Host": host})
    assert (answer.status, answer.json["code"]) == (403, "forbidden")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[::1"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "http://localhost@evil.example"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_the_pages_of_other_sites_are_turned_away(
    box: CheckedDaemon, headers: dict[str, str], method: str
) -> None:
    path = "/v1/jobs/1" if method == "DELETE" else "/v1/jobs"
    body = {"command": "true"} if method == "POST" else None
    before = box.newest()
    assert box.ask(method, path, body, headers).status == 403
    assert box.newest() == before


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://localhost:7979", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "http://127.0.0.1"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_our_own_pages_are_served(box: CheckedDaemon, headers: dict[str, str]) -> None:
    assert box.ask("GET", "/v1/jobs", headers=headers).status == 200


def test_further_names_can_be_configured(tmp_path: Path) -> None:
    with daemon_in(tmp_path, CheckedDaemon) as daemon:
        daemon.config += '[daemon]\nhosts = ["gpu.lab"]\n'
        daemon.start()
        assert daemon.ask("GET", "/v1/status", headers={"Host": "gpu.lab:7979"}).status == 200
        assert daemon.ask("GET", "/v1/status", headers={"Host": "gpu.lab.x"}).status == 403


def test_the_tcp_door_tells_a_stranger_nothing_but_that_it_lives(tmp_path: Path) -> None:
    with daemon_in(tmp_path, CheckedDaemon, flags=("--http", "127.0.0.1:0")) as daemon:
        daemon.start()
        eventually(lambda: daemon.ask("GET", "/readyz").status == 200, what="the launcher")
        address = daemon.ask("GET", "/v1/status").json["http"]
        assert daemon.contract is not None
        for method, path in ((route.method, route.path) for route in ROUTES):
            connection = http.client.HTTPConnection(address, timeout=DEADLINE_S)
            body = b'{"command": "true"}' if method == "POST" else None
            connection.request(method, path.replace("{id}", "1").replace("{gpu}", "1"), body)
            reply = connection.getresponse()
            answer = Answer(reply.status, dict(reply.headers), reply.read())
            connection.close()
            daemon.contract.check(method, path.replace("{id}", "1").replace("{gpu}", "1"), answer)
            assert answer.status == (200 if path in ("/healthz", "/readyz") else 401), path
            if answer.status == 401:
                assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert daemon.newest() == 0


def test_the_socket_and_the_state_are_for_their_owner_alone(box: CheckedDaemon) -> None:
    assert stat.S_IMODE(box.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(box.state_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE((box.state_dir / "daemon").stat().st_mode) == 0o700
    assert stat.S_IMODE((box.state_dir / "launcher.sock").stat().st_mode) == 0o600


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_another_account_that_reaches_the_socket_is_403() -> None:
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as folder,
        daemon_in(Path(folder), CheckedDaemon) as daemon,
    ):
        daemon.start()
        for path in (Path(folder), daemon.state_dir):
            path.chmod(0o711)
        command = ["curl", "-s", "--unix-socket", str(daemon.socket), "http://traind/v1/jobs"]
        stranger: dict[str, Any] = {"user": 65533, "group": 65533, "extra_groups": []}
        closed = subprocess.run(command, capture_output=True, check=False, **stranger)
        assert (closed.returncode, closed.stdout) == (7, b"")
        daemon.socket.chmod(0o666)
        refused = subprocess.run(command, capture_output=True, check=True, **stranger)
        assert b'"status":403' in refused.stdout
        assert subprocess.run(command, capture_output=True, check=True).stdout.startswith(
            b'{"jobs"'
        )


def test_a_call_that_is_cut_off_or_no_http_harms_nobody(box: CheckedDaemon) -> None:
    for raw in (
        b"",
        b"\0" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/j\xc3\xb6bs HTTP/1.1\r\nHost: traind\r\n\r\n",
        b"GET /v1/jobs HTTP/1.1\r\nHost: traind\r\nX: " + b"x" * 100_000,
        b"POST /v1/jobs HTTP/1.1\r\nHost: traind\r\nContent-Length: -5\r\n\r\n",
        b'POST /v1/jobs HTTP/1.1\r\nHost: traind\r\nContent-Length: 400\r\n\r\n{"command": "true"}',
        b"POST /v1/jobs HTTP/1.1\r\nHost: traind\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(DEADLINE_S)
            connection.connect(str(box.socket))
            answer = b""
            with contextlib.suppress(ConnectionError):  # it may have had enough before the end
                connection.sendall(raw)
                connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(65536)
            assert re.match(rb"HTTP/1\.[01] 4|\Z", answer), raw
    assert box.ask("GET", "/healthz").status == 200
    assert "request failed" not in box.log.read_text()


def test_one_connection_takes_many_calls(box: CheckedDaemon) -> None:
    connection = UnixConnection(box.socket)
    for path in ("/healthz", "/nothing", "/v1/status", "/v1/jobs/0", "/healthz"):
        connection.request("GET", path)
        assert connection.getresponse().read()
    connection.close()
