"""Builds everything and takes it down again: order of start and stop, signals, exit codes."""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from traind import logfmt
from traind.access import account_name
from traind.accounts import Accounts
from traind.api.context import Caller, Context
from traind.api.server import Server, check_socket_path
from traind.config import EXIT_CONFIG, Config, Reload, load, reloaded
from traind.dispatcher import Diagnosis, Dispatcher, Leaseholders, Sampler, Strangers, XidLog
from traind.errors import ErrorCode, StartupError, TraindError
from traind.eventloop import MeteredLoop, leave_alone_what_stays
from traind.flags import name_state_dir, settings
from traind.gpus.monitor import GpuMonitor
from traind.hub import Hub
from traind.retention import Retention
from traind.runner import Failpoint
from traind.runner.link import LauncherLink
from traind.runner.supervisor import Supervisor
from traind.statedir import check_runs, has_database, highest_run, locked, state_dir_of
from traind.store.backups import restore as restore_backup
from traind.store.database import Database
from traind.store.jobs import JobStore
from traind.stores import Stores, open_stores
from traind.timers import Timers, back_up
from traind.watchdog import Watchdog

EXIT_STORE_FAILED = 74
"""EX_IOERR: the disk failed under the database; what it says can only be read afresh."""

_FIRST_MEETING_S = 10.0
"""How long a launcher of others has to answer before we are ready without it."""

_FIRST_READING_S = 1.0
"""How long the doors stay closed for a first look at the GPUs; a slow driver is not waited for."""


log = logging.getLogger(__name__)


def serve(args: argparse.Namespace) -> int:
    """Run the daemon until it is told to stop; gives its exit code."""
    try:
        config = settings(args)
        state_dir = state_dir_of(config, args.launcher)
        if args.state_dir is None:
            name_state_dir(state_dir)
        logfmt.configure(config.daemon.log_level)
        with locked(state_dir), asyncio.Runner(loop_factory=MeteredLoop) as runner:
            if sys.version_info < (3, 12):
                # The usual one of 3.11 has a thread wait for each child; later ones need no word.
                watcher = asyncio.PidfdChildWatcher()
                watcher.attach_loop(runner.get_loop())
                asyncio.set_child_watcher(watcher)
            return runner.run(App(config, state_dir, args).run())
    except StartupError as refused:
        print(f"traind: {refused.sentence}", file=sys.stderr)
        return refused.exit_code


def restore(config_file: str | None, state_dir: str | None, backup: str) -> int:
    """Put a backup in the place of the database, while no daemon runs; gives the exit code."""
    try:
        config = load(Path(config_file) if config_file else None)
        if state_dir is not None:
            daemon = config.daemon.model_copy(update={"state_dir": state_dir})
            config = config.model_copy(update={"daemon": daemon})
        place = state_dir_of(config)
        with locked(place):
            database = place / "daemon" / "traind.db"
            file, now = Path(backup).resolve(), datetime.now(UTC)
            aside, last = restore_backup(file, database, now=now)
    except StartupError as refused:
        print(f"traind: {refused.sentence}", file=sys.stderr)
        return refused.exit_code
    except (TraindError, OSError) as refused:
        print(f"traind: nothing was restored: {refused}", file=sys.stderr)
        return EXIT_CONFIG
    print(f"restored {database} from {file}; the next job is {max(last, highest_run(place)) + 1}")
    if aside is not None:
        print(f"what was there before is in {aside}")
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hands:
    """What touches processes and GPUs."""

    link: LauncherLink
    monitor: GpuMonitor
    diagnosis: Diagnosis
    xid_log: XidLog
    supervisor: Supervisor
    sampler: Sampler


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reloading:
    """The rooms that go by other settings after a reload."""

    context: Context
    dispatcher: Dispatcher
    retention: Retention
    timers: Timers

    def configure(self, config: Config) -> None:
        """Have all of them go by these settings."""
        self.dispatcher.configure(config)
        self.context.config, self.context.policy = config, self.dispatcher.policy
        self.context.store.jobs_per_user = config.queue.jobs_per_user
        self.retention.configure(config.retention)
        self.timers.configure(config.nightly)


