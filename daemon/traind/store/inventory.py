"""The GPUs this box is known to have, lost ones included, and what operators said of them."""

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from traind.gpu import Cordon, Gpu
from traind.hub import Hub
from traind.store.database import Database
from traind.store.rows import from_us, to_us

Ignored = frozenset[tuple[int, int | None]]
"""Processes that do not count as strangers: pid and start time, None where there was none."""


class Inventory:
    """What was ever seen; `all`, `cordons` and `ignored` (by UUID) are kept in memory, changes go
    to disk.
    """

    def __init__(self, database: Database, hub: Hub) -> None:
        self._database = database
        self._hub = hub
        self.all: tuple[Gpu, ...] = ()
        self.cordons: Mapping[str, Cordon] = {}
        self.ignored: Mapping[str, Ignored] = {}

    async def load(self) -> None:
        """Read what is remembered."""
        await self._database.run(_read, self._take)

    def _take(self, stored: tuple[list[sqlite3.Row], list[sqlite3.Row]]) -> None:
        gpus, ignored = stored
        self.all = tuple(_gpu(row) for row in gpus)
        self.cordons = {row["uuid"]: _cordon(row) for row in gpus if row["cordoned_by"] is not None}
        by_gpu: defaultdict[str, set[tuple[int, int | None]]] = defaultdict(set)
        for row in ignored:
            by_gpu[row["gpu_uuid"]].add((row["pid"], row["started"]))
        self.ignored = {uuid: frozenset(processes) for uuid, processes in by_gpu.items()}

    async def remember(self, seen: Iterable[Gpu], *, now: datetime) -> None:
        """Add or correct what is seen; does nothing when all of it is known as it is."""
        known = {gpu.uuid: gpu for gpu in self.all}
        changed = [gpu for gpu in seen if known.get(gpu.uuid) != gpu]
        if not changed:
            return

        def work(connection: sqlite3.Connection) -> None:
            for gpu in changed:
                connection.execute(
                    'INSERT INTO gpu (uuid, "index", name, memory_mib, reserved_mib, pci, seen_at) '
                    "VALUES (:uuid, :index, :name, :memory, :reserved, :pci, :at) "
                    'ON CONFLICT (uuid) DO UPDATE SET "index" = :index, name = :name, '
                    "memory_mib = :memory, reserved_mib = :reserved, pci = :pci, seen_at = :at",
                    {
                        "uuid": gpu.uuid,
                        "index": gpu.index,
                        "name": gpu.name,
                        "memory": gpu.memory_mib,
                        "reserved": gpu.reserved_mib,
                        "pci": gpu.pci,
                        "at": to_us(now),
                    },
                )

        await self._change(work)

    async def cordon(self, uuid: str, cordon: Cordon | None) -> None:
        """Keep new jobs off a GPU, or (None) no longer."""
        values = {
            "uuid": uuid,
            "by": None if cordon is None else cordon.by,
            "at": None if cordon is None else to_us(cordon.at),
            "reason": None if cordon is None else cordon.reason,
            "drains": int(cordon is not None and cordon.drains),
        }
        await self._change(
            lambda connection: connection.execute(
                "UPDATE gpu SET cordoned_by = :by, cordoned_at = :at, cordon_reason = :reason, "
                "drains = :drains WHERE uuid = :uuid",
                values,
            )
        )

    async def ignore(self, uuid: str, pid: int, started: int | None) -> None:
        """Let a process on a GPU be, as long as it lives: it no longer counts as a stranger."""
        await self._change(
            lambda connection: connection.execute(
                "INSERT INTO gpu_ignored VALUES (:uuid, :pid, :started) "
                "ON CONFLICT (gpu_uuid, pid) DO UPDATE SET started = :started",
                {"uuid": uuid, "pid": pid, "started": started},
            )
        )

    async def forget(self, uuid: str) -> None:
        """Do not know a GPU any more, nor what was said of it or wrong with it."""
        statements = (
            "DELETE FROM gpu WHERE uuid = :uuid",
            "DELETE FROM gpu_ignored WHERE gpu_uuid = :uuid",
        )
        await self._change(lambda c: [c.execute(each, {"uuid": uuid}) for each in statements])

    async def _change(self, work: Callable[[sqlite3.Connection], Any]) -> None:
        """Change what is stored, then know all of it as it is."""

        def change(connection: sqlite3.Connection) -> tuple[list[sqlite3.Row], list[sqlite3.Row]]:
            work(connection)
            return _read(connection)

        def tell(stored: tuple[list[sqlite3.Row], list[sqlite3.Row]]) -> None:
            self._take(stored)
            self._hub.wake()

        await self._database.run(change, tell)


def _read(connection: sqlite3.Connection) -> tuple[list[sqlite3.Row], list[sqlite3.Row]]:
    gpus = connection.execute('SELECT * FROM gpu ORDER BY "index", uuid').fetchall()
    return gpus, connection.execute("SELECT * FROM gpu_ignored").fetchall()


def _gpu(row: sqlite3.Row) -> Gpu:
    return Gpu(
        uuid=row["uuid"],
        index=row["index"],
        name=row["name"],
        memory_mib=row["memory_mib"],
        reserved_mib=row["reserved_mib"],
        pci=row["pci"],
    )


def _cordon(row: sqlite3.Row) -> Cordon:
    return Cordon(
        by=row["cordoned_by"],
        at=from_us(row["cordoned_at"]),
        reason=row["cordon_reason"],
        drains=bool(row["drains"]),
    )
