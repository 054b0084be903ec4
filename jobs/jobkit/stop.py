"""Noticing that somebody wants the job to stop, and the exit code that answers it.

Imports only the standard library: a job installs the handler first and imports torch after it,
because a SIGTERM that arrives during that import would otherwise kill the process.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from types import FrameType

CHECKPOINTED = os.EX_TEMPFAIL
"""Exit code 75: "my work is in a checkpoint, run me again"."""

_POLL_SECONDS = 0.1


class StopRequest:
    """A request to stop, made by SIGTERM or by a file that appears."""

    def __init__(self, stop_file: Path | None) -> None:
        """Watch ``stop_file``, which may never appear, or no file at all with ``None``."""
        self._stop_file = stop_file
        self._terminated = False

    def install(self) -> None:
        """Take over SIGTERM for this process.

        Raises:
            ValueError: outside the main thread, where Python allows no signal handlers.
        """
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def finish(self) -> None:
        """Ignore SIGTERM from now on, once the exit code is decided.

        The interpreter drops its handlers before it is gone, and a last SIGTERM would then turn
        the exit code into a death by signal.
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        # Only a flag: a handler runs between any two bytecodes, also in the middle of an
        # optimizer step, where there is nothing consistent to save.
        self._terminated = True

    def reason(self) -> str | None:
        """Return why to stop, in words for a log line, or ``None`` while nobody asked."""
        if self._stop_file is not None and self._stop_file.exists():
            return _describe(self._stop_file)
        return "SIGTERM" if self._terminated else None

    def sleep(self, seconds: float) -> None:
        """Sleep for ``seconds``, or less when a request to stop comes in."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and self.reason() is None:
            time.sleep(min(left, _POLL_SECONDS))


def _describe(stop_file: Path) -> str:
    """Return the reason and deadline that ``stop_file`` gives, as far as it can be read.

    The file's presence is the request. A writer that is not finished, or that writes something
    else than ``{"reason": ..., "deadline": ...}``, must not keep the job from stopping.
    """
    try:
        content = json.loads(stop_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "stop file"
    if not isinstance(content, dict) or "reason" not in content:
        return "stop file"
    deadline = f", deadline {content['deadline']}" if "deadline" in content else ""
    return f"stop file: {content['reason']}{deadline}"
