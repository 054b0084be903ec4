"""How the loop takes its steps: side by side, and when the next one is due."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime
from typing import Any

from traind.hub import Hub
from traind.job import Job

log = logging.getLogger(__name__)


def seconds_until(instant: datetime | None) -> float | None:
    """Seconds from now, none that are past; None for no instant."""
    if instant is None:
        return None
    return max(0.0, (instant - datetime.now(UTC)).total_seconds())


async def until_news(
    hub: Hub,
    wake_at: datetime | None,
    *,
    absorb: Callable[[Job], None],
    joined: Callable[[Iterable[Job]], bool],
) -> None:
    """Return when something happens, or at an instant (None: at none).

    Jobs that changed are absorbed; those that only joined the queue are no news.
    """
    while await hub.next_wake(seconds_until(wake_at)):
        changed = hub.take_changed()
        for job in changed:
            absorb(job)
        if not joined(changed):
            return


async def side_by_side(steps: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Take all steps side by side, so that what they store shares a commit.

    Raises what the first of them raised that failed.
    """
    results = await asyncio.gather(*steps, return_exceptions=True)
    for failed in results:
        if isinstance(failed, BaseException):
            raise failed


class Errands:
    """What the loop has begun and does not wait for."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Have it done meanwhile; what it raises is told in the log."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def cancel(self) -> None:
        """Give up all that is not done."""
        for task in self._tasks:
            task.cancel()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a step failed", exc_info=task.exception())
