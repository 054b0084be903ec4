"""Being told by the kernel that a file grew, so that nobody polls it."""

import asyncio
import ctypes
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from traind.errors import ErrorCode, TraindError

_IN_MODIFY = 0x2


class FileWatch:
    """Sets an event whenever the file is written to, once `follow` found it.

    Entering raises UNAVAILABLE when the account has no watch left. Source: inotify(7).
    """

    def __init__(self, path: Path, changed: asyncio.Event) -> None:
        self.path = path
        self._changed = changed
        self._following = False

    def __enter__(self) -> Self:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            why = os.strerror(ctypes.get_errno())
            sentence = f"no more logs can be followed now ({why}); fs.inotify.max_user_instances"
            raise TraindError(ErrorCode.UNAVAILABLE, f"{sentence} says how many")
        asyncio.get_running_loop().add_reader(self._descriptor, self._told)
        return self

    def follow(self) -> None:
        """Watch the file from now on; it must exist. What was written before is not told."""
        if self._following:
            return
        libc = ctypes.CDLL(None, use_errno=True)
        added = libc.inotify_add_watch(self._descriptor, os.fsencode(self.path), _IN_MODIFY)
        if added < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._following = True
        self._changed.set()

    def _told(self) -> None:
        os.read(self._descriptor, 65536)
        self._changed.set()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
