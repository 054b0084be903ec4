"""Keeps the logs of running jobs within their cap, every other second."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from traind.config import JobSettings
from traind.runner.logcap import cap_log

_EVERY = timedelta(seconds=2)


class LogCaps:
    """Caps logs when it is time; `next_at` says when that is."""

    def __init__(self) -> None:
        self.next_at = datetime.fromtimestamp(0, UTC)

    def apply(self, run_dirs: Iterable[Path], jobs: JobSettings, *, now: datetime) -> None:
        """Cap the logs in these run directories, if it is time."""
        if now < self.next_at:
            return
        for run_dir in run_dirs:
            cap_log(run_dir / "log", head_mib=jobs.log_head, tail_mib=jobs.log_tail)
        self.next_at = now + _EVERY
