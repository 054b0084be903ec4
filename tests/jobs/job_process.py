"""Jobs as real processes on the CPU, for the tests beside this file."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
GATED = str(Path(__file__).resolve().with_name("gated.py"))
DEADLINE_S = 600.0
"""How long anything may take: a busy machine trains slowly."""


def wait_until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {DEADLINE_S:.0f} s"
        time.sleep(0.02)


def metrics_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def epochs_in(path: Path) -> dict[int, dict[str, Any]]:
    """The line of every epoch; of a repeated one the last, as the job promises."""
    return {line["epoch"]: line for line in metrics_in(path) if "epoch" in line}


def catches_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    mask = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return mask is not None and bool(int(mask[1], 16) >> (signal.SIGTERM - 1) & 1)


def listens(process: subprocess.Popen[bytes], port: int) -> bool:
    try:
        connections = psutil.Process(process.pid).net_connections("tcp")
    except psutil.NoSuchProcess:
        return False
    return any(c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in connections)


def free_port() -> int:
    """A port below the range from which the kernel takes those of other connections."""
    while True:
        port = random.randrange(20000, 30000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


class Job:
    """One job on its directory: its processes write checkpoints, metrics and a log there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.checkpoints = directory / "checkpoints"
        self.metrics = directory / "metrics"
        self.stop_file = directory / "stop"
        self.gate = directory / "gate"
        self.processes: list[subprocess.Popen[bytes]] = []
        directory.mkdir(exist_ok=True)

    def start(self, *arguments: str, **extra: str) -> subprocess.Popen[bytes]:
        strange = ("TRAIND_", "PET_", "TORCHELASTIC_")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(strange)}
        environment = {
            **inherited,
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(self.directory),
            "TRAIND_CHECKPOINT_DIR": str(self.checkpoints),
            "TRAIND_METRICS": str(self.metrics),
            "TRAIND_STOP_FILE": str(self.stop_file),
            **extra,
        }
        with (self.directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)
        return process

    def start_held(self, hold: str, *arguments: str, **extra: str) -> subprocess.Popen[bytes]:
        """Start a script that waits at the gate (see gated.py) until `self.gate` is there."""
        self.gate.unlink(missing_ok=True)
        return self.start(GATED, *arguments, HOLD=hold, GATE=str(self.gate), **extra)

    def run(self, *arguments: str, **extra: str) -> int:
        return self.start(*arguments, **extra).wait(DEADLINE_S)

    def log(self) -> str:
        """What the latest process printed."""
        return (self.directory / "log").read_text()

    def wait_for_step(self, step: int) -> None:
        """Wait until the metrics reach ``step``, or the latest process ends before that."""
        latest = self.processes[-1]
        wait_until(lambda: self.steps() >= step or latest.poll() is not None, f"step {step}")

    def steps(self) -> int:
        lines = metrics_in(self.metrics)
        return int(lines[-1]["step"]) if lines else 0

    def saved_steps(self) -> list[int]:
        return sorted(int(path.stem.split("-")[1]) for path in self.checkpoints.glob("*.pt"))

    def newest_checkpoint(self) -> Path:
        return self.checkpoints / f"checkpoint-{self.saved_steps()[-1]:09d}.pt"

    def kill_all(self) -> None:
        """End what is left. The ranks of torchrun are in sessions of their own."""
        for process in self.processes:
            if process.poll() is None:
                tree = psutil.Process(process.pid)
                for member in [*tree.children(recursive=True), tree]:
                    member.kill()
                process.wait()
