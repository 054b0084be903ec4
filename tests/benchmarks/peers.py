"""Other queues, where they are installed: task-spooler (tsp) and gflow, each with a private daemon.

None is needed: the table says of those that are not there that they are not installed.
"""

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lean import Address, Connection, request
from harness import eventually

ABSENT = "not installed"
FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A running queue and how it takes orders.

    `chain` is how many jobs in a row it runs in bearable time, `drains` whether hundreds are;
    `orders` is its HTTP door with one order for it, None without one.
    """

    name: str
    prefix: tuple[str, ...]
    env: Mapping[str, str]
    chain: int
    drains: bool
    orders: tuple[Address, bytes] | None = None

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that submits this one."""
        return [*self.prefix, *argv]

    def submit(self, argv: Sequence[str]) -> None:
        """Submit a job."""
        subprocess.run(
            self.command(argv), env=self.env, check=True, capture_output=True, timeout=30
        )


@dataclass(frozen=True, slots=True)
class Peers:
    """Those that run, and the names of those that are not installed."""

    present: tuple[Peer, ...]
    absent: tuple[str, ...]

    def each(self, measure: Callable[[Peer], float | None]) -> dict[str, float | str]:
        """The figure of each, or that it failed; None leaves one out."""
        figures: dict[str, float | str] = dict.fromkeys(self.absent, ABSENT)
        for peer in self.present:
            try:
                figure = measure(peer)
            except (AssertionError, OSError, subprocess.SubprocessError):
                figures[peer.name] = FAILED
                continue
            if figure is not None:
                figures[peer.name] = figure
        return figures


@contextlib.contextmanager
def running(folder: Path, *, slots: int) -> Iterator[Peers]:
    """All that are installed, each with so many slots."""
    with contextlib.ExitStack() as stack:
        present = [
            stack.enter_context(opened(folder / name, slots))
            for name, (program, opened) in _KNOWN.items()
            if shutil.which(program)
        ]
        names = {peer.name for peer in present}
        yield Peers(tuple(present), tuple(name for name in _KNOWN if name not in names))


@contextlib.contextmanager
def _tsp(folder: Path, slots: int) -> Iterator[Peer]:
    folder.mkdir()
    env = {**os.environ, "TS_SOCKET": str(folder / "socket"), "TMPDIR": str(folder)}
    env["TS_SLOTS"] = str(slots)
    yield Peer(name="tsp", prefix=("tsp",), env=env, chain=25, drains=True)
    for order in ("-k", "-K"):  # the job that runs, then the server
        subprocess.run(["tsp", order], env=env, check=False, capture_output=True, timeout=30)


@contextlib.contextmanager
def _gflow(folder: Path, slots: int) -> Iterator[Peer]:
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = folder / "CONFIG" / "gflow" / "gflow.toml"
    config.parent.mkdir(parents=True)
    config.write_text(
        f'[daemon]\nhost = "127.0.0.1"\nport = {port}\n'
        f"[quota.default_user]\nmax_running_jobs = {slots}\n"
    )
    env = {**os.environ, "HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)}
    # It runs its jobs in login shells in tmux, where its own programs report their end.
    env |= {"TMUX_TMPDIR": str(folder), "SHELL": "/bin/bash"}
    (folder / ".bash_profile").write_text(f"export PATH={shlex.quote(env['PATH'])}\n")
    env |= {f"XDG_{kind}_HOME": str(folder / kind) for kind in ("CONFIG", "DATA", "STATE")}
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            ["gflowd", "--config", str(config)], env=env, stdout=log, stderr=log, cwd=folder
        ) as daemon,
    ):
        address = ("127.0.0.1", port)
        eventually(lambda: _answers(address), what="gflowd")
        yield Peer(
            name="gflow",
            prefix=("gbatch", "--config", str(config)),
            env=env,
            chain=6,
            drains=False,
            orders=(address, request("POST", "/jobs", _gflow_order(folder))),
        )
        daemon.terminate()
    subprocess.run(["tmux", "kill-server"], env=env, check=False, capture_output=True, timeout=30)


def _gflow_order(folder: Path) -> dict[str, object]:
    """What gbatch itself sends for `true`."""
    nothing = (
        *("script", "conda_env", "depends_on", "dependency_mode", "task_id", "gpu_ids", "project"),
        *("gpu_memory_limit_mb", "time_limit", "memory_limit_mb", "redone_from", "retried_from"),
        *("group_id", "max_concurrent", "run_name", "submitted_at", "started_at", "finished_at"),
        *("reason", "scheduled_at"),
    )
    return dict.fromkeys(nothing) | {
        "id": 0,
        "command": shlex.join(["true"]),
        "gpus": 0,
        "run_dir": str(folder),
        "priority": 10,
        "depends_on_ids": [],
        "auto_cancel_on_dependency_failure": True,
        "gpu_sharing_mode": "Exclusive",
        "submitted_by": "unknown",
        "max_retries": 0,
        "auto_close_tmux": False,
        "parameters": {},
        "state": "Queued",
    }


def _answers(address: Address) -> bool:
    with contextlib.suppress(OSError), Connection(address):
        return True
    return False


_KNOWN = {"tsp": ("tsp", _tsp), "gflow": ("gflowd", _gflow)}
"""How each is found in PATH, and what starts it."""
