"""How the GPUs are: what each look at them says goes into their records, and out of it comes what
may be given out, what must stop, and what a failed attempt may blame.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from traind.config import GpuHealthSettings
from traind.dispatcher.attribution import Attempts, Owner
from traind.dispatcher.xid_log import XidLog
from traind.gpu import (
    Cordon,
    Gpu,
    GpuHealth,
    GpuReading,
    GpuSnapshot,
    MedicalRecord,
    Xid,
    XidSighting,
)
from traind.gpus.conditions import Chart, Visit, examine
from traind.gpus.health import assess
from traind.gpus.kernel_log import LoggedXid, pci_address
from traind.gpus.monitor import GpuMonitor
from traind.gpus.signals import Finding
from traind.gpus.source import named
from traind.gpus.trends import Trend
from traind.gpus.xids import JobEffect, rule_of
from traind.job import Job
from traind.runner.proofs import boot_id
from traind.store.conditions import ConditionStore
from traind.verdict import GpuEvidence

log = logging.getLogger(__name__)


class Diagnosis:
    """Examines every new snapshot, and every XID, once; `attempts` knows whose each process is."""

    def __init__(
        self,
        settings: GpuHealthSettings,
        *,
        monitor: GpuMonitor,
        conditions: ConditionStore,
        xid_log: XidLog,
    ) -> None:
        self._settings = settings
        self._monitor = monitor
        self._conditions = conditions
        self._xid_log = xid_log
        self._boot_id = boot_id()
        self.attempts = Attempts()
        self._trends: dict[str, Trend] = {}
        self._examined_at: datetime | None = None
        self._heard: list[tuple[str, Xid]] = []
        self._logged: list[LoggedXid] = []
        self._untold: list[XidSighting] = []

    def configure(self, settings: GpuHealthSettings) -> None:
        """Go by these settings from now on."""
        self._settings = settings

    def has_news(self, snapshot: GpuSnapshot, *, now: datetime) -> bool:
        """Whether there is a reading that was not examined, or an XID that was not told."""
        self._heard += [(uuid, xid) for uuid, xid in self._monitor.take_xids()]
        self._logged += self._xid_log.read(now=now)
        return bool(self._heard or self._logged or self._untold or self._is_fresh(snapshot))

    def _is_fresh(self, snapshot: GpuSnapshot) -> bool:
        return snapshot.fault is None and snapshot.read_at not in (None, self._examined_at)

    async def look(
        self,
        snapshot: GpuSnapshot,
        gpus: Iterable[Gpu],
        owners: Iterable[Owner],
        stranded: Mapping[str, Finding],
        *,
        now: datetime,
    ) -> None:
        """Take the news into the records of the GPUs; `owners` are who holds them, `stranded` what
        is to be said, by UUID, of memory there that is of no process.

        Raises UNAVAILABLE when it cannot be stored: it is done again.
        """
        gpus = tuple(gpus)
        self.attempts.observe(owners, snapshot, now=now)
        self._hear(gpus, now)
        fresh = self._is_fresh(snapshot)
        async with self._conditions.turn:
            await self._examine(_readings(snapshot, gpus), stranded, fresh=fresh, now=now)
        self._examined_at = snapshot.read_at if fresh else self._examined_at

    def _hear(self, gpus: Iterable[Gpu], now: datetime) -> None:
        """Give the XIDs of both roads their GPU and their attempt."""
        by_pci = {pci_address(gpu.pci): gpu.uuid for gpu in gpus if gpu.pci is not None}
        heard = [(uuid, xid, False) for uuid, xid in self._heard]
        heard += [(by_pci[x.pci], x.xid, True) for x in self._logged if x.pci in by_pci]
        self._heard, self._logged = [], [] if by_pci else self._logged
        for uuid, xid, is_logged in heard:
            if xid.seq is None or (uuid, xid.seq) not in self._conditions.seen:
                self._untold.append(_sighted(uuid, xid, self.attempts, logged=is_logged, now=now))

    async def _examine(
        self,
        readings: Iterable[GpuReading],
        stranded: Mapping[str, Finding],
        *,
        fresh: bool,
        now: datetime,
    ) -> None:
        heard, since = self._untold, now - self._settings.repeat_within
        lately = [x for x in self._conditions.sightings if x.at >= since]
        told = [x for x in heard if not self._is_retold(x, [*lately, *heard])]
        records: dict[str, MedicalRecord] = {}
        trends: dict[str, Trend] = {}
        for reading in readings:
            uuid = reading.gpu.uuid
            xids = [x for x in told if x.gpu_uuid == uuid]
            if not fresh and not xids:
                continue
            before = Chart(record=self._conditions.of(uuid), trend=self._trends.get(uuid, Trend()))
            visit = Visit(
                reading=reading,
                fresh=fresh,
                xids=xids,
                lately=[*lately, *told],
                several=self.attempts.several_on(uuid),
                stuck_pid=self.attempts.stuck_on(uuid, self._settings.stuck_after, now=now),
                stranded=stranded.get(uuid),
                boot_id=self._boot_id,
                now=now,
            )
            chart = examine(before, visit, self._settings)
            trends[uuid] = chart.trend
            if chart.record != before.record:
                records[uuid] = chart.record
                _log_changes(reading.gpu, before.record, chart.record)
        if records or heard:
            await self._conditions.save(records, heard, self._xid_log.position, now=now)
        self._trends |= trends
        self._untold = []

    def _is_retold(self, one: XidSighting, known: Sequence[XidSighting]) -> bool:
        """Whether the other road told of it already: NVML knows no pid, the log does."""
        return one.logged and any(
            not other.logged
            and (other.gpu_uuid, other.xid.number) == (one.gpu_uuid, one.xid.number)
            and other.xid.pid in (None, one.xid.pid)
            and abs(other.at - one.at) <= self._settings.same_xid_within
            for other in known
        )

    def health(
        self, snapshot: GpuSnapshot, gpus: Iterable[Gpu], cordons: Mapping[str, Cordon]
    ) -> dict[str, GpuHealth]:
        """How each GPU is, by its UUID."""
        return {
            reading.gpu.uuid: assess(
                reading,
                self._conditions.of(reading.gpu.uuid),
                cordons.get(reading.gpu.uuid),
                settings=self._settings,
            )
            for reading in _readings(snapshot, gpus)
        }

    def evidence(
        self, job: Job, health: Mapping[str, GpuHealth], gpus: Iterable[Gpu]
    ) -> GpuEvidence:
        """What is known against the GPUs of the job's attempt, and against itself."""
        names = {gpu.uuid: named(gpu) for gpu in gpus}
        own = [lease.gpu_uuid for lease in job.leases]
        fatal = {uuid: why for uuid in own if uuid in health and (why := health[uuid].fatal)}
        faulty, misuse = dict(fatal), None
        for sighting in self._conditions.sightings:
            if (sighting.job_id, sighting.attempt) != (job.id, job.attempt):
                continue
            number, rule = sighting.xid.number, rule_of(sighting.xid.number)
            said = f"{names.get(sighting.gpu_uuid, 'its GPU')} had XID {number}: {rule.meaning}"
            if rule.effect is JobEffect.GPU:
                faulty.setdefault(sighting.gpu_uuid, said)
            elif rule.effect is JobEffect.APP:
                misuse = said
        fault = next(iter(faulty.values()), None)
        return GpuEvidence(fault=fault, faulty=frozenset(faulty), misuse=misuse)


