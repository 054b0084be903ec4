"""What is measured while the daemon runs, in the form in which Prometheus adds it up."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence


class Histogram:
    """How often a value was at most each of some bounds, since the start of the daemon.

    One thread observes; whoever reads may miss the observation of this very moment.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one more."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def cumulated(self) -> Iterator[tuple[str, int]]:
        """(bound, how many were at most so much); the last bound is '+Inf'."""
        total = 0
        bounds = (*(f"{bound:g}" for bound in self._bounds), "+Inf")
        for bound, count in zip(bounds, tuple(self._counts), strict=True):
            total += count
            yield bound, total
