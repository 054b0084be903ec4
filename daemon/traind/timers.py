"""What is done by the clock: once a night, and at the next start when the daemon was down then.

APScheduler is a timer here and nothing else: what was done when is a row of the database.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, time
from zoneinfo import ZoneInfo

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger

from traind.config import BackupSettings, NightlySettings
from traind.errors import TraindError
from traind.store.ageing import Ageing
from traind.store.backups import Backups

Service = Callable[[], Awaitable[object]]

_PATIENT = {"misfire_grace_time": None, "coalesce": True, "max_instances": 1}
"""A call that comes late is done all the same, once."""

log = logging.getLogger(__name__)


async def back_up(backups: Backups, settings: BackupSettings, *, now: datetime) -> None:
    """A new backup; then those go that are neither of the last days nor of the last weeks."""
    backup, took_s = await backups.make(now=now)
    removed = await backups.rotate(daily=settings.daily, weekly=settings.weekly)
    facts = {"path": backup.path, "bytes": backup.bytes, "took_s": round(took_s, 3)}
    log.info("database backed up", extra={**facts, "rotated_out": removed})


class Timers:
    """Calls each nightly service at its hour; nothing wakes up in between."""

    def __init__(self, settings: NightlySettings, ageing: Ageing) -> None:
        self._trigger = _trigger(settings)
        self._scheduler = AsyncIOScheduler(timezone=UTC, job_defaults=_PATIENT)
        self._ageing = ageing
        self._services: dict[str, Service] = {}

    def configure(self, settings: NightlySettings) -> None:
        """Call each service at this hour from now on; what was missed before stays so."""
        self._trigger = _trigger(settings)
        for job in self._scheduler.get_jobs():
            job.reschedule(self._trigger)

    def every_night(self, name: str, service: Service) -> None:
        """Have a service called every night. Before `run`."""
        self._services[name] = service

    async def prepare(self, *, now: datetime) -> None:
        """Remember of a new state that it has missed nothing."""
        for name in self._services:
            if await self._ageing.done_at(name) is None:
                await self._note(name, now=now)

    async def run(self) -> None:
        """Catch up on what was missed, then call each service at its hour. Never returns."""
        for name in self._services:
            if await self._missed(name, now=datetime.now(UTC)):
                await self._call(name)
            self._scheduler.add_job(self._call, self._trigger, [name])
        self._scheduler.start()
        try:
            await asyncio.Event().wait()
        finally:
            self._scheduler.shutdown(wait=False)

    async def _missed(self, name: str, *, now: datetime) -> bool:
        """Whether its hour passed while no daemon ran."""
        done_at = await self._ageing.done_at(name)
        since = (done_at or now).astimezone(self._trigger.timezone)
        due = self._trigger.get_next_fire_time(None, since)
        return due is not None and due <= now

    async def _call(self, name: str) -> None:
        """Do a service once; one that is refused is told and comes again the next night."""
        try:
            await self._services[name]()
        except TraindError as refused:
            log.error("nightly service failed", extra={"service": name, "why": refused.sentence})
            return
        await self._note(name, now=datetime.now(UTC))

    async def _note(self, name: str, *, now: datetime) -> None:
        """Remember that a service was done; on a full disk it is done once more."""
        try:
            await self._ageing.note_done(name, now=now)
        except TraindError as refused:
            log.warning("not remembered", extra={"service": name, "why": refused.sentence})


def _trigger(settings: NightlySettings) -> CronTrigger:
    at, zone = time.fromisoformat(settings.at), ZoneInfo(settings.timezone)
    return CronTrigger(hour=at.hour, minute=at.minute, timezone=zone)
