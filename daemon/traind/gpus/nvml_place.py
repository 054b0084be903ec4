"""Where a GPU sits: what it shares with the others, which cores are next to it, who looks at it.

What does not change is asked once in the life of a worker; a GPU that joins is seen by the next.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TypeVar

import pynvml

from traind.gpu import GpuPlace
from traind.gpus.kernel_log import pci_address
from traind.gpus.nvml_offers import Offers

_T = TypeVar("_T")

_NVLINK = 100
"""Of each link between two GPUs; the sum outweighs whatever else they share."""

_WEIGHTS = {
    pynvml.NVML_TOPOLOGY_INTERNAL: 60,
    pynvml.NVML_TOPOLOGY_SINGLE: 50,
    pynvml.NVML_TOPOLOGY_MULTIPLE: 40,
    pynvml.NVML_TOPOLOGY_HOSTBRIDGE: 20,
    pynvml.NVML_TOPOLOGY_NODE: 10,
}
"""How near two GPUs are by what is the nearest that both hang from; of two sockets, 0."""

_DEVICES = Path("/sys/bus/pci/devices")


def places(handles: Mapping[str, object]) -> dict[str, GpuPlace]:
    """Where each GPU sits, by its UUID, as far as driver and kernel tell. **Blocks**."""
    offers = {uuid: Offers() for uuid in handles}
    buses = {uuid: _bus(handle, offers[uuid]) for uuid, handle in handles.items()}
    near: dict[str, dict[str, int]] = {uuid: {} for uuid in handles}
    for one, other in combinations(handles, 2):
        weight = _level(handles[one], handles[other], offers[one])
        near[one][other] = near[other][one] = weight
    of_bus = {pci_address(bus): uuid for uuid, bus in buses.items() if bus is not None}
    for uuid, handle in handles.items():
        for bus in _link_ends(handle, offers[uuid]):
            peer = of_bus.get(pci_address(bus))
            if peer is not None:
                near[uuid][peer] += _NVLINK
    return {
        uuid: replace(
            place_on_bus(buses[uuid], _DEVICES),
            near=tuple((other, weight) for other, weight in near[uuid].items() if weight),
        )
        for uuid in handles
    }


def use_of(handle: object, offers: Offers) -> tuple[bool | None, bool | None]:
    """(whether it drives a display, whether it is divided): what may change at any time. Raises
    NVMLError for what is no answer.
    """
    display = offers.first(("display", lambda: pynvml.nvmlDeviceGetDisplayActive(handle)))
    mig = offers.first(("mig", lambda: pynvml.nvmlDeviceGetMigMode(handle)[0]))
    return None if display is None else bool(display), None if mig is None else bool(mig)


def place_on_bus(bus: str | None, devices: Path) -> GpuPlace:
    """Memory node and next cores of a device; a node of -1 is none. Source: the kernel's
    Documentation/ABI/testing/sysfs-bus-pci.
    """
    if bus is None:
        return GpuPlace()
    domain, *rest = bus.lower().split(":")
    folder = devices / ":".join([domain[-4:], *rest])
    try:
        node = int((folder / "numa_node").read_text())
        cpus = (folder / "local_cpulist").read_text().strip()
    except (OSError, ValueError):
        return GpuPlace()
    return GpuPlace(numa_node=node if node >= 0 else None, cpus=cpus or None)


def _bus(handle: object, offers: Offers) -> str | None:
    return _quietly(offers, "pci", lambda: str(pynvml.nvmlDeviceGetPciInfo(handle).busId))


def _level(one: object, other: object, offers: Offers) -> int:
    """How near two GPUs are to each other on the bus."""
    level = _quietly(
        offers, "topology", lambda: pynvml.nvmlDeviceGetTopologyCommonAncestor(one, other)
    )
    return 0 if level is None else _WEIGHTS.get(level, 0)


def _quietly(offers: Offers, name: str, call: Callable[[], _T]) -> _T | None:
    """The answer, None where there is none: a GPU that fails here tells so by its readings."""
    try:
        return offers.first((name, call))
    except pynvml.NVMLError:
        return None


def _link_ends(handle: object, offers: Offers) -> list[str]:
    """The bus addresses at the other ends of its NVLinks that work."""
    ends = []
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        end = _quietly(offers, f"nvlink {link}", partial(_link_end, handle, link))
        if end is None:
            break  # those that a GPU has are the first ones
        ends += [end] if end else []
    return ends


def _link_end(handle: object, link: int) -> str:
    """Where a link leads, nowhere where it is down."""
    if not pynvml.nvmlDeviceGetNvLinkState(handle, link):
        return ""
    return str(pynvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link).busId)
