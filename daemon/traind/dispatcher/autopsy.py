"""Of what a failed attempt died, as the end of its log tells it: read aside, weighed against what
was seen on its GPUs.
"""

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

from traind.accounts import Accounts
from traind.causes import CauseCode
from traind.dispatcher.attribution import Attempts, Owner
from traind.gpu import GpuReading
from traind.gpus.source import UNKNOWN_PID
from traind.hub import Hub
from traind.job import Exit, Job, Lease
from traind.runner.logtail import read_tail
from traind.runner.supervisor import Ending, Supervisor
from traind.shortage import Neighbour, Shortage, is_neighbours, shortage_sentence
from traind.symptoms import Symptom, symptom_of
from traind.verdict import TEMPFAIL, Testimony


class Autopsy:
    """Gives what a log says of a death, with who else was on the GPU where that had no memory."""

    def __init__(self, supervisor: Supervisor, attempts: Attempts, hub: Hub) -> None:
        self._supervisor = supervisor
        self._attempts = attempts
        self._hub = hub
        self._accounts = Accounts()

    async def testimony(self, job: Job, ending: Ending) -> Testimony | None:
        """What the log of the job's attempt says, None where it is not to be asked or is silent."""
        if job.stop is not None or not _is_failure(ending):
            return None
        path = self._supervisor.path((job.id, job.attempt)) / "log"
        symptom = await asyncio.to_thread(_read, path)
        if symptom is None:
            return None
        if symptom.shortage is not None:
            return await self._short_of_memory(job, symptom.shortage)
        faulty = frozenset[str]()
        if symptom.code is CauseCode.GPU_FAULT and len(job.leases) == 1:
            faulty = frozenset({job.leases[0].gpu_uuid})  # of several no log says which one it was
        sentence = symptom.sentence
        if symptom.code is CauseCode.CUDA_SETUP and not job.leases:
            sentence += "; it had asked for no GPU (gpus is 0)"
        return Testimony(code=symptom.code, sentence=sentence, faulty=faulty)

    async def _short_of_memory(self, job: Job, shortage: Shortage) -> Testimony:
        """Whose doing it was that a GPU had no more memory for the job."""
        lease = _lease_meant(job, shortage)
        if lease is None:
            own_mib = shortage.own_mib
            sentence = shortage_sentence(shortage, (), gpu=None, own_mib=own_mib)
            return Testimony(code=CauseCode.CUDA_OOM_SELF, sentence=sentence)
        readings = self._hub.snapshot.readings
        reading = next((r for r in readings if r.gpu.uuid == lease.gpu_uuid), None)
        neighbours = await self._neighbours(job, lease, shortage, reading)
        theirs = {neighbour.pid for neighbour in neighbours}
        siblings_mib = sum(mib for pid, mib in shortage.others if pid not in theirs)
        own_mib = (shortage.own_mib or 0) + siblings_mib
        share_mib = lease.memory_mib
        if lease.exclusive and reading is not None:
            share_mib -= reading.gpu.reserved_mib
        guilty = is_neighbours(shortage, neighbours, own_mib=own_mib, share_mib=share_mib)
        gpu = f"GPU {lease.gpu_index}"
        sentence = shortage_sentence(shortage, neighbours, gpu=gpu, own_mib=own_mib)
        if not guilty:
            return Testimony(code=CauseCode.CUDA_OOM_SELF, sentence=sentence)
        return Testimony(
            code=CauseCode.CUDA_OOM_NEIGHBOUR,
            sentence=sentence,
            faulty=frozenset({lease.gpu_uuid}),
        )

    async def _neighbours(
        self, job: Job, lease: Lease, shortage: Shortage, reading: GpuReading | None
    ) -> list[Neighbour]:
        """Who else had memory of the GPU: as the message tells it of processes that were seen
        there, else as they were read last. A log alone accuses nobody.
        """
        seen = {p.pid: p.memory_mib or 0 for p in (reading.processes if reading else ())}
        told: Iterable[tuple[int, int]] = shortage.others or seen.items()
        found = []
        for pid, memory_mib in told:
            owner = self._attempts.owner(pid)
            if pid == UNKNOWN_PID or not memory_mib or _is_of(owner, job):
                continue
            # What is left of the job itself is dead by now, though a reading may still list it.
            lives = pid in seen and psutil.pid_exists(pid)
            if owner or lives or self._attempts.was_stranger(lease.gpu_uuid, pid):
                user = await self._user(pid) if owner is None else owner.user
                job_id = None if owner is None else owner.job_id
                found.append(Neighbour(pid=pid, user=user, job_id=job_id, memory_mib=memory_mib))
        return found

    async def _user(self, pid: int) -> str | None:
        """Whose process it is, None of one that has gone."""
        try:
            uid = psutil.Process(pid).uids().real
        except psutil.Error:
            return None
        return (await self._accounts.find(uid)).name


def _is_failure(ending: Ending) -> bool:
    """Whether the command ran, and failed in a way that its log may explain."""
    if not isinstance(ending, Exit) or ending.launch_error is not None:
        return False
    return ending.signal is not None or ending.exit_code not in (None, 0, TEMPFAIL)


def _read(path: Path) -> Symptom | None:
    text = read_tail(path)
    return symptom_of(text) if text else None


def _is_of(owner: Owner | None, job: Job) -> bool:
    return owner is not None and (owner.job_id, owner.attempt) == (job.id, job.attempt)


def _lease_meant(job: Job, shortage: Shortage) -> Lease | None:
    """The GPU that had no more memory: programs count those that they see, from 0."""
    leases: Sequence[Lease] = job.leases
    if shortage.device is not None and shortage.device < len(leases):
        return leases[shortage.device]
    return leases[0] if len(leases) == 1 else None
