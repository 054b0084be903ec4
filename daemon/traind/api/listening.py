"""The doors as sockets: each lets in so many connections at once and tells the others to wait, and
drops who does not take what was sent.
"""

import asyncio
import json
import logging
import socket
import struct
from collections import Counter
from collections.abc import Callable

from traind.errors import ErrorCode
from traind.wire import problem

_PATIENCE_S = 1.0
_BACKLOG = 1024
"""How many may stand before a door at once; a connect beyond it fails where it has a timeout."""

_AT_A_STRETCH = 32
"""How many of them are let in before the event loop looks at anything else."""

log = logging.getLogger(__name__)


class Door:
    """A listening socket in front of the server; `most()` says how many connections it may have,
    and how many of one account, `patience_s()` for how long one may take nothing of an answer.

    Each door counts its own: strangers on TCP shut nobody out of the Unix socket.
    """

    def __init__(
        self,
        server: Callable[[], asyncio.Protocol],
        most: Callable[[], tuple[int, int]],
        patience_s: Callable[[], float],
    ) -> None:
        self._server = server
        self._most = most
        self.patience_s = patience_s
        self._open: Counter[int | None] = Counter()
        self._listening: asyncio.Server | None = None

    async def open(self, listener: socket.socket) -> None:
        """Serve whoever connects."""
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(
            lambda: _Guest(self), sock=listener, backlog=_AT_A_STRETCH
        )
        listener.listen(_BACKLOG)  # asyncio has one number for both

    def close(self) -> None:
        """Let nobody in any more; who is in stays."""
        if self._listening is not None:
            self._listening.close()

    def admit(self, transport: asyncio.Transport, uid: int | None) -> asyncio.Protocol | None:
        """Who serves one more connection; None when it was one too many, and was told so."""
        most, of_one = self._most()
        crowded = uid is not None and self._open[uid] >= of_one
        if crowded or self._open.total() >= most:
            transport.write(_refusal(of_one if crowded else most))
            asyncio.get_running_loop().call_later(_PATIENCE_S, transport.close)
            return None
        self._open[uid] += 1
        return self._server()

    def leave(self, uid: int | None) -> None:
        """One connection that was let in is over."""
        self._open[uid] -= 1


class _Guest(asyncio.Protocol):
    """One connection: everything is passed on to who serves it, and its end is noted.

    One that takes nothing for too long of what is sent to it, whatever that is, is dropped: nothing
    else would end it, as a connection is only closed once all was taken.
    """

    def __init__(self, door: Door) -> None:
        self._door = door
        self._host: asyncio.Protocol | None = None
        self._transport: asyncio.Transport | None = None
        self._uid: int | None = None
        self._look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let it in, or turn it away."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._uid = peer_uid(transport)
        self._host = self._door.admit(transport, self._uid)
        if self._host is not None:
            transport.set_write_buffer_limits(high=0)  # a byte that is not taken counts
            self._host.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._look_no_more()
        if self._host is not None:
            self._door.leave(self._uid)
            self._host.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """It asks; one that was turned away has its answer by now."""
        if self._host is not None:
            self._host.data_received(data)
        elif self._transport is not None:
            self._transport.close()

    def eof_received(self) -> bool | None:
        """It asks no more."""
        return None if self._host is None else self._host.eof_received()

    def pause_writing(self) -> None:
        """It does not take what it is sent."""
        self._look_again()
        if self._host is not None:
            self._host.pause_writing()

    def resume_writing(self) -> None:
        """It has taken everything."""
        self._look_no_more()
        if self._host is not None:
            self._host.resume_writing()

    def _look_again(self) -> None:
        assert self._transport is not None  # it was made
        left = self._transport.get_write_buffer_size()
        loop = asyncio.get_running_loop()
        self._look = loop.call_later(self._door.patience_s(), self._drop_stalled, left)

    def _look_no_more(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _drop_stalled(self, before: int) -> None:
        """Drop it unless it took some of what was left before; what came since waits behind."""
        assert self._transport is not None
        if self._transport.get_write_buffer_size() < before:
            self._look_again()
            return
        log.info("a stalled reader is dropped", extra={"uid": self._uid})
        self._transport.abort()


def peer_uid(transport: asyncio.BaseTransport | None) -> int | None:
    """Whose connection it is, by the kernel's word; None where it is not on a Unix socket."""
    connection = None if transport is None else transport.get_extra_info("socket")
    if connection is None or connection.family != socket.AF_UNIX:
        return None
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    uid: int = struct.unpack("iII", credentials)[1]
    return uid


def _refusal(most: int) -> bytes:
    detail = f"{most} connections are open, and this door takes no more; close some, or wait"
    view = problem(429, "Too many", detail, ErrorCode.TOO_MANY)
    body = json.dumps(view.model_dump(exclude_none=True)).encode()
    head = (
        "HTTP/1.1 429 Too Many Requests",
        "Content-Type: application/problem+json",
        "Retry-After: 1",
        "Connection: close",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join([*head, "", ""]).encode() + body
