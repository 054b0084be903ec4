"""The daemon's line to its launcher; when the launcher dies, to the next one."""

import asyncio
import grp
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import traind
from traind.errors import TraindError
from traind.runner.launcher import PROTOCOL

_LIMIT = 1 << 20
_START_DEADLINE_S = 10.0

Message = dict[str, Any]
log = logging.getLogger(__name__)


class LauncherGoneError(Exception):
    """The launcher went away before it answered; whether it acted is not known."""


class LauncherRefusedError(Exception):
    """The launcher answered that it could not, and why."""


class LauncherLink:
    """Keeps a connection to a launcher: the one at `external`, or one of the daemon's own.

    `fault` is the sentence why nothing can be started now, None while it works. `met` is set once
    a launcher answered, after `on_meeting` was told the highest id of a job that has a run
    directory. `others`: whether jobs run as other accounts; None: that is not known yet.
    `gpu_group` is what a job with GPUs is given besides where these are `fenced`, None elsewhere.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        external: Path | None,
        cgroups: str,
        fenced: bool,
        test_mode: bool,
        on_change: Callable[[], None],
        on_meeting: Callable[[int], Awaitable[None]],
    ) -> None:
        self.fault: str | None = "the launcher has not answered yet"
        self.pid: int | None = None
        self.met = asyncio.Event()
        self.others: bool | None = False if external is None else None
        self.gpu_group: str | None = None
        self._state_dir = state_dir
        self._external = external
        self._socket = external or state_dir / "launcher.sock"
        self._cgroups = cgroups
        self._fenced = fenced
        self._test_mode = test_mode
        self._on_change = on_change
        self._on_meeting = on_meeting
        self._writer: asyncio.StreamWriter | None = None
        self._answers: dict[int, asyncio.Future[Message]] = {}
        self._next = 0

    async def run(self) -> None:
        """Connect, read answers, and connect again whenever the launcher goes. Never returns."""
        delay_s = 0.05
        while True:
            try:
                await self._serve()
                delay_s = 0.05
            except (OSError, LauncherGoneError, LauncherRefusedError, TraindError) as error:
                self._set_fault(f"the launcher cannot be reached: {error}")
                delay_s = min(delay_s * 2, 5.0)
            await asyncio.sleep(delay_s)

    async def _serve(self) -> None:
        reader, writer = await self._connect()
        reading = asyncio.create_task(self._read(reader))
        self._writer = writer
        try:
            hello = await self.ask({"op": "hello"})
            if hello["protocol"] != PROTOCOL:
                raise LauncherRefusedError(
                    f"it speaks protocol {hello['protocol']}, not {PROTOCOL}"
                )
            await self._on_meeting(hello["highest_run"])
            self.pid, self.others = hello["pid"], hello["others"]
            self.met.set()
            log.info("launcher connected", extra={"pid": self.pid, "cgroups": hello["cgroups"]})
            fault = await asyncio.to_thread(_fence_fault, hello) if self._fenced else None
            self.gpu_group = hello["gpu_group"] if self._fenced else None
            self._set_fault(fault)
            await reading
        finally:
            self._writer = None
            reading.cancel()
            writer.close()
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(LauncherGoneError("the launcher went away"))
            self._answers.clear()
            self._set_fault("the launcher went away; a new one is being started")

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await self._open()
        except OSError:
            if self._external is not None:
                raise
        self._spawn()
        async with asyncio.timeout(_START_DEADLINE_S):
            while True:
                try:
                    return await self._open()
                except OSError:
                    await asyncio.sleep(0.01)

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        folder = os.open(self._socket.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:  # an address holds 107 bytes only
            address = f"/proc/self/fd/{folder}/{self._socket.name}"
            return await asyncio.open_unix_connection(address, limit=_LIMIT)
        finally:
            os.close(folder)

    def _spawn(self) -> None:
        """Start a launcher of our own, which outlives this daemon for as long as jobs run."""
        source = str(Path(traind.__file__).parent.parent)
        program = (
            f"import sys; sys.path.insert(0, {source!r}); "
            "from traind.runner.launcher import main; main()"
        )
        command = [sys.executable, "-I", "-S", "-c", program]
        command += ["--state-dir", str(self._state_dir), "--socket", str(self._socket)]
        command += ["--cgroups", self._cgroups, "--until-idle"]
        command += ["--test-mode"] if self._test_mode else []
        keep = ("PATH", "LANG", "HOME", "TZ", "TRAIND_STOP_AT")
        environment = {name: os.environ[name] for name in keep if name in os.environ}
        log_path = str(self._state_dir / "launcher.log")
        pid = os.posix_spawn(
            sys.executable,
            command,
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
        pidfd = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(pidfd, _reap, pid, pidfd)
        log.info("launcher started", extra={"pid": pid})

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            message = json.loads(line)
            answer = self._answers.pop(message["id"], None)
            if answer is not None and not answer.done():
                answer.set_result(message)

    def _set_fault(self, fault: str | None) -> None:
        if fault != self.fault:
            self.fault = fault
            self._on_change()

    async def ask(self, message: Message) -> Message:
        """The answer. Raises LauncherGoneError, or LauncherRefusedError with the reason."""
        if self._writer is None:
            raise LauncherGoneError(self.fault or "the launcher is not connected")
        self._next += 1
        number = self._next
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._answers[number] = future
        self._writer.write(json.dumps({"id": number, **message}).encode() + b"\n")
        answer = await future
        if "error" in answer:
            raise LauncherRefusedError(answer["error"])
        return answer

    async def persist(self, message: Message) -> Message:
        """The answer to what may be asked again, however often the launcher goes meanwhile."""
        while True:
            try:
                return await self.ask(message)
            except LauncherGoneError:
                await asyncio.sleep(0.05)


def _fence_fault(hello: Message) -> str | None:
    """Why jobs with GPUs cannot be given the group of these; None where they can.

    **Blocks** for the name service.
    """
    if not hello["others"]:
        return "[gpus] fence wants a launcher that is root: only that can give jobs a group"
    group = hello["gpu_group"]
    try:
        grp.getgrnam(group)
    except KeyError:
        make = f"`groupadd --system {group}`, and start traind again"
        return f"[gpus] fence wants the group {group}, which does not exist: {make}"
    return None


def _reap(pid: int, pidfd: int) -> None:
    asyncio.get_running_loop().remove_reader(pidfd)
    os.close(pidfd)
    os.waitpid(pid, 0)
