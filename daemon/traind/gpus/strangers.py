"""What a process that is of no job does on a GPU, by what was seen of it; and how it is named.

Pure: readings and memories in, verdicts and words out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from traind.config import GpuSettings
from traind.gpu import Gpu, GpuProcess, GpuReading, Stranger, StrangerKind
from traind.gpus.health import held_by
from traind.gpus.source import named
from traind.options import size_text, span_text

_GRAPHICS = "graphics"
_NAMED_AT_MOST = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """How a process behaved since it was first seen: `worked_at` is when it last held much memory
    or kept the GPU busy, None when never.
    """

    since: datetime
    worked_at: datetime | None = None


def watched(
    before: Conduct | None,
    process: GpuProcess,
    reading: GpuReading,
    *,
    alone: bool,
    settings: GpuSettings,
    now: datetime,
) -> Conduct:
    """The conduct with this reading. `alone`: no job runs on the GPU, so that what keeps it busy
    are strangers; where others draw there, too, its busy share says nothing either.
    """
    known = before or Conduct(since=now)
    drawn_on = any(each.kind == _GRAPHICS for each in reading.processes)
    telling = alone and not drawn_on and reading.busy_pct is not None
    busy = telling and (reading.busy_pct or 0) >= settings.foreign_busy_pct
    if busy or held_by(reading, process) > settings.foreign_memory:
        return replace(known, worked_at=now)
    return known


def kind_of(
    process: GpuProcess, conduct: Conduct, *, settings: GpuSettings, now: datetime
) -> StrangerKind:
    """What the process does, by how it behaved."""
    if process.kind == _GRAPHICS:
        return StrangerKind.DISPLAY
    if conduct.worked_at == now:
        return StrangerKind.TRAINING
    quiet = now - (conduct.worked_at or conduct.since)
    return StrangerKind.IDLE if quiet >= settings.foreign_idle else StrangerKind.TRAINING


def may_return(stranger: Stranger, conduct: Conduct, *, patience: timedelta, now: datetime) -> bool:
    """Whether one that is gone may soon be back: what trained often starts again, but what came
    with a job that had the GPU, such as its container, goes with it.
    """
    trained = stranger.kind is StrangerKind.TRAINING and conduct.worked_at is not None
    if not trained or stranger.during_job is not None:
        return False
    return stranger.gone_at is not None and now < stranger.gone_at + patience


def whose(stranger: Stranger) -> str:
    """A stranger as sentences name it, such as 'process 4242 of bob (python train.py)'."""
    if stranger.job_id is not None:
        owner = f" of job {stranger.job_id}"
    elif stranger.user is not None or stranger.uid is not None:
        owner = f" of {stranger.user or f'uid {stranger.uid}'}"
    else:
        owner = ""
    known = [stranger.command, stranger.container and f"container {stranger.container}"]
    details = ", ".join(each for each in known if each)
    return f"process {stranger.pid}{owner}" + (f" ({details})" if details else "")


def held_text(stranger: Stranger) -> str:
    """What it holds, in words, such as 'process 4242 of bob (python) holds 20 GiB'."""
    return f"{whose(stranger)} holds {size_text(stranger.memory_mib)}"


def beside(strangers: Sequence[Stranger]) -> str | None:
    """Who else holds memory of a GPU, in words; None when nobody does."""
    there = [each for each in strangers if each.gone_at is None and each.memory_mib > 0]
    return _told([held_text(each) for each in _biggest(there)]) if there else None


def obstacle(gpu: Gpu, strangers: Sequence[Stranger], settings: GpuSettings) -> str | None:
    """Why strangers keep a GPU from being given to one job alone, or None."""
    blocking = _biggest([each for each in strangers if each.blocks])
    if not blocking:
        return None
    there = [each for each in blocking if each.gone_at is None]
    if not there:
        last = max(blocking, key=lambda each: each.gone_at or each.since)
        return (
            f"{named(gpu)}: {whose(last)} held {size_text(last.memory_mib)} until "
            f"{last.gone_at:%H:%M:%S} UTC; the GPU is given out when nothing came back for "
            f"{span_text(settings.foreign_gone.total_seconds())}"
        )
    told = _told([held_text(each) for each in there])
    if len(there) == 1 and there[0].during_job is not None:
        told += f"; it came while job {there[0].during_job} ran there"
    elif there[0].memory_mib <= settings.foreign_memory:
        told += f", and has not been idle for {span_text(settings.foreign_idle.total_seconds())}"
    elif len(there) == 1 and there[0].job_id is None:
        told += " and is of no job"
    return f"{named(gpu)}: {told}"


def _biggest(strangers: Sequence[Stranger]) -> list[Stranger]:
    return sorted(strangers, key=lambda each: (-each.memory_mib, each.pid))


def _told(sentences: Sequence[str]) -> str:
    few = list(sentences[:_NAMED_AT_MOST])
    if len(sentences) > _NAMED_AT_MOST:
        few.append(f"{len(sentences) - _NAMED_AT_MOST} more hold the rest")
    return ", ".join(few)
