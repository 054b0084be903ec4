"""What the handlers of the API share."""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web

from traind.access import Scope
from traind.accounts import Accounts
from traind.boxwire import Removed
from traind.config import Config
from traind.errors import ErrorCode, TraindError
from traind.gpu import Gpu, GpuHealth
from traind.gpus.monitor import GpuMonitor
from traind.hub import Hub
from traind.job import OWNING, Job, JobState, WaitCode, WaitReason, request_of
from traind.meters import Histogram
from traind.publicwire import AnyJobView, public_view
from traind.runner.identity import FIRST_UID, is_persons
from traind.runner.link import LauncherLink
from traind.runner.progress import read_progress
from traind.runner.supervisor import Supervisor
from traind.scheduler import Host, SharingPolicy, delay_reason
from traind.store.backups import Backups
from traind.store.conditions import ConditionStore
from traind.store.controls import ControlStore
from traind.store.events import EventStore
from traind.store.inventory import Inventory
from traind.store.jobs import JobStore
from traind.store.leases import LeaseStore
from traind.store.samples import SampleStore
from traind.store.tokens import TokenStore
from traind.wire import JobView, job_view


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, as the kernel or a token says. `local`: on the Unix socket."""

    user: str
    uid: int
    operator: bool
    scopes: tuple[Scope, ...] = tuple(Scope)
    local: bool = False

    def sees(self, job: Job) -> bool:
        """Whether all of the job is theirs to see."""
        return self.operator or self.uid == job.uid

    def check_sees(self, job: Job) -> None:
        """Raises FORBIDDEN for what is its owner's and the operators'."""
        if not self.sees(job):
            raise TraindError(
                ErrorCode.FORBIDDEN,
                f"job {job.id} is {job.user}'s; its owner and the operators may do that",
            )


@dataclass(slots=True, kw_only=True)
class Context:
    """The rooms behind the API. `http` is the address of the TCP door once it is open, `lag_s` how
    long the event loop was busy at a stretch.
    """

    config: Config
    state_dir: Path
    socket: Path
    http: str | None
    owner: Caller
    accounts: Accounts
    host: Host
    policy: SharingPolicy
    started_at: datetime
    store: JobStore
    leases: LeaseStore
    events: EventStore
    tokens: TokenStore
    controls: ControlStore
    inventory: Inventory
    samples: SampleStore
    conditions: ConditionStore
    monitor: GpuMonitor
    health: Callable[[], Mapping[str, GpuHealth]]
    supervisor: Supervisor
    link: LauncherLink
    hub: Hub
    lag_s: Histogram
    backups: Backups
    sweep: Callable[[datetime], Awaitable[Removed]]

    def known_gpus(self) -> tuple[Gpu, ...]:
        """The GPUs that the box has, sick and lost ones too; just read ones before the store
        remembers them.
        """
        return self.inventory.all or tuple(r.gpu for r in self.hub.snapshot.readings)

    async def view(self, job: Job) -> JobView:
        """The job as the API shows it now."""
        await self.accounts.find(job.uid)
        return self.view_with(job, await self.reason(job))

    async def view_for(self, who: Caller, job: Job) -> AnyJobView:
        """The job as this caller may see it now."""
        if who.sees(job):
            return await self.view(job)
        return public_view(job, await self.reason(job))

    async def views_for(self, who: Caller, jobs: Sequence[Job]) -> list[AnyJobView]:
        """Jobs as the API lists them to this caller; the rank of each one behind the front is not
        worked out.
        """
        for uid in {job.uid for job in jobs if who.sees(job)}:
            await self.accounts.find(uid)
        reasons = [self.known_reason(job) for job in jobs]
        return [
            self.view_with(job, reason) if who.sees(job) else public_view(job, reason)
            for job, reason in zip(jobs, reasons, strict=True)
        ]

    def submitter(self, who: Caller) -> Caller:
        """As whom the caller's jobs run. Raises FORBIDDEN, UNAVAILABLE."""
        if self.link.others is None:
            raise TraindError(ErrorCode.UNAVAILABLE, f"no job can be taken yet: {self.link.fault}")
        if not self.link.others:
            return self.owner
        if is_persons(who.uid) and self.accounts.home(who.uid) is not None:
            return who
        raise TraindError(
            ErrorCode.FORBIDDEN,
            f"jobs run as whom they are submitted by, and {who.user} is no person's account with a "
            f"uid of {FIRST_UID} or more; submit as yourself, not with sudo",
        )

    def view_with(self, job: Job, reason: WaitReason | None) -> JobView:
        """The job as the API shows it, with a reason that is known."""
        progress = job.progress_step, job.progress_total
        if job.state in OWNING:
            path = self.supervisor.path((job.id, job.attempt))
            progress = read_progress(path / "metrics")
        return job_view(
            job,
            reason=reason,
            progress=progress,
            box_gpus=len(self.known_gpus()),
            box_cores=os.cpu_count() or 1,
            home=self.accounts.home(job.uid),
        )

    async def reason(self, job: Job) -> WaitReason | None:
        """Why the job waits; None when it does not. Behind the front that is its rank."""
        known = self.known_reason(job)
        if known is not NOT_PLANNED:
            return known
        ahead = await self.store.ahead(job)
        if not ahead:
            return JUST_ACCEPTED
        detail = f"{'1 job is' if ahead == 1 else f'{ahead} jobs are'} ahead of it in the queue"
        return WaitReason(code=WaitCode.PRIORITY, detail=detail, facts={"ahead": ahead})

    def known_reason(self, job: Job) -> WaitReason | None:
        """Why the job waits, as far as it was thought about; None when it does not wait."""
        if job.state is JobState.HELD:
            return job.hold
        if job.state is not JobState.QUEUED:
            return None
        if job.eligible_at > datetime.now(UTC):
            return delay_reason(request_of(job))
        if self.controls.pause is not None:
            return self.controls.pause.reason
        return self.hub.reasons.get(job.id, NOT_PLANNED)


