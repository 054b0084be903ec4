"""One report for the whole run, and the machinery that the benchmarks share."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import floor_server, peers, stamp
from benchmarks.peers import Peers
from benchmarks.report import Report, machine
from benchmarks.stamp import Stamper
from harness import Daemon, daemon_in, eventually

_REPORT = pytest.StashKey[Report]()

Starter = Callable[..., Daemon]
"""Starts a daemon with so many cores for jobs, and with the GPUs that a file describes."""

PeerStarter = Callable[[int], Peers]
"""Starts the peers that are installed, each with so many slots."""


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of this run."""
    stash = pytestconfig.stash
    if _REPORT not in stash:
        stash[_REPORT] = Report(machine(tmp_path_factory.getbasetemp()))
    return stash[_REPORT]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Show the table and leave the JSON, below a run's own last lines."""
    found = config.stash.get(_REPORT, None)
    if found is None:
        return
    path = Path(os.environ.get("BENCH_JSON") or config.rootpath / "bench.json")
    found.write(path)
    terminalreporter.section("benchmarks")
    terminalreporter.write_line(found.text())
    terminalreporter.write_line(f"all figures: {path}")


@pytest.fixture(scope="session")
def stamper(tmp_path_factory: pytest.TempPathFactory) -> Stamper:
    """The job that writes down when it ran."""
    return stamp.build(tmp_path_factory.mktemp("stamp"))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    """Starts daemons with defaults but for the cores that jobs may have together."""
    with contextlib.ExitStack() as stack:

        def started(name: str, *, cpus: int, simulate: Path | None = None) -> Daemon:
            (tmp_path / name).mkdir()
            config = f"[host]\ncpus = {cpus}\n"
            daemon: Daemon = stack.enter_context(daemon_in(tmp_path / name, config=config))
            if simulate:
                daemon.simulate = str(simulate)
            return daemon.start()

        yield started


@pytest.fixture
def floor(tmp_path: Path) -> Iterator[Path]:
    """The socket of the least server that keeps what it is told."""
    socket = tmp_path / "floor.sock"
    command = [sys.executable, floor_server.__file__, str(socket), str(tmp_path / "floor.db")]
    with subprocess.Popen(command) as server:
        eventually(socket.is_socket, what="the floor server")
        yield socket
        server.terminate()


@pytest.fixture
def start_peers(tmp_path: Path) -> Iterator[PeerStarter]:
    """Starts the peers that are installed, once in a benchmark."""
    with contextlib.ExitStack() as stack:

        def started(slots: int) -> Peers:
            return stack.enter_context(peers.running(tmp_path, slots=slots))

        yield started
