"""The units are sound and stay tight; systemd is told when the daemon is ready, alive, stopping."""

import contextlib
import ctypes
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import DEADLINE_S, Daemon, eventually, process_state

UNITS = Path(__file__).parent.parent / "systemd"
EXPOSURE = 22
"""What `systemd-analyze security` may say of traind.service, in tenths; it only ever goes down."""

PTRACE = ctypes.CDLL(None, use_errno=True).ptrace
PTRACE.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here"
)


def analyze(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
        env=os.environ | {"XDG_RUNTIME_DIR": str(folder), "HOME": str(folder)},
    )


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units as installed, except that the programs stand where the test may put them."""
    folder = tmp_path / "units"
    folder.mkdir()
    for name in ("traind", "traind-launcher"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    for unit in [*UNITS.glob("*.service"), *UNITS.glob("*.socket")]:
        text = unit.read_text().replace("/opt/traind/bin", str(tmp_path / "bin"))
        (folder / unit.name).write_text(text)
    return folder


@needs_systemd
@pytest.mark.parametrize("scope", ["--system", "--user"])
def test_systemd_finds_nothing_wrong_with_the_units(units: Path, scope: str) -> None:
    own = {"traind-user.service"}
    names = own if scope == "--user" else {p.name for p in units.iterdir()} - own
    paths = [str(units / name) for name in sorted(names)]
    done = analyze(units, "verify", scope, "--man=no", "--recursive-errors=yes", *paths)
    said = [line for line in done.stderr.splitlines() if "traind" in line]
    assert not said
    assert done.returncode == 0, done.stderr


@needs_systemd
def test_the_daemons_sandbox_only_gets_tighter(units: Path) -> None:
    unit = str(units / "traind.service")
    done = analyze(
        units, "security", "--offline=yes", "--no-pager", f"--threshold={EXPOSURE}", unit
    )
    assert done.returncode == 0, done.stdout[-200:]


def test_the_daemons_unit_hides_nothing_that_it_must_see() -> None:
    text = (UNITS / "traind.service").read_text()
    for name in (
        *("PrivateUsers", "ProtectProc", "ProcSubset", "PrivateDevices", "DeviceAllow"),
        *("ProtectClock", "ProtectKernelLogs", "PrivateNetwork", "StateDirectory"),
    ):
        assert not re.search(f"^{name}=", text, re.MULTILINE), name


def test_the_launchers_unit_has_no_sandbox_that_every_job_would_get() -> None:
    text = (UNITS / "traind-launcher.service").read_text()
    words = ("Protect", "Private", "Restrict[A-Z]", "SystemCall", "NoNew", "MemoryDeny", "UMask")
    for word in words:
        assert not re.search(f"^{word}", text, re.MULTILINE), word
    for line in ("KillMode=process", "Delegate=yes", "OOMPolicy=continue"):
        assert line in text.splitlines()


@pytest.mark.root
@needs_systemd
@pytest.mark.skipif(os.getuid() != 0, reason="only root may make accounts, if elsewhere")
def test_accounts_and_directories_are_laid_out_as_the_units_need_them(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    for tool in (["systemd-sysusers"], ["systemd-tmpfiles", "--create"]):
        file = UNITS / f"traind.{tool[0].removeprefix('systemd-')}.conf"
        done = subprocess.run(
            [*tool, f"--root={tmp_path}", str(file)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    accounts = (tmp_path / "etc" / "passwd").read_text().splitlines()
    uid = next(int(line.split(":")[2]) for line in accounts if line.startswith("traind:"))
    assert "traind-admin:" in (tmp_path / "etc" / "group").read_text()
    state = tmp_path / "var" / "lib" / "traind"
    found = {name: (state / name).stat() for name in (".", "daemon", "runs")}
    assert {name: (at.st_uid, at.st_mode & 0o777) for name, at in found.items()} == {
        ".": (0, 0o755),
        "daemon": (uid, 0o700),
        "runs": (0, 0o711),
    }


class Manager:
    """What systemd is to a daemon: a socket that is told things."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.door = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.door.bind(str(path))
        self.door.settimeout(DEADLINE_S)

    def told(self) -> dict[str, str]:
        """What it is told next."""
        lines = self.door.recv(4096).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def told_within(self, seconds: float) -> bool:
        """Whether it is told anything in so many seconds."""
        self.door.settimeout(seconds)
        try:
            return bool(self.told())
        except TimeoutError:
            return False
        finally:
            self.door.settimeout(DEADLINE_S)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.door.close()


