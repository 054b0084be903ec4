"""What is remembered of the GPUs' health: conditions, repairs, XIDs, and up to where the log is."""

import asyncio
import json
import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from traind.gpu import Ailment, Condition, Lasts, MedicalRecord, Repair, Xid, XidSighting
from traind.hub import Hub
from traind.store.database import Database
from traind.store.rows import from_us, instant_of, to_us

_XIDS_STAY = timedelta(days=30)
_HEALTHY = MedicalRecord()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPosition:
    """Up to where the kernel's log of one boot was read."""

    boot_id: str
    path: str
    position: int


class ConditionStore:
    """The medical record of each GPU, and the XIDs of late (`sightings`), kept in memory too.

    `seen` are the simulated XIDs that were events already, by UUID and number. Who works out a new
    record from the old one, or drops it, takes its `turn` first.
    """

    def __init__(self, database: Database, hub: Hub) -> None:
        self._database = database
        self._hub = hub
        self._records: dict[str, MedicalRecord] = {}
        self.sightings: list[XidSighting] = []
        self.seen: set[tuple[str, int]] = set()
        self.log_position: LogPosition | None = None
        self.turn = asyncio.Lock()

    def of(self, uuid: str) -> MedicalRecord:
        """What is remembered of a GPU."""
        return self._records.get(uuid, _HEALTHY)

    async def load(self) -> None:
        """Read what is stored."""
        await self._database.run(_read, self._take)

    def _take(self, stored: "_Stored") -> None:
        self._records, self.log_position = stored.records, stored.log_position
        self.sightings = stored.sightings
        self.seen = {(x.gpu_uuid, x.xid.seq) for x in stored.sightings if x.xid.seq is not None}

    async def save(
        self,
        records: Mapping[str, MedicalRecord],
        sightings: Sequence[XidSighting],
        position: LogPosition | None,
        *,
        now: datetime,
    ) -> None:
        """Put these records in the place of those known, and add XIDs, in one commit."""

        def work(connection: sqlite3.Connection) -> None:
            for uuid, record in records.items():
                _write_record(connection, uuid, record)
            for sighting in sightings:
                _write_sighting(connection, sighting)
            if sightings:
                oldest = {"oldest": to_us(now - _XIDS_STAY)}
                connection.execute("DELETE FROM xid WHERE at < :oldest AND seq IS NULL", oldest)
            if position is not None:
                _write_position(connection, position, now)

        def tell(_: None) -> None:
            self._records |= records
            known = [*self.sightings, *sightings]
            self.sightings = [x for x in known if x.at >= now - _XIDS_STAY]
            self.seen |= {(x.gpu_uuid, x.xid.seq) for x in sightings if x.xid.seq is not None}
            self.log_position = position or self.log_position

        await self._database.run(work, tell)

    async def clear(self, uuid: str) -> None:
        """Forget all that was wrong with a GPU: somebody has seen to it."""

        def tell(_: None) -> None:
            self._records.pop(uuid, None)
            self._hub.wake()

        async with self.turn:
            await self._database.run(lambda c: _write_record(c, uuid, _HEALTHY), tell)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    records: dict[str, MedicalRecord]
    sightings: list[XidSighting]
    log_position: LogPosition | None


def _read(connection: sqlite3.Connection) -> _Stored:
    conditions: defaultdict[str, list[Condition]] = defaultdict(list)
    for row in connection.execute("SELECT * FROM gpu_condition ORDER BY since"):
        conditions[row["gpu_uuid"]].append(_condition(row))
    repairs: defaultdict[str, list[Repair]] = defaultdict(list)
    for row in connection.execute("SELECT * FROM gpu_repair ORDER BY at"):
        repair = Repair(code=row["code"], at=from_us(row["at"]), by_reset=bool(row["by_reset"]))
        repairs[row["gpu_uuid"]].append(repair)
    records = {
        uuid: MedicalRecord(conditions=tuple(conditions[uuid]), repairs=tuple(repairs[uuid]))
        for uuid in conditions.keys() | repairs.keys()
    }
    sightings = [_sighting(row) for row in connection.execute("SELECT * FROM xid ORDER BY at, id")]
    row = connection.execute("SELECT value FROM control WHERE name = 'kernel_log'").fetchone()
    position = None if row is None else LogPosition(**json.loads(row["value"]))
    return _Stored(records=records, sightings=sightings, log_position=position)


def _condition(row: sqlite3.Row) -> Condition:
    return Condition(
        code=row["code"],
        ailment=Ailment(row["ailment"]),
        lasts=Lasts(row["lasts"]),
        since=from_us(row["since"]),
        boot_id=row["boot_id"],
        evidence=row["evidence"],
        until=instant_of(row["until"]),
        gone_at=instant_of(row["gone_at"]),
        together=bool(row["together"]),
    )


def _sighting(row: sqlite3.Row) -> XidSighting:
    at = from_us(row["at"])
    return XidSighting(
        gpu_uuid=row["gpu_uuid"],
        at=at,
        xid=Xid(number=row["number"], pid=row["pid"], seq=row["seq"], detail=row["detail"]),
        logged=bool(row["logged"]),
        job_id=row["job_id"],
        attempt=row["attempt"],
        program=row["program"],
    )


def _write_record(connection: sqlite3.Connection, uuid: str, record: MedicalRecord) -> None:
    for table in ("gpu_condition", "gpu_repair"):
        connection.execute(f"DELETE FROM {table} WHERE gpu_uuid = :uuid", {"uuid": uuid})
    for each in record.conditions:
        connection.execute(
            "INSERT INTO gpu_condition VALUES (:uuid, :code, :ailment, :lasts, :since, :until, "
            ":gone_at, :boot_id, :evidence, :together)",
            {
                "uuid": uuid,
                "code": each.code,
                "ailment": each.ailment,
                "lasts": each.lasts,
                "since": to_us(each.since),
                "until": None if each.until is None else to_us(each.until),
                "gone_at": None if each.gone_at is None else to_us(each.gone_at),
                "boot_id": each.boot_id,
                "evidence": each.evidence,
                "together": int(each.together),
            },
        )
    for repair in record.repairs:
        connection.execute(
            "INSERT INTO gpu_repair VALUES (:uuid, :code, :at, :by_reset)",
            {
                "uuid": uuid,
                "code": repair.code,
                "at": to_us(repair.at),
                "by_reset": int(repair.by_reset),
            },
        )


def _write_sighting(connection: sqlite3.Connection, sighting: XidSighting) -> None:
    connection.execute(
        "INSERT INTO xid "
        "(gpu_uuid, at, number, pid, seq, detail, logged, job_id, attempt, program) VALUES ("
        ":uuid, :at, :number, :pid, :seq, :detail, :logged, :job, :attempt, :program)",
        {
            "uuid": sighting.gpu_uuid,
            "at": to_us(sighting.at),
            "number": sighting.xid.number,
            "pid": sighting.xid.pid,
            "seq": sighting.xid.seq,
            "detail": sighting.xid.detail,
            "logged": int(sighting.logged),
            "job": sighting.job_id,
            "attempt": sighting.attempt,
            "program": sighting.program,
        },
    )


def _write_position(connection: sqlite3.Connection, position: LogPosition, now: datetime) -> None:
    value = {"boot_id": position.boot_id, "path": position.path, "position": position.position}
    connection.execute(
        "INSERT INTO control (name, value, at) VALUES ('kernel_log', :value, :at) "
        "ON CONFLICT (name) DO UPDATE SET value = :value, at = :at",
        {"value": json.dumps(value), "at": to_us(now)},
    )
