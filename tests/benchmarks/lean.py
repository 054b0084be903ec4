"""The leanest client there is: raw HTTP on one connection, so that the server is what is timed."""

import json
import selectors
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_CHUNK = 1 << 18

Address = Path | tuple[str, int]
"""A Unix socket, or host and port."""


def request(method: str, path: str, body: object = None) -> bytes:
    """A request, laid out before the clock starts."""
    raw = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: traind\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw


class Connection:
    """One keep-alive connection, closed with its block."""

    def __init__(self, address: Address) -> None:
        if isinstance(address, Path):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(str(address))
        else:
            self.socket = socket.create_connection(address)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.socket.close()

    def send(self, raw: bytes) -> None:
        """Send a whole request."""
        self.socket.sendall(raw)

    def receive(self) -> tuple[int, bytes] | None:
        """Status and body once all of an answer is there; waits for one more piece of it."""
        piece = self.socket.recv(_CHUNK)
        assert piece, "the server hung up"
        self._received += piece
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            return None
        size = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(rest) < size:
            return None
        self._received = rest[size:]
        return int(head[9:12]), rest[:size]

    def ask(self, raw: bytes, *, status: int) -> bytes:
        """The body of the answer, which has this status."""
        self.send(raw)
        answer = self.receive()
        while answer is None:
            answer = self.receive()
        assert answer[0] == status, answer
        return answer[1]

    def json(self, raw: bytes, *, status: int) -> Any:
        """The answer's body as JSON."""
        return json.loads(self.ask(raw, status=status))


def per_second(address: Address, raw: bytes, *, connections: int, count: int, status: int) -> float:
    """Answers per second when so many connections ask, each again as soon as it is answered."""
    with selectors.DefaultSelector() as selector:
        opened = [Connection(address) for _ in range(connections)]
        for connection in opened:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        sent = answered = 0
        began = time.perf_counter()
        for connection in opened:
            connection.send(raw)
            sent += 1
        while answered < count:
            for key, _ in selector.select():
                answer = key.data.receive()
                if answer is None:
                    continue
                assert answer[0] == status, answer
                answered += 1
                if sent < count:
                    key.data.send(raw)
                    sent += 1
        spent = time.perf_counter() - began
        for connection in opened:
            connection.socket.close()
    return count / spent
