"""The daemon's event loop, which knows how long it was busy at a stretch without ever waking up.

What becomes due while callbacks run waits until they are through, so the longest stretch is the
lag that anybody saw. It is read off where the loop goes to sleep and comes back: a daemon with
nothing to do does not measure that it does nothing.
"""

import asyncio
import gc
import selectors
import time

from traind.meters import Histogram

_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 5.0)

_YOUNG = 10_000
"""So many new objects are looked through for garbage at a time; a page of jobs makes some."""


def leave_alone_what_stays() -> None:
    """Keep the garbage collector off all that was made so far: modules, schemas, routes.

    It would go through tens of thousands of objects again and again while pages of jobs are built,
    and nothing else could run meanwhile. Blocks for a moment.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])


class MeteredLoop(asyncio.SelectorEventLoop):
    """An event loop; `lag_s` counts the stretches for which it was busy, in seconds."""

    def __init__(self) -> None:
        self.lag_s = Histogram(_BOUNDS_S)
        super().__init__(_MeteredSelector(self.lag_s))


class _MeteredSelector(selectors.DefaultSelector):
    """Waits for what the loop is to do, and notes for how long it did what had come."""

    def __init__(self, lag_s: Histogram) -> None:
        super().__init__()
        self._lag_s = lag_s
        self._woke_s: float | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready; None waits for as long as it takes. Blocks."""
        if self._woke_s is not None:
            self._lag_s.observe(time.monotonic() - self._woke_s)
        ready = super().select(timeout)
        self._woke_s = time.monotonic()
        return ready