def _readings(snapshot: GpuSnapshot, gpus: Iterable[Gpu]) -> list[GpuReading]:
    """The readings of the snapshot, and an empty one of each GPU that has not been read yet."""
    read = {reading.gpu.uuid for reading in snapshot.readings}
    unread = [GpuReading(gpu=gpu, used_mib=0) for gpu in gpus if gpu.uuid not in read]
    return [*snapshot.readings, *unread]


def _sighted(
    uuid: str, xid: Xid, attempts: Attempts, *, logged: bool, now: datetime
) -> XidSighting:
    owner = attempts.of_pid(uuid, xid.pid)
    log.warning(
        "XID",
        extra={
            "gpu": uuid,
            "xid": xid.number,
            "pid": xid.pid,
            "job": None if owner is None else owner.job_id,
        },
    )
    return XidSighting(
        gpu_uuid=uuid,
        at=xid.at or now,
        xid=replace(xid, at=None),
        logged=logged,
        job_id=None if owner is None else owner.job_id,
        attempt=None if owner is None else owner.attempt,
        program=None if owner is None else owner.program,
    )


def _log_changes(gpu: Gpu, before: MedicalRecord, after: MedicalRecord) -> None:
    known = {each.code: each.ailment for each in before.conditions}
    for each in after.conditions:
        if known.pop(each.code, None) is not each.ailment:
            facts = {"gpu": gpu.index, "condition": each.code, "ailment": each.ailment}
            log.warning("GPU condition", extra={**facts, "evidence": each.evidence})
    for code in known:
        log.info("GPU condition over", extra={"gpu": gpu.index, "condition": code})
