"""Samples what runs, once a period, off the path on which jobs start; idle, it does not wake up."""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from traind.errors import ErrorCode, TraindError
from traind.gpu import GpuReading
from traind.gpus.health import measured, observed
from traind.hub import Hub
from traind.job import Job
from traind.runner.footprint import Footprint, footprint
from traind.runner.supervisor import Key, Supervisor
from traind.store.samples import GpuSample, Sample, SampleStore, Taken

_JOULES_A_WH = 3600
log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Watched:
    """A running attempt; `since_s` is CLOCK_MONOTONIC of what was kept of it last, or of when it
    was seen first, and `before` its last footprint.
    """

    job: Job
    since_s: float
    before: Footprint | None = None


@dataclass(frozen=True, slots=True)
class _Look:
    """An attempt at this moment: its processes, and what they take of the host."""

    watched: _Watched
    pids: frozenset[int]
    now: Footprint


class Sampler:
    """Takes a sample of each running attempt every `period`, from the GPUs' last reading and /proc.

    What cannot be stored is not kept for later: a chart has a gap then, and the next round that is
    stored takes the energy of all the time since.
    """

    def __init__(
        self, period: timedelta, *, supervisor: Supervisor, store: SampleStore, hub: Hub
    ) -> None:
        self._period_s = period.total_seconds()
        self._supervisor = supervisor
        self._store = store
        self._hub = hub
        self._watched: dict[Key, _Watched] = {}
        self._busy = asyncio.Event()
        self._fault: str | None = None

    def observe(self, jobs: Iterable[Job]) -> None:
        """Say which jobs run from now on."""
        now_s, before = time.monotonic(), self._watched
        self._watched = {
            (job.id, job.attempt): before.get((job.id, job.attempt)) or _Watched(job, now_s)
            for job in jobs
        }
        if self._watched:
            self._busy.set()
        else:
            self._busy.clear()

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await self._busy.wait()
            await asyncio.sleep(self._period_s)
            await self.sample(datetime.now(UTC))

    async def sample(self, now: datetime) -> None:
        """Take and keep one sample of each running attempt."""
        watched = dict(self._watched)
        looks = await asyncio.to_thread(self._look, watched)
        readings = {} if self._hub.snapshot.fault else _healthy(self._hub.snapshot.readings)
        if not looks:
            return
        held = _held(looks, readings)
        taken = []
        for key, look in looks.items():
            sample = _sample(key, look, readings, held, now)
            energy_wh = _energy_wh(key, look, sample, held)
            known = _measured(look, readings)
            taken.append(Taken(key=key, sample=sample, energy_wh=energy_wh, measured=known))
        try:
            await self._store.record(taken)
        except TraindError as refused:
            if refused.code is not ErrorCode.UNAVAILABLE:
                raise
            self._tell(refused.sentence)
            return
        self._tell(None)
        for look in looks.values():
            look.watched.since_s, look.watched.before = look.now.taken_s, look.now

    def _look(self, watched: Mapping[Key, _Watched]) -> dict[Key, _Look]:
        """What each attempt takes that still lives. Blocks."""
        looks = {}
        for key, one in watched.items():
            if pids := self._supervisor.pids(key):
                now = footprint(self._supervisor.path(key), pids)
                looks[key] = _Look(one, frozenset(pids), now)
        return looks

    def _tell(self, fault: str | None) -> None:
        if fault is not None and self._fault is None:
            log.warning("samples not stored", extra={"why": fault})
        elif fault is None and self._fault is not None:
            log.info("samples are stored again")
        self._fault = fault


def _healthy(readings: Iterable[GpuReading]) -> dict[str, GpuReading]:
    """By UUID, the readings that are of now: a faulty one has the figures of an earlier one."""
    return {reading.gpu.uuid: reading for reading in readings if reading.fault is None}


def _held(
    looks: Mapping[Key, _Look], readings: Mapping[str, GpuReading]
) -> dict[str, dict[Key, int]]:
    """By UUID of a GPU that can be read, the MiB that each attempt has there."""
    held: dict[str, dict[Key, int]] = {}
    for key, look in looks.items():
        for lease in look.watched.job.leases:
            if reading := readings.get(lease.gpu_uuid):
                held.setdefault(lease.gpu_uuid, {})[key] = observed(reading, look.pids)
    return held


def _measured(look: _Look, readings: Mapping[str, GpuReading]) -> dict[str, int]:
    """By UUID, the MiB that the attempt has, for the GPUs whose driver says it."""
    own = (lease.gpu_uuid for lease in look.watched.job.leases)
    read = {uuid: measured(readings[uuid], look.pids) for uuid in own if uuid in readings}
    return {uuid: memory_mib for uuid, memory_mib in read.items() if memory_mib is not None}


def _sample(
    key: Key,
    look: _Look,
    readings: Mapping[str, GpuReading],
    held: Mapping[str, Mapping[Key, int]],
    now: datetime,
) -> Sample:
    took, before = look.now, look.watched.before
    cpu_pct = None
    if before is not None:
        cpu_pct = 100 * max(0.0, took.cpu_s - before.cpu_s) / (took.taken_s - before.taken_s)
    gpus = []
    for lease in look.watched.job.leases:
        reading = readings.get(lease.gpu_uuid)
        gpus.append(
            GpuSample(
                uuid=lease.gpu_uuid,
                index=lease.gpu_index,
                memory_mib=None if reading is None else held[lease.gpu_uuid][key],
                busy_pct=None if reading is None else reading.busy_pct,
                power_w=None if reading is None else reading.power_w,
                temperature_c=None if reading is None else reading.temperature_c,
            )
        )
    return Sample(
        at=now,
        gpus=tuple(gpus),
        memory_mib=took.memory_mib,
        cpu_pct=cpu_pct,
        processes=took.processes,
        read_bytes=took.read_bytes,
        write_bytes=took.write_bytes,
    )


def _energy_wh(
    key: Key, look: _Look, sample: Sample, held: Mapping[str, Mapping[Key, int]]
) -> float | None:
    """What the attempt's GPUs used since it was sampled last, at the power that they have now; None
    where none tells it. A shared GPU's is split in proportion to the memory that each job has
    there, or in equal parts while they have none.
    """
    parts = []
    for gpu in sample.gpus:
        if gpu.power_w is not None:
            theirs = held[gpu.uuid]
            total = sum(theirs.values())
            parts.append(gpu.power_w * (theirs[key] / total if total else 1 / len(theirs)))
    span_s = look.now.taken_s - look.watched.since_s
    return sum(parts) * span_s / _JOULES_A_WH if parts else None
