"""One process, or several that ``torchrun`` started, behind the same few operations."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among all that train together; alone it is rank 0 of 1.

    Every method is a rendezvous: all ranks have to call it, in the same order. But for the
    gradients the data travels over gloo in host memory, so that nothing waits for a GPU.
    """

    rank: int
    world_size: int
    device: torch.device
    backend: str | None
    """What carries gradients: "gloo", "cpu:gloo,cuda:nccl", or ``None`` for a single process."""

    @property
    def is_main(self) -> bool:
        """Whether this is the one rank that prints and writes files."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return ``model`` such that its gradients are averaged over all ranks."""
        if self.backend is None:
            return model
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=device_ids)

    def any(self, flag: bool) -> bool:
        """Return whether ``flag`` is true on at least one rank."""
        return self.sum([float(flag)])[0] > 0

    def mean(self, value: float) -> float:
        """Return the mean of ``value`` over all ranks."""
        return self.sum([value])[0] / self.world_size

    def sum(self, values: list[float]) -> list[float]:
        """Return the sum of each of ``values`` over all ranks."""
        if self.backend is None:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def gather(self, value: T) -> list[T]:
        """Return every rank's ``value``, ordered by rank; it has to be picklable."""
        if self.backend is None:
            return [value]
        gathered: list[T] = [value] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def broadcast(self, value: T) -> T:
        """Return what rank 0 passed; it has to be picklable."""
        if self.backend is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


@contextmanager
def open_ranks() -> Iterator[Ranks]:
    """Join the ranks that the environment describes, and leave them at the end.

    Without ``RANK`` (no ``torchrun``) the process is alone and no port is opened. With it, every
    rank uses a GPU of its own and nccl where there is one for each rank of this machine.
    Otherwise it is gloo: on the CPU, or with ranks that share a GPU, which nccl refuses.

    Raises:
        RuntimeError: when the other ranks cannot be reached.
    """
    if "RANK" not in os.environ:
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        yield Ranks(rank=0, world_size=1, device=device, backend=None)
        return
    device, backend = _choose_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device, backend)
    finally:
        dist.destroy_process_group()


def _choose_device() -> tuple[torch.device, str]:
    """Return this rank's device and the backend for the gradients."""
    local_rank = int(os.environ["LOCAL_RANK"])
    local_ranks = int(os.environ["LOCAL_WORLD_SIZE"])
    gpus = torch.cuda.device_count()
    if gpus == 0:
        return torch.device("cpu"), "gloo"
    device = torch.device("cuda", local_rank % gpus)
    return device, "cpu:gloo,cuda:nccl" if local_ranks <= gpus else "gloo"


def parameter_digest(model: nn.Module) -> str:
    """Return the SHA-256 of the parameters of ``model``: equal only when every bit is."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
