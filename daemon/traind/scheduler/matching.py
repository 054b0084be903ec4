"""Which GPUs a request may use and what it needs of each, whatever else runs there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from traind.gpu import Gpu
from traind.job import Request
from traind.scheduler.world import SharingPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a request needs of one GPU: `memory_mib` of it, or all of it when `whole`."""

    memory_mib: int
    whole: bool


def safety_mib(gpu: Gpu, policy: SharingPolicy) -> int:
    """MiB of a GPU that are never promised to a job that shares it."""
    return max(policy.safety_mib, math.ceil(gpu.memory_mib * policy.safety_pct / 100))


def offer_mib(gpu: Gpu, policy: SharingPolicy) -> int:
    """MiB of a GPU that jobs can share when nothing else is there."""
    return gpu.memory_mib - gpu.reserved_mib - safety_mib(gpu, policy)


def gpu_means(gpu: Gpu, gpu_id: str) -> bool:
    """Whether an id, an index or a UUID in any case, means this GPU."""
    return gpu_id.lower() in (str(gpu.index), gpu.uuid.lower())


def reaches(gpu: Gpu, nominal_mib: int) -> bool:
    """Whether a GPU has a nominal size: one sold as 24 GiB reports 24564 MiB or less."""
    return gpu.memory_mib * 100 >= nominal_mib * 95


def is_type(gpu: Gpu, gpu_type: str) -> bool:
    """Whether the text is part of the GPU's name, in any case."""
    return gpu_type.lower() in gpu.name.lower()


def matches(request: Request, gpu: Gpu) -> bool:
    """Whether type, nominal size and ids let the request use this GPU."""
    if request.gpu_type is not None and not is_type(gpu, request.gpu_type):
        return False
    if request.gpu_min_memory_mib is not None and not reaches(gpu, request.gpu_min_memory_mib):
        return False
    if request.gpu_ids and not any(gpu_means(gpu, gpu_id) for gpu_id in request.gpu_ids):
        return False
    return not any(gpu_means(gpu, gpu_id) for gpu_id in request.gpu_exclude)


def need(request: Request, gpu: Gpu, *, policy: SharingPolicy) -> Need | None:
    """What the request needs of this GPU; None when the GPU is too small for it for ever."""
    asked = request.gpu_memory_mib
    whole = Need(memory_mib=gpu.memory_mib, whole=True)
    if asked is None:
        return whole
    if asked * 10 > offer_mib(gpu, policy) * 9:
        # So large a declaration is the size on the box: nobody could share what it leaves.
        return whole if reaches(gpu, asked) else None
    return whole if request.exclusive else Need(memory_mib=asked, whole=False)


def candidates(
    request: Request, gpus: Sequence[Gpu], *, policy: SharingPolicy
) -> list[tuple[Gpu, Need]]:
    """The GPUs that match, busy or sick ones too, with what the request needs of each.

    Those it failed on are left out, unless too few would be left: it would wait for ever.
    """
    fitting = [
        (gpu, wanted)
        for gpu in gpus
        if matches(request, gpu) and (wanted := need(request, gpu, policy=policy)) is not None
    ]
    others = [(gpu, wanted) for gpu, wanted in fitting if gpu.uuid not in request.avoid]
    return others if len(others) >= request.gpus else fitting
