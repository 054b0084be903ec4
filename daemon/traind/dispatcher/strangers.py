"""The processes on the GPUs that are of no job there: known from the first reading that lists them
until they are gone for good, with whose they are.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from traind.accounts import Accounts
from traind.config import GpuSettings
from traind.dispatcher.processes import Face, face_of
from traind.gpu import GpuProcess, GpuReading, GpuSnapshot, Stranger
from traind.gpus.health import held_by
from traind.gpus.source import UNKNOWN_PID
from traind.gpus.strangers import Conduct, kind_of, may_return, watched
from traind.hub import Hub
from traind.runner.errand import start_time
from traind.store.inventory import Ignored

_Key = tuple[str, int, int | None]
"""UUID of the GPU, pid, start time"""


@dataclass(frozen=True, slots=True)
class _Known:
    stranger: Stranger
    conduct: Conduct


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenants:
    """Who holds one GPU by right: `pids` are all processes of those attempts. `sure`: those of each
    that runs are known. `job` is the one that runs there, None where there are none or several.
    """

    pids: Collection[int] = ()
    held: bool = False
    sure: bool = True
    job: int | None = None


class Strangers:
    """Takes note of every new snapshot, once; `hub.strangers` has what is known, by UUID.

    What is remembered of how they behaved is lost with the daemon: a forgotten program has to be
    seen idle anew.
    """

    def __init__(self, settings: GpuSettings, *, accounts: Accounts, hub: Hub) -> None:
        self._settings = settings
        self._accounts = accounts
        self._hub = hub
        self._known: dict[_Key, _Known] = {}
        self._looked_at: datetime | None = None
        self._asked: dict[int, asyncio.Task[None]] = {}

    def configure(self, settings: GpuSettings) -> None:
        """Go by these settings from the next reading on."""
        self._settings = settings

    def look(
        self,
        snapshot: GpuSnapshot,
        tenants: Mapping[str, Tenants],
        ignored: Mapping[str, Ignored],
        *,
        job_of: Callable[[int], int | None],
        now: datetime,
    ) -> None:
        """Take in a snapshot. `job_of` gives the job that a process elsewhere is of, if any."""
        if snapshot.fault is None and snapshot.read_at != self._looked_at:
            self._looked_at = snapshot.read_at
            before, self._known = self._known, {}
            for reading in snapshot.readings:
                self._visit(reading, tenants.get(reading.gpu.uuid, Tenants()), before, now)
            self._known = {key: self._of_job(one, job_of) for key, one in self._known.items()}
        self._tell(ignored)

    def _visit(
        self, reading: GpuReading, tenants: Tenants, before: Mapping[_Key, _Known], now: datetime
    ) -> None:
        uuid = reading.gpu.uuid
        here = {key: known for key, known in before.items() if key[0] == uuid}
        if reading.fault is not None:
            self._known |= here
            return
        for key, process in self._foreign(reading, tenants):
            known = here.pop(key, None)
            if known is not None or tenants.sure:
                self._known[key] = self._seen(known, key, process, reading, tenants, now)
        for key, known in here.items():
            gone = replace(known.stranger, gone_at=known.stranger.gone_at or now)
            patience = self._settings.foreign_gone
            if may_return(gone, known.conduct, patience=patience, now=now):
                self._known[key] = replace(known, stranger=gone)

    @staticmethod
    def _foreign(reading: GpuReading, tenants: Tenants) -> Iterator[tuple[_Key, GpuProcess]]:
        """Those of no attempt there. What has ended meanwhile was most likely an attempt's own,
        where there is one.
        """
        for process in reading.processes:
            if process.pid == UNKNOWN_PID or process.pid in tenants.pids:
                continue
            started = start_time(process.pid)
            if started is not None or not tenants.held:
                yield (reading.gpu.uuid, process.pid, started), process

    def _seen(
        self,
        known: _Known | None,
        key: _Key,
        process: GpuProcess,
        reading: GpuReading,
        tenants: Tenants,
        now: datetime,
    ) -> _Known:
        settings, before = self._settings, None if known is None else known.conduct
        alone = not tenants.held
        conduct = watched(before, process, reading, alone=alone, settings=settings, now=now)
        kind = kind_of(process, conduct, settings=settings, now=now)
        face = face_of(process.pid) if known is None else _face(known.stranger)
        stranger = Stranger(
            gpu_uuid=key[0],
            pid=key[1],
            started=key[2],
            kind=kind,
            memory_mib=held_by(reading, process),
            since=conduct.since,
            uid=None if face is None else face.uid,
            command=None if face is None else face.command,
            container=None if face is None else face.container,
            readings=1 if known is None else known.stranger.readings + 1,
            during_job=tenants.job if known is None else known.stranger.during_job,
        )
        return _Known(stranger, conduct)

    @staticmethod
    def _of_job(known: _Known, job_of: Callable[[int], int | None]) -> _Known:
        stranger = known.stranger
        if stranger.gone_at is not None:
            return known
        return replace(known, stranger=replace(stranger, job_id=job_of(stranger.pid)))

    def _tell(self, ignored: Mapping[str, Ignored]) -> None:
        """Put into the hub what is known, with the names that are known by now."""
        found: defaultdict[str, list[Stranger]] = defaultdict(list)
        for (uuid, pid, started), known in self._known.items():
            stranger = known.stranger
            let_be = (pid, started) in ignored.get(uuid, ())
            user = None if stranger.uid is None else self._name(stranger.uid)
            found[uuid].append(replace(stranger, user=user, ignored=let_be))
        self._hub.strangers = {uuid: tuple(few) for uuid, few in found.items()}

    def _name(self, uid: int) -> str | None:
        """The name of an account, None until the name service said it: nothing waits for that."""
        name = self._accounts.name(uid)
        if name is None and uid not in self._asked:
            self._asked[uid] = asyncio.get_running_loop().create_task(self._ask(uid))
        return name

    async def _ask(self, uid: int) -> None:
        await self._accounts.find(uid)
        self._hub.wake()


def _face(stranger: Stranger) -> Face | None:
    if stranger.uid is None:
        return None
    return Face(uid=stranger.uid, command=stranger.command, container=stranger.container)
