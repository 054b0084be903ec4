"""Jobs that use more of a shared GPU than they declared: seen twice it is told, and one is stopped
only where it takes the memory that was promised to others.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from traind.dispatcher.outlook import Sight
from traind.gpu import Gpu, GpuReading
from traind.gpus.health import measured
from traind.options import size_text
from traind.scheduler import SharingPolicy, safety_mib
from traind.store.leases import OpenLease

_SHARE, _MIB = 1.05, 256
_READINGS = 2
"""In so many readings in a row, as one alone may be of a moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrun:
    """That an attempt uses more of a GPU than it declared; MiB. `readings`: in how many in a row,
    `pressing`: in how many of those there was less free than is kept for safety, while `beside`,
    in words, had memory promised there (None: nobody).
    """

    attempt_id: int
    job_id: int
    attempt: int
    gpu: Gpu
    declared_mib: int
    used_mib: int
    free_mib: int
    readings: int
    pressing: int
    beside: str | None

    @property
    def told(self) -> bool:
        """Whether its owner is to know."""
        return self.readings >= _READINGS

    @property
    def endangers(self) -> bool:
        """Whether those beside it may run out of memory by it."""
        return self.pressing >= _READINGS

    @property
    def cause(self) -> str:
        """Why it is stopped."""
        return (
            f"it used {size_text(self.used_mib)} of GPU {self.gpu.index} where it had declared "
            f"{size_text(self.declared_mib)}, and left {size_text(self.free_mib)} free beside "
            f"{self.beside}; declare what it needs (gpu_memory)"
        )


class Overruns:
    """Judges every new snapshot, once. What was counted is lost with the daemon."""

    def __init__(self) -> None:
        self._looked_at: datetime | None = None
        self._known: dict[tuple[int, str], Overrun] = {}

    def look(self, sight: Sight, policy: SharingPolicy, *, stopping: Collection[int]) -> None:
        """Take in what the last reading says. Where a job is `stopping` (ids), or has ended and its
        memory is awaited back, there soon is more, and nobody else is stopped for it.
        """
        if sight.snapshot.fault is not None or sight.snapshot.read_at == self._looked_at:
            return
        self._looked_at = sight.snapshot.read_at
        by_gpu: defaultdict[str, list[OpenLease]] = defaultdict(list)
        for each in sight.leases:
            by_gpu[each.lease.gpu_uuid].append(each)
        before, self._known = self._known, {}
        for reading in sight.snapshot.readings:
            leases = by_gpu[reading.gpu.uuid]
            held = [each for each in leases if each.lease.state == "held"]
            calm = len(held) < len(leases) or any(each.job_id in stopping for each in held)
            for found in _of(reading, held, sight, None if calm else policy, before):
                self._known[found.attempt_id, reading.gpu.uuid] = found

    @property
    def all(self) -> Iterable[Overrun]:
        """Those there are."""
        return self._known.values()

    def worst(self) -> list[Overrun]:
        """Of each GPU where one endangers others, the one that is furthest beyond what it
        declared: when that is gone, the next reading tells whether it was enough.
        """
        worst: dict[str, Overrun] = {}
        for each in sorted(self._known.values(), key=lambda one: one.used_mib - one.declared_mib):
            if each.endangers:
                worst[each.gpu.uuid] = each
        return list(worst.values())


def _of(
    reading: GpuReading,
    leases: Sequence[OpenLease],
    sight: Sight,
    policy: SharingPolicy | None,
    before: Mapping[tuple[int, str], Overrun],
) -> Iterator[Overrun]:
    """Who uses too much of one GPU; with no `policy` nobody there is in danger."""
    gpu = reading.gpu
    free_mib = gpu.memory_mib - gpu.reserved_mib - reading.used_mib
    for one in leases:
        used = measured(reading, sight.pids.get(one.attempt_id, ()))
        declared = one.lease.memory_mib
        known = before.get((one.attempt_id, gpu.uuid))
        if reading.fault is not None and known is not None:
            yield known
        if reading.fault is not None or one.lease.exclusive or used is None:
            continue
        if used <= declared * _SHARE + _MIB:
            continue
        others = [f"job {o.job_id} of {o.user}" for o in leases if o is not one]
        short = policy is not None and free_mib < safety_mib(gpu, policy)
        pressing = bool(others) and short
        yield Overrun(
            attempt_id=one.attempt_id,
            job_id=one.job_id,
            attempt=one.attempt,
            gpu=gpu,
            declared_mib=declared,
            used_mib=used,
            free_mib=max(0, free_mib),
            readings=1 + (known.readings if known else 0),
            pressing=1 + (known.pressing if known else 0) if pressing else 0,
            beside=" and ".join(others) or None,
        )
