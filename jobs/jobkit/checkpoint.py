"""Checkpoints that survive a crash at any moment.

A checkpoint is written to a temporary file, forced to disk and then renamed: the final name only
ever holds a complete file. Should the disk damage it all the same, the one before it is still
there and is used instead.
"""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# What zipfile and torch raise for files with random bytes in them, found by trying.
_DAMAGE = (
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    KeyError,
    RuntimeError,
    ValueError,
)


class DamagedCheckpointError(Exception):
    """The file is not a complete, unaltered checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read back: its file, and what ``CheckpointStore.save`` was given."""

    path: Path
    state: dict[str, Any]


class CheckpointStore:
    """The newest checkpoints of one job in one directory, ordered by their step."""

    def __init__(self, directory: Path, keep: int = 2) -> None:
        """Keep the ``keep`` newest checkpoints in ``directory``, which ``save`` makes if needed.

        Raises:
            ValueError: when ``keep`` is below 2, which would leave nothing to fall back to.
        """
        if keep < 2:
            raise ValueError(f"keep must be at least 2, not {keep}")
        self._directory = directory
        self._keep = keep

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write ``state`` as the checkpoint of ``step`` and drop the oldest ones.

        ``state`` may hold tensors, numbers, strings, and lists, tuples and dicts of them.
        Only one process may save to a directory.

        Returns:
            The file, complete and on disk.

        Raises:
            OSError: when it cannot be written; the earlier checkpoints are then untouched.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"checkpoint-{step:09d}.pt"
        temporary = path.with_suffix(".tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(dict(state), file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        # The rename is an entry of the directory, which has to reach the disk as well.
        _fsync_directory(self._directory)
        self._drop_old()
        return path

    def load_latest(self, report: Callable[[str], None]) -> Checkpoint | None:
        """Read the newest intact checkpoint, with its tensors on the CPU.

        Damaged files are renamed to ``*.damaged``, so that they neither count as one of the kept
        checkpoints nor come up again, and ``report`` is called with a line about each.

        Returns:
            The checkpoint, or ``None`` when there is no intact one.

        Raises:
            OSError: when a file cannot be read at all (permissions, a failing disk).
        """
        for path in reversed(self._paths()):
            try:
                return Checkpoint(path, read_checkpoint(path))
            except DamagedCheckpointError as error:
                path.replace(path.with_suffix(".damaged"))
                report(
                    f"checkpoint {path.name} is damaged ({error}), falling back to the one before"
                )
        return None

    def _paths(self) -> list[Path]:
        """Return the checkpoints, oldest first; the padded step makes the names sort."""
        return sorted(self._directory.glob("checkpoint-*.pt"))

    def _drop_old(self) -> None:
        for path in self._paths()[: -self._keep]:
            path.unlink(missing_ok=True)
        # Left over by a process that was killed while it wrote.
        for path in self._directory.glob("checkpoint-*.tmp"):
            path.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state in ``path`` with its tensors on the CPU.

    Raises:
        DamagedCheckpointError: when the file is cut short, altered or no checkpoint.
        OSError: when the file cannot be read.
    """
    try:
        # torch writes a zip file but does not look at its checksums when it reads.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise DamagedCheckpointError(f"wrong checksum in {damaged}")
        # weights_only: data from a file must not be able to run code.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        raise DamagedCheckpointError(str(error).splitlines()[0]) from error
    if not isinstance(state, dict):
        raise DamagedCheckpointError(f"holds a {type(state).__name__}")
    return state


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
