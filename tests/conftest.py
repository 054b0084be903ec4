"""Fixtures: a real daemon on a state directory of its own."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from accounts import SharedDaemon, Village, shared_daemon, village
from booted import installed
from contract import CheckedDaemon
from gpu_scene import CARD, describe, program_of_somebody
from harness import SHORT, Daemon, daemon_in

__all__ = ["installed", "village"]

# The same examples in every run, however slow the machine: what fails here fails everywhere.
settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("suite")


@pytest.fixture
def new_daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that the test starts itself."""
    with daemon_in(tmp_path) as daemon:
        yield daemon


@pytest.fixture
def gpu_daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon, not started yet, whose two GPUs are described in a file; what was wrong with one
    is soon over. Each of its answers is checked, and it judges no end before it read them again.
    """
    settled = SHORT + '[gpus.health]\nhold_down = "200ms"\nending_wait = "60s"\n'
    with daemon_in(tmp_path, CheckedDaemon, config=settled) as daemon:
        cards = ({"memory_mib": CARD}, {"memory_mib": CARD})
        daemon.simulate = str(describe(daemon.home / "gpus.json", *cards))
        yield daemon


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process that is of no job, by its pid."""
    with program_of_somebody() as pid:
        yield pid


@pytest.fixture
def daemon(new_daemon: Daemon) -> Daemon:
    """A daemon that serves two simulated GPUs of 24 GiB."""
    return new_daemon.start()


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CheckedDaemon]:
    """One daemon for all tests of a module, each of whose answers is checked."""
    with daemon_in(tmp_path_factory.mktemp("box"), CheckedDaemon) as daemon:
        daemon.start()
        daemon.await_launcher()
        yield daemon


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libnvidia-ml.so.1 that answers what a file says."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to build the fake NVML library with")
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).parent / "nvml" / "fake_nvml.c"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-Wl,-soname,libnvidia-ml.so.1"]
    built = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, *flags, "-o", str(built), str(source)], check=True, timeout=60)
    return folder


@pytest.fixture(scope="module")
def shared(village: Village, request: pytest.FixtureRequest) -> Iterator[SharedDaemon]:
    """One daemon for all accounts and all tests of a module."""
    daemon = shared_daemon(village, request.module.__name__)
    try:
        yield daemon.start()
    finally:
        daemon.clean_up()


@pytest.fixture
def new_shared(village: Village, request: pytest.FixtureRequest) -> Iterator[SharedDaemon]:
    """A daemon for all accounts that the test starts itself."""
    daemon = shared_daemon(village, f"d{abs(hash(request.node.name)) % 10**9}")
    try:
        yield daemon
    finally:
        daemon.clean_up()