def test_ready_is_told_once_the_doors_are_open_and_stopping_when_they_close(
    new_daemon: Daemon, manager: Manager
) -> None:
    new_daemon.start(NOTIFY_SOCKET=str(manager.path))
    ready = manager.told()
    assert ready["READY"] == "1"
    assert ready["STATUS"] == "0 jobs running, 0 queued"
    assert new_daemon.ask("GET", "/healthz").status == 200
    assert new_daemon.stop() == 0
    assert manager.told()["STOPPING"] == "1"


def test_a_daemon_that_is_refused_never_says_ready(new_daemon: Daemon, manager: Manager) -> None:
    new_daemon.config = "[gpus]\nmax_jobs = 0\n"
    assert new_daemon.refused(NOTIFY_SOCKET=str(manager.path)).returncode == 78
    assert not manager.told_within(0.01)


def test_a_manager_that_went_away_is_no_harm(new_daemon: Daemon) -> None:
    new_daemon.start(NOTIFY_SOCKET=str(new_daemon.home / "nobody"), WATCHDOG_USEC="20000")
    new_daemon.wait(new_daemon.submit("true"), outcome="succeeded")


def test_signs_of_life_come_until_the_database_no_longer_answers(
    new_daemon: Daemon, manager: Manager
) -> None:
    new_daemon.start(NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC="100000")
    assert "READY" in manager.told()
    for _ in range(3):
        assert manager.told()["WATCHDOG"] == "1"
    with other_threads_stopped(new_daemon):
        while manager.told_within(0.5):
            pass  # what was under way when the threads stopped
        assert new_daemon.ask("GET", "/healthz").status == 200, "the loop itself is well"
    assert manager.told()["WATCHDOG"] == "1"


@contextlib.contextmanager
def other_threads_stopped(daemon: Daemon) -> Iterator[None]:
    """Stop every thread of the daemon but its main one, as a disk that hangs would.

    A thread may have been stopped while it held what the main one needs, such as the
    interpreter's lock: then all go on for a moment, and it is tried again.
    """
    threads: list[int] = []

    def stopped_well() -> bool:
        threads[:] = stop_other_threads(daemon.pid)
        try:
            return daemon.ask("GET", "/healthz", timeout=2).status == 200
        except TimeoutError:
            let_go(threads)
            return False

    eventually(stopped_well, what="threads that stand still and keep nothing from the loop")
    yield
    let_go(threads)


def stop_other_threads(pid: int) -> list[int]:
    """The threads of the process but its main one, each of which stands still now.

    Source: ptrace(2), PTRACE_SEIZE and PTRACE_INTERRUPT.
    """
    threads = [int(name) for name in os.listdir(f"/proc/{pid}/task") if int(name) != pid]
    assert threads
    for thread in threads:
        for request in (0x4206, 0x4207):
            if PTRACE(request, thread, None, None) != 0:
                pytest.skip(f"ptrace is refused here: {os.strerror(ctypes.get_errno())}")
        eventually(lambda one=thread: process_state(one) == "t", what="the thread's stop")
    return threads


def let_go(threads: list[int]) -> None:
    """Have them go on. Source: ptrace(2), PTRACE_DETACH."""
    for thread in threads:
        assert PTRACE(0x11, thread, None, None) == 0


def test_the_launcher_takes_the_socket_that_systemd_made(new_daemon: Daemon) -> None:
    path = new_daemon.home / "l.sock"
    new_daemon.state_dir.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        launcher = start_activated(listener, new_daemon.state_dir, path)
    try:
        new_daemon.flags = ("--launcher", str(path))
        new_daemon.start()
        new_daemon.await_launcher()
        assert new_daemon.ask("GET", "/v1/status").json["launcher_pid"] == launcher.pid
        new_daemon.wait(new_daemon.submit("exit 3"), exit_code=3)
        assert path.is_socket()
    finally:
        launcher.kill()
        launcher.wait()


def start_activated(listener: socket.socket, state_dir: Path, path: Path) -> subprocess.Popen[str]:
    """A launcher started as systemd starts one: the socket is descriptor 3, LISTEN_PID its pid."""
    script = 'exec 3<&"$0"; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"'
    command = [sys.executable, "-m", "traind.runner.launcher"]
    command += ["--state-dir", str(state_dir), "--socket", str(path)]
    return subprocess.Popen(
        ["/bin/bash", "-c", script, str(listener.fileno()), *command],
        pass_fds=[listener.fileno()],
        text=True,
    )
