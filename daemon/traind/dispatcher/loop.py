"""One tick: settle what ended, look at what is, think, act. Woken by news or the next deadline."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from sqlite3 import IntegrityError

from traind.config import Config
from traind.dispatcher.attribution import owners_of
from traind.dispatcher.autopsy import Autopsy
from traind.dispatcher.claiming import Refusals, claim_of
from traind.dispatcher.concerns import Concerns
from traind.dispatcher.diagnosis import Diagnosis
from traind.dispatcher.inquest import Inquest
from traind.dispatcher.leaseholders import Leaseholders
from traind.dispatcher.leaving import orders_of
from traind.dispatcher.log_caps import LogCaps
from traind.dispatcher.outlook import (
    Sight,
    awaits_gpu,
    host_of,
    policy_of,
    requeue_policy_of,
    world_of,
)
from traind.dispatcher.running import (
    Running,
    adopted,
    launch_order,
    log_end,
    with_job,
)
from traind.dispatcher.sampling import Sampler
from traind.dispatcher.steps import Errands, side_by_side, until_news
from traind.dispatcher.stopping import next_step_at, send_signals, take_step
from traind.dispatcher.waiting import Waiting
from traind.errors import ErrorCode, TraindError
from traind.gpu import GpuHealth
from traind.gpus.monitor import GpuMonitor
from traind.hub import Hub
from traind.job import OWNING, Exit, Job, JobState, Request
from traind.lifecycle import settle
from traind.runner import Failpoint
from traind.runner.link import LauncherLink
from traind.runner.progress import read_progress
from traind.runner.proofs import boot_id
from traind.runner.supervisor import Ending, Key, Supervisor, boottime_s
from traind.scheduler import Plan, Start
from traind.store.controls import ControlStore
from traind.store.inventory import Inventory
from traind.store.jobs import JobStore
from traind.store.moves import Ended
from traind.verdict import judge

_RETRY_STORE_S = 1.0
log = logging.getLogger(__name__)


class Dispatcher:
    """Starts and stops jobs, one tick at a time; everything it knows can be read again."""

    def __init__(
        self,
        config: Config,
        *,
        state_dir: Path,
        socket: Path,
        store: JobStore,
        holders: Leaseholders,
        controls: ControlStore,
        inventory: Inventory,
        supervisor: Supervisor,
        link: LauncherLink,
        monitor: GpuMonitor,
        sampler: Sampler,
        diagnosis: Diagnosis,
        hub: Hub,
        pause: Failpoint,
    ) -> None:
        self._config = config
        self._state_dir = state_dir
        self._socket = socket
        self._store = store
        self._controls = controls
        self._inventory = inventory
        self._supervisor = supervisor
        self._link = link
        self._monitor = monitor
        self._sampler = sampler
        self._diagnosis = diagnosis
        self._hub = hub
        self._pause = pause
        self.host = host_of(config)
        self.policy = policy_of(config)
        self._waiting = Waiting(store, hub, config.queue.front)
        self._health: dict[str, GpuHealth] = {}
        self._inquest = Inquest()
        self._autopsy = Autopsy(supervisor, diagnosis.attempts, hub)
        self._running: dict[int, Running] = {}
        self._refusals = Refusals()
        self._holders = holders
        self._errands = Errands()
        self._log_caps = LogCaps()
        self._concerns = Concerns()

    def configure(self, config: Config) -> None:
        """Go by these settings from the next tick on."""
        self._config = config
        self.policy = policy_of(config)
        self._diagnosis.configure(config.gpus.health)
        self._holders.configure(config.gpus)
        self._hub.wake()

    def health(self) -> dict[str, GpuHealth]:
        """How each GPU is, by its UUID."""
        known = self._inventory
        return self._diagnosis.health(self._hub.snapshot, known.all, known.cordons)

    async def recover(self) -> None:
        """Find out how everything stands that was running when a daemon last looked."""
        await self._waiting.load(datetime.now(UTC))
        attempts = {attempt.job_id: attempt for attempt in await self._store.open_attempts()}
        for job in await self._store.owning():
            rebooted = attempts[job.id].boot_id != boot_id()
            running = adopted(job, attempts[job.id], rebooted=rebooted)
            self._running[job.id] = running
            self._errands.begin(self._adopt(running.key, rebooted=rebooted))
        if self._running:
            log.info("looking for running jobs", extra={"jobs": len(self._running)})

    async def run(self) -> None:
        """Tick until cancelled; while the state cannot be stored, try again."""
        try:
            while True:
                try:
                    wake_at = await self.tick(datetime.now(UTC))
                except TraindError as failed:
                    if failed.code is not ErrorCode.UNAVAILABLE:
                        raise
                    log.warning("state not stored", extra={"why": failed.sentence})
                    await asyncio.sleep(_RETRY_STORE_S)
                    self._holders.stale = True
                    continue
                joined = self._waiting.joined
                await until_news(self._hub, wake_at, absorb=self._absorb, joined=joined)
        finally:
            self._errands.cancel()

    async def tick(self, now: datetime) -> datetime | None:
        """Do everything that can be done now; when to come back if nothing happens before."""
        await self._diagnose(now)
        await self._settle(now)
        sight = await self._look(now)
        thought = self._think(sight, now)
        self._tell_monitor(sight, now)
        starts = [s for s in thought.starts if self._refusals.allow(s.job_id, now=now)]
        await self._act(starts, now)
        self._sampler.observe(one.job for one in self._running.values() if one.launched)
        if starts:
            self._hub.wake()
        return self._next_deadline(thought, now)

    async def _diagnose(self, now: datetime) -> None:
        snapshot, inventory = self._hub.snapshot, self._inventory
        if self._diagnosis.has_news(snapshot, now=now):
            await inventory.remember((r.gpu for r in snapshot.readings), now=now)
            sight = await self._holders.sight(now=now)
            owners = owners_of((r.job for r in self._running.values()), sight.leases, sight.pids)
            stranded = sight.stranded(self._config.gpus)
            await self._diagnosis.look(snapshot, inventory.all, owners, stranded, now=now)
        self._health = self.health()

    # settle ---------------------------------------------------------------------------------

    async def _settle(self, now: datetime) -> None:
        jobs = {running.key: running.job for running in self._running.values()}
        taken, snapshot = self._supervisor.take_endings(), self._hub.snapshot
        patience = self._config.gpus.health.ending_wait
        endings, adjourned = self._inquest.sift(taken, jobs, snapshot, patience=patience, now=now)
        for key, ending in adjourned:
            self._supervisor.give_back(key, ending)
            self._monitor.read_now()
        results = await asyncio.gather(
            *(self._end(key, ending, now) for key, ending in endings), return_exceptions=True
        )
        for (key, ending), failed in zip(endings, results, strict=True):
            if isinstance(failed, BaseException):
                self._supervisor.give_back(key, ending)
        for failed in results:
            if isinstance(failed, BaseException):
                raise failed

    async def _end(self, key: Key, ending: Ending, now: datetime) -> None:
        job_id, attempt = key
        if not self._runs(key):
            return
        running = self._running[job_id]
        run_s = ending.run_s if isinstance(ending, Exit) else running.ran_s(boottime_s())
        ran = timedelta(seconds=run_s or 0.0)
        evidence = self._diagnosis.evidence(running.job, self._health, self._inventory.all)
        testimony = await self._autopsy.testimony(running.job, ending)
        progress = read_progress(self._supervisor.path(key) / "metrics")
        peak = ending.peak_memory_mib if isinstance(ending, Exit) else None
        policy = requeue_policy_of(self._config)

        def judged(job: Job) -> list[Ended]:
            """By the job as it stands, with the newest order to stop."""
            verdict = judge(job, ending, evidence, testimony)
            settled = settle(job, verdict, now=now, ran=ran, policy=policy)
            ended = Ended(settled=settled, run_s=run_s, peak_memory_mib=peak, progress=progress)
            return [ended] if job.attempt == attempt and job.state in OWNING else []

        self._pause("daemon.taken", f"{job_id}.{attempt}")
        job = await self._store.change(job_id, judged, now=now)
        self._pause("daemon.finished", f"{job_id}.{attempt}")
        self._absorb(job)
        self._holders.stale = True
        log_end(job, attempt)

    # look -----------------------------------------------------------------------------------

    async def _look(self, now: datetime) -> Sight:
        for job in self._hub.take_changed():
            self._absorb(job)
        await self._waiting.refresh(now)
        sight = await self._holders.release(now=now)
        stopping = [one.job.id for one in self._running.values() if one.job.stop is not None]
        self._concerns.look(sight, self.policy, stopping=stopping)
        return sight

    def _absorb(self, job: Job) -> None:
        """Take over how a job stands now."""
        self._waiting.absorb(job)
        if job.state is not JobState.QUEUED:
            self._refusals.forget(job.id)
        known = self._running.get(job.id)
        if job.state not in OWNING:
            self._running.pop(job.id, None)
        elif known is not None and known.job.version <= job.version:
            self._running[job.id] = with_job(known, job)

    # think ----------------------------------------------------------------------------------

    def _think(self, sight: Sight, now: datetime) -> Plan:
        world = world_of(
            sight,
            health=self._health,
            host=self.host,
            policy=self.policy,
            gpus=self._config.gpus,
            owners=(running.owner() for running in self._running.values()),
            waiting=self._waiting.requests,
            launcher_fault=self._link.fault,
            pause=self._controls.pause,
            now=now,
        )
        return self._waiting.think(world)

    def _tell_monitor(self, sight: Sight, now: datetime) -> None:
        self._monitor.observe(
            sight.claims(),
            hurried=sight.awaits_memory(now, self._config.gpus.release_wait),
            awaited=awaits_gpu(self._waiting.requests, self._hub.reasons),
        )

    # act ------------------------------------------------------------------------------------

    async def _act(self, starts: Sequence[Start], now: datetime) -> None:
        asked = {r.job_id: r for r in self._waiting.requests} if starts else {}
        await side_by_side(self._start(start, asked[start.job_id], now) for start in starts)
        await side_by_side(self._order(running, now) for running in list(self._running.values()))
        await side_by_side(self._take_stop_step(job_id, now) for job_id in list(self._running))
        for running in list(self._running.values()):
            if running.launched and running.job.signals:
                self._absorb(await send_signals(running, self._supervisor, self._store))
        run_dirs = (self._supervisor.path(running.key) for running in self._running.values())
        self._log_caps.apply(run_dirs, self._config.jobs, now=now)

    async def _start(self, start: Start, asked: Request, now: datetime) -> None:
        claim = claim_of(start, asked, self._config.jobs, state_dir=self._state_dir)
        try:
            job, port = await self._store.claim(start.job_id, claim, now=now)
        except TraindError as refused:
            if refused.code is ErrorCode.UNAVAILABLE:
                raise
            self._waiting.absorb(await self._store.get(start.job_id))
            return  # it was cancelled, held or changed, or the queue paused, in this very moment
        except IntegrityError as refused:
            # The schema knows better than memory: look again at what is held.
            if self._refusals.note(start.job_id, str(refused), now=now):
                log.error("claim refused", extra={"job": start.job_id, "why": refused})
            self._holders.stale = True
            return
        self._pause("daemon.claimed", f"{job.id}.{job.attempt}")
        self._absorb(job)
        self._holders.stale = self._holders.stale or bool(claim.leases)
        running = Running(job=job, port=port)
        self._running[job.id] = running
        self._errands.begin(self._launch(running, now))

    async def _launch(self, running: Running, now: datetime) -> None:
        spec = launch_order(
            running,
            self._config,
            now=now,
            socket=str(self._socket),
            snapshot=self._hub.snapshot,
            box_gpus=len(self._inventory.all),
            host=self.host,
        )
        if await self._supervisor.launch(spec):
            await self._note_started(running.key)

    async def _adopt(self, key: Key, *, rebooted: bool) -> None:
        if await self._supervisor.adopt(key, rebooted=rebooted):
            log.info("attempt adopted", extra={"job": key[0], "attempt": key[1]})
            await self._note_started(key)

    async def _note_started(self, key: Key) -> None:
        """Commit that the attempt runs; until that works nothing else is done with it."""
        began = self._running[key[0]].started_boottime_s
        self._pause("daemon.launched", f"{key[0]}.{key[1]}")
        while began is None and self._runs(key):
            now = boottime_s()
            try:
                job = await self._store.started(key[0], now, now=datetime.now(UTC))
            except TraindError as failed:
                log.warning("state not stored", extra={"why": failed.sentence})
                await asyncio.sleep(_RETRY_STORE_S)
                continue
            began = now
            self._pause("daemon.started", f"{key[0]}.{key[1]}")
            self._absorb(job)
            self._holders.stale = True  # its leases tell since when it runs
        if self._runs(key):
            running = self._running[key[0]]
            self._running[key[0]] = replace(running, started_boottime_s=began, launched=True)
            self._hub.wake()

    def _runs(self, key: Key) -> bool:
        """Whether the attempt is not over, as far as is known."""
        running = self._running.get(key[0])
        return running is not None and running.key == key

    async def _order(self, running: Running, now: datetime) -> None:
        """Stop a job whose time is over or that must leave its GPUs; tell its owner of these."""
        decide = orders_of(
            running,
            health=self._health,
            cordons=self._inventory.cordons,
            concerns=self._concerns,
            config=self._config,
            now=now,
        )
        if decide(running.job):
            self._absorb(await self._store.change(running.job.id, decide, now=now))

    async def _take_stop_step(self, job_id: int, now: datetime) -> None:
        running = self._running.get(job_id)
        if running is None or not running.launched or running.job.state is not JobState.STOPPING:
            return
        after = await take_step(running, self._supervisor, self._store, now=now)
        if self._running.get(job_id) is running:
            self._running[job_id] = after

    def _next_deadline(self, thought: Plan, now: datetime) -> datetime | None:
        longest = self._config.jobs.max_time_limit
        moments = [thought.wake_at, self._waiting.matures_at, self._inquest.ends_at]
        moments += [self._refusals.next_at(now=now)]
        if self._running:
            moments.append(self._log_caps.next_at)
        for running in self._running.values():
            left = running.time_left(longest, boottime_s())
            moments.append(None if left is None else now + left)
            if running.launched:
                moments.append(next_step_at(running, now))
        return min((moment for moment in moments if moment is not None), default=None)
