"""Clients that are slow, stalled or too many harm themselves only."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator

import pytest

from contract import FAR
from harness import DEADLINE_S, SHORT, Daemon, UnixConnection, daemon_in, eventually

QUICK = SHORT + '[api]\nkeepalive = "300ms"\nbody_deadline = "300ms"\n'


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon of little patience: what it is to take in time is there when it lets somebody in."""
    with daemon_in(tmp_path_factory.mktemp("hasty"), config=QUICK) as daemon:
        yield daemon.start()


@contextlib.contextmanager
def connected(daemon: Daemon) -> Iterator[socket.socket]:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(DEADLINE_S)
        connection.connect(str(daemon.socket))
        yield connection


@contextlib.contextmanager
def having_sent(daemon: Daemon, text: bytes) -> Iterator[socket.socket]:
    """A connection whose first words are there before it is let in, however slow this test is."""
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        with connected(daemon) as connection:
            connection.sendall(text)
            os.kill(daemon.pid, signal.SIGCONT)
            yield connection
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


def everything(connection: socket.socket) -> bytes:
    """What comes until the connection ends."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while block := connection.recv(65536):
            found += block
    return found


def drip(connection: socket.socket, text: bytes) -> bool:
    """Send byte after byte until the other side has had enough; whether it had."""
    connection.settimeout(0.02)  # so often, and the whole text takes far longer than its patience
    for place in range(len(text)):
        try:
            connection.send(text[place : place + 1])
            if not connection.recv(1):
                return True
        except TimeoutError:
            continue
        except ConnectionError:
            return True
    return False


def test_headers_that_do_not_come_end_the_connection(hasty: Daemon) -> None:
    with having_sent(hasty, b"GET /healthz HTTP/1.1\r\nHost: trai") as connection:
        assert everything(connection) == b""


def test_headers_that_come_byte_by_byte_end_the_connection(hasty: Daemon) -> None:
    with connected(hasty) as connection:
        assert drip(connection, b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 4000)


def test_a_second_request_may_not_dawdle_either(hasty: Daemon) -> None:
    first = b"GET /healthz HTTP/1.1\r\nHost: traind\r\n\r\n"
    with having_sent(hasty, first + b"GET /heal") as connection:
        assert everything(connection).count(b"HTTP/1.1 200") == 1


def test_a_body_that_does_not_come_is_refused_in_words(hasty: Daemon) -> None:
    for path in (b"/v1/jobs", b"/v1/tokens"):
        head = b"POST " + path + b" HTTP/1.1\r\nHost: traind\r\nContent-Length: 100\r\n\r\n{"
        with having_sent(hasty, head) as connection:
            answer = b""
            while b"did not come" not in answer:
                block = connection.recv(65536)
                assert block, answer
                answer += block
            assert answer.startswith(b"HTTP/1.1 400")


def left_unread(daemon: Daemon, path: str, *, times: int = 1) -> bytes:
    """What comes of answers that nobody takes before the daemon has had enough of that."""

    def dropped() -> int:
        return daemon.log.read_text().count("a stalled reader is dropped")

    told = dropped()
    with connected(daemon) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: traind\r\n\r\n".encode() * times)
        eventually(lambda: dropped() > told, what="the end of its patience")
        found = everything(connection)
    assert "rror" not in daemon.log.read_text()
    return found


@pytest.mark.parametrize("query", ["", "?follow=1"])
def test_a_reader_of_a_log_that_takes_nothing_is_dropped(hasty: Daemon, query: str) -> None:
    number = hasty.submit("head -c 20000000 /dev/zero")
    hasty.wait(number, outcome="succeeded")
    assert len(left_unread(hasty, f"/v1/jobs/{number}/log{query}")) < 20_000_000
    assert hasty.job(number)["outcome"] == "succeeded"


def test_a_reader_that_takes_nothing_of_a_long_answer_is_dropped(hasty: Daemon) -> None:
    script = "#!/bin/sh\n" + "# it is long\n" * 40_000
    order = {"script": script, "begin_at": FAR}
    number = hasty.ask("POST", "/v1/jobs", order).json["id"]
    assert len(left_unread(hasty, f"/v1/jobs/{number}")) < len(script)


def test_a_reader_that_takes_nothing_of_many_short_answers_is_dropped(hasty: Daemon) -> None:
    assert left_unread(hasty, "/healthz", times=5000).count(b"HTTP/1.1 200") < 5000


def test_connections_beyond_the_cap_are_told_to_wait(new_daemon: Daemon) -> None:
    new_daemon.config = SHORT + "[api]\nconnections = 5\n"
    new_daemon.start()
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(connected(new_daemon))
        with connected(new_daemon) as late:
            answer = everything(late)
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"Retry-After: 1\r\n" in answer
        assert b'"code": "too_many"' in answer
    eventually(lambda: has_room(new_daemon), what="a free place")
    number = new_daemon.submit("true")
    new_daemon.wait(number, outcome="succeeded")


def has_room(daemon: Daemon) -> bool:
    """Whether it lets somebody in; who is turned away may not come to ask."""
    with contextlib.suppress(ConnectionError):
        return daemon.ask("GET", "/healthz").status == 200
    return False


def test_who_comes_while_the_daemon_is_busy_waits_at_the_door(daemon: Daemon) -> None:
    os.kill(daemon.pid, signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(connected(daemon)) for _ in range(300)]
        for each in crowd:
            each.sendall(b"GET /healthz HTTP/1.1\r\nHost: traind\r\nConnection: close\r\n\r\n")
        os.kill(daemon.pid, signal.SIGCONT)
        assert all(everything(each).startswith(b"HTTP/1.1 200 ") for each in crowd)


def test_strangers_on_tcp_shut_nobody_out_of_the_socket(new_daemon: Daemon) -> None:
    new_daemon.config = SHORT + "[api]\nconnections = 5\n"
    new_daemon.flags = ("--http", "127.0.0.1:0")
    new_daemon.start()
    host, port = new_daemon.ask("GET", "/v1/status").json["http"].split(":")
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(contextlib.closing(socket.create_connection((host, int(port)))))
        assert new_daemon.ask("GET", "/healthz").status == 200


def test_calls_that_wait_count_and_end_with_the_daemon(new_daemon: Daemon) -> None:
    new_daemon.config = SHORT + "[api]\nconnections = 3\n"
    new_daemon.start()
    number = new_daemon.submit("true", begin_at=FAR)
    with contextlib.closing(UnixConnection(new_daemon.socket)) as waiting:
        waiting.request("GET", f"/v1/jobs/{number}?wait=60")
        assert new_daemon.ask("GET", "/healthz").status == 200
        assert new_daemon.stop() == 0
        assert waiting.getresponse().status == 200
