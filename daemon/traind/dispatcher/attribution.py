"""Whose work was on a GPU: by the processes that an attempt was seen to have while it lived."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import psutil

from traind.gpu import GpuSnapshot
from traind.job import Job
from traind.store.leases import OpenLease

_REMEMBERED = 10_000
_STRANGERS_KEPT = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """An attempt that holds GPUs, with its processes; `program` is who runs what."""

    job_id: int
    attempt: int
    user: str
    program: str | None
    gpus: frozenset[str]
    pids: frozenset[int]


class Attempts:
    """The attempts that hold GPUs now, and whose processes those were that have gone."""

    def __init__(self) -> None:
        self._now: tuple[Owner, ...] = ()
        self._gone: dict[int, Owner] = {}
        self._strangers: Mapping[str, frozenset[int]] = {}
        self._strangers_seen: dict[tuple[str, int], datetime] = {}
        self._stuck_since: dict[int, datetime] = {}

    def observe(self, owners: Iterable[Owner], snapshot: GpuSnapshot, *, now: datetime) -> None:
        """Take note of who holds GPUs now, and what else is seen there."""
        self._now = tuple(owners)
        self._note_stuck(now)
        for owner in self._now:
            for pid in owner.pids:
                self._gone.pop(pid, None)
                self._gone[pid] = owner
        for pid in list(self._gone)[: max(0, len(self._gone) - _REMEMBERED)]:
            del self._gone[pid]
        self._strangers = {
            reading.gpu.uuid: frozenset(p.pid for p in reading.processes) - self._gone.keys()
            for reading in snapshot.readings
        }
        lately = {k: at for k, at in self._strangers_seen.items() if now - at < _STRANGERS_KEPT}
        seen = {(uuid, pid): now for uuid, pids in self._strangers.items() for pid in pids}
        self._strangers_seen = lately | seen

    def owner(self, pid: int) -> Owner | None:
        """The attempt that this process is or was of; None of one that is of none."""
        return self._gone.get(pid)

    def was_stranger(self, uuid: str, pid: int) -> bool:
        """Whether a process of no attempt was on the GPU within the last minute."""
        return (uuid, pid) in self._strangers_seen

    def stuck_on(self, uuid: str, patience: timedelta, *, now: datetime) -> int | None:
        """A process of an attempt on this GPU that has not left the kernel for so long, or None."""
        pids = {pid for owner in self._now if uuid in owner.gpus for pid in owner.pids}
        since = {pid: self._stuck_since[pid] for pid in pids & self._stuck_since.keys()}
        return next((pid for pid, at in since.items() if now - at >= patience), None)

    def _note_stuck(self, now: datetime) -> None:
        pids = {pid for owner in self._now for pid in owner.pids}
        stuck = {pid for pid in pids if _in_kernel(pid)}
        self._stuck_since = {pid: self._stuck_since.get(pid, now) for pid in stuck}

    def several_on(self, uuid: str) -> bool:
        """Whether an attempt on this GPU holds others, too."""
        return any(uuid in owner.gpus and len(owner.gpus) > 1 for owner in self._now)

    def of_pid(self, uuid: str, pid: int | None) -> Owner | None:
        """The attempt whose work it was: by the process, else by having the GPU to itself; None
        when that is nobody's, or could be several's.
        """
        if pid is not None and pid in self._gone:
            return self._gone[pid]
        here = [owner for owner in self._now if uuid in owner.gpus]
        stranger = pid is not None and pid in self._strangers.get(uuid, ())
        return here[0] if len(here) == 1 and not stranger else None


def _in_kernel(pid: int) -> bool:
    """Whether a process waits in the kernel, where no signal reaches it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_DISK_SLEEP
    except psutil.Error:
        return False


def owners_of(
    jobs: Iterable[Job], leases: Iterable[OpenLease], pids: Mapping[int, tuple[int, ...]]
) -> list[Owner]:
    """The attempts of these jobs that hold GPUs, by their open leases and their processes."""
    specs = {job.id: job for job in jobs}
    held: dict[int, list[OpenLease]] = {}
    for lease in leases:
        held.setdefault(lease.attempt_id, []).append(lease)
    return [
        Owner(
            job_id=few[0].job_id,
            attempt=few[0].attempt,
            user=few[0].user,
            program=program_of(few[0].user, specs.get(few[0].job_id)),
            gpus=frozenset(lease.lease.gpu_uuid for lease in few),
            pids=frozenset(pids.get(attempt_id, ())),
        )
        for attempt_id, few in held.items()
    ]


def program_of(user: str, job: Job | None) -> str | None:
    """Who runs what, without its arguments: a sweep is one program. None where the job is over."""
    if job is None:
        return None
    spec = job.spec
    if spec.argv is not None:
        words = list(spec.argv)
    else:
        try:
            words = shlex.split(spec.command or "")
        except ValueError:
            words = (spec.command or "").split()
    return f"{user}: {' '.join(words[:2])}"[:300]
