"""Following a job: its log, its end, its exit status, through restarts of the daemon.

Only `Interrupts`, which `run` uses, ever touches the job; everybody else looks on.
"""

import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self, TypeVar

from traind.cli.client import Client
from traind.cli.errors import ClientError, Refused, Unreachable
from traind.cli.terminal import complain, safe

Answered = TypeVar("Answered")

AWAY_S = 60.0
LONG_POLL_S = 60
NOTE_AFTER_S = 2.0
_OWNING = ("starting", "running", "stopping")
_RANGE_BEYOND_END = 416


def exit_status(job: dict[str, Any]) -> int:
    """The job's code, 128+n for a signal, 1 where a failure has neither."""
    if job.get("signal"):
        number = _signal_number(str(job["signal"]))
        return 128 + number if number else 1
    if job.get("exit_code") is not None:
        return int(job["exit_code"]) & 0xFF
    return 0 if job.get("outcome") == "succeeded" else 1


def _signal_number(name: str) -> int | None:
    if name.isdecimal():
        return int(name)
    try:
        return int(signal.Signals["SIG" + name.removeprefix("SIG")])
    except KeyError:
        return None


def say_outcome(job: dict[str, Any]) -> None:
    """Says on stderr how a job ended that did not succeed, and what to ask for next time."""
    if job.get("outcome") != "succeeded":
        detail = (job.get("cause") or {}).get("detail")
        complain(f"job {job['id']} {job.get('outcome')}" + (f": {detail}" if detail else ""))
    for advice in job.get("advice") or ():
        complain(f"job {job['id']}: {advice}")


def job_of(client: Client, job_id: object) -> dict[str, Any]:
    """The job as it is now."""
    job: dict[str, Any] = client.call("GET", f"/v1/jobs/{job_id}").data
    return job


def wait_for(client: Client, job_id: object) -> dict[str, Any]:
    """The job once it is finished. **Blocks** until then."""

    def ask() -> dict[str, Any]:
        query = {"wait": LONG_POLL_S}
        reply = client.call("GET", f"/v1/jobs/{job_id}", query=query, timeout=LONG_POLL_S + 30)
        job: dict[str, Any] = reply.data
        return job

    while True:
        asked_at = time.monotonic()
        job = patiently(ask)
        if job["state"] == "finished":
            return job
        if time.monotonic() - asked_at < 1:
            time.sleep(1)


def patiently(ask: Callable[[], Answered]) -> Answered:
    """The answer, asked for again for up to a minute while the daemon is away.

    **Raises** ClientError: what it was refused for, or Unreachable after that minute.
    """
    away_since: float | None = None
    while True:
        try:
            answer = ask()
        except Unreachable:
            if away_since is None:
                away_since = time.monotonic()
                complain(f"the daemon is away; trying again for {AWAY_S:.0f} s, jobs run on")
            elif time.monotonic() - away_since > AWAY_S:
                raise
            time.sleep(0.25)
        else:
            if away_since is not None:
                complain("the daemon is back")
            return answer


def follow(
    client: Client,
    job_id: object,
    write: Callable[[bytes], None],
    *,
    attempt: int | None = None,
    tail: int | None = None,
) -> None:
    """Writes a job's log as it grows, attempt after attempt, until the job ends.

    With `attempt` only that one; with `tail` from its last lines on. **Blocks** until then.
    """
    number = attempt or int(patiently(lambda: job_of(client, job_id)).get("attempt") or 0)
    while True:
        _AttemptLog(client, job_id, number, tail).copy(write)
        if attempt is not None:
            return
        number = max(number, 1)
        tail = None
        job = patiently(lambda: job_of(client, job_id))
        while job["state"] != "finished" and int(job.get("attempt") or 0) <= number:
            time.sleep(1)
            job = patiently(lambda: job_of(client, job_id))
        if int(job.get("attempt") or 0) <= number:
            return
        number += 1
        complain(f"job {job_id} was started again: attempt {number}")


