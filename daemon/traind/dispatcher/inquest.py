"""A failed GPU job is judged once its GPUs were read behind its end: they may explain it."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from traind.gpu import GpuSnapshot
from traind.job import Exit, Job
from traind.runner.supervisor import Ending, Key


class Inquest:
    """Puts off the judgement of ends that a reading may explain."""

    def __init__(self) -> None:
        self._until: dict[Key, datetime] = {}

    @property
    def ends_at(self) -> datetime | None:
        """When the first of them is judged in any case; None when nothing is put off."""
        return min(self._until.values(), default=None)

    def sift(
        self,
        endings: Iterable[tuple[Key, Ending]],
        jobs: Mapping[Key, Job],
        snapshot: GpuSnapshot,
        *,
        patience: timedelta,
        now: datetime,
    ) -> tuple[list[tuple[Key, Ending]], list[tuple[Key, Ending]]]:
        """The ends to be judged now, and those to be judged later, after `patience` at the most."""
        ready: list[tuple[Key, Ending]] = []
        later: list[tuple[Key, Ending]] = []
        for key, ending in endings:
            explained = _is_clear(ending, jobs.get(key)) or _is_read(snapshot, ending)
            if explained or now >= self._until.setdefault(key, now + patience):
                self._until.pop(key, None)
                ready.append((key, ending))
            else:
                later.append((key, ending))
        return ready, later


def _is_clear(ending: Ending, job: Job | None) -> bool:
    """Whether no GPU can have had a part in it, or it is known whose doing it was."""
    if job is None or not job.leases or not isinstance(ending, Exit):
        return True
    return job.stop is not None or ending.launch_error is not None or ending.exit_code == 0


def _is_read(snapshot: GpuSnapshot, ending: Ending) -> bool:
    """Whether the GPUs were asked behind the end, or cannot be for now."""
    if snapshot.fault is not None:
        return snapshot.read_at is not None
    asked = snapshot.asked_at
    return asked is None or not isinstance(ending, Exit) or asked >= ending.ended_at
