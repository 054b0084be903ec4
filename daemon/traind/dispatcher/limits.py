"""What the kernel is told that an attempt may take, and all of them together. Pure but for /proc.

Source: the kernel's admin-guide/cgroup-v2.
"""

from pathlib import Path

from traind.config import JobSettings
from traind.jobspec import JobSpec
from traind.scheduler import Host

Limits = dict[str, dict[str, int | str]]

_PERIOD_US = 100_000
_WEIGHT_PER_CORE, _WEIGHT_MAX = 10, 10_000
"""cpu.weight goes from 1 to 10000, so that 10 a core is right for up to 1000 of them."""

_THREADS_SHARE = 0.75
"""Of all threads that the kernel can have; the rest is for who looks what is wrong."""


def limits_of(spec: JobSpec, settings: JobSettings, host: Host, *, gpu_cores: int) -> Limits:
    """Values by their files: `own` in the attempt's cgroup, `together` in the one above.

    Where cores are short jobs get them in proportion to what they asked for; a GPU of a job that
    did not say counts for `gpu_cores`.
    """
    cores = spec.cpus or max(1, spec.gpus * gpu_cores)
    return {
        "own": {
            "memory.max": "max" if spec.memory_mib is None else spec.memory_mib << 20,
            "memory.oom.group": 1,
            "cpu.max": "max" if spec.cpus is None else f"{spec.cpus * _PERIOD_US} {_PERIOD_US}",
            "cpu.weight": min(cores * _WEIGHT_PER_CORE, _WEIGHT_MAX),
            "pids.max": settings.max_threads,
        },
        "together": {
            "memory.max": host.memory_mib << 20,
            "pids.max": int(_most_threads() * _THREADS_SHARE),
        },
    }


def _most_threads() -> int:
    """How many threads this kernel can have. Source: proc(5)."""
    kernel = Path("/proc/sys/kernel")
    return min(int((kernel / name).read_text()) for name in ("threads-max", "pid_max"))
