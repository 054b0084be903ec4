"""The log over HTTP: raw bytes, ranges, tails, and following while it grows."""

import contextlib
import http.client
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract import FAR, CheckedDaemon
from harness import Answer, UnixConnection, eventually

TEXT = b"0123456789"


def log(box: CheckedDaemon, number: int, query: str = "", span: str | None = None) -> Answer:
    headers = {} if span is None else {"Range": span}
    return box.ask("GET", f"/v1/jobs/{number}/log{query}", headers=headers)


@pytest.fixture(scope="module")
def digits(box: CheckedDaemon) -> int:
    """A finished job with ten bytes of log."""
    number = box.submit(f"printf {TEXT.decode()}")
    box.wait(number, outcome="succeeded")
    return number


@pytest.mark.parametrize(
    ("span", "part", "content_range"),
    [
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("bytes=2-2", b"2", "bytes 2-2/10"),
        ("bytes=0-", TEXT, "bytes 0-9/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=7-99", b"789", "bytes 7-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=-99", TEXT, "bytes 0-9/10"),
    ],
)
def test_a_range_is_answered_with_its_bytes(
    box: CheckedDaemon, digits: int, span: str, part: bytes, content_range: str
) -> None:
    answer = log(box, digits, span=span)
    assert (answer.status, answer.body) == (206, part)
    assert answer.headers["Content-Range"] == content_range
    assert answer.headers["Content-Length"] == str(len(part))


@pytest.mark.parametrize("span", ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=999999999999-"])
def test_a_range_behind_the_end_is_416_and_tells_the_length(
    box: CheckedDaemon, digits: int, span: str
) -> None:
    answer = log(box, digits, span=span)
    assert answer.status == 416
    assert answer.headers["Content-Range"] == "bytes */10"


@pytest.mark.parametrize("span", ["lines=1-2", "bytes=a-b", "bytes=-", "bytes=1-2,4-5", "bytes"])
def test_what_is_no_single_range_of_bytes_is_ignored(
    box: CheckedDaemon, digits: int, span: str
) -> None:
    answer = log(box, digits, span=span)
    assert (answer.status, answer.body) == (200, TEXT)


def test_a_range_whose_ends_are_swapped_is_ignored(box: CheckedDaemon, digits: int) -> None:
    assert log(box, digits, span="bytes=5-2").status == 200


def test_the_whole_log_is_text_that_no_browser_takes_for_more(
    box: CheckedDaemon, digits: int
) -> None:
    answer = log(box, digits)
    assert (answer.status, answer.body) == (200, TEXT)
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Accept-Ranges"] == "bytes"


def test_every_byte_comes_as_it_was_written(box: CheckedDaemon) -> None:
    every = bytes(range(256)) * 4096
    source = box.home / "every"
    source.write_bytes(every)
    number = box.submit(["/bin/cat", str(source)])
    box.wait(number, outcome="succeeded")
    assert log(box, number).body == every
    assert log(box, number, span="bytes=255-258").body == b"\xff\x00\x01\x02"


@pytest.mark.parametrize(
    ("text", "lines", "tail"),
    [
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"a\nb\nc\n", 3, b"a\nb\nc\n"),
        (b"a\nb\nc\n", 99, b"a\nb\nc\n"),
        (b"a\nb\nc\n", 0, b""),
        (b"\n\n\n", 2, b"\n\n"),
        (b"", 5, b""),
        (b"x" * 300_000 + b"\n" + b"y" * 300_000 + b"\nlast\n", 2, b"y" * 300_000 + b"\nlast\n"),
    ],
)
def test_tail_counts_lines_from_the_end(
    box: CheckedDaemon, tmp_path: Path, text: bytes, lines: int, tail: bytes
) -> None:
    (tmp_path / "text").write_bytes(text)
    number = box.submit(["/bin/cat", str(tmp_path / "text")])
    box.wait(number, outcome="succeeded")
    assert log(box, number, f"?tail={lines}").body == tail
    assert log(box, number, f"?tail={lines}&follow=1").body == tail


@contextlib.contextmanager
def following(
    box: CheckedDaemon, number: int, query: str = "", **headers: str
) -> Iterator[UnixConnection]:
    with contextlib.closing(UnixConnection(box.socket)) as connection:
        connection.request("GET", f"/v1/jobs/{number}/log?follow=1{query}", headers=headers)
        yield connection


def read(answer: http.client.HTTPResponse, count: int) -> bytes:
    """Exactly so many bytes, as soon as they have come."""
    found = b""
    while len(found) < count:
        found += answer.read1(count - len(found))
    return found


def talker(box: CheckedDaemon, folder: Path) -> int:
    """A job that says what is written into `gate`, a line at a time, and ends after 'end'."""
    os.mkfifo(folder / "gate")
    script = (
        'echo hello; while read line; do echo "$line"; [ "$line" = end ] && break; done <> gate'
    )
    number = box.submit(script, workdir=str(folder))
    box.wait(number, "running")
    eventually(lambda: log(box, number).body == b"hello\n", what="its first line")
    return number


