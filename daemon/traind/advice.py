"""What an order like this one should ask for next time, as far as figures support it. Pure."""

import math

from traind.causes import CauseCode
from traind.job import Job, Lease, Outcome
from traind.options import size_text

_ENOUGH_SAMPLES = 24
"""Two minutes of readings every 5 s: of a shorter run nobody learns what a training takes."""

_ROOMY = 0.75
"""Up to this part of its share a peak leaves room worth a word."""

_MARGIN, _MARGIN_MIB = 1.1, 512
"""Beyond the peak that was seen: what comes and goes between two readings is not seen."""

_WORTH_IT = 0.9
"""A suggestion that is not below this part of what was asked for changes nothing."""

_MORE_GPU_MEMORY, _MORE_MEMORY = 1.25, 1.5
"""How much more to ask for where it was too little."""

_IDLE_PCT, _FULL = 50.0, 0.85
"""Below this a GPU waits more than it works; above this part of all cores there is none left."""


def advice_on(job: Job, *, cores: int) -> list[str]:
    """Sentences on the last attempt of a job that succeeded or ran out of memory; none for others.

    `cores` are those of the machine, which a job may use all of unless it asked for fewer.
    """
    if job.outcome is Outcome.OUT_OF_MEMORY:
        return _more(job)
    if job.outcome is not Outcome.SUCCEEDED or job.samples < _ENOUGH_SAMPLES or not job.leases:
        return []
    idle = _unused(job)
    return [*idle, *_less_memory(job), *([] if idle else _starved(job, cores))]


def _less_memory(job: Job) -> list[str]:
    """That it needs less of each GPU than it had, so that others fit beside it."""
    peak_mib = job.gpu_use.peak_memory_mib
    share_mib = min(lease.memory_mib for lease in job.leases)
    if job.spec.exclusive or not peak_mib or peak_mib > share_mib * _ROOMY:
        return []
    wanted_gib = _gib(max(peak_mib * _MARGIN, peak_mib + _MARGIN_MIB))
    if wanted_gib * 1024 >= share_mib * _WORTH_IT:
        return []
    had = f"peak {size_text(peak_mib)} of {size_text(share_mib)}"
    return [f"{had}: next time --gpu-mem {wanted_gib}G" + _shares(job.leases[0])]


def _shares(lease: Lease) -> str:
    return ", and others can share its GPU" if lease.exclusive else ""


def _unused(job: Job) -> list[str]:
    """That it left GPUs idle which it had to itself; of a shared one nobody can tell."""
    known = [lease for lease in job.leases if lease.exclusive and lease.busiest_pct is not None]
    idle = [lease for lease in known if lease.busiest_pct == 0]
    if not idle:
        return []
    if len(idle) == len(job.leases):
        which = "its GPU was" if len(idle) == 1 else f"its {len(idle)} GPUs were"
        return [f"{which} never busy: next time without --gpus, or see why it did not use them"]
    names = ", ".join(str(lease.gpu_index) for lease in idle)
    left = len(job.leases) - len(idle)
    which = f"GPU {names} was" if len(idle) == 1 else f"GPUs {names} were"
    return [f"{which} never busy: next time --gpus {left}"]


def _starved(job: Job, cores: int) -> list[str]:
    """That its GPUs waited for its CPUs."""
    busy, cpu_pct = job.gpu_use.mean_busy_pct, job.mean_cpu_pct
    own = min(job.spec.cpus or cores, cores)
    if busy is None or cpu_pct is None or busy >= _IDLE_PCT or cpu_pct < own * 100 * _FULL:
        return []
    which = "its GPU was" if len(job.leases) == 1 else "its GPUs were"
    more = "; more --cpus may help" if own < cores else ""
    figures = f"{which} busy {busy:.0f} %, its CPUs full ({cpu_pct / 100:.1f} of {own})"
    return [f"{figures}: what loads its data is the bottleneck{more}"]


def _more(job: Job) -> list[str]:
    """What would have been enough, where it was its own want."""
    code = None if job.cause is None else job.cause.code
    if code is CauseCode.HOST_OOM:
        asked = job.spec.memory_mib
        known = [mib for mib in (asked, job.peak_memory_mib) if mib]
        if not known:
            return []
        had = f"it had asked for {size_text(asked)}" if asked else "it had not asked for any"
        wanted_gib = _gib(max(known) * _MORE_MEMORY)
        return [f"{had} of the host's memory: next time --mem {wanted_gib}G"]
    if code is not CauseCode.CUDA_OOM_SELF or not job.leases:
        return []
    lease = job.leases[0]
    size = size_text(lease.memory_mib)
    if lease.exclusive:
        return [
            f"it had all {size} of the GPU: a smaller batch, or --gpu-min-memory for a larger one"
        ]
    wanted_gib = _gib(max(lease.memory_mib, job.gpu_use.peak_memory_mib or 0) * _MORE_GPU_MEMORY)
    return [f"it had asked for {size} of the GPU: next time --gpu-mem {wanted_gib}G"]


def _gib(mib: float) -> int:
    return math.ceil(mib / 1024)
