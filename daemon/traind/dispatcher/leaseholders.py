"""Who holds the GPUs: open leases, and the processes that were seen of each."""

from datetime import datetime

from traind.dispatcher.outlook import Sight
from traind.hub import Hub
from traind.runner.supervisor import Supervisor
from traind.store.inventory import Inventory
from traind.store.leases import LeaseStore, OpenLease


class Leaseholders:
    """The open leases as they are on disk, read anew once they are `stale`."""

    def __init__(
        self, store: LeaseStore, *, supervisor: Supervisor, inventory: Inventory, hub: Hub
    ) -> None:
        self.stale = True
        self._store = store
        self._supervisor = supervisor
        self._inventory = inventory
        self._hub = hub
        self._leases: tuple[OpenLease, ...] = ()
        self._pids: dict[int, tuple[int, ...]] = {}

    async def sight(self) -> Sight:
        """GPUs and leases as they are; of an attempt that is over, its last known processes."""
        if self.stale:
            self._leases = tuple(await self._store.open())
            self.stale = False
        seen: dict[int, tuple[int, ...]] = {}
        for lease in self._leases:
            if lease.attempt_id in seen:
                continue
            now_there = self._supervisor.pids((lease.job_id, lease.attempt))
            seen[lease.attempt_id] = now_there or self._pids.get(lease.attempt_id, ())
        self._pids = seen
        ignored = self._inventory.ignored
        return Sight(snapshot=self._hub.snapshot, leases=self._leases, pids=seen, ignored=ignored)

    async def release(self, slack_mib: int, *, now: datetime) -> Sight:
        """GPUs and leases without those whose memory was given back, up to a slack."""
        sight = await self.sight()
        free = sight.given_back(slack_mib)
        for lease in free:
            await self._store.release(lease.attempt_id, lease.lease.gpu_uuid, now=now)
            self.stale = True
        return await self.sight() if free else sight
