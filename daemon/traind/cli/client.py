"""The daemon as the verbs see it: found by its socket, asked over HTTP, its refusals as errors."""

from __future__ import annotations

import _socket
import json
import os

from traind import __version__
from traind.cli.errors import (
    Busy,
    ClientError,
    ConnectionLost,
    NotAllowed,
    NotFound,
    Refused,
    Unavailable,
    Unreachable,
    UsageError,
)
from traind.cli.http import Answer, exchange, target_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

SYSTEM_SOCKET = "/run/traind/traind.sock"
SOCKET_PATH_BYTES = 107
ANSWER_WITHIN_S = 30.0
RETRY_PAUSES_S = (0.2, 0.5, 1.0, 2.0)

_START_ONE = "start one with `traind serve`, or name its socket with --socket or TRAIND_SOCKET"


class Reply:
    """A JSON answer: its status, its bytes as they came, and what they say."""

    def __init__(self, status: int, raw: bytes) -> None:
        self.status = status
        self.raw = raw
        try:
            self.data: Any = json.loads(raw) if raw else None
        except ValueError:
            raise Unavailable("the daemon's answer is not JSON; is it traind's socket?") from None


class Client:
    """One daemon. The socket that answered first is kept: another one is another daemon.

    A socket that is named outweighs TRAIND_URL, and that outweighs every other.
    """

    def __init__(self, socket_path: str | None, environ: Mapping[str, str]) -> None:
        url = environ.get("TRAIND_URL") if socket_path is None else None
        self._address = address_of(url) if url else None
        self._token = environ.get("TRAIND_TOKEN") if url else None
        self._candidates = [] if url else socket_candidates(socket_path, environ)

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = ANSWER_WITHIN_S,
    ) -> Answer:
        """The answer, its body unread. **Raises** ClientError for every refusal."""
        head = {"User-Agent": f"traind/{__version__}", **(headers or {})}
        if self._token:
            head["Authorization"] = f"Bearer {_header_text(self._token)}"
        content = None
        if body is not None:
            head["Content-Type"] = "application/json"
            content = json.dumps(body, allow_nan=False).encode()
        connection = self._connect(timeout) if self._address is None else self._dial(timeout)
        target = target_of(path, query)
        answer = exchange(connection, method, target, headers=head, body=content)
        if answer.status >= 400:
            raise refusal(answer.status, answer.read())
        return answer

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = ANSWER_WITHIN_S,
    ) -> Reply:
        """The JSON answer. **Raises** ClientError for every refusal."""
        answer = self.request(
            method, path, query=query, body=body, headers=headers, timeout=timeout
        )
        return Reply(answer.status, answer.read())

    def submit(self, order: Mapping[str, object]) -> Reply:
        """The job as it was accepted, once: what got lost is sent again under the same key."""
        import time

        key = {"Idempotency-Key": _random_uuid()}
        sent = False
        last_at = time.monotonic() + ANSWER_WITHIN_S
        for pause_s in (*RETRY_PAUSES_S, None):
            try:
                return self.call("POST", "/v1/jobs", body=order, headers=key)
            except Unreachable as failure:
                sent = sent or isinstance(failure, ConnectionLost | Unavailable)
                if not sent:
                    raise
                if pause_s is None or time.monotonic() > last_at:
                    raise Unreachable(
                        f"{failure.sentence}; whether the job was accepted is not known: "
                        "`traind ls --me` tells"
                    ) from None
                time.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    def _dial(self, timeout: float | None) -> _socket.socket:
        """A connection to the daemon of TRAIND_URL."""
        host, port = self._address or ("", 0)
        why = "no such host"
        try:
            found = _socket.getaddrinfo(host, port, 0, _socket.SOCK_STREAM)
        except OSError as failure:
            found, why = [], _why_not(failure)
        for family, kind, protocol, _, place in found:
            connection = _socket.socket(family, kind, protocol)
            connection.settimeout(timeout)
            try:
                connection.connect(place)
            except OSError as failure:
                connection.close()
                why = _why_not(failure)
            else:
                return connection
        raise Unreachable(f"no traind daemon is reachable at {host}:{port} of TRAIND_URL ({why})")

    def _connect(self, timeout: float | None) -> _socket.socket:
        tried: list[str] = []
        denied = False
        for path in self._candidates:
            connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
            connection.settimeout(timeout)
            try:
                connection.connect(os.fsencode(path))
            except OSError as failure:
                connection.close()
                denied = denied or isinstance(failure, PermissionError)
                tried.append(f"{path} ({_why_not(failure)})")
            else:
                self._candidates = [path]
                return connection
        places = ", ".join(tried)
        if denied:
            raise NotAllowed(f"you may not use the daemon's socket; tried {places}", 403)
        raise Unreachable(f"no traind daemon is reachable; tried {places}; {_START_ONE}")


