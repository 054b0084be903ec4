"""Which GPUs this machine has, seen or remembered, and the last good reading of each."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from traind.gpu import FaultKind, Gpu, GpuReading
from traind.gpus.source import named


class Roster:
    """Knows a GPU from the first time it was seen, in this life of the daemon or an earlier one."""

    def __init__(self, remembered: Iterable[Gpu]) -> None:
        self._known = {gpu.uuid: gpu for gpu in remembered}
        self._good: dict[str, GpuReading] = {}

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """All GPUs that are known, by index."""
        return tuple(sorted(self._known.values(), key=lambda gpu: (gpu.index, gpu.uuid)))

    def complete(self, readings: Sequence[GpuReading]) -> tuple[GpuReading, ...]:
        """One reading of each GPU that is known, by index: a faulty one keeps its last good
        figures, one that was not read at all gets a fault.
        """
        answered = {reading.gpu.uuid: reading for reading in self._named(readings)}
        for uuid, reading in answered.items():
            if reading.fault is None:
                self._good[uuid] = reading
                self._known[uuid] = reading.gpu
            else:
                self._known.setdefault(uuid, reading.gpu)
        return tuple(self._one(gpu, answered.get(gpu.uuid)) for gpu in self.gpus)

    def forget(self, uuid: str) -> None:
        """Do not miss it any more."""
        self._known.pop(uuid, None)
        self._good.pop(uuid, None)

    def _named(self, readings: Sequence[GpuReading]) -> list[GpuReading]:
        """The readings of GPUs by their UUID; one that could not tell it is the one that is missed
        at its index, or nobody.
        """
        told = {reading.gpu.uuid for reading in readings}
        missed = {gpu.index: gpu for gpu in self.gpus if gpu.uuid not in told}
        return [
            reading if reading.gpu.uuid else replace(reading, gpu=missed[reading.gpu.index])
            for reading in readings
            if reading.gpu.uuid or reading.gpu.index in missed
        ]

    def _one(self, gpu: Gpu, reading: GpuReading | None) -> GpuReading:
        if reading is not None and reading.fault is None:
            return reading
        last = self._good.get(gpu.uuid, GpuReading(gpu=gpu, used_mib=0))
        if reading is None:
            fault = f"{named(gpu)} is gone: the driver no longer lists it"
            return replace(last, fault=fault, fault_kind=FaultKind.MISSING, xids=())
        kind = reading.fault_kind
        return replace(last, fault=reading.fault, fault_kind=kind, xids=reading.xids)
