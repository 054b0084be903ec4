"""What the owners of running jobs are told of their GPUs: each thing once, as an event and among
the job's warnings.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import Any

from traind.config import GpuSettings
from traind.dispatcher.outlook import Sight
from traind.dispatcher.overruns import Overrun, Overruns
from traind.gpu import Gpu, Stranger, StrangerKind
from traind.gpus.strangers import whose
from traind.job import OWNING, Job, StopOrder, StopReason
from traind.options import size_text
from traind.scheduler import SharingPolicy
from traind.store.leases import OpenLease
from traind.store.moves import Notice, Stop
from traind.store.rows import from_us

_MOST_WARNINGS = 50
_SURE = 2
"""In how many readings a stranger must have been: a job's own child may end between two looks."""


class Concerns:
    """Works out of each look at the GPUs what is to be told to whom."""

    def __init__(self) -> None:
        self._overruns = Overruns()
        self._notices: dict[int, list[Notice]] = {}
        self._stops: dict[tuple[int, int], Overrun] = {}

    def look(self, sight: Sight, policy: SharingPolicy, *, stopping: Collection[int]) -> None:
        """Take in how the GPUs are; `stopping` are the ids of jobs that are on their way out."""
        self._overruns.look(sight, policy, stopping=stopping)
        self._stops = {(each.job_id, each.attempt): each for each in self._overruns.worst()}
        found: defaultdict[int, list[Notice]] = defaultdict(list)
        for overrun in self._overruns.all:
            if overrun.told:
                found[overrun.job_id].append(_overrun_notice(overrun))
        for job_id, notice in _meetings(sight):
            found[job_id].append(notice)
        self._notices = found

    def moves(self, job: Job, settings: GpuSettings, *, now: datetime) -> list[Notice | Stop]:
        """What is to be told of a job as it stands, and whether it must stop."""
        if job.state not in OWNING:
            return []
        room = max(0, _MOST_WARNINGS - len(job.warnings))
        news = [one for one in self._notices.get(job.id, ()) if one.sentence not in job.warnings]
        moves: list[Notice | Stop] = [*news[:room]]
        overrun = self._stops.get((job.id, job.attempt))
        if overrun is not None and job.stop is None:
            moves.append(Stop(order=_overrun_order(overrun, settings, now=now)))
        return moves


def _overrun_notice(overrun: Overrun) -> Notice:
    declared = size_text(overrun.declared_mib)
    return Notice(
        event="overrun",
        sentence=f"it used more of GPU {overrun.gpu.index} than the {declared} that it declared; "
        "it is stopped if those beside it would run out of memory",
        facts={
            "attempt": overrun.attempt,
            "gpu": overrun.gpu.index,
            "declared_mib": overrun.declared_mib,
            "used_mib": overrun.used_mib,
        },
    )


def _overrun_order(overrun: Overrun, settings: GpuSettings, *, now: datetime) -> StopOrder:
    """Soon, whatever grace the job has: others may fail meanwhile that kept to what they said."""
    return StopOrder(
        reason=StopReason.OVERRUN,
        by=None,
        asked_at=now,
        term_at=now,
        kill_at=now + settings.overrun_grace,
        stage=0,
        detail=overrun.cause,
    )


def _meetings(sight: Sight) -> Iterator[tuple[int, Notice]]:
    """Each job that strangers came to, or whose own process is where it should not be."""
    gpus = {reading.gpu.uuid: reading.gpu for reading in sight.snapshot.readings}
    for uuid, strangers in sight.strangers.items():
        if (gpu := gpus.get(uuid)) is None:
            continue
        there = [one for one in sight.leases if one.lease.gpu_uuid == uuid]
        held = [one for one in there if one.lease.state == "held"]
        for stranger in strangers:
            if not _is_told(stranger):
                continue
            if stranger.job_id is not None:
                yield stranger.job_id, _stray_notice(stranger, gpu)
            yield from ((one.job_id, told) for one in held if (told := _met(one, stranger, gpu)))


def _is_told(stranger: Stranger) -> bool:
    """Whether it is there, and it is known well enough whose it is."""
    named = stranger.user is not None or stranger.uid is None
    there = stranger.gone_at is None and stranger.readings >= _SURE
    return there and named and not stranger.ignored and stranger.kind is not StrangerKind.DISPLAY


def _met(one: OpenLease, stranger: Stranger, gpu: Gpu) -> Notice | None:
    """What a job is told of a stranger where it runs; None where it knew whom it shares with."""
    if stranger.job_id == one.job_id or one.started_at_us is None:
        return None
    if stranger.since > from_us(one.started_at_us):
        sentence = f"{whose(stranger)} came to GPU {gpu.index} while it ran there"
    elif one.lease.exclusive:
        sentence = f"{whose(stranger)} was on GPU {gpu.index} when it started there"
    else:
        return None
    facts = {"attempt": one.attempt, **_facts(stranger, gpu)}
    return Notice(event="stranger", sentence=sentence, facts=facts)


def _stray_notice(stranger: Stranger, gpu: Gpu) -> Notice:
    what = f" ({stranger.command})" if stranger.command else ""
    sentence = f"its process {stranger.pid}{what} uses GPU {gpu.index}, which it was not given"
    return Notice(event="stray", sentence=sentence, facts=_facts(stranger, gpu))


def _facts(stranger: Stranger, gpu: Gpu) -> dict[str, Any]:
    known: Sequence[tuple[str, Any]] = (
        ("gpu", gpu.index),
        ("pid", stranger.pid),
        ("user", stranger.user),
        ("command", stranger.command),
        ("container", stranger.container),
        ("memory_mib", stranger.memory_mib),
    )
    return {name: value for name, value in known if value is not None}
