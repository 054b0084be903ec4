"""What may start on the host now: cores for CPU-only jobs, memory for all that declare some."""

from collections.abc import Sequence

from traind.job import Request, WaitCode, WaitReason
from traind.options import size_text
from traind.scheduler.wording import counted, job_named, size_beside
from traind.scheduler.world import Host, Owner


class HostLedger:
    """The account of cores and memory during one pass, and who is first in line for each."""

    def __init__(self, host: Host, owners: Sequence[Owner]) -> None:
        self._host = host
        self._cpus_free = host.cpus - sum(_cpus(owner) for owner in owners)
        self._memory_free_mib = host.memory_mib - sum(owner.memory_mib or 0 for owner in owners)
        self._first_for_cpus: Request | None = None
        self._first_for_memory: Request | None = None
        self._available_mib = host.available_mib
        self._first_for_available: Request | None = None

    @property
    def awaits_available(self) -> bool:
        """Whether a job waits for memory that whoever uses it may give back without a word."""
        return self._first_for_available is not None

    def never(self, request: Request) -> WaitReason | None:
        """Why even the whole host would not do, else None.

        Such a request is refused at the door; the host gave more when it came in. It keeps
        no place in line, or nothing behind it would ever start.
        """
        if _cpus(request) > self._host.cpus:
            return self._cpus_short(request, self._host.cpus)
        if (request.memory_mib or 0) > self._host.memory_mib:
            return self._memory_short(request, self._host.memory_mib)
        return None

    def why_not(self, request: Request) -> WaitReason | None:
        """Why the request cannot start now; None when it can."""
        return (
            self._why_no_cpus(request)
            or self._why_no_memory(request)
            or self._why_none_available(request)
        )

    def keep_place(self, request: Request) -> WaitReason:
        """Puts a request that cannot start in line; gives the reason of its like behind it."""
        if self._why_no_cpus(request) is not None:
            self._first_for_cpus = self._first_for_cpus or request
            return _behind(self._first_for_cpus, "CPU cores")
        if self._why_no_memory(request) is None:
            self._first_for_available = self._first_for_available or request
            return _behind(self._first_for_available, "memory")
        self._first_for_memory = self._first_for_memory or request
        return _behind(self._first_for_memory, "memory")

    def take(self, request: Request) -> None:
        """Books what a job takes that starts now."""
        self._cpus_free -= _cpus(request)
        self._memory_free_mib -= request.memory_mib or 0
        if self._available_mib is not None:
            self._available_mib -= self._expected_mib(request)

    def _expected_mib(self, request: Request) -> int:
        """What of the machine's memory a job is likely to take soon after its start."""
        return request.memory_mib or (self._host.start_mib if request.gpus else 0)

    def _why_no_cpus(self, request: Request) -> WaitReason | None:
        wanted = _cpus(request)
        if wanted == 0:
            return None
        if self._first_for_cpus is not None:
            return _behind(self._first_for_cpus, "CPU cores")
        if wanted > self._cpus_free:
            return self._cpus_short(request, self._cpus_free)
        # Who is first in line for memory must not lose its cores meanwhile to those behind it.
        ahead = self._first_for_memory or self._first_for_available
        if ahead is not None and wanted > self._cpus_free - _cpus(ahead):
            return _behind(ahead, "CPU cores")
        return None

    def _why_no_memory(self, request: Request) -> WaitReason | None:
        if not request.memory_mib:
            return None
        if self._first_for_memory is not None:
            return _behind(self._first_for_memory, "memory")
        if request.memory_mib > self._memory_free_mib:
            return self._memory_short(request, self._memory_free_mib)
        return None

    def _why_none_available(self, request: Request) -> WaitReason | None:
        expected, available = self._expected_mib(request), self._available_mib
        if not expected or available is None:
            return None
        if self._first_for_available is not None:
            return _behind(self._first_for_available, "memory")
        return None if expected <= available else self._available_short(request, available)

    def _cpus_short(self, request: Request, free: int) -> WaitReason:
        wanted, free = _cpus(request), max(0, free)
        there = f"{free} of the {self._host.cpus} for jobs {'is' if free == 1 else 'are'} free"
        return WaitReason(
            code=WaitCode.RESOURCES,
            detail=f"it needs {counted(wanted, 'CPU core')} and {there}",
            facts={"cpus_asked": wanted, "cpus_free": free},
        )

    def _memory_short(self, request: Request, free_mib: int) -> WaitReason:
        wanted, free_mib = request.memory_mib or 0, max(0, free_mib)
        free, host = size_beside(free_mib, wanted), size_text(self._host.memory_mib)
        return WaitReason(
            code=WaitCode.RESOURCES,
            detail=f"it needs {size_text(wanted)} of memory and {free} of {host} for jobs are free",
            facts={"memory_mib_asked": wanted, "memory_mib_free": free_mib},
        )

    def _available_short(self, request: Request, available_mib: int) -> WaitReason:
        expected, available_mib = self._expected_mib(request), max(0, available_mib)
        free = size_beside(available_mib, expected)
        detail = (
            f"it needs {size_text(expected)} of memory and this machine has {free} to spare now"
        )
        if not request.memory_mib:
            detail += "; as it declares no memory, that is assumed"
        return WaitReason(
            code=WaitCode.RESOURCES,
            detail=detail,
            facts={"memory_mib_asked": expected, "memory_mib_available": available_mib},
        )


def _cpus(job: Request | Owner) -> int:
    """Cores counted for a job: GPU jobs never wait for cores, and none waits for theirs."""
    return (job.cpus or 1) if job.gpus == 0 else 0


def _behind(ahead: Request, what: str) -> WaitReason:
    detail = f"{job_named(ahead)} is ahead in the queue for {what}"
    return WaitReason(code=WaitCode.PRIORITY, detail=detail, facts={"job_id": ahead.job_id})
