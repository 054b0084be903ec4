"""The words of reasons and refusals: jobs, GPUs, amounts and instants as people name them."""

from collections.abc import Sequence
from datetime import UTC, datetime

from traind.gpu import Gpu
from traind.job import Request
from traind.options import size_text
from traind.scheduler.world import Holding


def job_named(job: Request | Holding) -> str:
    """A job as sentences name it, such as 'job 41 of alice'."""
    return f"job {job.job_id} of {job.user}"


def jobs_named(jobs: Sequence[Holding]) -> str:
    """Jobs as sentences name them, each once though an ended attempt of it is still there."""
    return listed(list(dict.fromkeys(job_named(job) for job in jobs)))


def gpu_named(gpu: Gpu) -> str:
    """A GPU as sentences name it, such as 'GPU 0'."""
    return f"GPU {gpu.index}"


def gpu_said(gpu: Gpu, sentence: str) -> str:
    """A sentence about a GPU that names it, once."""
    name = gpu_named(gpu)
    return sentence if name in sentence else f"{name}: {sentence}"


def counted(count: int, noun: str) -> str:
    """A number of things, such as '1 GPU' or '2 GPUs'."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(words: Sequence[str], most: int = 8) -> str:
    """Words in a row, such as 'a, b and c'; past `most` the rest is only counted."""
    if len(words) > most:
        words = [*words[:most], f"{len(words) - most} more"]
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def size_beside(mib: int, other_mib: int) -> str:
    """A size told beside another one: exact where, rounded, the two would look the same."""
    text = size_text(mib)
    return f"{mib} MiB" if text == size_text(other_mib) and mib != other_mib else text


def instant_said(instant: datetime) -> str:
    """An instant as people read it, such as '2030-01-31 18:00:00 UTC'."""
    return instant.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
