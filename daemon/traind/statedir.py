"""The state directory: where it lies, that it will do, and that one daemon alone has it."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from traind.access import account_name
from traind.config import EXIT_CONFIG, Config
from traind.errors import StartupError

EXIT_RUNS_ALREADY = 75

_LOCK_BYTES = 128
_LAYOUT_S = 10.0
_NETWORK_DISKS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph"})


def state_dir_of(config: Config, launcher: str | None = None) -> Path:
    """The state directory, made when missing: by a `launcher` that runs already, else by us.

    One that root laid out will do when its folder for the daemon is ours. Raises StartupError 78.
    """
    if config.daemon.state_dir:
        path = Path(config.daemon.state_dir)
    else:
        state_home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        path = Path(state_home) / "traind"
    if launcher is not None:
        _await_layout(path)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = path.resolve()
        laid_out = (path / "daemon").is_dir()
        owner = (path / "daemon" if laid_out else path).stat().st_uid
        kind = _disk_kind(path)
        if owner != os.getuid() or path.stat().st_uid not in (0, owner):
            sentence = f"the state directory {path} belongs to {account_name(owner)}; use your own"
            raise StartupError(EXIT_CONFIG, sentence)
        if kind in _NETWORK_DISKS:
            sentence = f"the state directory {path} is on {kind}; put it on a disk of this machine"
            raise StartupError(EXIT_CONFIG, sentence)
        (path / "daemon").mkdir(mode=0o700, exist_ok=True)
        (path / "runs").mkdir(mode=0o711, exist_ok=True)
    except OSError as error:
        raise _unusable(path, error) from None
    return path


def _await_layout(path: Path) -> None:
    """Wait for a launcher that was started in this very moment, but not for long."""
    deadline = time.monotonic() + _LAYOUT_S
    while not (path / "runs").is_dir() and time.monotonic() < deadline:
        time.sleep(0.02)


def _unusable(state_dir: Path, error: OSError) -> StartupError:
    sentence = f"the state directory {state_dir} cannot be used: {error.strerror}"
    return StartupError(EXIT_CONFIG, sentence)


def _disk_kind(path: Path) -> str:
    """The type of the file system that holds the path. Source: proc(5), mountinfo."""
    device = path.stat().st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    kind = "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[2] == name:
            kind = right.split()[0]
    return kind


@contextlib.contextmanager
def locked(state_dir: Path) -> Iterator[None]:
    """Hold the state directory for this daemon alone. Raises StartupError 75 naming the other."""
    try:
        descriptor = os.open(state_dir / "daemon" / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _unusable(state_dir, error) from None
    with open(descriptor, "r+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = _other(file.read())
            sentence = f"{other} already runs on {state_dir}"
            raise StartupError(EXIT_RUNS_ALREADY, sentence) from None
        own = json.dumps({"pid": os.getpid(), "since": datetime.now(UTC).isoformat()})
        with contextlib.suppress(OSError):  # on a full disk it is held all the same
            file.write(own.ljust(_LOCK_BYTES).encode())  # in place: no new block is needed
        yield


def _other(text: bytes) -> str:
    try:
        known = json.loads(text)
        return f"a daemon with pid {known['pid']}, started at {known['since']},"
    except (ValueError, KeyError, TypeError):
        return "another daemon"


def highest_run(state_dir: Path) -> int:
    """The highest job id that has a run directory, nought without any.

    Nought as well where only the launcher may list them: it tells once it is connected.
    """
    try:
        names = os.listdir(state_dir / "runs")
    except PermissionError:
        return 0
    return max((int(name) for name in names if name.isdecimal()), default=0)


def has_database(state_dir: Path) -> bool:
    """Whether there is one already."""
    return (state_dir / "daemon" / "traind.db").exists()


def check_runs(state_dir: Path, highest: int) -> None:
    """Refuse run directories without a database: their jobs would be taken for new ones."""
    database = state_dir / "daemon" / "traind.db"
    if highest:
        raise StartupError(
            EXIT_CONFIG,
            f"{database} is missing, but {state_dir / 'runs'} holds the runs of its jobs; put a "
            "backup in its place (`traind restore`), or move the runs away to start empty",
        )
