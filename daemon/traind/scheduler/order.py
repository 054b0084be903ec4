"""One pass over the queue: first come, first served, within a priority."""

from dataclasses import fields, replace
from datetime import datetime, timedelta
from operator import attrgetter

from traind.job import Request, WaitCode, WaitReason
from traind.jobspec import instant_text
from traind.scheduler.admission import Verdict, open_ledgers
from traind.scheduler.choosing import choose
from traind.scheduler.hosting import HostLedger
from traind.scheduler.placement import behind, claim, keep, seats_for, why_not
from traind.scheduler.wording import instant_said
from traind.scheduler.world import Plan, Start, World

_LOOK_AGAIN = timedelta(seconds=5)
"""How soon to look again whether somebody gave memory back: nothing tells."""

_IDENTITY = {"job_id", "user", "priority", "eligible_at", "delay"}
_shape = attrgetter(*(each.name for each in fields(Request) if each.name not in _IDENTITY))


def plan(world: World) -> Plan:
    """What starts now, why every other waiting job waits, and when to think again at the latest.

    The same world gives the same plan, in whatever order its tuples come.
    """
    queue = _Pass(world)
    for request in sorted(world.waiting, key=_turn):
        queue.consider(_unafraid(request, world.now))
    if queue.host.awaits_available:
        queue.wakes.add(world.now + _LOOK_AGAIN)
    return Plan(
        starts=tuple(queue.starts),
        reasons=queue.reasons,
        wake_at=min(queue.wakes, default=None),
        blocked=queue.blocked,
    )


def joins(thought: Plan, request: Request, now: datetime) -> WaitReason | None:
    """Why a request waits that came after the plan, when all of the plan holds with it as well;
    None where only a new plan can tell.
    """
    known = thought.blocked.get(_shape(_unafraid(request, now)))
    if known is None or request.eligible_at > now or _turn(known[0]) > _turn(request):
        return None
    return known[1]


def _turn(request: Request) -> tuple[int, int]:
    """Less is sooner."""
    return -request.priority, request.job_id


def _unafraid(request: Request, now: datetime) -> Request:
    """The request without the GPUs that it has avoided for long enough."""
    if request.avoid_until is None or request.avoid_until > now:
        return request
    return replace(request, avoid=frozenset(), avoid_until=None)


class _Pass:
    """The decisions so far, and what they leave.

    Within a pass room only shrinks and claims only grow. So what could not start once cannot
    start later: jobs of a shape that was blocked are answered from `blocked`.
    """

    def __init__(self, world: World) -> None:
        self.starts: list[Start] = []
        self.reasons: dict[int, WaitReason] = {}
        self.wakes: set[datetime] = set()
        self._world = world
        self.host = HostLedger(world.host, world.owners)
        self._gpus = open_ledgers(world)
        self.blocked: dict[object, tuple[Request, WaitReason]] = {}

    def consider(self, request: Request) -> None:
        """Starts the request or writes down why it waits."""
        reason = self._stopped(request)
        if reason is None:
            shape = _shape(request)
            known = self.blocked.get(shape)
            if known is not None:
                reason = known[1]
            else:
                answer = self._try(request)
                if isinstance(answer, Start):
                    self.starts.append(answer)
                    return
                reason, behind_it = answer
                self.blocked[shape] = request, behind_it
        self.reasons[request.job_id] = reason

    def _stopped(self, request: Request) -> WaitReason | None:
        """Why this one is not looked at now, whatever is free."""
        world = self._world
        if request.eligible_at > world.now:
            self.wakes.add(request.eligible_at)
            return delay_reason(request)
        if world.pause is not None:
            return world.pause.reason
        if world.launcher_fault is not None:
            return WaitReason(code=WaitCode.LAUNCHER, detail=world.launcher_fault)
        if request.gpus and world.gpu_fault is not None:
            return WaitReason(code=WaitCode.GPU_MONITOR, detail=world.gpu_fault)
        return None

    def _try(self, request: Request) -> Start | tuple[WaitReason, WaitReason]:
        """The start, or why it waits and why those of its shape behind it wait."""
        if (never := self.host.never(request)) is not None:
            return never, never
        seats = seats_for(request, self._gpus, policy=self._world.policy) if request.gpus else []
        chosen = choose(request, seats)
        lacking = self.host.why_not(request) if chosen is not None else None
        if chosen is not None and lacking is None:
            self.host.take(request)
            grants = tuple(seat.ledger.give(request, seat.need) for seat in chosen)
            return Start(job_id=request.job_id, grants=grants)
        ramps = (seat.ledger.ramp_ends_at for seat in seats if seat.verdict is Verdict.RAMP)
        self.wakes.update(ends_at for ends_at in ramps if ends_at is not None)
        if chosen is not None and lacking is not None:
            # It has its GPUs and lacks only memory: they stay its own until that comes.
            claim(request, chosen)
            return lacking, self.host.keep_place(request)
        reason = why_not(request, seats)
        kept = keep(request, seats)
        return reason, behind(request, kept) if kept else reason


def delay_reason(request: Request) -> WaitReason:
    """Why a job waits whose time has not come."""
    at = instant_said(request.eligible_at)
    again = request.delay is WaitCode.BACKOFF
    detail = f"it is tried again at {at}" if again else f"it does not start before {at}"
    return WaitReason(
        code=request.delay, detail=detail, facts={"at": instant_text(request.eligible_at)}
    )
