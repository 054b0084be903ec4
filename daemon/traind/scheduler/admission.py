"""What may start on one GPU now: what is held there, what is seen there, what that leaves."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import IntEnum

from traind.gpu import GpuReading
from traind.job import Request
from traind.scheduler.matching import Need, offer_mib, safety_mib
from traind.scheduler.world import Grant, Holding, World


class Verdict(IntEnum):
    """Whether a request may start on a GPU now; the lower, the sooner it is likely to.

    RAMP: it fits, but the job before it has not taken up its memory yet. CLEANING: only jobs
    that have ended are there. FOREIGN: what is not a job's stands in the way.
    """

    FITS = 0
    RAMP = 1
    CLEANING = 2
    FULL = 3
    FOREIGN = 4
    UNHEALTHY = 5


class GpuLedger:
    """The account of one GPU during one pass: its holdings, what is left, and who claims it.

    `room_mib` is what one more job that shares it may declare; `ramping` are the holdings
    whose memory is still expected; `claimed_by` is the waiting job it is kept for. `display`:
    somebody looks at what it draws.
    """

    def __init__(self, reading: GpuReading, holdings: Iterable[Holding], *, world: World) -> None:
        gpu = reading.gpu
        self.gpu = gpu
        self.holdings = sorted(holdings, key=lambda holding: holding.job_id)
        # A lost GPU's figures are old ones: nothing can be promised on them.
        self.unhealthy = world.unhealthy.get(gpu.uuid, reading.fault)
        self.apart = world.apart.get(gpu.uuid)
        self.suspect = gpu.uuid in world.suspect
        self.place = reading.place
        drawn = any(process.kind == "graphics" for process in reading.processes)
        self.display = drawn or bool(reading.place.display)
        self.foreign = world.foreign.get(gpu.uuid)
        self.others = world.others.get(gpu.uuid)
        self.claimed_by: Request | None = None
        self.max_jobs = world.policy.max_jobs
        self._ramp = timedelta(seconds=world.policy.ramp_s)
        self.ramping = [held for held in self.holdings if self._awaits_memory(held, world.now)]
        observed = sum(held.observed_mib for held in self.holdings)
        self.baseline_mib = max(0, reading.used_mib - observed)
        self.unlisted_mib = reading.unlisted_mib
        reserved = sum(held.reserved_mib for held in self.holdings)
        free = gpu.memory_mib - gpu.reserved_mib - reading.used_mib
        # The two agree while all readings do; the smaller one guards against stale ones.
        self.room_mib = min(
            offer_mib(gpu, world.policy) - self.baseline_mib - reserved,
            free - safety_mib(gpu, world.policy) - (reserved - observed),
        )

    def _awaits_memory(self, held: Holding, now: datetime) -> bool:
        young = held.started_at is None or now < held.started_at + self._ramp
        return young and not held.cleaning and held.seen_mib * 10 < held.memory_mib * 8

    @property
    def ramp_ends_at(self) -> datetime | None:
        """When time alone ends the ramp here; None when only an event can."""
        starts = [held.started_at for held in self.ramping if held.started_at is not None]
        return max(starts) + self._ramp if starts and len(starts) == len(self.ramping) else None

    def verdict(self, need: Need) -> Verdict:
        """Whether this much of the GPU can be given now, whoever claims it."""
        if self.unhealthy is not None:
            return Verdict.UNHEALTHY
        if need.whole and self.foreign is not None:
            return Verdict.FOREIGN
        if not self._has_place(need):
            if not self.holdings:
                return Verdict.FULL if self.foreign is None else Verdict.FOREIGN
            ended = all(held.cleaning for held in self.holdings)
            return Verdict.CLEANING if ended else Verdict.FULL
        return Verdict.RAMP if self.ramping else Verdict.FITS

    def _has_place(self, need: Need) -> bool:
        if need.whole:
            return not self.holdings
        if len(self.holdings) >= self.max_jobs or any(held.exclusive for held in self.holdings):
            return False
        return need.memory_mib <= self.room_mib

    def give(self, request: Request, need: Need) -> Grant:
        """Books this much of the GPU for a job that starts now.

        Its memory is awaited from here on: a GPU takes at most one job in a pass.
        """
        held = Holding(
            gpu_uuid=self.gpu.uuid,
            job_id=request.job_id,
            user=request.user,
            memory_mib=need.memory_mib,
            exclusive=need.whole,
        )
        self.holdings.append(held)
        self.ramping.append(held)
        self.room_mib -= need.memory_mib
        return Grant(
            gpu=self.gpu,
            memory_mib=need.memory_mib,
            exclusive=need.whole,
            baseline_mib=self.baseline_mib,
            unlisted_mib=self.unlisted_mib,
        )


def open_ledgers(world: World) -> dict[str, GpuLedger]:
    """The account of every GPU by its UUID, in the order of their indices."""
    held: defaultdict[str, list[Holding]] = defaultdict(list)
    for holding in world.holdings:
        held[holding.gpu_uuid].append(holding)
    readings = sorted(world.readings, key=lambda each: (each.gpu.index, each.gpu.uuid))
    return {each.gpu.uuid: GpuLedger(each, held[each.gpu.uuid], world=world) for each in readings}
