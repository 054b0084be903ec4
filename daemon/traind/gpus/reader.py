"""One worker process as the daemon holds it: started, asked with a deadline, killed, never awaited.

The pipe is transparent: what the source in the worker raised is raised here.
"""

import asyncio
import json
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from traind.gpu import GpuReading, LeaseClaim
from traind.gpus.source import NoDriver, SourceError, claim_json, reading_of

log = logging.getLogger(__name__)


class ReaderEnded(Exception):
    """The worker process is gone; the text continues 'the process that reads the GPUs …'."""


class Reader(asyncio.SubprocessProtocol):
    """A worker process. `gone` is done when it has ended and its pipes are closed."""

    def __init__(self, on_news: Callable[[], None]) -> None:
        self._on_news = on_news
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.SubprocessTransport | None = None
        self._received = bytearray()
        self._asked = 0
        self._answer: asyncio.Future[dict[str, Any]] | None = None
        self._end: str | None = None

    @classmethod
    async def start(
        cls, state_dir: Path, simulate: str | None, on_news: Callable[[], None]
    ) -> "Reader":
        """A worker process of its own for these GPUs; `on_news` is called when it has some.

        Raises OSError when none can be started.
        """
        # -P: nothing in the directory the daemon was started in is imported.
        command = [sys.executable, "-P", "-m", "traind.gpus.worker", "--state-dir", str(state_dir)]
        if simulate is not None:
            command += ["--simulate", simulate]
        loop = asyncio.get_running_loop()
        _, reader = await loop.subprocess_exec(lambda: cls(on_news), *command, stderr=None)
        return reader

    async def ask(self, claims: Sequence[LeaseClaim], deadline_s: float) -> list[GpuReading]:
        """The reading of all GPUs. One question at a time.

        Raises NoDriver, SourceError, ReaderEnded, and TimeoutError after `deadline_s` seconds,
        when nothing but `kill` makes sense any more.
        """
        if self._end is not None:
            raise ReaderEnded(self._end)
        self._asked += 1
        self._answer = asyncio.get_running_loop().create_future()
        question = {"id": self._asked, "claims": [claim_json(claim) for claim in claims]}
        self._stdin().write(json.dumps(question).encode() + b"\n")
        async with asyncio.timeout(deadline_s):
            answer = await self._answer
        if "no_driver" in answer:
            raise NoDriver(answer["sentence"])
        if "error" in answer:
            raise SourceError(answer["error"])
        return [reading_of(raw) for raw in answer["readings"]]

    def kill(self) -> None:
        """SIGKILL it. One that hangs in the driver may live on: `gone` tells."""
        if self._transport is not None:
            with suppress(ProcessLookupError):
                self._transport.kill()

    def close(self) -> None:
        """Kill it and let go of its pipes, whether it dies or not."""
        if self._transport is not None:
            self._transport.close()

    def _stdin(self) -> asyncio.WriteTransport:
        assert self._transport is not None  # connection_made comes before start returns
        return cast(asyncio.WriteTransport, self._transport.get_pipe_transport(0))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio: the process was started."""
        self._transport = cast(asyncio.SubprocessTransport, transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Of asyncio: part of an answer."""
        self._received += data
        while (end := self._received.find(b"\n")) >= 0:
            line = bytes(self._received[:end])
            del self._received[: end + 1]
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if isinstance(answer, dict) and answer.get("news"):
            self._on_news()
        elif not isinstance(answer, dict) or answer.get("id") != self._asked:
            log.warning("GPU worker said something unasked", extra={"line": line[:200]})
        elif self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    def process_exited(self) -> None:
        """Of asyncio: the process ended."""
        status = self._transport.get_returncode() if self._transport is not None else None
        self._end = f"ended with status {status}"
        if status is not None and status < 0:
            self._end = f"was killed by signal {-status}"
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ReaderEnded(self._end))

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio: the process ended and all its pipes are closed."""
        self.close()
        if not self.gone.done():
            self.gone.set_result(None)
