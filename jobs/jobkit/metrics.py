"""Metrics as JSON lines, for whoever follows the file while the job runs."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Self


class MetricsLog:
    """Appends one JSON object per line to a file; without a path it drops them.

    A run that crashed and resumed from an older checkpoint repeats the steps in between, and so
    their lines: the last line of a step is the one that counts.
    """

    def __init__(self, path: Path | None) -> None:
        """Open ``path`` for appending and make its directory if needed.

        Raises:
            OSError: when the file cannot be opened.
        """
        self._descriptor: int | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o644)

    def __enter__(self) -> Self:
        """Return the log itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def write(self, **values: float) -> None:
        """Append ``values`` as one line; an infinite or undefined number becomes ``null``.

        Raises:
            OSError: when the file cannot be written.
        """
        if self._descriptor is None:
            return
        # JSON has no word for NaN, and a diverged loss must not make the file unreadable.
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        # One write for the whole line, so that a reader sees no torn one.
        os.write(self._descriptor, (json.dumps(finite, allow_nan=False) + "\n").encode())
