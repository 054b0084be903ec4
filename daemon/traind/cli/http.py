"""HTTP/1.1 over a Unix socket, one request a connection: as much of it as the daemon speaks.

`http.client` and `socket` take longer to import than the rest of a `submit` lasts, hence this, on
`_socket` (the C half of `socket`). Source: RFC 9112.
"""

from __future__ import annotations

import _socket

from traind.cli.errors import ConnectionLost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_BLOCK = 65536
_LINE_MAX = 65536
_UNRESERVED = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")


class Answer:
    """A status, headers with lower-case names, and a body to be read once.

    **Blocks** while the daemon sends nothing, for the timeout of the request at most.
    **Raises** ConnectionLost when the body ends before its end.
    """

    def __init__(self, connection: _socket.socket) -> None:
        self._connection = connection
        self._buffer = b""
        self.status = 0
        self.headers: dict[str, str] = {}
        while self.status < 200:
            self._read_head()

    def blocks(self) -> Iterator[bytes]:
        """The body as it comes, whole chunks or parts of them."""
        try:
            if self.headers.get("transfer-encoding", "").lower() == "chunked":
                yield from self._chunks()
            elif "content-length" in self.headers:
                yield from self._exactly(int(self.headers["content-length"]))
            elif self.status not in (204, 304):
                yield from self._rest()
        except ValueError:
            raise ConnectionLost("the daemon's answer is not HTTP") from None
        finally:
            self.close()

    def read(self) -> bytes:
        """The whole body."""
        return b"".join(self.blocks())

    def close(self) -> None:
        """Ends the connection, wherever it stands."""
        self._connection.close()

    def _read_head(self) -> None:
        version, _, rest = self._line().partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
            raise ConnectionLost("what answers on this socket does not speak HTTP")
        self.status = int(rest[:3])
        self.headers = {}
        while line := self._line():
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self._line().partition(";")[0], 16):
            yield from self._exactly(size)
            self._line()
        while self._line():
            pass

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size > 0:
            block = self._some()
            if not block:
                raise ConnectionLost("the daemon went away in the middle of its answer")
            yield block[:size]
            self._buffer, size = block[size:], size - len(block)

    def _rest(self) -> Iterator[bytes]:
        while block := self._some():
            yield block

    def _some(self) -> bytes:
        """What lies in the buffer, else what comes next; empty at the end."""
        if self._buffer:
            block, self._buffer = self._buffer, b""
            return block
        try:
            return self._connection.recv(_BLOCK)
        except TimeoutError:
            raise ConnectionLost("the daemon does not answer") from None
        except OSError as failure:
            raise ConnectionLost(f"the connection broke: {failure.strerror}") from None

    def _line(self) -> str:
        line = b""
        while b"\n" not in line:
            block = self._some()
            if not block or len(line) > _LINE_MAX:
                raise ConnectionLost("the daemon went away before its answer was complete")
            line += block
        line, _, self._buffer = line.partition(b"\n")
        return line.rstrip(b"\r").decode("latin-1")


def exchange(
    connection: _socket.socket,
    method: str,
    target: str,
    *,
    headers: Mapping[str, str],
    body: bytes | None,
) -> Answer:
    """Sends a request and gives the answer, its body unread. **Raises** ConnectionLost."""
    lines = [f"{method} {target} HTTP/1.1", "Host: traind", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    message = "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")
    try:
        connection.sendall(message)
    except TimeoutError:
        connection.close()
        raise ConnectionLost("the daemon does not answer") from None
    except OSError:
        pass  # a body that is too large is refused before it was read: the answer says so
    try:
        return Answer(connection)
    except ConnectionLost:
        connection.close()
        raise


def target_of(path: str, query: Mapping[str, str | int] | None = None) -> str:
    """The request target of a path and a query, percent-encoded where it has to be."""
    if not query:
        return path
    return path + "?" + "&".join(f"{name}={_quoted(str(text))}" for name, text in query.items())


def _quoted(text: str) -> str:
    octets = text.encode("utf-8", "surrogateescape")
    return "".join(chr(o) if o in _UNRESERVED else f"%{o:02X}" for o in octets)
