"""The run directory of one attempt: what lies in it is the only proof of what happened.

Written by launcher and shim, whose group is the daemon's. Records are JSON, renamed into place.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from typing import Any

EXIT_RESERVE = 4096
"""Bytes kept on disk from the start, so that an exit is recorded even when the disk is full."""

FLOCK = struct.Struct("@hhqqi4x")
_NEW = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def attempt_path(state_dir: str, job: int, attempt: int) -> str:
    """Where the attempt's run directory is."""
    return f"{state_dir}/runs/{job}/{attempt}"


def stat_fields(pid: int) -> list[str]:
    """What the kernel says of a process, from its state on. Source: proc(5), /proc/pid/stat."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()


def lay_out(path: str, spec: bytes, uid: int) -> tuple[int, int] | None:
    """Make the run directory in one rename: (lock descriptor, locked; log descriptor).

    What the job writes is its submitter's. None when something stands there already, a directory
    or a tombstone: nothing may start.
    """
    with _new_directory(path) as new, contextlib.ExitStack() as undo:
        _write(f"{new}/spec", spec, 0o600)
        _write(f"{new}/exit.reserve", b" " * EXIT_RESERVE, 0o640)
        _write(f"{new}/metrics", b"", 0o640)
        os.mkdir(f"{new}/work", 0o700)
        lock = os.open(f"{new}/lock", _NEW, 0o640)
        undo.callback(os.close, lock)
        fcntl.fcntl(lock, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0))
        log = os.open(f"{new}/log", _NEW, 0o660)
        undo.callback(os.close, log)
        for name in ("log", "metrics", "work"):
            os.chown(f"{new}/{name}", uid, -1)
        if _claim_place(new, path):
            undo.pop_all()
            return lock, log
    return None


def bury(path: str) -> bool:
    """Put a tombstone where the run directory would be, so that no start can come; False when
    something stands there already.
    """
    with _new_directory(path) as new:
        _write(f"{new}/tombstone", b"", 0o640)
        return _claim_place(new, path)


@contextlib.contextmanager
def _new_directory(path: str) -> Iterator[str]:
    """A directory that is gone afterwards, unless it found its place."""
    jobs, job, attempt = path.rsplit("/", 2)
    os.makedirs(f"{jobs}/{job}", 0o711, exist_ok=True)
    new = f"{jobs}/.new-{job}.{attempt}.{os.getpid()}"
    shutil.rmtree(new, ignore_errors=True)  # of an earlier process with this pid
    os.mkdir(new, 0o711)
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _claim_place(new: str, path: str) -> bool:
    """Rename onto the place; whoever renamed first has it, as no directory of ours is empty."""
    try:
        os.rename(new, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    return True


def _write(path: str, content: bytes, mode: int) -> None:
    with open(os.open(path, _NEW, mode), "wb") as file:
        file.write(content)


def write_record(path: str, name: str, record: Mapping[str, Any], *, mode: int = 0o640) -> None:
    """Write `name` into the run directory, whole or not at all.

    `exit.json` goes into the bytes kept for it, and onto stable storage; what only this boot
    believes need not be durable.
    """
    last = name == "exit.json"
    new = f"{path}/exit.reserve" if last else f"{path}/{name}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(new, flags, mode), "wb") as file:
        file.write(json.dumps(record).encode().ljust(EXIT_RESERVE if last else 0))
        file.flush()
        if last:
            os.fsync(file.fileno())
    os.rename(new, f"{path}/{name}")
    if last:
        sync_directory(path)


def sync_directory(path: str) -> None:
    """Make the names in a directory durable. Blocks."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_record(path: str, name: str) -> dict[str, Any]:
    """A record of the run directory, empty when it was not written."""
    try:
        with open(os.open(f"{path}/{name}", os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            record: dict[str, Any] = json.loads(file.read())
            return record
    except FileNotFoundError:
        return {}
