"""The leases of ended attempts: which GPUs have their memory back, and what keeps the others."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import psutil

from traind.config import GpuSettings
from traind.gpu import GpuReading, GpuSnapshot
from traind.gpus.remains import Remains, is_small, remains, stranded
from traind.gpus.signals import Finding
from traind.runner.errand import start_time
from traind.store.leases import OpenLease
from traind.store.rows import from_us

_CLOCKS_DIFFER = timedelta(seconds=1)
"""By how much the start of a process may be told too late, /proc counting it from the boot on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaning:
    """A lease of an ended attempt as a reading behind the end shows it. `left` is what is still
    there, None when the GPU is free of it; `named`: for so long that people are told.
    """

    lease: OpenLease
    reading: GpuReading
    left: Remains | None
    named: bool

    @property
    def kept_by(self) -> str | None:
        """What keeps it, in words, once that takes long."""
        return self.left.said if self.left is not None and self.named else None

    def is_over(self, settings: GpuSettings) -> bool:
        """Whether the GPU can be given out again: it is free, or what is stranded there is little
        and is not waited for any more.
        """
        if self.left is None:
            return True
        small = is_small(self.left, self.reading.gpu, share_pct=settings.stranded_pct)
        return small and self.named

    def finding(self, settings: GpuSettings) -> Finding | None:
        """What it says of the GPU's health, once that takes long; None where a process has it."""
        if self.left is None or self.left.pid is not None or not self.named:
            return None
        job = f"job {self.lease.job_id} of {self.lease.user}"
        return stranded(self.left, self.reading.gpu, job, share_pct=settings.stranded_pct)


def cleaning_of(
    leases: Iterable[OpenLease],
    pids: dict[int, tuple[int, ...]],
    snapshot: GpuSnapshot,
    settings: GpuSettings,
) -> Iterator[Cleaning]:
    """Every lease of an ended attempt whose GPU was read behind the end."""
    readings = {r.gpu.uuid: r for r in snapshot.readings if r.fault is None}
    for each in leases:
        reading, read_at = readings.get(each.lease.gpu_uuid), snapshot.read_at
        if each.lease.state != "cleaning" or each.cleaning_at_us is None or reading is None:
            continue
        ended_at = from_us(each.cleaning_at_us)
        if read_at is None or read_at <= ended_at:
            continue
        # By the reading's time, so that its GPU is examined and given back by one and the same.
        long = read_at >= ended_at + settings.release_wait
        own = frozenset(p for p in pids.get(each.attempt_id, ()) if not _is_new(p, ended_at))
        listed = [process.pid for process in reading.processes]
        left = remains(
            reading,
            each.lease,
            pids=own,
            # One that cannot be seen for so long is hidden from us, not ended.
            ended=() if long else [pid for pid in listed if start_time(pid) is None],
            slack_mib=settings.release_slack,
        )
        yield Cleaning(lease=each, reading=reading, left=left, named=long)


def _is_new(pid: int, ended_at: datetime) -> bool:
    """Whether a process began after that: its number was given anew."""
    try:
        began = psutil.Process(pid).create_time()
    except psutil.Error:
        return False
    return began > (ended_at + _CLOCKS_DIFFER).timestamp()
