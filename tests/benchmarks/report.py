"""What was measured, as a table for people and as JSON for machines."""

import json
import os
import platform
import sqlite3
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BUSY_PER_CPU = 0.5
"""A load average above this, for each CPU, makes the figures doubtful."""

_HEADS = ("row", "measure", "traind", "floor", "ratio", "reach", "met", "peers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """The figure that traind is to reach, and what the floor was on the machine it was set for.

    On a machine whose floor is elsewhere it is the ratio that counts. `most` is False where more
    is better.
    """

    figure: float
    floor: float | None = None
    most: bool = True

    def met(self, figure: float, floor: float | None) -> str:
        """Whether the figure is reached as it stands, by its ratio to the floor, or not."""
        if self._within(figure, self.figure):
            return "yes"
        if floor and self.floor and self._within(figure / floor, self.figure / self.floor):
            return "by ratio"
        return "no"

    def _within(self, figure: float, bound: float) -> bool:
        return figure <= bound if self.most else figure >= bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One measure: traind's figure, the floor's and the peers' from the same run.

    `raw` holds whatever lies behind them; `note` is a sentence for below the table.
    """

    row: int
    measure: str
    unit: str
    figure: float
    floor: float | None = None
    reach: Reach | None = None
    peers: Mapping[str, float | str] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def met(self) -> str:
        """Whether it reaches what it is to reach."""
        return self.reach.met(self.figure, self.floor) if self.reach else "-"

    def cells(self) -> tuple[str, ...]:
        """Its line of the table."""
        bound = (
            f"{'<=' if self.reach.most else '>='} {_short(self.reach.figure)}"
            if self.reach
            else "-"
        )
        return (
            str(self.row),
            f"{self.measure}, {self.unit}",
            _short(self.figure),
            "-" if self.floor is None else _short(self.floor),
            f"{self.figure / self.floor:.2f}x" if self.floor else "-",
            bound,
            self.met,
            ", ".join(f"{name} {_short(figure)}" for name, figure in self.peers.items()) or "-",
        )

    def record(self) -> dict[str, Any]:
        """Its part of the JSON."""
        reach = None if self.reach is None else self.reach.figure
        return {
            "row": self.row,
            "measure": self.measure,
            "unit": self.unit,
            "traind": self.figure,
            "floor": self.floor,
            "reach": reach,
            "met": self.met,
            "peers": dict(self.peers),
            "raw": dict(self.raw),
        }


@dataclass(slots=True)
class Report:
    """The lines of one run, and the machine it ran on."""

    machine: Mapping[str, Any]
    lines: list[Line] = field(default_factory=list)

    def add(self, line: Line) -> None:
        """Put a line in its place."""
        self.lines.append(line)
        self.lines.sort(key=lambda each: each.row)

    def write(self, path: Path) -> None:
        """Leave everything as JSON."""
        lines = [line.record() for line in self.lines]
        path.write_text(json.dumps({"machine": self.machine, "lines": lines}, indent=1) + "\n")

    def text(self) -> str:
        """The table, what there is to say of it, and the machine."""
        rows = [_HEADS, *(line.cells() for line in self.lines)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        notes = [f"row {line.row}: {line.note}" for line in self.lines if line.note]
        facts = ", ".join(f"{name} {fact}" for name, fact in self.machine.items())
        return "\n".join([*table, "", *notes, *self._warnings(), facts])

    def _warnings(self) -> list[str]:
        load = self.machine["load_before"]
        if load <= BUSY_PER_CPU * self.machine["cpus"]:
            return []
        return [f"warning: the machine was busy (load average {load}); measure again when idle"]


def machine(folder: Path) -> dict[str, Any]:
    """What the figures depend on; `folder` is where state directories lie."""
    return {
        "cpus": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "filesystem": _filesystem(folder),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }


def _filesystem(folder: Path) -> str:
    found = subprocess.run(
        ["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def _short(figure: float | str) -> str:
    if isinstance(figure, str):
        return figure
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}"
