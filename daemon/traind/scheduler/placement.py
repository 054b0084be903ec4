"""Which GPUs a job may have, which are kept for one that waits, and why it waits for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from traind.job import Request, WaitCode, WaitReason
from traind.options import size_text
from traind.scheduler.admission import GpuLedger, Verdict
from traind.scheduler.matching import Need, candidates
from traind.scheduler.wording import (
    counted,
    gpu_named,
    gpu_said,
    job_named,
    jobs_named,
    listed,
    size_beside,
)
from traind.scheduler.world import SharingPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """One GPU that matches a request, what the request needs of it, and whether it may have it.

    `unhealthy` says why it may not, where that is the GPU's health.
    """

    ledger: GpuLedger
    need: Need
    verdict: Verdict
    unhealthy: str | None = None

    @property
    def unclaimed(self) -> bool:
        """Whether no job ahead waits for this GPU."""
        return self.ledger.claimed_by is None


def seats_for(
    request: Request, ledgers: Mapping[str, GpuLedger], *, policy: SharingPolicy
) -> list[Seat]:
    """Every GPU that matches the request, as it stands now, in the order of their indices."""
    gpus = [ledger.gpu for ledger in ledgers.values()]
    found = []
    for gpu, need in candidates(request, gpus, policy=policy):
        ledger = ledgers[gpu.uuid]
        unhealthy = ledger.unhealthy or (ledger.apart if request.gpus > 1 else None)
        verdict = ledger.verdict(need) if unhealthy is None else Verdict.UNHEALTHY
        found.append(Seat(ledger=ledger, need=need, verdict=verdict, unhealthy=unhealthy))
    return found


def keep(request: Request, seats: Sequence[Seat]) -> list[Seat]:
    """Claims the GPUs that a job which waits is likely to get first, so that none overtakes it.

    Nothing is kept for a job that must wait for a repair, or for somebody else's program.
    """
    gettable = [seat for seat in seats if seat.verdict < Verdict.FOREIGN]
    if len(gettable) < request.gpus:
        return []
    likely = sorted(gettable, key=_remoteness)[: request.gpus]
    return claim(request, [seat for seat in likely if seat.unclaimed])


def claim(request: Request, seats: Sequence[Seat]) -> list[Seat]:
    """Keeps these GPUs from all later jobs of this pass."""
    for seat in seats:
        seat.ledger.claimed_by = request
    return list(seats)


def _remoteness(seat: Seat) -> tuple[bool, Verdict, int, int]:
    """Less is sooner: kept for nobody else, nearly free, few jobs there, much room."""
    ledger = seat.ledger
    return not seat.unclaimed, seat.verdict, len(ledger.holdings), -ledger.room_mib


def why_not(request: Request, seats: Sequence[Seat]) -> WaitReason:
    """What best explains that a request cannot start on these GPUs now."""
    healthy = [seat for seat in seats if seat.verdict is not Verdict.UNHEALTHY]
    if len(healthy) < request.gpus:
        return _too_few(request, seats, healthy=len(healthy))
    open_seats = [seat for seat in healthy if seat.unclaimed]
    free = [seat for seat in open_seats if seat.verdict is Verdict.FITS]
    cleaning = [seat for seat in open_seats if seat.verdict is Verdict.CLEANING]
    if len(free) + len(cleaning) >= request.gpus:
        return _cleaning(cleaning)
    foreign = [seat for seat in healthy if seat.verdict is Verdict.FOREIGN]
    alone = [seat for seat in foreign if seat.unclaimed and not seat.ledger.holdings]
    if len(healthy) - len(foreign) < request.gpus or len(free) + len(alone) >= request.gpus:
        return _foreign(foreign)
    claimed = [(seat, ahead) for seat in healthy if (ahead := seat.ledger.claimed_by)]
    fitting = [seat for seat in healthy if seat.verdict is Verdict.FITS]
    gettable = [seat for seat in open_seats if seat.verdict is not Verdict.FOREIGN]
    if claimed and (len(fitting) >= request.gpus or len(gettable) < request.gpus):
        _, first = min(claimed, key=lambda pair: pair[0].verdict)
        return behind(first, [seat for seat, ahead in claimed if ahead is first])
    return _resources(request, open_seats, free=len(free))


def behind(ahead: Request, seats: Sequence[Seat]) -> WaitReason:
    """The reason of a job that waits because these GPUs are kept for another."""
    gpus = listed([gpu_named(seat.ledger.gpu) for seat in seats])
    detail = f"{job_named(ahead)} is ahead in the queue for {gpus}"
    facts = {"job_id": ahead.job_id, "gpus": _indices(seats)}
    return WaitReason(code=WaitCode.PRIORITY, detail=detail, facts=facts)


def _indices(seats: Sequence[Seat]) -> list[int]:
    return [seat.ledger.gpu.index for seat in seats]


def _too_few(request: Request, seats: Sequence[Seat], *, healthy: int) -> WaitReason:
    asked = counted(request.gpus, "GPU")
    facts: dict[str, Any] = {"gpus_asked": request.gpus, "gpus_healthy": healthy}
    if len(seats) < request.gpus:
        # Such a request is refused at the door; the box had more GPUs when it came in.
        detail = f"it needs {asked} and this box now has {len(seats)} that can serve it"
        return WaitReason(code=WaitCode.RESOURCES, detail=detail, facts=facts)
    sick = [seat for seat in seats if seat.verdict is Verdict.UNHEALTHY]
    told = "; ".join(gpu_said(seat.ledger.gpu, seat.unhealthy or "") for seat in sick)
    if request.gpus > 1 or len(sick) > 1:
        told = f"it needs {asked} and only {healthy} of those that match can be used: {told}"
    facts["gpus"] = _indices(sick)
    return WaitReason(code=WaitCode.GPU_UNHEALTHY, detail=told, facts=facts)


def _cleaning(seats: Sequence[Seat]) -> WaitReason:
    jobs = [held.job_id for seat in seats for held in seat.ledger.holdings]
    return WaitReason(
        code=WaitCode.GPU_CLEANING,
        detail="; ".join(_obstacle(seat) for seat in seats),
        facts={"gpus": _indices(seats), "job_ids": sorted(set(jobs))},
    )


def _foreign(seats: Sequence[Seat]) -> WaitReason:
    return WaitReason(
        code=WaitCode.GPU_FOREIGN,
        detail="; ".join(_obstacle(seat) for seat in seats),
        facts={"gpus": _indices(seats)},
    )


def _resources(request: Request, seats: Sequence[Seat], *, free: int) -> WaitReason:
    blocked = [seat for seat in seats if seat.verdict is not Verdict.FITS]
    if all(seat.need.whole for seat in blocked):
        asked = "a GPU to itself" if request.gpus == 1 else f"{request.gpus} GPUs to itself"
    else:
        size = size_text(request.gpu_memory_mib or 0)
        asked = size if request.gpus == 1 else f"{size} on each of {request.gpus} GPUs"
    if request.gpus > 1:
        asked += f" and can have {free}"
    jobs = {held.job_id for seat in blocked for held in seat.ledger.holdings}
    return WaitReason(
        code=WaitCode.RESOURCES,
        detail=f"it needs {asked}: {listed([_obstacle(seat) for seat in blocked])}",
        facts={
            "gpus_asked": request.gpus,
            "gpus_free": free,
            "gpu_memory_mib": request.gpu_memory_mib,
            "job_ids": sorted(jobs),
        },
    )


def _obstacle(seat: Seat) -> str:
    """What keeps a request off one GPU."""
    ledger, gpu = seat.ledger, gpu_named(seat.ledger.gpu)
    jobs = jobs_named(ledger.holdings)
    if seat.verdict is Verdict.FOREIGN:
        return gpu_said(ledger.gpu, ledger.foreign or "")
    if seat.verdict is Verdict.CLEANING:
        kept = "; ".join(held.kept_by for held in ledger.holdings if held.kept_by is not None)
        return f"{gpu} is still giving back the memory of {jobs}" + (f": {kept}" if kept else "")
    if seat.verdict is Verdict.RAMP:
        return f"{gpu} takes its next job once {jobs_named(ledger.ramping)} has its memory there"
    if seat.need.whole or any(held.exclusive for held in ledger.holdings):
        return f"{gpu} is held by {jobs}"
    if len(ledger.holdings) >= ledger.max_jobs:
        return f"{gpu} is shared by as many jobs as it may be, {jobs}"
    left, asked = max(0, ledger.room_mib), seat.need.memory_mib
    beside = "" if ledger.others is None else f", as {ledger.others}"
    return f"{gpu} has {size_beside(left, asked)} left{beside}"
