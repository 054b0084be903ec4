"""What attempts were seen to take while they ran: written by rounds, read by pages or in means."""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from traind.store.database import Database
from traind.store.rows import from_us, to_us
from traind.store.thinning import GPU_MEANS, HOST_MEANS
from traind.store.usage import Usage, usage

_PAGE_ROWS = 5000
"""Readings that one page sums up at most, so that the store never stalls for a chart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """A GPU of an attempt at one moment: `memory_mib` is the attempt's, the other figures are the
    GPU's. None where it did not say.
    """

    uuid: str
    index: int
    memory_mib: int | None
    busy_pct: float | None
    power_w: float | None
    temperature_c: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What an attempt took at one moment, or in the mean of the span that begins there.

    `cpu_pct` is of one core; the bytes are read and written in all since its start, as far as
    known. None where it was not measured.
    """

    at: datetime
    gpus: tuple[GpuSample, ...]
    memory_mib: int | None
    cpu_pct: float | None
    processes: int | None
    read_bytes: int | None
    write_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A sample of the attempt (job id, number); `energy_wh` is what its GPUs used since the sample
    before, None where nothing tells. `measured` is what the driver itself says that it has, MiB by
    UUID.
    """

    key: tuple[int, int]
    sample: Sample
    energy_wh: float | None
    measured: Mapping[str, int]


class SampleStore:
    """Samples of attempts, and sums over them; `Ageing` puts means in the place of old samples, and
    removes these.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def usage(
        self, by: str, *, uid: int | None, since: datetime, until: datetime, now: datetime
    ) -> list[Usage]:
        """Who used how much from `since` to before `until`, the most GPU time first; by the jobs of
        `uid` alone where one is given.
        """
        return await self._database.run(
            lambda c: usage(c, by, uid=uid, since=since, until=until, now=now)
        )

    async def record(self, round_of: Sequence[Taken]) -> None:
        """Keep a round of samples, and add it to what is known of each attempt as a whole."""

        def work(connection: sqlite3.Connection) -> None:
            for taken in round_of:
                _record(connection, taken)

        await self._database.run(work)

    async def page(
        self,
        job_id: int,
        attempt: int,
        *,
        since: datetime | None,
        until: datetime | None,
        step_s: int | None,
        limit: int,
    ) -> tuple[list[Sample], datetime | None]:
        """Samples from `since` to before `until`, and where the page behind begins, None on the
        last; with `step_s` the means of so many seconds each, counted from 1970.
        """
        step = 1 if step_s is None else step_s * 1_000_000
        values = {
            "step": step,
            "since": 0 if since is None else to_us(since) // step * step,
            "until": 1 << 62 if until is None else to_us(until),
            "limit": limit,
        }

        def work(connection: sqlite3.Connection) -> tuple[list[Sample], datetime | None]:
            known = connection.execute(
                "SELECT id FROM attempt WHERE job_id = :job AND number = :number",
                {"job": job_id, "number": attempt},
            ).fetchone()
            if known is None:
                return [], None
            return _page(connection, values | {"attempt": known["id"]})

        return await self._database.run(work)


