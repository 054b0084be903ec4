"""The kernel's log as the daemon follows it: from where it was last read in this boot, on."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from traind.gpus.kernel_log import KMSG, KernelLog, LoggedXid
from traind.runner.proofs import boot_id
from traind.store.conditions import LogPosition

log = logging.getLogger(__name__)


class XidLog:
    """Reads the log that `[gpus] kernel_log` names; without one, or without the right to read it,
    NVML is the only road. `on_news` is called when /dev/kmsg has an XID.
    """

    def __init__(self, setting: str, *, simulated: bool, on_news: Callable[[], None]) -> None:
        self._path: Path | None = None if setting == "off" else Path(setting)
        if setting == "auto":
            # What is in this machine's log is not of GPUs that do not exist.
            self._path = None if simulated else KMSG
        self._asked_for = setting != "auto"
        self._on_news = on_news
        self._boot_id = boot_id()
        self._log: KernelLog | None = None
        self._found: list[LoggedXid] = []

    @property
    def position(self) -> LogPosition | None:
        """Up to where it was read."""
        if self._log is None or self._log.position is None:
            return None
        return LogPosition(boot_id=self._boot_id, path=str(self._path), position=self._log.position)

    def open(self, known: LogPosition | None) -> None:
        """Begin where a daemon of this boot left off, else at the beginning of what there is."""
        if self._path is None:
            return
        same = known is not None and (known.boot_id, known.path) == (self._boot_id, str(self._path))
        try:
            self._log = KernelLog(self._path, known.position if known and same else None)
        except OSError as refused:
            level = logging.WARNING if self._asked_for else logging.INFO
            facts = {"path": str(self._path), "why": refused.strerror}
            log.log(level, "kernel log not read, XIDs come by NVML only", extra=facts)
            return
        if (descriptor := self._log.fileno()) is not None:
            asyncio.get_running_loop().add_reader(descriptor, self._hear)

    def read(self, *, now: datetime) -> list[LoggedXid]:
        """The XIDs since this was last asked."""
        if self._log is not None:
            try:
                self._found += self._log.read(now=now)
            except OSError as failed:
                facts = {"path": str(self._path), "why": failed.strerror}
                log.warning("kernel log no longer read, XIDs come by NVML only", extra=facts)
                self.close()
        found, self._found = self._found, []
        return found

    def _hear(self) -> None:
        found = self.read(now=datetime.now(UTC))
        self._found += found
        if found:
            self._on_news()

    def close(self) -> None:
        """Let go of it."""
        if self._log is None:
            return
        if (descriptor := self._log.fileno()) is not None:
            asyncio.get_running_loop().remove_reader(descriptor)
        self._log.close()
        self._log = None
