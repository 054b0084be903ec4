"""What an attempt that is over has left on a GPU: what keeps its lease from being released.

Pure: a reading taken behind the end in, what is still there out.
"""

from collections.abc import Collection
from dataclasses import dataclass

from traind.gpu import Ailment, Gpu, GpuReading, Lasts
from traind.gpus.signals import Finding
from traind.gpus.source import named
from traind.job import Lease
from traind.options import size_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """What is still there: `memory_mib` of the process `pid`, or of none that is listed (None)."""

    pid: int | None
    memory_mib: int

    @property
    def said(self) -> str:
        """What it is, in words."""
        if self.pid is None:
            return f"{size_text(self.memory_mib)} are in use by no process"
        return f"its process {self.pid} still holds {size_text(self.memory_mib)}"


def remains(
    reading: GpuReading,
    lease: Lease,
    *,
    pids: Collection[int],
    ended: Collection[int],
    slack_mib: int,
) -> Remains | None:
    """What the attempt has left there, or None: then the GPU is free of it.

    `pids` are its processes, `ended` those listed that live no more: where the attempt had the GPU
    to itself they most likely were its own. What strangers hold is theirs, and in no lease's way. A
    process of which the driver does not say how much it holds may hold all that no other does.
    """
    alone = lease.exclusive and reading.used_mib > lease.baseline_mib + slack_mib
    own = [p for p in reading.processes if p.pid in pids or (alone and p.pid in ended)]
    if own:
        most = max(own, key=lambda process: process.memory_mib or 0)
        return Remains(pid=most.pid, memory_mib=most.memory_mib or 0)
    silent = any(process.memory_mib is None for process in reading.processes)
    excess_mib = reading.unlisted_mib - lease.unlisted_mib
    if not alone or silent or excess_mib <= slack_mib:
        return None
    return Remains(pid=None, memory_mib=excess_mib)


def is_small(left: Remains, gpu: Gpu, *, share_pct: float) -> bool:
    """Whether the GPU is worth giving out without what is stranded on it."""
    return left.pid is None and left.memory_mib * 100 <= gpu.memory_mib * share_pct


def stranded(left: Remains, gpu: Gpu, job: str, *, share_pct: float) -> Finding:
    """What it means for the GPU that memory is in use there by no process since a job ended."""
    told = f"{named(gpu)}: {left.said} since {job} ended"
    if is_small(left, gpu, share_pct=share_pct):
        return Finding(
            code="stranded",
            ailment=Ailment.WARN,
            evidence=f"{told}; they are not given out",
            lasts=Lasts.A_WHILE,
        )
    mend = f"`nvidia-smi --gpu-reset -i {gpu.index}`, or reboot, gives them back"
    return Finding(code="stranded", ailment=Ailment.DEGRADED, evidence=f"{told}; {mend}")