def _record(connection: sqlite3.Connection, taken: Taken) -> None:
    """Keep a sample of an attempt that is not over: what is known of one that is, stays so."""
    sample, gpus = taken.sample, taken.sample.gpus
    attempt = connection.execute(
        "SELECT id FROM attempt WHERE job_id = :job AND number = :number AND ended_at IS NULL",
        {"job": taken.key[0], "number": taken.key[1]},
    ).fetchone()
    if attempt is None:
        return
    key = {"attempt": attempt["id"], "at": to_us(sample.at)}
    connection.execute(
        "INSERT OR REPLACE INTO sample "
        "VALUES (:attempt, 0, :at, :memory, :cpu, :processes, :read, :write)",
        {
            **key,
            "memory": sample.memory_mib,
            "cpu": sample.cpu_pct,
            "processes": sample.processes,
            "read": sample.read_bytes,
            "write": sample.write_bytes,
        },
    )
    connection.executemany(
        "INSERT OR REPLACE INTO gpu_sample "
        "SELECT id, 0, :at, :memory, :busy, :power, :temperature FROM lease "
        "WHERE attempt_id = :attempt AND gpu_uuid = :uuid",
        [
            {
                **key,
                "uuid": gpu.uuid,
                "memory": gpu.memory_mib,
                "busy": gpu.busy_pct,
                "power": gpu.power_w,
                "temperature": gpu.temperature_c,
            }
            for gpu in gpus
        ],
    )
    connection.executemany(
        "UPDATE lease SET busiest_pct = MAX(COALESCE(busiest_pct, 0), :busy) "
        "WHERE attempt_id = :attempt AND gpu_uuid = :uuid",
        [
            {"attempt": key["attempt"], "uuid": gpu.uuid, "busy": gpu.busy_pct}
            for gpu in gpus
            if gpu.busy_pct is not None
        ],
    )
    connection.executemany(
        "UPDATE lease SET peak_mib = :memory "
        "WHERE attempt_id = :attempt AND gpu_uuid = :uuid AND peak_mib < :memory",
        [{**key, "uuid": uuid, "memory": mib} for uuid, mib in taken.measured.items()],
    )
    busy = [gpu.busy_pct for gpu in gpus if gpu.busy_pct is not None]
    connection.execute(
        "UPDATE attempt SET samples_from = MIN(COALESCE(samples_from, :at), :at), "
        "peak_gpu_memory_mib = "
        "COALESCE(MAX(peak_gpu_memory_mib, :peak), peak_gpu_memory_mib, :peak), "
        "samples = samples + 1, cpu_pct_sum = cpu_pct_sum + COALESCE(:cpu, 0), "
        "cpu_pct_count = cpu_pct_count + (:cpu IS NOT NULL), "
        "gpu_busy_sum = gpu_busy_sum + :busy, gpu_busy_count = gpu_busy_count + :count, "
        "energy_wh = COALESCE(energy_wh + :energy, energy_wh, :energy) WHERE id = :attempt",
        {
            **key,
            "peak": max((g.memory_mib for g in gpus if g.memory_mib is not None), default=None),
            "cpu": sample.cpu_pct,
            "busy": sum(busy),
            "count": len(busy),
            "energy": taken.energy_wh,
        },
    )


def _page(
    connection: sqlite3.Connection, values: Mapping[str, int]
) -> tuple[list[Sample], datetime | None]:
    first = _nth_at(connection, values, 0)
    if first is None:
        return [], None
    end, step = values["until"], values["step"]
    if step > 1:
        end = min(end, (first // step + values["limit"]) * step)
    too_many = _nth_at(connection, values, values["limit"] if step == 1 else _PAGE_ROWS)
    if too_many is not None:
        end = min(end, max(too_many // step, first // step + 1) * step)
    samples = _between(connection, {**values, "end": end})
    more = end < values["until"] and _nth_at(connection, {**values, "since": end}, 0) is not None
    return samples, from_us(end) if more else None


def _nth_at(connection: sqlite3.Connection, values: Mapping[str, int], count: int) -> int | None:
    """The instant of the sample with `count` others before it, from `since` to before `until`."""
    of_span = (
        "SELECT at FROM sample WHERE attempt_id = :attempt AND span_s = {} "
        "AND at >= :since AND at < :until"
    )
    row = connection.execute(
        f"{of_span.format(60)} UNION ALL {of_span.format(0)} ORDER BY at LIMIT 1 OFFSET :count",
        {**values, "count": count},
    ).fetchone()
    return None if row is None else int(row["at"])


def _between(connection: sqlite3.Connection, values: Mapping[str, int]) -> list[Sample]:
    gpus: dict[int, list[GpuSample]] = {}
    for row in connection.execute(
        f"SELECT gpu_uuid, gpu_index, at / :step * :step AS begins, {GPU_MEANS} "
        "FROM lease JOIN gpu_sample ON lease_id = lease.id WHERE attempt_id = :attempt "
        "AND span_s IN (0, 60) AND at >= :since AND at < :end "
        "GROUP BY lease.id, begins ORDER BY gpu_index",
        values,
    ):
        gpus.setdefault(row["begins"], []).append(
            GpuSample(
                uuid=row["gpu_uuid"],
                index=row["gpu_index"],
                memory_mib=row["memory_mib"],
                busy_pct=row["busy_pct"],
                power_w=row["power_w"],
                temperature_c=row["temperature_c"],
            )
        )
    rows = connection.execute(
        f"SELECT at / :step * :step AS begins, {HOST_MEANS} FROM sample "
        "WHERE attempt_id = :attempt AND span_s IN (0, 60) AND at >= :since AND at < :end "
        "GROUP BY begins ORDER BY begins",
        values,
    )
    return [
        Sample(
            at=from_us(row["begins"]),
            gpus=tuple(gpus.get(row["begins"], ())),
            memory_mib=row["memory_mib"],
            cpu_pct=row["cpu_pct"],
            processes=row["processes"],
            read_bytes=row["read_bytes"],
            write_bytes=row["write_bytes"],
        )
        for row in rows
    ]