def address_of(url: str) -> tuple[str, int]:
    """(host, port) of a daemon's URL. **Raises** UsageError for what is no plain HTTP one."""
    rest = url.removeprefix("http://").rstrip("/")
    host, colon, port = rest.rpartition(":")
    if not url.startswith("http://") or not (colon and host and port.isdecimal()) or "/" in rest:
        raise UsageError(f"TRAIND_URL is http://HOST:PORT, such as http://127.0.0.1:7979; {url!r}")
    return host.strip("[]"), int(port)


def _header_text(text: str) -> str:
    if not (text.isascii() and text.isprintable()):
        raise UsageError("TRAIND_TOKEN is no token: it has characters that no token has")
    return text


def socket_candidates(explicit: str | None, environ: Mapping[str, str]) -> list[str]:
    """Where a daemon may listen, the likeliest first; a named socket is the only one.

    **Raises** UsageError for a name that is too long. **Source**: unix(7).
    """
    named = explicit or environ.get("TRAIND_SOCKET")
    if named:
        if len(os.fsencode(named)) > SOCKET_PATH_BYTES:
            raise UsageError(
                f"the socket's path has {len(os.fsencode(named))} bytes, and Linux takes "
                f"{SOCKET_PATH_BYTES}: choose a shorter one, such as a link in /tmp; {named}"
            )
        return [named]
    state_home = environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    homes = [home for home in (environ.get("XDG_RUNTIME_DIR"), state_home) if home]
    places = [SYSTEM_SOCKET, *(os.path.join(home, "traind", "traind.sock") for home in homes)]
    return [path for path in places if len(os.fsencode(path)) <= SOCKET_PATH_BYTES]


def refusal(status: int, raw: bytes) -> ClientError:
    """The error of a problem document: its sentence, and the fields that are not in it."""
    try:
        problem = json.loads(raw)
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {}
    sentence = str(problem.get("detail") or problem.get("title") or f"HTTP status {status}")
    for error in problem.get("errors") or ():
        message = str(error.get("message"))
        if message not in sentence:
            sentence += f"\n  {error.get('field')}: {message}"
    if status in (401, 403):
        return NotAllowed(sentence, status)
    if status == 404:
        return NotFound(sentence, status)
    if status == 429:
        return Busy(sentence, status)
    if status == 503:
        return Unavailable(f"the daemon cannot do it now: {sentence}")
    if status >= 500:
        return Refused(f"the daemon failed at it, its log says why: {sentence}", status)
    return Refused(sentence, status)


def _why_not(failure: OSError) -> str:
    if isinstance(failure, FileNotFoundError):
        return "there is none"
    if isinstance(failure, ConnectionRefusedError):
        return "nobody listens"
    if isinstance(failure, TimeoutError):
        return "it does not answer"
    return (failure.strerror or str(failure)).lower()


def _random_uuid() -> str:
    """A version 4 UUID without the module's import. Source: RFC 9562, section 5.4."""
    octets = bytearray(os.urandom(16))
    octets[6] = octets[6] & 0x0F | 0x40
    octets[8] = octets[8] & 0x3F | 0x80
    text = octets.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
