"""Which of the GPUs that are free a request starts on: least is wasted, and several are near."""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import combinations

from traind.job import Request
from traind.scheduler.admission import Verdict
from traind.scheduler.placement import Seat

_MOST_GROUPS = 500
"""Groups that are compared one by one, so that a pass over the queue stays quick."""

_BEGINNINGS = 8
"""Where there are more, so many GPUs begin one that grows, those with the least waste."""


def choose(request: Request, seats: Sequence[Seat]) -> list[Seat] | None:
    """The GPUs the request starts on; None when it cannot start now."""
    free = [seat for seat in seats if seat.verdict is Verdict.FITS and seat.unclaimed]
    if len(free) < request.gpus:
        return None
    near = _Nearness(free)
    if request.gpus == 1 or len(free) == request.gpus or not near.known:
        return sorted(free, key=lambda seat: (*_waste(seat), near.left_alone(seat)))[: request.gpus]
    if math.comb(len(free), request.gpus) <= _MOST_GROUPS:
        groups: Iterable[tuple[Seat, ...]] = combinations(free, request.gpus)
    else:
        firsts = sorted(free, key=_waste)[:_BEGINNINGS]
        groups = (_grown(first, free, request.gpus, near) for first in firsts)
    return list(min(groups, key=partial(_waste_of, near)))


class _Nearness:
    """How near the free GPUs are to each other."""

    def __init__(self, free: Sequence[Seat]) -> None:
        uuids = {seat.ledger.gpu.uuid for seat in free}
        self._weights = {
            seat.ledger.gpu.uuid: {u: w for u, w in seat.ledger.place.near if u in uuids}
            for seat in free
        }
        self.known = any(self._weights.values())

    def between(self, one: Seat, other: Seat) -> int:
        """The weight of the way from one to the other."""
        return self._weights[one.ledger.gpu.uuid].get(other.ledger.gpu.uuid, 0)

    def left_alone(self, seat: Seat) -> int:
        """What the others lose by this one: the better job for it is that of a pair."""
        return max(self._weights[seat.ledger.gpu.uuid].values(), default=0)


def _waste(seat: Seat) -> tuple[bool, bool, int, int]:
    """Less is better: no warnings, nobody's display, big holes stay big, and big GPUs are not spent
    on what small ones can do.
    """
    ledger = seat.ledger
    left = 0 if seat.need.whole else ledger.room_mib - seat.need.memory_mib
    return ledger.suspect, ledger.display, left, ledger.gpu.memory_mib


def _waste_of(near: _Nearness, group: Sequence[Seat]) -> tuple[int, int, int, int, int]:
    """The same of several GPUs, which had better be near each other."""
    suspect, display, left, memory = (
        sum(figures) for figures in zip(*(_waste(seat) for seat in group), strict=True)
    )
    closeness = sum(near.between(one, other) for one, other in combinations(group, 2))
    return suspect, display, -closeness, left, memory


def _grown(first: Seat, free: Sequence[Seat], count: int, near: _Nearness) -> tuple[Seat, ...]:
    """A group that begins with this GPU and takes the best one more each time."""
    group = [first]
    while len(group) < count:
        others = (seat for seat in free if seat not in group)
        group.append(min(others, key=lambda seat: _waste_of(near, [*group, seat])))
    return tuple(sorted(group, key=lambda seat: seat.ledger.gpu.index))
