"""Run directories, launcher and shim: what may run as root uses the standard library alone."""

import os
import signal


class Failpoint:
    """Where a test may stop a process, once: TRAIND_STOP_AT=place:job.attempt and --test-mode."""

    def __init__(self, *, test_mode: bool) -> None:
        self._armed = os.environ.get("TRAIND_STOP_AT") if test_mode else None

    def __call__(self, place: str, attempt: str) -> None:
        """Stop this process (SIGSTOP) if it is armed for this place."""
        if self._armed == f"{place}:{attempt}":
            self._armed = None
            os.kill(os.getpid(), signal.SIGSTOP)
