"""Readings of GPUs that do not exist: what their description says, and what jobs declared."""

import os
import time
from collections.abc import Sequence

from traind.gpu import FaultKind, GpuProcess, GpuReading, LeaseClaim
from traind.gpus.scenario import Scenario, SimulatedGpu, parse, uniform
from traind.gpus.source import UNKNOWN_PID, SourceError, lost_sentence


class SimulatedSource:
    """Serves what `spec` says: COUNTxSIZE such as 2x24GiB, or a JSON file, read when it changes.

    Raises SourceError when the count or the size will not do; a file is first read by `read`.
    """

    def __init__(self, spec: str) -> None:
        self._path = spec
        self._scenario = uniform(spec)
        self._is_file = self._scenario is None
        self._seen: tuple[int, int, int] | None = None
        self._wrong: str | None = None

    def read(self, claims: Sequence[LeaseClaim]) -> list[GpuReading]:
        """What every GPU says now, after the longest `hang_s`; nothing is read of real GPUs.

        A file that has become wrong makes all GPUs faulty. Raises SourceError where it never was
        right.
        """
        if self._is_file:
            self._refresh()
        if self._scenario is None:
            raise SourceError(self._wrong or f"{self._path} has not been read")
        if self._wrong is not None:
            return [
                GpuReading(gpu=one.gpu, used_mib=0, fault=self._wrong, fault_kind=FaultKind.ERROR)
                for one in self._scenario.gpus
            ]
        time.sleep(max((one.hang_s for one in self._scenario.gpus), default=0.0))
        return [_reading(one, claims, self._scenario) for one in self._scenario.gpus]

    def _refresh(self) -> None:
        try:
            stat = os.stat(self._path)
            seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if seen == self._seen:
                return
            with open(self._path, encoding="utf-8") as file:
                text = file.read()
            self._seen = seen
            self._scenario = parse(text)
            self._wrong = None
        except OSError as wrong:
            self._seen = None
            reason = wrong.strerror or str(wrong)
            self._wrong = f"--simulate {self._path} is not COUNTxSIZE nor a readable file: {reason}"
        except (SourceError, UnicodeDecodeError) as wrong:
            self._wrong = f"--simulate {self._path} is refused: {wrong}"


def _reading(one: SimulatedGpu, claims: Sequence[LeaseClaim], scenario: Scenario) -> GpuReading:
    if one.lost:
        return GpuReading(
            gpu=one.gpu,
            used_mib=0,
            fault=lost_sentence(one.gpu),
            fault_kind=FaultKind.LOST,
            xids=one.xids,
        )
    processes = _merged(one.processes)
    if scenario.declared:
        for claim in claims:
            if claim.gpu_uuid == one.gpu.uuid:
                _add_declared(processes, claim)
    return GpuReading(
        gpu=one.gpu,
        used_mib=one.unlisted_mib + sum(p.memory_mib or 0 for p in processes.values()),
        processes=tuple(processes.values()),
        busy_pct=one.busy_pct,
        power_w=one.power_w,
        temperature_c=one.temperature_c,
        vitals=one.vitals,
        place=one.place,
        xids=one.xids,
    )


def _merged(listed: Sequence[GpuProcess]) -> dict[int, GpuProcess]:
    """The processes by pid; one in both lists is compute, as the driver's own tools have it."""
    by_pid: dict[int, GpuProcess] = {}
    for process in sorted(listed, key=lambda one: one.kind):
        by_pid.setdefault(process.pid, process)
    return by_pid


def _add_declared(processes: dict[int, GpuProcess], claim: LeaseClaim) -> None:
    listed = sum(processes[pid].memory_mib or 0 for pid in claim.pids if pid in processes)
    if listed >= claim.memory_mib:
        return
    pid = claim.pids[0] if claim.pids else UNKNOWN_PID
    before = processes[pid].memory_mib or 0 if pid in processes else 0
    memory_mib = before + claim.memory_mib - listed
    processes[pid] = GpuProcess(pid=pid, memory_mib=memory_mib, kind="compute")
