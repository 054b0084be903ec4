"""The jobs that own GPUs, with what the dispatcher must remember of them between two ticks."""

import logging
import os
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from traind.config import Config, JobSettings
from traind.dispatcher.limits import limits_of
from traind.gpu import GpuSnapshot
from traind.job import Attempt, Job, StopReason
from traind.lifecycle import stop_order
from traind.runner.environment import job_environment
from traind.runner.supervisor import Key
from traind.scheduler import Host, Owner
from traind.script import interpreter_of
from traind.store.moves import Stop

KILL_AGAIN = timedelta(seconds=5)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A job that owns GPUs. `launched` once its shim is watched, by this daemon."""

    job: Job
    port: int | None = None
    launched: bool = False
    started_boottime_s: float | None = None
    killed_at: datetime | None = None

    @property
    def key(self) -> Key:
        """Which attempt runs."""
        return self.job.id, self.job.attempt

    def owner(self) -> Owner:
        """What it takes of the host."""
        spec = self.job.spec
        return Owner(job_id=self.job.id, gpus=spec.gpus, cpus=spec.cpus, memory_mib=spec.memory_mib)

    def ran_s(self, boottime_s: float) -> float | None:
        """Seconds since its start; None while that is not known."""
        began = self.started_boottime_s
        return None if began is None else max(0.0, boottime_s - began)

    def time_limit(self, longest: timedelta) -> timedelta:
        """The wall time of one attempt that it may take."""
        asked = self.job.spec.time_limit_s
        return longest if asked is None else min(timedelta(seconds=asked), longest)

    def time_left(self, longest: timedelta, boottime_s: float) -> timedelta | None:
        """What is left of its time limit; None while it has not started or is being stopped."""
        if self.started_boottime_s is None or self.job.stop is not None:
            return None
        ran = timedelta(seconds=boottime_s - self.started_boottime_s)
        return self.time_limit(longest) - ran


def adopted(job: Job, attempt: Attempt, *, rebooted: bool) -> Running:
    """A job found running at the start of the daemon; an earlier boot's clock means nothing now."""
    began = None if rebooted else attempt.started_boottime_s
    return Running(job=job, port=attempt.port, started_boottime_s=began)


def time_limit_stop(
    running: Running, job: Job, config: JobSettings, *, now: datetime, boottime_s: float
) -> list[Stop]:
    """The order that ends a job whose time is over, as it stands in the store: it may have been
    given more time, or be stopped already.
    """
    left = with_job(running, job).time_left(config.max_time_limit, boottime_s)
    if job.attempt != running.job.attempt or left is None or left > timedelta(0):
        return []
    order = stop_order(
        job.spec,
        StopReason.TIME_LIMIT,
        by=None,
        now=now,
        grace=config.grace,
        lead=config.checkpoint_lead,
    )
    return [Stop(order=order)]


def launch_order(
    running: Running,
    config: Config,
    *,
    now: datetime,
    socket: str,
    snapshot: GpuSnapshot,
    box_gpus: int,
    host: Host,
) -> dict[str, Any]:
    """What the launcher is told of the attempt."""
    job, settings = running.job, config.jobs
    threads = max(1, (os.cpu_count() or 1) // max(1, box_gpus))
    environment = job_environment(
        job,
        now=now,
        port=running.port,
        socket=socket,
        threads=threads,
        time_limit=running.time_limit(settings.max_time_limit),
        cpus=cpus_of(job, snapshot),
        box_env=settings.env,
    )
    return {
        "job": job.id,
        "attempt": job.attempt,
        "uid": job.uid,
        "command": job.spec.command,
        "argv": job.spec.argv,
        "script": job.spec.script,
        "interpreter": None if job.spec.script is None else interpreter_of(job.spec.script),
        "script_args": job.spec.script_args,
        "shell": job.spec.shell,
        "workdir": job.spec.workdir,
        "python_env": job.spec.python_env,
        "checkpoint_dir": job.spec.checkpoint_dir,
        "env": environment,
        "job_env": job.spec.env,
        "leftover_grace_s": settings.leftover_grace.total_seconds(),
        "fenced": config.gpus.fence == "group" and bool(job.leases),
        "launch_deadline_s": settings.launch_deadline.total_seconds(),
        "limits": limits_of(job.spec, settings, host, gpu_cores=threads),
    }


def cpus_of(job: Job, snapshot: GpuSnapshot) -> str | None:
    """The cores next to the GPUs of a job, as taskset(1) takes them; None where no others are
    further away from them, or nobody tells.
    """
    own = {lease.gpu_uuid for lease in job.leases}
    places = {reading.gpu.uuid: reading.place for reading in snapshot.readings}
    if len({place.numa_node for place in places.values()} - {None}) < 2:
        return None
    near = [places[uuid].cpus for uuid in own & places.keys()]
    return ",".join(sorted({cpus for cpus in near if cpus}, key=_first_core)) or None


def _first_core(cpus: str) -> int:
    return int(cpus.replace("-", ",").partition(",")[0])


def with_job(running: Running, job: Job) -> Running:
    """The same attempt with the job as it stands now."""
    return replace(running, job=job)


def log_end(job: Job, attempt: int) -> None:
    """Tell the daemon's own log how an attempt ended; what a job wrote never gets there."""
    log.info(
        "attempt ended",
        extra={
            "job": job.id,
            "attempt": attempt,
            "state": job.state,
            "outcome": job.outcome,
            "cause": job.cause and job.cause.code,
            "exit_code": job.exit_code,
        },
    )
