"""Watches over attempts: starts them through the launcher, adopts them, and finds out their end.

What it concludes rests on the run directory alone, never on a pid alone.
"""

import asyncio
import logging
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from traind.errors import ErrorCode, TraindError
from traind.hub import Hub
from traind.job import Exit, Lost, NeverStarted
from traind.runner import rundir
from traind.runner.errand import descendants, members, start_time
from traind.runner.link import LauncherGoneError, LauncherLink, LauncherRefusedError
from traind.runner.proofs import exit_of, lock_held

Key = tuple[int, int]
"""(job id, attempt number)"""

Ending = Exit | Lost | NeverStarted

_DELETE_PAUSE_MAX_S = 20.0
"""How long the last pause may be while a large tree is deleted; the next night goes on with it."""

_LAUNCHER_BACK_S = 10.0
"""How long a launcher may take to come back, or to answer, before files stay for another time."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Live:
    """An attempt whose shim lives; `pidfd` is readable once it is gone, and is the caller's.
    `cgroup` is its job's, None where it has none.
    """

    pid: int
    pidfd: int
    cgroup: str | None


class Supervisor:
    """The daemon's hands on processes; every attempt it knows is live or has an ending to take."""

    def __init__(self, state_dir: Path, link: LauncherLink, hub: Hub) -> None:
        self._state_dir = os.path.realpath(state_dir)
        self._link = link
        self._hub = hub
        self._live: dict[Key, Live] = {}
        self._endings: list[tuple[Key, Ending]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking = ThreadPoolExecutor(max_workers=1, thread_name_prefix="processes")

    def path(self, key: Key) -> Path:
        """The attempt's run directory."""
        return Path(rundir.attempt_path(self._state_dir, *key))

    async def launch(self, spec: dict[str, Any]) -> bool:
        """Start an attempt; True once its shim is forked. Otherwise its ending comes by itself."""
        key = (int(spec["job"]), int(spec["attempt"]))
        try:
            answer = await self._link.ask({"op": "start", "spec": spec})
        except LauncherRefusedError as refused:
            await self._give_up(key, f"the launcher could not start it: {refused}")
            return False
        except LauncherGoneError:
            return await self.adopt(key)
        if answer["answer"] == "started":
            return await self.adopt(key)
        log.warning("run directory already there", extra={"job": key[0], "attempt": key[1]})
        return await self.adopt(key)

    async def _give_up(self, key: Key, why: str) -> None:
        """Make sure that the attempt can never start, then report that it did not."""
        if await self._bury(key):
            self._report(key, NeverStarted(detail=why))
        else:
            await self.adopt(key)

    async def _bury(self, key: Key) -> bool:
        """Whether a tombstone now stands where the attempt would have started."""
        while True:
            try:
                answer = await self._link.ask({"op": "abort", "job": key[0], "attempt": key[1]})
                return bool(answer["answer"] == "tombstone")
            except LauncherRefusedError as refused:
                log.warning("no tombstone could be set", extra={"why": refused})
            except LauncherGoneError:
                pass
            if self.path(key).exists():
                return False
            await asyncio.sleep(0.2)

    async def adopt(self, key: Key, *, rebooted: bool = False) -> bool:
        """Find out how the attempt stands: True when it lives and is watched from now on.

        Otherwise its ending is there to be taken, or comes once everything of it is ended. What
        began before the machine `rebooted` is over: only an exit that was recorded is believed.
        """
        found = self._remains(key) if rebooted else await self._resolve(key)
        if isinstance(found, Live):
            self._live[key] = found
            loop = asyncio.get_running_loop()
            loop.add_reader(found.pidfd, self._on_gone, key)
            return True
        if isinstance(found, Exit) or (isinstance(found, Lost) and found.reboot):
            self._report(key, found)
        else:
            self._spawn(self._end_left_overs(key, found))
        return False

    def _remains(self, key: Key) -> Exit | Lost:
        """How an attempt of another boot ended: as recorded, or with the machine."""
        record = rundir.read_record(str(self.path(key)), "exit.json")
        return exit_of(record) if record else Lost(reboot=True)

    async def _resolve(self, key: Key) -> Live | Ending:
        """What the run directory proves; waits while somebody is between two steps."""
        path = str(self.path(key))
        delay_s = 0.002
        while True:
            try:
                found = self._look(path)
            except FileNotFoundError:
                # Nothing there: whoever renames first decides, a start in flight or our tombstone.
                if await self._bury(key):
                    return NeverStarted(detail="it had not been started when the daemon stopped")
                continue
            if found is not None:
                return found
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, 0.1)

    def _look(self, path: str) -> Live | Ending | None:
        """One look at the run directory; None while it is between two steps.

        The lock is asked first: what was written before it was dropped is then seen.
        """
        if os.path.exists(f"{path}/tombstone"):
            return NeverStarted(detail="it had not been started when the daemon stopped")
        held = lock_held(path)
        record = rundir.read_record(path, "exit.json")
        if record:
            return exit_of(record)
        shim = rundir.read_record(path, "shim.json")
        if held:
            return _watchable(shim) if shim else None
        if not rundir.read_record(path, "exec.intent"):
            return NeverStarted(detail="its supervisor ended before the command was started")
        return Lost(reboot=False)

    def _on_gone(self, key: Key) -> None:
        live = self._live.pop(key)
        asyncio.get_running_loop().remove_reader(live.pidfd)
        os.close(live.pidfd)
        self._spawn(self._conclude(key))

    async def _conclude(self, key: Key) -> None:
        await self.adopt(key)

    async def _end_left_overs(self, key: Key, ending: Lost | NeverStarted) -> None:
        """Kill what is left of an attempt without a shim, until nothing is seen of it."""
        shim = rundir.read_record(str(self.path(key)), "shim.json")
        cgroup = shim.get("cgroup") or "none, so what hid its environment may not be found"
        facts = {"job": key[0], "attempt": key[1], "cgroup": cgroup}
        if isinstance(ending, Lost):
            log.warning("shim lost, ending what is left", extra=facts)
        order = _kill_order(key)
        delay_s = 0.005
        while True:
            try:
                if (await self._link.persist(order))["seen"] == 0:
                    break
            except LauncherRefusedError as refused:
                log.warning("not all could be ended yet", extra={**facts, "why": refused})
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, 1.0)
        self._report(key, ending)

    def _report(self, key: Key, ending: Ending) -> None:
        self._endings.append((key, ending))
        self._hub.wake()

    def take_endings(self) -> list[tuple[Key, Ending]]:
        """The endings found since this was last asked, in the order in which they were found."""
        endings, self._endings = self._endings, []
        return endings

    def give_back(self, key: Key, ending: Ending) -> None:
        """Put an ending back that could not be stored, to be taken again."""
        self._endings.append((key, ending))

    async def announce(self, key: Key, *, reason: str, deadline_at: datetime) -> None:
        """Put the stop file where the job looks for it."""
        stop = {"reason": reason, "deadline": deadline_at.timestamp()}
        await self._tell({"op": "announce", "job": key[0], "attempt": key[1], "stop": stop})

    async def signal(self, key: Key, name: str, *, everyone: bool) -> bool:
        """Send a signal (a name without SIG) to the main process, or to all of the attempt.

        False when there is nobody yet, or nobody any more, to get it.
        """
        scope = "all" if everyone else "main"
        order = {"op": "signal", "job": key[0], "attempt": key[1], "signal": name, "scope": scope}
        return await self._tell(order) == "sent"

    async def kill(self, key: Key) -> None:
        """SIGKILL to everything of the attempt."""
        await self._tell(_kill_order(key))

    async def delete(self, key: Key, *, keep_log: bool) -> bool:
        """Delete the files of an ended attempt, all or all but its log; whether they are gone.

        Raises UNAVAILABLE when there is no launcher to do it, nor a new one within seconds.
        """
        order = {"op": "delete", "job": key[0], "attempt": key[1], "keep_log": keep_log}
        delay_s = 0.005
        while delay_s < _DELETE_PAUSE_MAX_S:
            if self._has_shim(key):
                await asyncio.sleep(delay_s)  # it outlives its exit.json by a moment
                delay_s *= 1.5
                continue
            try:
                async with asyncio.timeout(_LAUNCHER_BACK_S):
                    answer = (await self._link.persist(order))["answer"]
            except TimeoutError:
                sentence = "nothing more can be deleted now: the launcher cannot be reached"
                raise TraindError(ErrorCode.UNAVAILABLE, sentence) from None
            except LauncherRefusedError as refused:
                log.warning("not deleted", extra={"job": key[0], "why": refused})
                return False
            if answer == "deleted":
                return True
            await asyncio.sleep(delay_s)
            delay_s *= 1.5
        log.warning("run directory not emptied yet", extra={"job": key[0], "attempt": key[1]})
        return False

    def _has_shim(self, key: Key) -> bool:
        try:
            return lock_held(str(self.path(key)))
        except OSError:  # a tombstone, or nothing
            return False

    async def _tell(self, order: dict[str, Any]) -> str | None:
        try:
            answer: str = (await self._link.ask(order))["answer"]
        except (LauncherGoneError, LauncherRefusedError) as error:
            log.warning("the launcher did not do it", extra={"op": order["op"], "why": error})
            return None
        return answer

    def pids(self, key: Key) -> tuple[int, ...]:
        """The processes of a live attempt, its shim first; none of one that is over."""
        live = self._live.get(key)
        if live is None:
            return ()
        inside = members(live.cgroup) if live.cgroup else []
        return tuple(dict.fromkeys((live.pid, *descendants(live.pid), *inside)))

    def job_of(self, pid: int) -> int | None:
        """The job of the live attempt that a process is below, None when it is of none."""
        shims = {live.pid: key[0] for key, live in self._live.items()}
        while pid > 1:
            if pid in shims:
                return shims[pid]
            try:
                pid = int(rundir.stat_fields(pid)[1])
            except OSError:
                return None
        return None

    async def seen(self, keys: Iterable[Key]) -> dict[Key, tuple[int, ...]]:
        """The processes of attempts as `pids` has them; they may be thousands, so a thread looks.

        It is a thread of its own: a name service that hangs may have all of the usual ones.
        """
        wanted = tuple(keys)
        if not wanted:
            return {}
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._looking, lambda: {key: self.pids(key) for key in wanted}
        )

    def _spawn(self, coroutine: Any) -> None:  # noqa: ANN401 any coroutine
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Stop watching; the attempts go on."""
        for task in self._tasks:
            task.cancel()
        for live in self._live.values():
            asyncio.get_running_loop().remove_reader(live.pidfd)
            os.close(live.pidfd)
        self._live.clear()
        self._looking.shutdown(wait=False)


def _kill_order(key: Key) -> dict[str, Any]:
    whom = {"job": key[0], "attempt": key[1], "scope": "all"}
    return {"op": "signal", "signal": "KILL", **whom}


def _watchable(shim: dict[str, Any]) -> Live | None:
    """The shim by a descriptor that cannot mean another process; None when it is just gone."""
    try:
        pidfd = os.pidfd_open(shim["pid"])
    except ProcessLookupError:
        return None
    if start_time(shim["pid"]) != shim["start_time"]:
        os.close(pidfd)
        return None
    return Live(shim["pid"], pidfd, shim.get("cgroup"))


def boottime_s() -> float:
    """CLOCK_BOOTTIME now, in seconds: what time limits are measured on."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
