"""Who wants to know of a change, and what the mind thought last. Lives in the event loop only."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from traind.gpu import GpuSnapshot, Stranger
from traind.job import Job, WaitReason


class Watcher(asyncio.Event):
    """Set at each change of one job; `job` is how it stood then, None before the first.

    Set as well when the daemon goes down, which `closing` says.
    """

    job: Job | None = None
    closing = False


class Hub:
    """Carries news from the rooms that make it to those that wait for it; keeps nothing on disk.

    `reasons` is the reason of every job of the last plan, by job id; `world` is what that plan was
    made of, None before the first; `strangers` are the processes of no job by the UUID of the GPU
    that they are on, as far as they were looked at; `gpus_read` is set once there was a reading;
    `changes` counts the changes of all jobs.
    """

    def __init__(self) -> None:
        self.reasons: dict[int, WaitReason] = {}
        self.world: object | None = None  # a scheduler.World; the words know nothing of the mind
        self.strangers: Mapping[str, tuple[Stranger, ...]] = {}
        self.gpus_read = asyncio.Event()
        self._snapshot = GpuSnapshot(read_at=None)
        self._dispatcher = asyncio.Event()
        self._only_jobs = True
        self._changed: dict[int, Job] = {}
        self.changes = 0
        self._watchers: dict[int | None, set[Watcher]] = defaultdict(set)
        self._closing = False

    @property
    def snapshot(self) -> GpuSnapshot:
        """The last reading of the GPUs."""
        return self._snapshot

    @snapshot.setter
    def snapshot(self, snapshot: GpuSnapshot) -> None:
        self._snapshot = snapshot
        if snapshot.read_at is not None:
            self.gpus_read.set()

    def job_changed(self, job: Job) -> None:
        """Wake everybody who watches the job, and the dispatcher, which takes the value."""
        self._changed[job.id] = job
        self.changes += 1
        for watcher in (*self._watchers.get(job.id, ()), *self._watchers.get(None, ())):
            watcher.job = job
            watcher.set()
        self._dispatcher.set()

    def take_changed(self) -> list[Job]:
        """The jobs that changed since this was last asked, each as it stood last."""
        changed, self._changed = self._changed, {}
        return list(changed.values())

    def wake(self) -> None:
        """Wake the dispatcher."""
        self._only_jobs = False
        self._dispatcher.set()

    async def next_wake(self, timeout_s: float | None) -> bool:
        """Return when woken, or after `timeout_s` seconds (None: wait for the wake): whether jobs
        changed and nothing else is known to have happened.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._dispatcher.wait()
        except TimeoutError:
            return False
        else:
            return self._only_jobs
        finally:
            self._dispatcher.clear()
            self._only_jobs = True

    @contextmanager
    def watch(self, job_id: int | None) -> Iterator[Watcher]:
        """An event that is set at each change of the job (None: of any job), and at the end."""
        watcher = Watcher()
        watcher.closing = self._closing
        self._watchers[job_id].add(watcher)
        try:
            yield watcher
        finally:
            self._watchers[job_id].discard(watcher)
            if not self._watchers[job_id]:
                del self._watchers[job_id]

    def close(self) -> None:
        """Release everybody who waits: the daemon is going down."""
        self._closing = True
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.closing = True
                watcher.set()
        self.wake()
