"""Samples of how long something takes, gathered in turns so that noise hits everybody alike."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

Sampler = Callable[[], float]
"""Does a thing once and gives the milliseconds that it took."""


@dataclass(frozen=True, slots=True)
class Series:
    """Samples in milliseconds."""

    samples: tuple[float, ...]

    @property
    def p50(self) -> float:
        """The median."""
        return statistics.median(self.samples)

    @property
    def p95(self) -> float:
        """What 95 of 100 samples stay below."""
        ordered = sorted(self.samples)
        return ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]

    @property
    def raw(self) -> dict[str, float | int]:
        """Its figures for the record."""
        return {
            "n": len(self.samples),
            "p50": round(self.p50, 4),
            "p95": round(self.p95, 4),
            "min": round(min(self.samples), 4),
        }


def timed(work: Callable[[], object]) -> Sampler:
    """A sampler of something that blocks until it is done."""

    def sample() -> float:
        began = time.perf_counter_ns()
        work()
        return (time.perf_counter_ns() - began) / 1e6

    return sample


def in_turns(
    samplers: Mapping[str, Sampler], *, rounds: int, each: int = 1, warm_up: int = 1
) -> dict[str, Series]:
    """The samples of all, taken `each` at a time in turns; those of the first turns are dropped."""
    found: dict[str, list[float]] = {name: [] for name in samplers}
    for turn in range(warm_up + rounds):
        for name, sampler in samplers.items():
            samples = [sampler() for _ in range(each)]
            if turn >= warm_up:
                found[name] += samples
    return {name: Series(tuple(samples)) for name, samples in found.items()}


def series(samples: Iterable[float]) -> Series:
    """Samples that were gathered otherwise."""
    return Series(tuple(samples))