class _AttemptLog:
    """The log of one attempt (0: of the first, once it starts) and how far it was read.

    `offset` is None where it cannot be known: a tail that the daemon gave no offset for.
    """

    def __init__(self, client: Client, job_id: object, number: int, tail: int | None) -> None:
        self._client = client
        self._job_id = job_id
        self._number = number
        self._tail = tail
        self._offset: int | None = 0 if tail is None else None
        self._read_any = False
        self._failing_since: float | None = None

    def copy(self, write: Callable[[bytes], None]) -> None:
        """Writes it to its end; a lost connection is taken up where it was lost.

        Only a reading that began after the attempt's end is known to be the last.
        """
        pause_s = 0.0
        while True:
            ended = self._is_over()
            if ended and not self._number:
                return
            if not ended:
                time.sleep(pause_s)
            try:
                self._read(write, to_the_end=ended)
            except Unreachable as failure:
                self._bear(failure)
            except Refused:
                if ended or not self._is_over():
                    raise
            else:
                if ended:
                    return
            pause_s = min(2 * pause_s + 0.1, 2.0)

    def _is_over(self) -> bool:
        """Whether this attempt has ended, or the job without any."""
        job = patiently(lambda: job_of(self._client, self._job_id))
        begun = int(job.get("attempt") or 0)
        if begun and not self._number:
            self._number = 1
        runs = job["state"] in _OWNING and begun == self._number
        return job["state"] == "finished" or (begun >= max(self._number, 1) and not runs)

    def _bear(self, failure: Unreachable) -> None:
        """Says that the log is taken up again. **Raises** it after a minute without a byte."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
            complain(f"{failure.sentence}; taking the log up again")
        elif now - self._failing_since > AWAY_S:
            raise failure

    def _read(self, write: Callable[[bytes], None], *, to_the_end: bool) -> None:
        query: dict[str, str | int] = {} if to_the_end else {"follow": 1}
        if self._number:
            query["attempt"] = self._number
        if self._tail is not None and not self._offset:
            query["tail"] = 0 if self._read_any else self._tail
        head = {"Range": f"bytes={self._offset}-"} if self._offset else {}
        path = f"/v1/jobs/{self._job_id}/log"
        try:
            answer = self._client.request("GET", path, query=query, headers=head, timeout=None)
        except Refused as refused:
            if refused.status == _RANGE_BEYOND_END:
                return
            raise
        skip = (self._offset or 0) if answer.status == 200 else 0
        if self._offset is None and answer.headers.get("x-log-offset", "").isdecimal():
            self._offset = int(answer.headers["x-log-offset"])
            skip = 0
        for block in answer.blocks():
            self._read_any = True
            self._failing_since = None
            fresh = block[skip:]
            skip -= len(block) - len(fresh)
            if self._offset is not None:
                self._offset += len(fresh)
            if fresh:
                write(fresh)


class Interrupts:
    """Ctrl-C of `run`: the first cancels the job with grace, the second kills it, a third leaves.

    It also says once why the job waits, if it still does after a moment. Both are done inside
    signal handlers, so a log that is being read is not disturbed. A lost terminal (SIGHUP) ends
    this client as it ends any, and leaves the job alone.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._job_id: object = None
        self._count = 0

    def __enter__(self) -> Self:
        signal.signal(signal.SIGINT, self._interrupted)
        signal.signal(signal.SIGALRM, self._say_why_it_waits)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def attend(self, job_id: object) -> None:
        """From now on this job is meant; a Ctrl-C that came before counts."""
        self._job_id = job_id
        signal.setitimer(signal.ITIMER_REAL, NOTE_AFTER_S)
        if self._count:
            self._stop()

    def _interrupted(self, _number: int, _frame: FrameType | None) -> None:
        self._count += 1
        if self._count > 2 or (self._job_id is None and self._count > 1):
            raise KeyboardInterrupt
        if self._job_id is not None:
            self._stop()

    def _stop(self) -> None:
        if self._count == 1:
            _note(f"cancelling job {self._job_id}; Ctrl-C again kills it")
        else:
            _note(f"killing job {self._job_id}; Ctrl-C again leaves it alone")
        query = {"now": 1} if self._count > 1 else None
        try:
            self._client.call("DELETE", f"/v1/jobs/{self._job_id}", query=query)
        except Unreachable as failure:
            self._count = 0
            _note(f"{failure.sentence}; job {self._job_id} was not told, try Ctrl-C again")
        except ClientError as failure:
            _note(failure.sentence)

    def _say_why_it_waits(self, _number: int, _frame: FrameType | None) -> None:
        try:
            job = job_of(self._client, self._job_id)
        except ClientError:
            return
        if job["state"] in ("queued", "held") and job.get("reason"):
            _note(f"job {self._job_id} waits: {job['reason'].get('detail')}")


def _note(sentence: str) -> None:
    """Says something from inside a signal handler, where a buffered stream may be in use."""
    os.write(2, f"traind: {safe(sentence)}\n".encode())
