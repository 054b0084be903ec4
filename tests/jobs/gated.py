"""Runs a job's script with a gate in its way, so that what a test does meanwhile is no race.

    HOLD=25 GATE=/there python gated.py script.py options...

The file GATE opens it. It is behind the 25th step, or with HOLD=torch before torch is imported.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HOLD, GATE = os.environ["HOLD"], Path(os.environ["GATE"])
SCRIPT = Path(sys.argv[1])
sys.path[0] = str(SCRIPT.parent)  # where the script would find what lies beside it

from jobkit.stop import StopRequest  # noqa: E402 found there as well


def wait_at_gate() -> None:
    while not GATE.exists():
        time.sleep(0.01)


class BeforeTorch:
    """Finds no module, in its time."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> None:
        if name == "torch":
            wait_at_gate()


class Steps:
    """Stands in for the rest that a job takes after each of its steps."""

    def __init__(self) -> None:
        self.done = 0

    def rest(self, stop: StopRequest, seconds: float) -> None:
        self.done += 1
        if self.done == int(HOLD):
            wait_at_gate()


if HOLD == "torch":
    sys.meta_path.insert(0, BeforeTorch())
else:
    steps = Steps()
    StopRequest.sleep = lambda stop, seconds: steps.rest(stop, seconds)  # type: ignore[method-assign]

del sys.argv[0]
runpy.run_path(str(SCRIPT), run_name="__main__")
