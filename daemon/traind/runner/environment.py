"""What a job finds in its environment beside what every login has."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from traind.job import Job, Lease

_SHARED = {
    # JAX and TensorFlow would otherwise take the whole GPU at their first use of it.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
}


def job_environment(
    job: Job,
    *,
    now: datetime,
    port: int | None,
    socket: str,
    threads: int,
    time_limit: timedelta | None,
    cpus: str | None,
    box_env: Mapping[str, str],
) -> dict[str, str]:
    """The variables of the job's newest attempt, without its own; the shim adds those of the login.

    `threads` is what OMP_NUM_THREADS gets where the job does not say how many CPUs it wants, `cpus`
    are the cores next to its GPUs, None where that is all the same.
    """
    visible = ",".join(str(lease.gpu_index) for lease in job.leases)
    env = {
        "TRAIND_JOB_ID": str(job.id),
        "TRAIND_JOB_NAME": job.spec.name,
        "TRAIND_ATTEMPT": str(job.attempt),
        "TRAIND_GPUS": visible,
        "TRAIND_GPU_UUIDS": ",".join(lease.gpu_uuid for lease in job.leases),
        "TRAIND_SOCKET": socket,
        "CUDA_VISIBLE_DEVICES": visible,
        "NVIDIA_VISIBLE_DEVICES": visible or "void",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(job.spec.cpus or threads),
        "MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_ADDR": "127.0.0.1",
    }
    if time_limit is not None:
        env["TRAIND_END_TIME"] = str(int((now + time_limit).timestamp()))
    if cpus is not None:
        env["TRAIND_GPU_CPUS"] = cpus
    if port is not None:
        env |= {"MASTER_PORT": str(port), "PET_MASTER_PORT": str(port)}
    if _shares(job.leases):
        env |= _SHARED
    return {**env, **box_env}


def _shares(leases: Sequence[Lease]) -> bool:
    return any(not lease.exclusive for lease in leases)
