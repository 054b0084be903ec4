"""The stream of events: nothing lost, nothing twice, whatever dies or dawdles."""

import contextlib
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from contract import FAR, CheckedDaemon
from harness import DEADLINE_S, SHORT, Daemon, UnixConnection, eventually

CUT_SHORT = (OSError, http.client.HTTPException, AssertionError, ValueError, LookupError)
"""What the end of a stream may look like that ends anywhere, within a message as well."""


class Stream:
    """An open event stream, read message by message."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.response = response
        self.first = 0
        """The id behind which it begins."""

    def message(self) -> dict[str, str]:
        """The next message; a comment is {"": its text}."""
        found: dict[str, str] = {}
        while line := self.response.readline().decode().rstrip("\n"):
            name, _, value = line.partition(": ")
            found[name] = value
        return found

    def event(self) -> dict[str, Any]:
        """The next event of a job."""
        while (message := self.message()).get("event") != "job":
            assert message, "the stream ended"
        told: dict[str, Any] = json.loads(message["data"])
        assert str(told["id"]) == message["id"]
        return told

    def until(self, **facts: Any) -> list[dict[str, Any]]:
        """The events up to the first of which these facts are true."""
        told = [self.event()]
        while any(told[-1][name] != value for name, value in facts.items()):
            told.append(self.event())
        return told


@contextlib.contextmanager
def stream(daemon: Daemon, query: str = "", last: int | None = None) -> Iterator[Stream]:
    with contextlib.closing(UnixConnection(daemon.socket)) as connection:
        headers = {} if last is None else {"Last-Event-ID": str(last)}
        connection.request("GET", f"/v1/events{query}", headers=headers)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        assert response.headers["Content-Type"] == "text/event-stream"
        opened = Stream(response)
        greeting = opened.message()
        assert greeting["retry"] == "3000"
        opened.first = int(greeting["id"])
        yield opened


def known(daemon: Daemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = daemon.ask("GET", "/v1/events?follow=0").json["events"]
    return found


def test_without_follow_all_events_are_answered_at_once(box: CheckedDaemon) -> None:
    number = box.submit("true", gpus=1)
    box.wait(number)
    own = box.ask("GET", f"/v1/jobs/{number}/events").json["events"]
    assert [e["event"] for e in own] == ["submit", "claim", "started", "finish"]
    assert box.ask("GET", f"/v1/events?follow=0&job={number}").json["events"] == own
    every = known(box)
    assert [e for e in every if e["job_id"] == number] == own
    ids = [e["id"] for e in every]
    assert ids == sorted(set(ids))
    behind = box.ask("GET", f"/v1/events?follow=0&since={own[1]['id']}&job={number}").json
    assert behind == {"events": own[2:], "next": None}
    page = box.ask("GET", f"/v1/events?follow=0&limit=2&job={number}").json
    assert (page["events"], page["next"]) == (own[:2], str(own[1]["id"]))


def test_a_stream_tells_what_happens_from_now_on(box: CheckedDaemon) -> None:
    with stream(box) as opened:
        number = box.submit("true", gpus=1)
        told = opened.until(job_id=number, event="finish")
    own = box.ask("GET", f"/v1/jobs/{number}/events").json["events"]
    assert [e for e in told if e["job_id"] == number] == own


def test_a_stream_of_one_job_tells_nothing_of_others(box: CheckedDaemon) -> None:
    number = box.waiting()
    with stream(box, f"?job={number}&since=0") as opened:
        other = box.submit("true", gpus=1)
        box.wait(other)
        box.ask("DELETE", f"/v1/jobs/{number}")
        told = opened.until(event="finish")
    assert [(e["job_id"], e["event"]) for e in told] == [(number, "submit"), (number, "finish")]


@pytest.mark.parametrize("how", ["header", "query"])
def test_a_stream_is_taken_up_behind_any_id(box: CheckedDaemon, how: str) -> None:
    box.wait(box.submit("true"))
    every = known(box)
    for place in (0, len(every) // 2, len(every) - 2):
        last = every[place]["id"]
        given = stream(box, last=last) if how == "header" else stream(box, f"?since={last}")
        with given as opened:
            assert opened.until(id=every[-1]["id"]) == every[place + 1 :]


def test_the_id_that_was_seen_last_outweighs_the_address(box: CheckedDaemon) -> None:
    box.wait(box.submit("true"))
    every = known(box)
    with stream(box, "?since=0", last=every[-2]["id"]) as opened:
        assert opened.event() == every[-1]


def test_nothing_is_lost_or_told_twice_when_the_daemon_is_killed(daemon: Daemon) -> None:
    seen: list[dict[str, Any]] = []
    last = 0
    for _ in range(3):
        numbers = [daemon.submit("true", gpus=1) for _ in range(3)]
        with stream(daemon, last=last) as opened:
            seen += opened.until(job_id=numbers[0], event="started")
            daemon.kill()
            with contextlib.suppress(*CUT_SHORT):
                while True:
                    seen.append(opened.event())
        last = seen[-1]["id"]
        daemon.start()
        for number in numbers:
            daemon.wait(number)
    end = known(daemon)[-1]["id"]
    if last != end:
        with stream(daemon, last=last) as opened:
            seen += opened.until(id=end)
    assert seen == known(daemon)


def test_a_stream_ends_whole_when_the_daemon_stops(daemon: Daemon) -> None:
    with stream(daemon, "?since=0") as opened:
        number = daemon.submit("true", begin_at=FAR)
        assert opened.event()["job_id"] == number
        assert daemon.stop() == 0
        assert opened.response.read() == b""


def test_an_id_that_cannot_be_gone_on_from_is_answered_with_a_reset(box: CheckedDaemon) -> None:
    box.wait(box.submit("true"))
    newest = known(box)[-1]["id"]
    with stream(box, f"?since={newest + 1000}") as opened:
        message = opened.message()
        assert (message["event"], opened.first) == ("reset", newest)
        assert json.loads(message["data"]) == {"asked": newest + 1000, "kept_behind": newest}
        number = box.waiting()
        assert opened.event()["job_id"] == number


def test_a_quiet_stream_says_that_it_is_there(new_daemon: Daemon) -> None:
    new_daemon.config = SHORT + '[api]\nheartbeat = "50ms"\n'
    new_daemon.start()
    with stream(new_daemon) as opened:
        assert opened.message() == {"": "still here"}
        number = new_daemon.submit("true", begin_at=FAR)
        assert opened.event()["job_id"] == number


def test_a_stalled_reader_is_dropped_and_may_go_on_where_it_was(new_daemon: Daemon) -> None:
    new_daemon.config = SHORT + '[api]\nstalled = "1s"\n'
    new_daemon.start()
    orders = [{"command": "true", "begin_at": FAR, "name": "n" * 200} for _ in range(1000)]
    with stream(new_daemon, "?since=0") as stalled:
        ids = [
            job["id"]
            for _ in range(4)
            for job in new_daemon.ask("POST", "/v1/jobs", orders).json["jobs"]
        ]
        eventually(lambda: "a stalled reader" in new_daemon.log.read_text(), what="its end")
        told = []
        with contextlib.suppress(*CUT_SHORT):
            while True:
                told.append(stalled.event()["job_id"])
    assert told == ids[: len(told)]
    assert len(told) < 4000
    new_daemon.stop()
    new_daemon.config = SHORT  # who is merely slow is not dropped
    new_daemon.start()
    with stream(new_daemon, last=len(told)) as opened:
        assert told + [event["job_id"] for event in opened.until(job_id=ids[-1])] == ids


def test_streams_beyond_the_cap_are_refused_until_one_ends(new_daemon: Daemon) -> None:
    new_daemon.config = SHORT + "[api]\nstreams_per_caller = 2\n"
    new_daemon.start()
    number = new_daemon.submit("true", begin_at=FAR)
    with stream(new_daemon):
        with stream(new_daemon):
            for path in ("/v1/events", f"/v1/jobs/{number}/log?follow=1"):
                refused = new_daemon.ask("GET", path)
                assert (refused.status, refused.json["code"]) == (429, "too_many")
                assert int(refused.headers["Retry-After"]) > 0
            assert new_daemon.ask("GET", "/v1/events?follow=0").status == 200
        ok = eventually(lambda: _opens(new_daemon), what="a free place")
        assert ok


def _opens(daemon: Daemon) -> bool:
    with contextlib.closing(UnixConnection(daemon.socket)) as connection:
        connection.request("GET", "/v1/events")
        return connection.getresponse().status == 200


def test_what_asks_wrongly_for_events_is_told_so(box: CheckedDaemon) -> None:
    assert box.ask("GET", "/v1/events?job=999999").status == 404
    for query, field in (("since=x", "since"), ("since=-1", "since"), ("job=0", "job")):
        assert list(box.fields(box.ask("GET", f"/v1/events?{query}"))) == [field]
    refused = box.ask("GET", "/v1/events", headers={"Last-Event-ID": "x"})
    assert list(box.fields(refused)) == ["Last-Event-ID"]


def test_the_command_line_follows_events_through_a_restart(daemon: Daemon) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "traind", "events", "-f", "--json", "--since", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=daemon._environment() | {"TRAIND_SOCKET": str(daemon.socket)},
    ) as client:
        assert client.stdout is not None
        try:
            numbers = [daemon.submit("true", begin_at=FAR)]
            told = [json.loads(client.stdout.readline())]
            daemon.restart()
            numbers.append(daemon.submit("true", begin_at=FAR))
            told.append(json.loads(client.stdout.readline()))
        finally:
            client.kill()
            client.wait(DEADLINE_S)
    assert [event["job_id"] for event in told] == numbers


def test_the_command_line_shows_what_happened(box: CheckedDaemon) -> None:
    number = box.submit("true", gpus=1)
    box.wait(number)
    shown = box.cli("events", "--job", str(number))
    assert (shown.code, shown.err) == (0, "")
    lines = shown.out.splitlines()
    assert [line.split()[2:5] for line in lines] == [
        ["job", str(number), event] for event in ("submit", "claim", "started", "finish")
    ]
    assert "succeeded" in lines[-1]
