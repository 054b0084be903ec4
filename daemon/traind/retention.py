"""What is old goes, in small steps: files, samples, rows, keys; never a checkpoint."""

import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from traind.boxwire import Removed
from traind.config import RetentionSettings
from traind.runner.supervisor import Supervisor
from traind.store.ageing import Ageing

log = logging.getLogger(__name__)


class Retention:
    """Removes what outlived its time; nothing that is not over is ever touched."""

    def __init__(
        self,
        settings: RetentionSettings,
        *,
        remember: timedelta,
        ageing: Ageing,
        supervisor: Supervisor,
    ) -> None:
        self._settings = settings
        self._remember = remember
        self._ageing = ageing
        self._supervisor = supervisor

    def configure(self, settings: RetentionSettings) -> None:
        """Go by these settings from the next sweep on."""
        self._settings = settings

    async def sweep(self, *, now: datetime) -> Removed:
        """Remove all that is old enough now; how much that was."""
        settings, ageing = self._settings, self._ageing
        logs = await self._remove_files("none", before=now - settings.logs)
        run_dirs = await self._remove_files("log", before=now - settings.run_dirs)
        samples, means = await self._remove_samples(now)
        keys = await _repeat(lambda: ageing.forget_keys(before=now - self._remember))
        jobs = await _repeat(lambda: ageing.forget_jobs(before=now - settings.rows))
        removed = Removed(
            run_dirs=run_dirs, logs=logs, samples=samples, minutes=means, jobs=jobs, keys=keys
        )
        log.info("old things removed", extra=removed.model_dump())
        return removed

    async def _remove_samples(self, now: datetime) -> tuple[int, int]:
        """(samples that gave way to minute means, minute means that went). None outlives the row of
        its job, so that no row has many of them when it goes.
        """
        settings, ageing = self._settings, self._ageing
        means_stay = min(settings.samples_minutes, settings.rows)
        samples_stay = min(settings.samples_raw, means_stay)
        thinned = await _repeat(lambda: ageing.thin_samples(before=now - samples_stay))
        return thinned, await _repeat(lambda: ageing.forget_means(before=now - means_stay))

    async def _remove_files(self, left: str, *, before: datetime) -> int:
        """How many attempts were brought down to what is to be `left` of them, log or nothing."""
        count, after = 0, 0
        still = "all" if left == "log" else "log"
        while found := await self._ageing.files(still, before=before, after=after):
            for files in found:
                key = (files.job_id, files.number)
                if await self._supervisor.delete(key, keep_log=left == "log"):
                    await self._ageing.note_files(files.attempt_id, left)
                    count += 1
            after = found[-1].attempt_id
        return count


async def _repeat(step: Callable[[], Awaitable[int]]) -> int:
    """Take a step until it finds nothing more to do; the sum of what it did."""
    total = 0
    while done := await step():
        total += done
    return total
