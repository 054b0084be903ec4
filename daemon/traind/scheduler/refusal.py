"""Why a request could never run on this box, however long it waited."""

from collections.abc import Sequence

from traind.gpu import Gpu
from traind.job import Request
from traind.options import size_text
from traind.scheduler.matching import gpu_means, is_type, matches, need, reaches
from traind.scheduler.wording import counted, listed, size_beside
from traind.scheduler.world import Host, SharingPolicy


def refusals(
    request: Request, gpus: Sequence[Gpu], host: Host, policy: SharingPolicy
) -> list[tuple[str, str]]:
    """Pairs of a job's field and a sentence why it can never run here; empty when it can.

    `gpus` are all GPUs of the box, sick and lost ones too: they may come back.
    """
    return _host_refusals(request, host) + _gpu_refusals(request, gpus, policy=policy)


def _host_refusals(request: Request, host: Host) -> list[tuple[str, str]]:
    refused = []
    # GPU jobs never wait for cores, so that no number of them keeps one from running.
    if request.gpus == 0 and (request.cpus or 1) > host.cpus:
        given = counted(host.cpus, "CPU core")
        asked = counted(request.cpus or 1, "CPU core")
        refused.append(("cpus", f"it asks for {asked} and this box gives its jobs {given}"))
    if (request.memory_mib or 0) > host.memory_mib:
        given = size_text(host.memory_mib)
        asked = size_beside(request.memory_mib or 0, host.memory_mib)
        sentence = f"it asks for {asked} of memory and this box gives its jobs {given}"
        refused.append(("memory_mib", sentence))
    return refused


def _gpu_refusals(
    request: Request, gpus: Sequence[Gpu], *, policy: SharingPolicy
) -> list[tuple[str, str]]:
    if request.gpus == 0:
        return []
    asked = f"it asks for {counted(request.gpus, 'GPU')}"
    if not gpus:
        return [("gpus", f"{asked} and this box has none; without gpus it runs on CPUs")]
    present = sorted(gpus, key=lambda gpu: (gpu.index, gpu.uuid))
    refused = _unmet_fields(request, present)
    if request.gpus > len(present):
        refused.append(("gpus", f"{asked} and this box has {len(present)}"))
    if refused:
        return refused
    matching = [gpu for gpu in present if matches(request, gpu)]
    if len(matching) < request.gpus:
        which = listed([f"GPU {gpu.index}" for gpu in matching]) or "none"
        return [("gpus", f"{asked} and of this box's {len(present)} there match: {which}")]
    fitting = [gpu for gpu in matching if need(request, gpu, policy=policy) is not None]
    if len(fitting) < request.gpus:
        return [("gpu_memory_mib", _too_little_memory(request, matching, fitting=fitting))]
    return []


def _unmet_fields(request: Request, present: Sequence[Gpu]) -> list[tuple[str, str]]:
    """The fields that no GPU of the box meets, each by itself."""
    known = listed([f"{gpu.index} ({gpu.name}, {gpu.uuid})" for gpu in present])
    refused = [
        ("gpu_ids", f"there is no GPU {gpu_id[:80]!r}; this box has {known}")
        for gpu_id in request.gpu_ids
        if not any(gpu_means(gpu, gpu_id) for gpu in present)
    ]
    wanted = request.gpu_type
    if wanted is not None and not any(is_type(gpu, wanted) for gpu in present):
        models = listed(sorted({gpu.name for gpu in present}))
        refused.append(("gpu_type", f"no GPU here has {wanted!r} in its name; there is {models}"))
    least = request.gpu_min_memory_mib
    if least is not None and not any(reaches(gpu, least) for gpu in present):
        largest = size_text(max(gpu.memory_mib for gpu in present))
        sentence = f"it asks for a GPU of {size_text(least)} and the largest here has {largest}"
        refused.append(("gpu_min_memory_mib", sentence))
    return refused


def _too_little_memory(request: Request, matching: Sequence[Gpu], *, fitting: Sequence[Gpu]) -> str:
    asked = f"it asks for {size_text(request.gpu_memory_mib or 0)}"
    if fitting:
        enough = listed([f"GPU {gpu.index}" for gpu in fitting])
        return f"{asked} on each of {request.gpus} GPUs and only {enough} can give that"
    largest = max(gpu.memory_mib for gpu in matching)
    return f"{asked} of a GPU and the largest that matches has {size_text(largest)}"
