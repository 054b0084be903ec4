"""Readings of real GPUs through NVML. Loaded in the worker process only: a call may never return.

A figure the driver does not offer is None; an error of one GPU is that GPU's fault, not the rest's.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pynvml

from traind.gpu import FaultKind, Gpu, GpuPlace, GpuProcess, GpuReading, LeaseClaim
from traind.gpus.nvml_events import XidWatch
from traind.gpus.nvml_offers import Offers
from traind.gpus.nvml_place import places, use_of
from traind.gpus.nvml_vitals import read_vitals
from traind.gpus.source import NoDriver, SourceError, lost_sentence, named

_MIB = 1024 * 1024
_LIBRARY = "libnvidia-ml.so.1"

_NO_DRIVER = frozenset({pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED})
_OF_ALL = _NO_DRIVER | {
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
}
_UPGRADED = (
    "the NVIDIA driver was upgraded under the one that is loaded; reload it or restart the machine"
)
_KINDS = {
    pynvml.NVML_ERROR_GPU_IS_LOST: FaultKind.LOST,
    pynvml.NVML_ERROR_RESET_REQUIRED: FaultKind.RESET_REQUIRED,
    pynvml.NVML_ERROR_INSUFFICIENT_POWER: FaultKind.POWER,
    pynvml.NVML_ERROR_IRQ_ISSUE: FaultKind.INTERRUPTS,
    pynvml.NVML_ERROR_UNKNOWN: FaultKind.UNKNOWN,
    pynvml.NVML_ERROR_NO_PERMISSION: FaultKind.NOT_ALLOWED,
    pynvml.NVML_ERROR_OPERATING_SYSTEM: FaultKind.NOT_ALLOWED,
}


@dataclass(slots=True)
class _Card:
    """A GPU's handle, kept: one lost GPU may break looking up the healthy ones by UUID.

    `gpu` is complete once the GPU has told its name and memory (`known`).
    """

    handle: object
    gpu: Gpu
    place: GpuPlace = field(default_factory=GpuPlace)
    known: bool = False
    offers: Offers = field(default_factory=Offers)


@dataclass(frozen=True, slots=True)
class _Memory:
    total: int
    reserved: int
    free: int


class NvmlSource:
    """The GPUs of this machine; `on_news` is called, in a thread, when one tells of an error.

    Raises NoDriver, or SourceError when NVML will not start. GPUs are looked up once; one that
    joins or returns later is seen by the next worker.
    """

    def __init__(self, on_news: Callable[[], None]) -> None:
        try:
            pynvml.nvmlInit()
            self._driver = Offers().first(("driver", pynvml.nvmlSystemGetDriverVersion))
            self._cards, self._unnamed = _cards()
        except pynvml.NVMLError as error:
            raise _refusal(error) from None
        self._library = _loaded_library()
        handles = {card.gpu.uuid: card.handle for card in self._cards}
        where = places(handles)
        for card in self._cards:
            card.place = where[card.gpu.uuid]
        self._watch = XidWatch(handles, on_news)

    def read(self, claims: Sequence[LeaseClaim]) -> list[GpuReading]:
        """What every GPU says now; `claims` are not needed. Blocks as long as the driver does.

        Raises NoDriver or SourceError when NVML as a whole stopped working, or when programs that
        start now would not find the driver they need.
        """
        if _other_version(self._library, self._driver):
            raise SourceError(f"{_UPGRADED} ({self._driver})")
        try:
            return [*(_reading(card, self._watch) for card in self._cards), *self._unnamed]
        except pynvml.NVMLError as error:
            raise _refusal(error) from None


def _loaded_library() -> str | None:
    """The path by which the library of this process is found, None where nobody can tell."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            paths = [line.split(maxsplit=5)[-1].strip() for line in maps if "libnvidia-ml" in line]
    except OSError:
        return None
    return os.path.join(os.path.dirname(paths[0]), _LIBRARY) if paths else None


def _other_version(library: str | None, driver: str | None) -> bool:
    """Whether the library on disk is by now for another driver than the one that is loaded: what
    is loaded goes on, but no new CUDA program can start.
    """
    if library is None or driver is None:
        return False
    version = os.path.basename(os.path.realpath(library)).removeprefix(_LIBRARY[:-1])
    return "." in version and version != driver


def _refusal(error: pynvml.NVMLError) -> Exception:
    if error.value in _NO_DRIVER:
        return NoDriver(f"there is no NVIDIA driver (NVML: {error})")
    if error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return SourceError(f"{_UPGRADED} (NVML: {error})")
    return SourceError(f"the NVIDIA driver cannot be asked (NVML: {error})")


