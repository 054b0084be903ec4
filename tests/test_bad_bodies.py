"""Bodies that are no order: not JSON, of another kind, too large, too deep, too slow."""

import contextlib
import gzip
import json
import socket
from pathlib import Path

import pytest

from contract import CheckedDaemon
from harness import DEADLINE_S, UnixConnection, daemon_in

MIB = 1 << 20
GOOD = b'{"command": "true", "begin_at": "2099-01-01T00:00:00Z"}'


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b" ", b"{", b"[", b"nul", b"{]", b'{"command": "true"', b'{"command": "true",}'),
        *(
            b"{'command': 'true'}",
            b'{"command": "true"} x',
            b"\xff\xfe{\0}\0",
            b'{"command": "\xff"}',
        ),
        *(b'{"command": "\\ud800"}', b'{"command": "\\udc00\\ud800"}', b'{"\\udfff": 1}'),
        *(b'{"command": "\n"}', b'{"command": "\\x41"}', b"true true", b"-", b"01"),
        *(b'{"command": "a", "priority": NaN}', b'{"command": "a", "grace_s": Infinity}'),
        *(b'{"command": "a", "grace_s": -Infinity}', b'{"command": "a", "gpus": 0x1}'),
        *(
            b"[" * 100_000,
            b'{"env":' * 100_000,
            b'[{"a":' * 100_000,
            b"[" * 100_000 + b"]" * 100_000,
        ),
    ],
    ids=lambda body: repr(body[:40]),
)
def test_a_body_that_is_no_json_is_400_at_once(box: CheckedDaemon, body: bytes) -> None:
    began = box.cpu_s()
    answer = box.post(body)
    assert (answer.status, answer.json["code"]) == (400, "malformed")
    assert box.cpu_s() - began < 1
    assert len(answer.body) < 1000


@pytest.mark.parametrize(
    "body", [b"null", b"true", b"7", b'"true"', b"[7]", b'[[{"command": "true"}]]']
)
def test_json_that_is_no_job_is_422(box: CheckedDaemon, body: bytes) -> None:
    assert box.post(body).status == 422


def test_a_body_that_is_too_large_is_413(box: CheckedDaemon) -> None:
    def padded(size: int) -> bytes:
        return GOOD + b" " * (size - len(GOOD))

    def listed(size: int) -> bytes:
        return b"[" + GOOD + b" " * (size - len(GOOD) - 2) + b"]"

    assert box.post(padded(MIB)).status == 201
    for body in (padded(MIB + 1), padded(2 * MIB), listed(16 * MIB + 1), padded(17 * MIB)):
        answer = box.post(body)
        assert (answer.status, answer.json["code"]) == (413, "too_large")
        assert "1 MiB" in answer.json["detail"]
    assert box.post(listed(16 * MIB)).status == 201


def test_a_list_holds_a_thousand_jobs_and_no_more(box: CheckedDaemon) -> None:
    before = box.newest()
    for body in ([], [{"command": "true"}] * 1001, {"jobs": []}, {"jobs": {}}, {"jobs": "all"}):
        answer = box.ask("POST", "/v1/jobs", body)
        assert answer.status == 422, str(body)[:40]
    for extra in ({"jobs": [{"command": "true"}], "default": {}}, {"jobs": [{}], "defaults": []}):
        assert box.ask("POST", "/v1/jobs", extra).status == 422
    everything_wrong = box.ask("POST", "/v1/jobs", [{"x": 1, "y": 2}] * 1000)
    assert len(box.fields(everything_wrong)) <= 100
    assert box.newest() == before


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        (None, GOOD, 201),
        ("application/json", GOOD, 201),
        ("application/json; charset=utf-8", GOOD, 201),
        ("APPLICATION/JSON", GOOD, 201),
        ("application/x-www-form-urlencoded", GOOD, 201),
        ("application/x-www-form-urlencoded", b" [" + GOOD + b"]", 201),
        ("application/x-www-form-urlencoded", b"command=true&gpus=1", 400),
        ("application/x-www-form-urlencoded", b"", 400),
        (None, b"command=true", 400),
        ("text/plain", GOOD, 415),
        ("application/xml", b"<job/>", 415),
        ("multipart/form-data; boundary=x", b"--x--", 415),
        ("application/toml", b'command = "true"', 201),
        ("text/x-python", b"print(1)", 201),
        ("nonsense", GOOD, 415),
    ],
)
def test_a_body_is_json_by_its_type_or_by_its_looks(
    box: CheckedDaemon, kind: str | None, body: bytes, status: int
) -> None:
    with contextlib.closing(UnixConnection(box.socket)) as connection:
        connection.request("POST", "/v1/jobs", body, {} if kind is None else {"Content-Type": kind})
        answer = connection.getresponse()
        assert answer.status == status
        assert status == 201 or json.loads(answer.read())["status"] == status


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "x", "identity, gzip"])
def test_a_compressed_body_is_415(box: CheckedDaemon, coding: str) -> None:
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    assert box.ask("POST", "/v1/jobs", gzip.compress(GOOD), headers).status == 415


def test_a_body_that_trickles_in_is_cut_off(tmp_path: Path) -> None:
    with daemon_in(tmp_path, CheckedDaemon) as daemon:
        daemon.config += '[api]\nbody_deadline = "300ms"\n'
        daemon.start()
        for length in (b"Content-Length: 4000", b"Transfer-Encoding: chunked"):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(DEADLINE_S)
                connection.connect(str(daemon.socket))
                head = b"POST /v1/jobs HTTP/1.1\r\nHost: traind\r\n" + length + b"\r\n\r\n"
                part = b"5\r\n{    \r\n" if b"chunked" in length else b"{   "
                connection.sendall(head + part)
                answer = b""
                while b"did not come within 0.3 s" not in answer:
                    block = connection.recv(65536)
                    assert block, answer
                    answer += block
            assert answer.startswith(b"HTTP/1.1 400")
        assert daemon.newest() == 0


def test_more_waiting_jobs_than_one_person_may_have_are_409(tmp_path: Path) -> None:
    with daemon_in(tmp_path, CheckedDaemon) as daemon:
        daemon.config = daemon.config.replace("[queue]\n", "[queue]\njobs_per_user = 3\n")
        daemon.start()
        assert daemon.post(b"[" + b", ".join([GOOD] * 2) + b"]").status == 201
        refused = daemon.post(b"[" + b", ".join([GOOD] * 2) + b"]")
        assert (refused.status, refused.json["code"]) == (409, "conflict")
        assert "2 jobs waiting" in refused.json["detail"]
        assert daemon.post(GOOD).status == 201
        assert daemon.post(GOOD).status == 409
        daemon.ask("DELETE", "/v1/jobs/1")
        assert daemon.post(GOOD).status == 201
