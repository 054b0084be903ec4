"""How the loop takes its steps: side by side, and when the next one is due."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime
from typing import Any

from traind.hub import Hub
from traind.job import Job


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
