"""Keeps the hub's snapshot of the GPUs fresh, whatever the driver does.

The daemon never waits for the driver: it asks a worker process with a deadline.
"""

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from traind.config import GpuSettings
from traind.gpu import Gpu, GpuReading, GpuSnapshot, LeaseClaim, Xid
from traind.gpus.reader import Reader, ReaderEnded
from traind.gpus.roster import Roster
from traind.gpus.source import NoDriver, SourceError
from traind.hub import Hub

log = logging.getLogger(__name__)

MOST_STUCK = 3
"""Workers that hang in the driver beyond SIGKILL before no more are started."""
LONGEST_RESPAWN_S = 600.0
SHORTEST_RESPAWN_S = 0.05
FIRST_HURRY_S = 0.01
LAST_HURRY_S = 1.0
KILL_WAIT_S = 5.0

NOT_YET = "the GPUs have not been read yet"
_MEANWHILE = "no GPU job is started until it does, running ones go on"
_UNTIL_READ = "no GPU job is started until the GPUs can be read, running ones go on"


class GpuMonitor:
    """Reads all GPUs over and over: every `sample_busy` while there are claims or somebody waits
    for what is read, else every `sample_idle`.

    `simulate` is what --simulate says, None for real GPUs. `remembered` are GPUs that were here
    before: one that no longer answers stays in the snapshot with a fault.
    """

    def __init__(
        self,
        settings: GpuSettings,
        *,
        state_dir: Path,
        simulate: str | None,
        hub: Hub,
        remembered: Sequence[Gpu],
    ) -> None:
        self._settings = settings
        self._state_dir = state_dir
        self._simulate = simulate
        self._hub = hub
        self._roster = Roster(remembered)
        self._xids: list[tuple[str, Xid]] = []
        self._told: set[tuple[str, int]] = set()
        self._claims: tuple[LeaseClaim, ...] = ()
        self._hurried = False
        self._awaited = False
        self._hurry_s = FIRST_HURRY_S
        self._news = asyncio.Event()
        self._reader: Reader | None = None
        self._killed: list[Reader] = []
        self._misses = 0
        self._replaced_at = -math.inf
        self._silent_since: datetime | None = None
        hub.snapshot = GpuSnapshot(read_at=None, fault=NOT_YET)

    @property
    def inventory(self) -> tuple[Gpu, ...]:
        """All GPUs, seen or remembered, by index."""
        return self._roster.gpus

    def observe(
        self, claims: tuple[LeaseClaim, ...], *, hurried: bool, awaited: bool = False
    ) -> None:
        """Say what jobs hold from now on. `hurried`: an ended one's memory is to be given back;
        `awaited`: a job waits for a GPU that a stranger fills, or that is sick.

        Reads at once when the claims are others or one of these is new, and while hurried again
        after 10, 20, 40 ms and so on up to 1 s. Processes that come and go within a claim do not
        hurry.
        """
        if _gist(claims) != _gist(self._claims) or (hurried and not self._hurried):
            self._hurry_s = FIRST_HURRY_S
            self._news.set()
        if awaited and not self._awaited:
            self._news.set()
        self._claims, self._hurried, self._awaited = claims, hurried, awaited

    def read_now(self) -> None:
        """Read as soon as the reading is over that may be going on."""
        self._news.set()

    def take_xids(self) -> list[tuple[str, Xid]]:
        """The XIDs since this was last asked, each with the UUID of its GPU."""
        xids, self._xids = self._xids, []
        return xids

    def forget(self, uuid: str) -> None:
        """Do not miss a GPU any more that is gone for good."""
        self._roster.forget(uuid)
        kept = tuple(r for r in self._hub.snapshot.readings if r.gpu.uuid != uuid)
        self._tell(replace(self._hub.snapshot, readings=kept))

    async def run(self) -> None:
        """Read until cancelled; its worker is dead when this ends.

        Returns by itself only on a machine that has no driver and never had a GPU.
        """
        try:
            while await self._read_once():
                pass
        finally:
            await self._end()

    async def _read_once(self) -> bool:
        """Read, tell, rest until the next reading is due; False when there is nothing to read."""
        self._news.clear()
        asked_at = datetime.now(UTC)
        try:
            readings = await self._ask()
        except NoDriver as none:
            if not self._roster.gpus:
                self._tell(GpuSnapshot(read_at=datetime.now(UTC)))
                return False
            self._cannot(f"{none}; {_UNTIL_READ}", self._roster.complete(()))
            await self._retry_after(self._settings.sample_idle.total_seconds())
        except SourceError as wrong:
            self._cannot(f"{wrong}; {_UNTIL_READ}")
            await self._retry_after(self._settings.sample_idle.total_seconds())
        except TimeoutError:
            self._cannot(f"{self._silence()}; {_MEANWHILE}")
            await self._retry_after(self._respawn_s())
        except (ReaderEnded, OSError) as ended:
            self._cannot(f"{self._death(ended)}; {_UNTIL_READ}")
            await self._retry_after(0.0 if self._first_death() else self._respawn_s())
        else:
            self._misses, self._silent_since = 0, None
            complete = self._keep_xids(self._roster.complete(readings))
            read_at = datetime.now(UTC)
            self._tell(GpuSnapshot(read_at=read_at, asked_at=asked_at, readings=complete))
            await self._rest(self._pause_s())
        return True

    def _keep_xids(self, readings: tuple[GpuReading, ...]) -> tuple[GpuReading, ...]:
        """The readings without their XIDs, which are kept until they are taken; a simulated one
        is described for as long as its file is, and told once.
        """
        for reading in readings:
            for xid in reading.xids:
                if xid.seq is not None and (reading.gpu.uuid, xid.seq) in self._told:
                    continue
                self._xids.append((reading.gpu.uuid, xid))
                if xid.seq is not None:
                    self._told.add((reading.gpu.uuid, xid.seq))
        return tuple(replace(reading, xids=()) for reading in readings)

    async def _ask(self) -> list[GpuReading]:
        if self._reader is not None:
            deadline = self._settings.answer_deadline
        else:
            await self._until_few_are_stuck()
            self._reader = await Reader.start(self._state_dir, self._simulate, self.read_now)
            deadline = self._settings.first_answer_deadline
        self._silent_since = self._silent_since or datetime.now(UTC)
        return await self._reader.ask(self._claims, deadline.total_seconds())

    def _tell(self, snapshot: GpuSnapshot) -> None:
        before, self._hub.snapshot = self._hub.snapshot, snapshot
        if snapshot.fault is not None and snapshot.fault != before.fault:
            log.warning("GPUs cannot be read", extra={"fault": snapshot.fault})
        elif snapshot.fault is None and before.fault is not None:
            log.info("GPUs are read", extra={"gpus": len(snapshot.readings)})
        self._hub.wake()

    def _cannot(self, fault: str, readings: tuple[GpuReading, ...] | None = None) -> None:
        last = self._hub.snapshot
        kept = last.readings if readings is None else readings
        self._tell(replace(last, readings=kept, fault=fault))

    def _silence(self) -> str:
        since = self._hub.snapshot.read_at or self._silent_since
        return f"NVML has not answered since {_clock(since)}"

    @staticmethod
    def _death(ended: Exception) -> str:
        how = str(ended) if isinstance(ended, ReaderEnded) else f"cannot be started ({ended})"
        return f"the process that reads the GPUs {how} at {_clock(datetime.now(UTC))}"

    def _first_death(self) -> bool:
        """Whether a dead worker is replaced at once: not one that just replaced another."""
        now = time.monotonic()
        lately = now - self._replaced_at < self._settings.respawn_delay.total_seconds()
        self._replaced_at = now
        return not lately and self._misses == 0

    def _respawn_s(self) -> float:
        delay = self._settings.respawn_delay.total_seconds() * 4.0 ** min(self._misses, 9)
        self._misses += 1
        return min(max(delay, SHORTEST_RESPAWN_S), LONGEST_RESPAWN_S)

    def _pause_s(self) -> float:
        busy, idle = self._settings.sample_busy, self._settings.sample_idle
        period_s = (busy if self._claims or self._awaited else idle).total_seconds()
        if not self._hurried:
            return period_s
        pause_s, self._hurry_s = self._hurry_s, min(2 * self._hurry_s, LAST_HURRY_S)
        return min(pause_s, period_s)

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    async def _retry_after(self, seconds: float) -> None:
        """Kill the worker and rest, whatever the news: a sick driver is not asked more often."""
        self._kill()
        await asyncio.sleep(seconds)

    def _kill(self) -> None:
        if self._reader is not None:
            self._reader.kill()
            self._killed.append(self._reader)
            self._reader = None

    async def _until_few_are_stuck(self) -> None:
        while len(stuck := self._stuck()) >= MOST_STUCK:
            count = f"{len(stuck)} processes that asked it cannot be killed"
            self._cannot(f"{self._silence()} and {count}; {_MEANWHILE}")
            await asyncio.wait(stuck, return_when=asyncio.FIRST_COMPLETED)

    def _stuck(self) -> list[asyncio.Future[None]]:
        self._killed = [reader for reader in self._killed if not reader.gone.done()]
        return [reader.gone for reader in self._killed]

    async def _end(self) -> None:
        self._kill()
        for reader in self._killed:
            reader.kill()
        if stuck := self._stuck():
            await asyncio.wait(stuck, timeout=KILL_WAIT_S)
        for reader in self._killed:
            reader.close()


def _gist(claims: tuple[LeaseClaim, ...]) -> list[tuple[str, int, bool]]:
    """What of the claims is worth a reading at once."""
    return sorted((claim.gpu_uuid, claim.memory_mib, bool(claim.pids)) for claim in claims)


def _clock(at: datetime | None) -> str:
    now = datetime.now(UTC)
    at = at or now
    return f"{at:%H:%M:%S} UTC" if now - at < timedelta(days=1) else f"{at:%Y-%m-%d %H:%M:%S} UTC"
