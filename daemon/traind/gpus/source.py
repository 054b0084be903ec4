"""Where readings come from, and how they cross the pipe between the worker and the daemon.

The worker imports this, so it imports words only: no pydantic, no asyncio, no logging.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from traind.gpu import (
    FaultKind,
    Gpu,
    GpuPlace,
    GpuProcess,
    GpuReading,
    GpuVitals,
    LeaseClaim,
    Xid,
)

UNKNOWN_PID = 0
"""Stands for a claim whose processes are not known yet; nobody's process has this number."""


class NoDriver(Exception):
    """This machine has no NVIDIA driver, or not its library; the text says which."""


class SourceError(Exception):
    """No GPU can be read; the text is a sentence for a person."""


class GpuSource(Protocol):
    """Something that can be asked what all GPUs are doing."""

    def read(self, claims: Sequence[LeaseClaim]) -> list[GpuReading]:
        """What every GPU says now; a GPU that cannot say carries its `fault`.

        `claims` are the running attempts' GPUs; only simulated GPUs need them. Blocks for as long
        as the driver does. Raises NoDriver, or SourceError when no GPU can be read.
        """


def named(gpu: Gpu) -> str:
    """A GPU as sentences call it, such as 'GPU 1 (NVIDIA RTX A6000)'."""
    return f"GPU {gpu.index} ({gpu.name})"


def lost_sentence(gpu: Gpu) -> str:
    """What is said of a GPU that no longer answers on the bus. Source: nvml.h, GPU_IS_LOST."""
    return f"{named(gpu)} has fallen off the bus (NVML: GPU is lost)"


def claim_json(claim: LeaseClaim) -> dict[str, Any]:
    """A claim as it crosses the pipe."""
    return asdict(claim)


def claim_of(raw: Mapping[str, Any]) -> LeaseClaim:
    """The claim that crossed the pipe. Raises TypeError or KeyError when it is none."""
    return LeaseClaim(**{**raw, "pids": tuple(raw["pids"])})


def reading_json(reading: GpuReading) -> dict[str, Any]:
    """A reading as it crosses the pipe."""
    return asdict(reading)


def reading_of(raw: Mapping[str, Any]) -> GpuReading:
    """The reading that crossed the pipe. Raises TypeError or KeyError when it is none."""
    kind, place = raw["fault_kind"], raw["place"]
    near = tuple((uuid, weight) for uuid, weight in place["near"])
    return GpuReading(
        **{
            **raw,
            "gpu": Gpu(**raw["gpu"]),
            "processes": tuple(GpuProcess(**process) for process in raw["processes"]),
            "fault_kind": None if kind is None else FaultKind(kind),
            "vitals": GpuVitals(**raw["vitals"]),
            "place": GpuPlace(**{**place, "near": near}),
            "xids": tuple(Xid(**xid) for xid in raw["xids"]),
        }
    )
