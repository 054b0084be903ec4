"""Who holds the GPUs: open leases with the processes that were seen of each, and strangers."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from datetime import datetime

from traind.config import GpuSettings
from traind.dispatcher.cleaning import cleaning_of
from traind.dispatcher.outlook import Peaks, Pids, Sight
from traind.dispatcher.strangers import Strangers, Tenants
from traind.gpu import GpuSnapshot
from traind.gpus.health import measured
from traind.hub import Hub
from traind.runner.errand import start_time
from traind.runner.supervisor import Supervisor
from traind.store.inventory import Inventory
from traind.store.leases import LeaseStore, OpenLease


class Leaseholders:
    """The open leases as they are on disk, read anew once they are `stale`."""

    def __init__(
        self,
        settings: GpuSettings,
        store: LeaseStore,
        *,
        supervisor: Supervisor,
        inventory: Inventory,
        strangers: Strangers,
        hub: Hub,
    ) -> None:
        self.stale = True
        self._settings = settings
        self._store = store
        self._supervisor = supervisor
        self._inventory = inventory
        self._strangers = strangers
        self._hub = hub
        self._leases: tuple[OpenLease, ...] = ()
        self._pids: dict[int, tuple[int, ...]] = {}
        self._peaks: Peaks = {}

    def configure(self, settings: GpuSettings) -> None:
        """Go by these settings from now on."""
        self._settings = settings
        self._strangers.configure(settings)

    async def sight(self, *, now: datetime) -> Sight:
        """GPUs and leases as they are; of an attempt that is over, its last known processes."""
        if self.stale or self._store.given_up:
            self.stale = False  # before they are read: what changes meanwhile is read again
            self._leases = tuple(await self._store.open())
        # Behind the reading: a process that it lists and that no attempt has then is a stranger.
        leases, snapshot = self._leases, self._hub.snapshot
        keys = {lease.attempt_id: (lease.job_id, lease.attempt) for lease in leases}
        there = await self._supervisor.seen(keys.values())
        listed = {each.pid for reading in snapshot.readings for each in reading.processes}
        seen = {of: _known(there[key], self._pids.get(of, ()), listed) for of, key in keys.items()}
        self._pids, self._peaks = seen, _peaks(leases, seen, self._peaks, snapshot)
        self._strangers.look(
            snapshot,
            _tenants(leases, seen),
            self._inventory.ignored,
            job_of=self._supervisor.job_of,
            now=now,
        )
        return Sight(
            snapshot=snapshot,
            leases=leases,
            pids=seen,
            peaks=self._peaks,
            strangers=self._hub.strangers,
            cleaning=tuple(cleaning_of(leases, seen, snapshot, self._settings)),
        )

    async def release(self, *, now: datetime) -> Sight:
        """GPUs and leases without those of ended attempts that can be given out again."""
        sight = await self.sight(now=now)
        free = [each.lease for each in sight.cleaning if each.is_over(self._settings)]
        for lease in free:
            await self._store.release(lease.attempt_id, lease.lease.gpu_uuid, now=now)
            self.stale = True
        return await self.sight(now=now) if free else sight


def _known(
    now: tuple[int, ...], before: tuple[int, ...], listed: Collection[int]
) -> tuple[int, ...]:
    """The processes of an attempt, with those that have ended but are still listed on a GPU; of an
    attempt that is over, those it had.
    """
    if not now:
        return before
    left = [pid for pid in before if pid in listed and pid not in now and start_time(pid) is None]
    return (*now, *left) if left else now


def _peaks(
    leases: Iterable[OpenLease], pids: Pids, before: Peaks, snapshot: GpuSnapshot
) -> dict[tuple[int, str], int]:
    """The most that each attempt was seen to use of each GPU, by this daemon or those before it."""
    readings = {r.gpu.uuid: r for r in snapshot.readings if r.fault is None}
    peaks = {}
    for each in leases:
        key = (each.attempt_id, each.lease.gpu_uuid)
        reading = readings.get(each.lease.gpu_uuid)
        now = None if reading is None else measured(reading, pids.get(each.attempt_id, ()))
        peaks[key] = max(before.get(key, 0), each.lease.peak_mib, now or 0)
    return peaks


def _tenants(leases: Iterable[OpenLease], pids: Pids) -> dict[str, Tenants]:
    """Who holds each GPU that is leased, by its UUID."""
    by_gpu: defaultdict[str, list[OpenLease]] = defaultdict(list)
    for each in leases:
        by_gpu[each.lease.gpu_uuid].append(each)
    return {
        uuid: Tenants(
            pids=frozenset(pid for each in few for pid in pids.get(each.attempt_id, ())),
            held=True,
            job=few[0].job_id if len(few) == 1 and few[0].lease.state == "held" else None,
            sure=all(each.lease.state != "held" or pids.get(each.attempt_id) for each in few),
        )
        for uuid, few in by_gpu.items()
    }
