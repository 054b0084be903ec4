"""Claims: what a start takes, as the store is told, and the patience with one that it refuses."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from traind.config import JobSettings
from traind.job import Request
from traind.runner.proofs import boot_id
from traind.scheduler import Start
from traind.store.moves import Claim, NewLease

FIRST_PATIENCE = timedelta(seconds=1)
LAST_PATIENCE = timedelta(seconds=30)


def claim_of(start: Start, asked: Request, config: JobSettings, *, state_dir: Path) -> Claim:
    """The claim that makes a planned start true, for a job that still asks for the same."""
    leases = tuple(
        NewLease(
            gpu_uuid=grant.gpu.uuid,
            gpu_index=grant.gpu.index,
            gpu_name=grant.gpu.name,
            memory_mib=grant.memory_mib,
            exclusive=grant.exclusive,
            baseline_mib=grant.baseline_mib,
            unlisted_mib=grant.unlisted_mib,
        )
        for grant in start.grants
    )
    return Claim(
        request=asked,
        leases=leases,
        boot_id=boot_id(),
        ports=range(config.first_port, config.last_port + 1),
        run_dirs=f"{state_dir}/runs",
    )


@dataclass(frozen=True, slots=True)
class _Refusal:
    why: str
    patience: timedelta
    until: datetime


class Refusals:
    """Jobs whose claim the tables refused: each is tried again after 1 s, then after twice as long
    each time, up to 30 s.
    """

    def __init__(self) -> None:
        self._known: dict[int, _Refusal] = {}

    def note(self, job_id: int, why: str, *, now: datetime) -> bool:
        """Remember that a claim was refused; whether that is news, or was refused so before."""
        before = self._known.get(job_id)
        patience = FIRST_PATIENCE if before is None else min(2 * before.patience, LAST_PATIENCE)
        self._known[job_id] = _Refusal(why, patience, now + patience)
        return before is None or before.why != why

    def forget(self, job_id: int) -> None:
        """The job no longer waits: a later claim is another one."""
        self._known.pop(job_id, None)

    def allow(self, job_id: int, *, now: datetime) -> bool:
        """Whether a job may be claimed now."""
        known = self._known.get(job_id)
        return known is None or known.until <= now

    def next_at(self, *, now: datetime) -> datetime | None:
        """When the next job may be tried again; None when none is kept waiting."""
        ahead = (known.until for known in self._known.values() if known.until > now)
        return min(ahead, default=None)