NOT_PLANNED = WaitReason(code=WaitCode.PRIORITY, detail="other jobs are ahead of it in the queue")
JUST_ACCEPTED = WaitReason(
    code=WaitCode.PRIORITY, detail="it has just been accepted and is about to be looked at"
)

HIGHEST_ID = 10**18 - 1
"""No id is longer, and SQLite can count further than that."""

CONTEXT = web.AppKey("context", Context)
CALLER = web.RequestKey("caller", Caller)
DOCUMENT = web.AppKey("document", bytes)


def caller(request: web.Request) -> Caller:
    """Who asks. Raises UNAUTHORIZED."""
    if CALLER not in request:
        raise TraindError(
            ErrorCode.UNAUTHORIZED,
            "nobody signed in for this call; its route declares no scope",
        )
    return request[CALLER]


async def own_job(request: web.Request) -> Job:
    """The job in the path. Raises NOT_FOUND, and FORBIDDEN where it is not the caller's to see."""
    job = await request.app[CONTEXT].store.get(job_id(request))
    caller(request).check_sees(job)
    return job


def past_attempt(job: Job, asked: int | None) -> int:
    """The attempt that is asked about, the last one where none is named. Raises NOT_FOUND."""
    if asked is not None and asked > max(job.attempt, 1):
        raise TraindError(
            ErrorCode.NOT_FOUND, f"job {job.id} has had {job.attempt} attempts, not that many"
        )
    return asked or job.attempt


def job_id(request: web.Request) -> int:
    """The id in the path. Raises NOT_FOUND for what is none."""
    text = request.match_info["id"]
    if not text.isascii() or not text.isdecimal() or len(text) > len(str(HIGHEST_ID)):
        raise TraindError(ErrorCode.NOT_FOUND, f"{text[:80]!r} is no job; ids are whole numbers")
    return int(text)