def _cards() -> tuple[list[_Card], list[GpuReading]]:
    """The GPUs, and of those that cannot be told by their UUID a reading each: without one nothing
    can be said of a GPU, but the roster knows which one it misses.
    """
    cards, unnamed = [], []
    for index in range(pynvml.nvmlDeviceGetCount()):
        gpu = Gpu(uuid="", index=index, name="NVIDIA GPU", memory_mib=0, reserved_mib=0)
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = str(pynvml.nvmlDeviceGetUUID(handle))
        except pynvml.NVMLError as error:
            if error.value in _OF_ALL:
                raise
            sys.stderr.write(
                f'level=warning event="GPU cannot be told by its UUID" index={index} '
                f'error="{error}"\n'
            )
            unnamed.append(_faulty(gpu, error))
            continue
        cards.append(_Card(handle, replace(gpu, uuid=uuid)))
    return cards, unnamed


def _faulty(gpu: Gpu, error: pynvml.NVMLError) -> GpuReading:
    kind = _KINDS.get(error.value, FaultKind.ERROR)
    return GpuReading(gpu=gpu, used_mib=0, fault=_fault(gpu, error), fault_kind=kind)


def _reading(card: _Card, watch: XidWatch) -> GpuReading:
    try:
        reading = _figures(card, xids_told=watch.tells(card.gpu.uuid))
    except pynvml.NVMLError as error:
        if error.value in _OF_ALL:
            raise
        reading = _faulty(card.gpu, error)
    return replace(reading, xids=watch.take(card.gpu.uuid))


def _figures(card: _Card, *, xids_told: bool | None) -> GpuReading:
    handle, first = card.handle, card.offers.first
    memory = first(
        ("memory_v2", lambda: _memory_v2(handle)), ("memory_v1", lambda: _memory_v1(handle))
    )
    if not card.known:
        _introduce(card, memory)
    processes = _processes(card)
    used = memory.total - memory.reserved - memory.free if memory else None
    utilisation = first(("utilisation", lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu))
    milliwatts = first(("power", lambda: pynvml.nvmlDeviceGetPowerUsage(handle)))
    sensor = pynvml.NVML_TEMPERATURE_GPU
    celsius = first(
        ("temperature_v", lambda: pynvml.nvmlDeviceGetTemperatureV(handle, sensor)),
        ("temperature", lambda: pynvml.nvmlDeviceGetTemperature(handle, sensor)),
    )
    known = sum(process.memory_mib or 0 for process in processes)
    display, mig = use_of(handle, card.offers)
    return GpuReading(
        gpu=card.gpu,
        used_mib=known if used is None else _mib(max(0, used)),
        processes=processes,
        busy_pct=None if utilisation is None else int(utilisation),
        power_w=None if milliwatts is None else milliwatts / 1000,
        temperature_c=None if celsius is None else int(celsius),
        vitals=replace(read_vitals(handle, card.offers), xids_told=xids_told),
        place=replace(card.place, display=display, mig=mig),
    )


def _introduce(card: _Card, memory: _Memory | None) -> None:
    handle, first = card.handle, card.offers.first
    name = first(("name", lambda: pynvml.nvmlDeviceGetName(handle)))
    pci = first(("pci", lambda: pynvml.nvmlDeviceGetPciInfo(handle).busId))
    card.gpu = replace(
        card.gpu,
        name=card.gpu.name if name is None else str(name),
        memory_mib=memory.total // _MIB if memory else 0,
        reserved_mib=_mib(memory.reserved) if memory else 0,
        pci=None if pci is None else str(pci),
    )
    card.known = True


def _processes(card: _Card) -> tuple[GpuProcess, ...]:
    """By pid: a process in both lists is compute. Only the graphics list names displays."""
    lists = (
        ("compute", "nvmlDeviceGetComputeRunningProcesses"),
        ("graphics", "nvmlDeviceGetGraphicsRunningProcesses"),
    )
    found: dict[int, GpuProcess] = {}
    for kind, name in lists:
        calls = (_listing(f"{name}_{version}", card.handle) for version in ("v3", "v2"))
        for one in card.offers.first(*calls) or ():
            used = one.usedGpuMemory
            process = GpuProcess(
                pid=int(one.pid), memory_mib=None if used is None else _mib(used), kind=kind
            )
            found.setdefault(process.pid, process)
    return tuple(found.values())


def _listing(function: str, handle: object) -> tuple[str, Callable[[], Any]]:
    return function, lambda: getattr(pynvml, function)(handle)


def _memory_v2(handle: object) -> _Memory:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    return _Memory(memory.total, memory.reserved, memory.free)


def _memory_v1(handle: object) -> _Memory:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return _Memory(memory.total, 0, memory.free)


def _fault(gpu: Gpu, error: pynvml.NVMLError) -> str:
    if error.value == pynvml.NVML_ERROR_GPU_IS_LOST:
        return lost_sentence(gpu)
    if error.value == pynvml.NVML_ERROR_RESET_REQUIRED:
        return f"{named(gpu)} needs to be reset (NVML: {error})"
    if _KINDS.get(error.value) is FaultKind.NOT_ALLOWED:
        rights = "the daemon may not use it; see to the rights of /dev/nvidia*"
        return f"{named(gpu)} cannot be asked: {rights} (NVML: {error})"
    return f"{named(gpu)} answers with an error (NVML: {error})"


def _mib(size: int) -> int:
    """MiB in bytes, rounded up: what is used is never called less."""
    return -(-size // _MIB)