class App:
    """One daemon: its rooms, in the order in which they depend on each other."""

    def __init__(self, config: Config, state_dir: Path, args: argparse.Namespace) -> None:
        self._config = config
        self._state_dir = state_dir
        self._args = args
        self._stop = asyncio.Event()
        self._failure: str | None = None
        self._reloading: _Reloading | None = None
        self._fresh = False

    async def run(self) -> int:
        """Serve until a signal; gives the exit code. Jobs are left alone."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        socket = check_socket_path(self._socket())
        self._fresh = not has_database(self._state_dir)
        if self._fresh:
            check_runs(self._state_dir, highest_run(self._state_dir))
        database = Database(self._state_dir / "daemon" / "traind.db", self._fail)
        await database.open()
        try:
            return await self._serve(database, socket)
        except TraindError as failed:
            if failed.code is not ErrorCode.UNAVAILABLE:
                raise
            raise StartupError(EXIT_STORE_FAILED, failed.sentence) from None
        finally:
            await database.close()

    def _reload(self) -> None:
        """Read the configuration again; a wrong one changes nothing."""
        try:
            new = settings(self._args)
        except StartupError as refused:
            why = refused.sentence
            log.error("reload refused, the old settings stay", extra={"why": why})
            return
        reload = reloaded(self._config, new)
        level, self._config = self._config.daemon.log_level, reload.config
        if self._reloading is not None:
            self._reloading.configure(reload.config)
        _say_reloaded(reload, level)

    def _fail(self, why: str) -> None:
        log.error("the store failed", extra={"why": why})
        self._failure = why
        self._stop.set()

    def _socket(self) -> Path:
        if self._config.daemon.socket:
            return Path(self._config.daemon.socket).absolute()
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        if not runtime:
            return self._state_dir / "traind.sock"
        folder = Path(runtime) / "traind"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            sentence = f"no socket can be made in {folder}: {error.strerror}; give --socket"
            raise StartupError(EXIT_CONFIG, sentence) from None
        return folder / "traind.sock"

    async def _serve(self, database: Database, socket: Path) -> int:
        hub = Hub()
        stores = await open_stores(database, hub, self._config, self._state_dir)
        hands = self._hands(stores, hub)
        accounts = Accounts()
        await accounts.find(os.getuid())
        dispatcher = self._dispatcher(stores, hands, hub, socket, accounts)
        retention, timers = self._nightly(stores, hands)
        await timers.prepare(now=datetime.now(UTC))
        context = self._context(stores, hands, hub, dispatcher, retention, socket, accounts)
        self._reloading = _Reloading(
            context=context, dispatcher=dispatcher, retention=retention, timers=timers
        )
        hands.xid_log.open(stores.conditions.log_position)
        await dispatcher.recover()
        rooms = [hands.link.run(), hands.monitor.run(), dispatcher.run(), hands.sampler.run()]
        tasks = [asyncio.create_task(room) for room in rooms]
        server, watchdog = Server(context), Watchdog(stores.jobs)
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(hub.gpus_read.wait(), _FIRST_READING_S)
            await server.open()
            tasks.append(asyncio.create_task(server.welcome_others()))
            await asyncio.wait(tasks[-1:], timeout=_FIRST_MEETING_S if self._args.launcher else 0)
            leave_alone_what_stays()
            print(f"ready socket={socket} http={context.http or 'off'}", flush=True)
            await watchdog.ready()
            tasks += [asyncio.create_task(room) for room in (watchdog.run(), timers.run())]
            return await self._until_stopped(tasks)
        finally:
            watchdog.stopping()
            await server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            hands.supervisor.close()
            hands.xid_log.close()

    def _hands(self, stores: Stores, hub: Hub) -> _Hands:
        gpus, args = self._config.gpus, self._args
        link = LauncherLink(
            self._state_dir,
            external=Path(args.launcher) if args.launcher else None,
            cgroups=self._config.jobs.cgroups,
            fenced=gpus.fence == "group",
            test_mode=args.test_mode,
            on_change=hub.wake,
            on_meeting=lambda highest: self._meet(stores.jobs, highest),
        )
        monitor = GpuMonitor(
            gpus,
            state_dir=self._state_dir,
            simulate=gpus.simulate if gpus.source == "simulated" else None,
            hub=hub,
            remembered=stores.inventory.all,
        )
        simulated = gpus.source == "simulated"
        xid_log = XidLog(gpus.kernel_log, simulated=simulated, on_news=hub.wake)
        supervisor = Supervisor(self._state_dir, link, hub)
        return _Hands(
            link=link,
            monitor=monitor,
            diagnosis=Diagnosis(
                gpus.health, monitor=monitor, conditions=stores.conditions, xid_log=xid_log
            ),
            xid_log=xid_log,
            supervisor=supervisor,
            sampler=Sampler(gpus.sample_busy, supervisor=supervisor, store=stores.samples, hub=hub),
        )

    async def _meet(self, jobs: JobStore, highest: int) -> None:
        """Never give an id again that has a run directory, which only the launcher may know of."""
        if self._fresh and self._args.launcher:
            check_runs(self._state_dir, highest)
        self._fresh = False
        await jobs.ids_start_above(highest)

    def _dispatcher(
        self, stores: Stores, hands: _Hands, hub: Hub, socket: Path, accounts: Accounts
    ) -> Dispatcher:
        holders = Leaseholders(
            self._config.gpus,
            stores.leases,
            supervisor=hands.supervisor,
            inventory=stores.inventory,
            strangers=Strangers(self._config.gpus, accounts=accounts, hub=hub),
            hub=hub,
        )
        return Dispatcher(
            self._config,
            state_dir=self._state_dir,
            socket=socket,
            store=stores.jobs,
            holders=holders,
            controls=stores.controls,
            inventory=stores.inventory,
            supervisor=hands.supervisor,
            link=hands.link,
            monitor=hands.monitor,
            sampler=hands.sampler,
            diagnosis=hands.diagnosis,
            hub=hub,
            pause=Failpoint(test_mode=self._args.test_mode),
        )

    def _nightly(self, stores: Stores, hands: _Hands) -> tuple[Retention, Timers]:
        """What is done by the clock, and the clock."""
        retention = Retention(
            self._config.retention,
            remember=self._config.api.idempotency,
            ageing=stores.ageing,
            supervisor=hands.supervisor,
        )
        timers = Timers(self._config.nightly, stores.ageing)
        timers.every_night(
            "backup",
            lambda: back_up(stores.backups, self._config.backups, now=datetime.now(UTC)),
        )
        timers.every_night("retention", lambda: retention.sweep(now=datetime.now(UTC)))
        return retention, timers

    def _context(
        self,
        stores: Stores,
        hands: _Hands,
        hub: Hub,
        dispatcher: Dispatcher,
        retention: Retention,
        socket: Path,
        accounts: Accounts,
    ) -> Context:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, MeteredLoop)  # `serve` made it
        return Context(
            config=self._config,
            state_dir=self._state_dir,
            socket=socket,
            http=None,
            owner=Caller(user=account_name(os.getuid()), uid=os.getuid(), operator=True),
            accounts=accounts,
            host=dispatcher.host,
            policy=dispatcher.policy,
            started_at=datetime.now(UTC),
            store=stores.jobs,
            leases=stores.leases,
            events=stores.events,
            tokens=stores.tokens,
            controls=stores.controls,
            inventory=stores.inventory,
            samples=stores.samples,
            conditions=stores.conditions,
            monitor=hands.monitor,
            health=dispatcher.health,
            supervisor=hands.supervisor,
            link=hands.link,
            hub=hub,
            lag_s=loop.lag_s,
            backups=stores.backups,
            sweep=lambda now: retention.sweep(now=now),
        )

    async def _until_stopped(self, tasks: list[asyncio.Task[None]]) -> int:
        """Wait for a signal, or for a room that ends against its nature."""
        stopped = asyncio.create_task(self._stop.wait())
        watched: set[asyncio.Task[object]] = {stopped, *tasks}
        while not stopped.done():
            done, watched = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopped}:
                task.result()  # a room that failed takes the daemon with it
        if self._failure is not None:
            print(f"traind: the state cannot be kept: {self._failure}", file=sys.stderr)
            return EXIT_STORE_FAILED
        log.info("stopping; jobs go on")
        return 0


def _say_reloaded(reload: Reload, level_before: str) -> None:
    """Log what changed, at the level of before or of now, whichever tells more."""
    levels = (level_before, reload.config.daemon.log_level)
    names = logging.getLevelNamesMapping()
    logfmt.configure(min(levels, key=lambda level: names[level.upper()]))
    log.info("reloaded", extra={"changed": ", ".join(reload.applied) or "nothing"})
    if reload.needs_restart:
        settings = ", ".join(reload.needs_restart)
        log.warning("reloaded, but some settings want a restart", extra={"settings": settings})
    logfmt.configure(reload.config.daemon.log_level)
