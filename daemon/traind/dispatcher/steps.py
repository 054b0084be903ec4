"""How the loop takes its steps: side by side, and when the next one is due."""

import asyncio
from collections.abc import Coroutine, Iterable
from datetime import UTC, datetime
from typing import Any


def seconds_until(instant: datetime | None) -> float | None:
    """Seconds from now, none that are past; None for no instant."""
    if instant is None:
        return None
    return max(0.0, (instant - datetime.now(UTC)).total_seconds())


async def side_by_side(steps: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Take all steps side by side, so that what they store shares a commit.

    Raises what the first of them raised that failed.
    """
    results = await asyncio.gather(*steps, return_exceptions=True)
    for failed in results:
        if isinstance(failed, BaseException):
            raise failed
