"""What is on disk, opened together: one database, each part of it under its own words."""

from dataclasses import dataclass
from pathlib import Path

from traind.config import Config
from traind.hub import Hub
from traind.statedir import highest_run
from traind.store.ageing import Ageing
from traind.store.backups import Backups
from traind.store.conditions import ConditionStore
from traind.store.controls import ControlStore
from traind.store.database import Database
from traind.store.events import EventStore
from traind.store.inventory import Inventory
from traind.store.jobs import JobStore
from traind.store.leases import LeaseStore
from traind.store.samples import SampleStore
from traind.store.tokens import TokenStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """What is on disk, each under its own words."""

    jobs: JobStore
    leases: LeaseStore
    events: EventStore
    tokens: TokenStore
    controls: ControlStore
    inventory: Inventory
    conditions: ConditionStore
    samples: SampleStore
    ageing: Ageing
    backups: Backups


async def open_stores(database: Database, hub: Hub, config: Config, state_dir: Path) -> Stores:
    """What is on disk, read as far as it is kept in memory."""
    jobs = JobStore(
        database,
        hub,
        remember=config.api.idempotency,
        jobs_per_user=config.queue.jobs_per_user,
    )
    stores = Stores(
        jobs=jobs,
        leases=LeaseStore(database),
        events=EventStore(database),
        tokens=TokenStore(database),
        controls=ControlStore(database, hub),
        inventory=Inventory(database, hub),
        conditions=ConditionStore(database, hub),
        samples=SampleStore(database),
        ageing=Ageing(database),
        backups=Backups(database, state_dir / "daemon" / "backups"),
    )
    await stores.inventory.load()
    await stores.conditions.load()
    await stores.tokens.load()
    await stores.controls.load()
    await jobs.ids_start_above(highest_run(state_dir))
    return stores
