"""What the mind is shown: leases, readings and waiting jobs turned into a world of values."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import psutil

from traind.config import Config, GpuSettings
from traind.dispatcher.cleaning import Cleaning
from traind.gpu import GpuHealth, GpuReading, GpuSnapshot, LeaseClaim, Stranger
from traind.gpus.health import observed
from traind.gpus.signals import Finding
from traind.gpus.strangers import beside, obstacle
from traind.job import Pause, Request, WaitCode, WaitReason
from traind.lifecycle import RequeuePolicy
from traind.scheduler import Holding, Host, Owner, SharingPolicy, World
from traind.store.leases import OpenLease
from traind.store.rows import from_us

_KEPT_MIB, _KEPT_SHARE, _KEPT_CPUS = 4096, 0.05, 2
_START_MIB, _START_SHARE = 8192, 0.125
_TOLD_BY_READINGS = frozenset(
    {WaitCode.RESOURCES, WaitCode.GPU_FOREIGN, WaitCode.GPU_UNHEALTHY, WaitCode.GPU_CLEANING}
)

Pids = Mapping[int, tuple[int, ...]]
"""attempt id → the processes of it that were seen"""

Peaks = Mapping[tuple[int, str], int]
"""attempt id and UUID of a GPU → the most that it was seen to use there, MiB"""


def host_of(config: Config) -> Host:
    """What the box gives to all jobs together: what is set, else all but what ssh needs."""
    total_mib = psutil.virtual_memory().total >> 20
    memory_mib = total_mib - max(_KEPT_MIB, int(total_mib * _KEPT_SHARE))
    return Host(
        cpus=config.host.cpus or max(1, (os.cpu_count() or 1) - _KEPT_CPUS),
        memory_mib=config.host.memory or max(memory_mib, total_mib // 2),
        start_mib=config.host.start_memory or min(_START_MIB, int(total_mib * _START_SHARE)),
    )


def policy_of(config: Config) -> SharingPolicy:
    """How GPUs are shared, as the scheduler takes it."""
    gpus = config.gpus
    return SharingPolicy(
        safety_mib=gpus.safety_mib,
        safety_pct=gpus.safety_pct,
        max_jobs=gpus.max_jobs,
        ramp_s=gpus.ramp.total_seconds(),
    )


def requeue_policy_of(config: Config) -> RequeuePolicy:
    """The box's rules for second chances, as the state machine takes them."""
    queue = config.queue
    return RequeuePolicy(
        free_max=queue.free_requeues,
        free_delay=queue.requeue_delay,
        free_delay_max=queue.requeue_delay_max,
        never_started_delay=queue.launcher_retry,
        checkpoint_max=queue.checkpoint_requeues,
        crash_loop_count=queue.crash_loop_count,
        crash_loop_within=queue.crash_loop_within,
        avoid_for=config.gpus.health.avoid_for,
        neighbour_avoid=queue.neighbour_avoid,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """One look at the GPUs: the last snapshot, the open leases, whose processes are whose, the most
    that each attempt was seen to use of each, by UUID the strangers there, and the leases of ended
    attempts whose GPU was read since.
    """

    snapshot: GpuSnapshot
    leases: tuple[OpenLease, ...]
    pids: Pids
    peaks: Peaks
    strangers: Mapping[str, tuple[Stranger, ...]]
    cleaning: tuple[Cleaning, ...]

    def claims(self) -> tuple[LeaseClaim, ...]:
        """What live attempts hold, for the next reading."""
        return tuple(
            LeaseClaim(
                gpu_uuid=open_lease.lease.gpu_uuid,
                memory_mib=open_lease.lease.memory_mib,
                pids=self.pids.get(open_lease.attempt_id, ()),
            )
            for open_lease in self.leases
            if open_lease.lease.state == "held"
        )

    def awaits_memory(self, now: datetime, patience: timedelta) -> bool:
        """Whether the memory of an attempt that ended just now is not seen to be free yet."""
        return any(
            open_lease.cleaning_at_us is not None
            and now < from_us(open_lease.cleaning_at_us) + patience
            for open_lease in self.leases
        )

    def holdings(self) -> tuple[Holding, ...]:
        """The open leases with what is seen of them."""
        kept = {(c.lease.attempt_id, c.lease.lease.gpu_uuid): c.kept_by for c in self.cleaning}
        readings = {reading.gpu.uuid: reading for reading in self.snapshot.readings}
        return tuple(
            Holding(
                gpu_uuid=open_lease.lease.gpu_uuid,
                job_id=open_lease.job_id,
                user=open_lease.user,
                memory_mib=open_lease.lease.memory_mib,
                exclusive=open_lease.lease.exclusive,
                observed_mib=self._observed(open_lease, readings.get(open_lease.lease.gpu_uuid)),
                peak_mib=self.peaks.get((open_lease.attempt_id, open_lease.lease.gpu_uuid), 0),
                started_at=None
                if open_lease.started_at_us is None
                else from_us(open_lease.started_at_us),
                cleaning=open_lease.lease.state == "cleaning",
                kept_by=kept.get((open_lease.attempt_id, open_lease.lease.gpu_uuid)),
            )
            for open_lease in self.leases
        )

    def _observed(self, open_lease: OpenLease, reading: GpuReading | None) -> int:
        pids = self.pids.get(open_lease.attempt_id, ())
        return 0 if reading is None else observed(reading, pids)

    def stranded(self, settings: GpuSettings) -> dict[str, Finding]:
        """By UUID, that memory there is of no process since an attempt ended."""
        found = {c.reading.gpu.uuid: c.finding(settings) for c in self.cleaning}
        return {uuid: finding for uuid, finding in found.items() if finding is not None}

    def obstacles(self, settings: GpuSettings) -> dict[str, str]:
        """By UUID, whose memory keeps a GPU from being given to one job alone."""
        found = {
            r.gpu.uuid: obstacle(r.gpu, self.strangers.get(r.gpu.uuid, ()), settings)
            for r in self.snapshot.readings
        }
        return {uuid: sentence for uuid, sentence in found.items() if sentence is not None}

    def others(self) -> dict[str, str]:
        """By UUID, who holds memory there that is of no job, in words."""
        found = {uuid: beside(strangers) for uuid, strangers in self.strangers.items()}
        return {uuid: words for uuid, words in found.items() if words is not None}


def awaits_gpu(waiting: Iterable[Request], reasons: Mapping[int, WaitReason]) -> bool:
    """Whether a job waits for what the next reading of the GPUs may tell."""
    return any(
        request.gpus > 0
        and (reason := reasons.get(request.job_id)) is not None
        and reason.code in _TOLD_BY_READINGS
        for request in waiting
    )


def world_of(
    sight: Sight,
    *,
    health: Mapping[str, GpuHealth],
    host: Host,
    policy: SharingPolicy,
    gpus: GpuSettings,
    owners: Iterable[Owner],
    waiting: tuple[Request, ...],
    launcher_fault: str | None,
    pause: Pause | None,
    now: datetime,
) -> World:
    """Everything that the next plan depends on."""
    readings = sight.snapshot.readings
    return World(
        now=now,
        host=replace(host, available_mib=psutil.virtual_memory().available >> 20),
        policy=policy,
        readings=readings,
        unhealthy={uuid: h.sentence for uuid, h in health.items() if not h.allocatable},
        apart={uuid: h.apart for uuid, h in health.items() if h.apart is not None},
        suspect=frozenset(uuid for uuid, h in health.items() if h.suspect),
        foreign=sight.obstacles(gpus),
        others=sight.others(),
        holdings=sight.holdings(),
        owners=tuple(owners),
        waiting=waiting,
        gpu_fault=sight.snapshot.fault,
        launcher_fault=launcher_fault,
        pause=pause,
    )
