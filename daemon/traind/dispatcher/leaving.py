"""Jobs that must stop without anybody's asking: their time is over, or they must leave their GPUs,
at once where one failed, with grace where one is drained.
"""

from collections.abc import Callable, Mapping
from datetime import datetime

from traind.config import Config, JobSettings
from traind.dispatcher.concerns import Concerns
from traind.dispatcher.running import Running, time_limit_stop
from traind.gpu import Cordon, GpuHealth
from traind.job import Job, StopOrder, StopReason
from traind.lifecycle import stop_order
from traind.runner.supervisor import boottime_s
from traind.store.moves import Notice, Stop


def orders_of(
    running: Running,
    *,
    health: Mapping[str, GpuHealth],
    cordons: Mapping[str, Cordon],
    concerns: Concerns,
    config: Config,
    now: datetime,
) -> Callable[[Job], list[Notice | Stop]]:
    """What gives the orders to a running job as it stands in the store, and what its owner is told;
    a job whose time is over gets no other order at once.
    """
    boottime = boottime_s()

    def decide(job: Job) -> list[Notice | Stop]:
        late = time_limit_stop(running, job, config.jobs, now=now, boottime_s=boottime)
        if late or job.attempt != running.job.attempt:
            return [*late]
        leaving = leaving_order(running, job, health, cordons, config.jobs, now=now)
        return [*leaving, *concerns.moves(job, config.gpus, now=now)]

    return decide


def leaving_order(
    running: Running,
    job: Job,
    health: Mapping[str, GpuHealth],
    cordons: Mapping[str, Cordon],
    config: JobSettings,
    *,
    now: datetime,
) -> list[Stop]:
    """The order that takes a job off its GPUs, as it stands in the store; none when it may stay."""
    if job.attempt != running.job.attempt:
        return []
    uuids = [lease.gpu_uuid for lease in job.leases if lease.state == "held"]
    fatal = next((why for uuid in uuids if uuid in health and (why := health[uuid].fatal)), None)
    if fatal is not None:
        weaker = job.stop is None or job.stop.reason.strength < StopReason.GPU_FAULT.strength
        return [Stop(order=_fault_order(fatal, now=now))] if weaker else []
    drain = next((cordons[u] for u in uuids if u in cordons and cordons[u].drains), None)
    if drain is None or job.stop is not None:
        return []
    order = stop_order(
        job.spec,
        StopReason.REQUEUE,
        by=drain.by,
        now=now,
        grace=config.grace,
        lead=config.checkpoint_lead,
    )
    return [Stop(order=order)]


def _fault_order(detail: str, *, now: datetime) -> StopOrder:
    """An order to kill at once what runs on a GPU that failed."""
    return StopOrder(
        reason=StopReason.GPU_FAULT,
        by=None,
        asked_at=now,
        term_at=now,
        kill_at=now,
        stage=0,
        detail=detail,
    )