def test_follow_sends_what_is_there_and_then_every_line_as_it_comes(
    box: CheckedDaemon, tmp_path: Path
) -> None:
    number = talker(box, tmp_path)
    with following(box, number) as connection:
        answer = connection.getresponse()
        assert (answer.status, answer.headers["X-Log-Offset"]) == (200, "0")
        assert read(answer, 6) == b"hello\n"
        for word in (b"one\n", b"two\n", b"three\n"):
            (tmp_path / "gate").write_bytes(word)
            assert read(answer, len(word)) == word
        (tmp_path / "gate").write_bytes(b"end\n")
        assert answer.read() == b"end\n"
    box.wait(number, outcome="succeeded")


def test_follow_begins_where_it_is_asked_to(box: CheckedDaemon, tmp_path: Path) -> None:
    number = talker(box, tmp_path)
    with (
        following(box, number, Range="bytes=4-") as from_four,
        following(box, number, "&tail=0") as from_now,
        following(box, number, Range="bytes=8-") as from_later,
    ):
        answers = [c.getresponse() for c in (from_four, from_now, from_later)]
        assert [a.headers["X-Log-Offset"] for a in answers] == ["4", "6", "8"]
        (tmp_path / "gate").write_bytes(b"end\n")
        assert [a.read() for a in answers] == [b"o\nend\n", b"end\n", b"d\n"]


def test_follow_of_a_waiting_job_waits_for_its_start_and_ends_with_it(
    box: CheckedDaemon, tmp_path: Path
) -> None:
    blocker = box.submit("sleep 600", gpus=2)
    box.wait(blocker, "running")
    number = box.submit("echo ran", gpus=1)
    with following(box, number) as connection:
        assert box.job(number)["state"] == "queued"
        assert log(box, number).body == b""
        box.ask("DELETE", f"/v1/jobs/{blocker}?now=1")
        answer = connection.getresponse()
        assert (answer.headers["X-Traind-Attempt"], answer.read()) == ("1", b"ran\n")
    with following(box, blocker) as connection:
        assert connection.getresponse().read() == b""


def test_follow_of_a_job_that_never_starts_ends_when_it_is_cancelled(box: CheckedDaemon) -> None:
    number = box.submit("true", begin_at=FAR)
    with following(box, number) as connection:
        assert box.ask("DELETE", f"/v1/jobs/{number}").status == 200
        assert connection.getresponse().read() == b""


def test_followers_that_come_as_the_job_ends_all_get_its_end(box: CheckedDaemon) -> None:
    for _ in range(10):
        number = box.submit("echo only")
        with contextlib.ExitStack() as stack:
            followers = [stack.enter_context(following(box, number)) for _ in range(8)]
            assert [f.getresponse().read() for f in followers] == [b"only\n"] * 8


def test_every_attempt_has_its_own_log(box: CheckedDaemon) -> None:
    number = box.submit('echo "try $TRAIND_ATTEMPT"; [ $TRAIND_ATTEMPT = 2 ] || exit 75')
    box.wait(number, outcome="succeeded", attempt=2)
    logs = [log(box, number, query) for query in ("?attempt=1", "?attempt=2", "")]
    assert [answer.body for answer in logs] == [b"try 1\n", b"try 2\n", b"try 2\n"]
    assert [answer.headers["X-Traind-Attempt"] for answer in logs] == ["1", "2", "2"]
    with following(box, number, "&attempt=1") as connection:
        assert connection.getresponse().read() == b"try 1\n"
    missing = log(box, number, "?attempt=3")
    assert missing.status == 404
    assert "2 attempts" in missing.json["detail"]


def test_a_log_that_is_gone_or_no_file_any_more_is_404(box: CheckedDaemon) -> None:
    number = box.submit("echo secret")
    box.wait(number, outcome="succeeded")
    path = box.run_dir(number) / "log"
    for make in (
        lambda: None,
        lambda: path.symlink_to("/etc/passwd"),
        lambda: os.mkfifo(path),
        path.mkdir,
    ):
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        make()
        assert log(box, number).status == 404
        with following(box, number) as connection:
            assert connection.getresponse().read() == b""


def test_a_follower_that_hangs_up_leaves_nothing_behind(box: CheckedDaemon, tmp_path: Path) -> None:
    number = talker(box, tmp_path)

    def open_files() -> int:
        return len(os.listdir(f"/proc/{box.pid}/fd"))

    before = open_files()
    for _ in range(20):
        with following(box, number) as connection:
            connection.getresponse()
    # What the daemon opens meanwhile for other reasons is fewer than one for each follower.
    eventually(lambda: open_files() < before + 10, what="all descriptors to be closed")
    (tmp_path / "gate").write_bytes(b"end\n")
    box.wait(number, outcome="succeeded")


def test_a_follower_that_does_not_read_holds_up_nobody(box: CheckedDaemon) -> None:
    number = box.submit("head -c 20000000 /dev/zero; exec sleep 600")
    main = box.main_pid(number)
    with following(box, number):
        eventually(lambda: (box.run_dir(number) / "log").stat().st_size == 20_000_000, what="log")
        assert box.ask("GET", f"/v1/jobs/{number}").status == 200
        os.kill(main, signal.SIGKILL)
        box.wait(number, outcome="failed", signal="KILL")
