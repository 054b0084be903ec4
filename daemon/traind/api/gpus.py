"""The GPUs over HTTP: how they are, who holds what, and what operators say of them."""

import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Literal

from aiohttp import web
from pydantic import Field

from traind.api.bodies import read_body
from traind.api.context import CONTEXT, Caller, Context, caller
from traind.api.doors import json_response
from traind.api.routes import Body, NoQuery, read_query
from traind.errors import ErrorCode, FieldError, TraindError
from traind.gpu import Cordon, FaultKind, Gpu, GpuReading
from traind.gpus.conditions import worst_first
from traind.gpus.health import observed
from traind.gpuwire import (
    Gpus,
    GpuView,
    HealthView,
    LeaseView,
    condition_view,
    cordon_view,
    process_view,
)
from traind.jobspec import Name
from traind.publicwire import public_name
from traind.runner.errand import start_time
from traind.scheduler import gpu_means
from traind.store.leases import OpenLease
from traind.store.listing import JobFilter

log = logging.getLogger(__name__)


class GpuOrder(Body):
    """What an operator says of a GPU, one thing at a time; `reason` is for `cordoned` and `drain`.

    `drain` keeps new jobs off it and requeues those that run there; `cordoned: false` ends both.
    `clear`: somebody has seen to what was wrong, and what is in use there by no process is put up
    with. `ignore_pid` lets a process be that is of no job. `forget`: it is gone for good.
    """

    cordoned: bool | None = None
    drain: Literal[True] | None = None
    clear: Literal[True] | None = None
    ignore_pid: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    forget: Literal[True] | None = None
    reason: Name | None = None


_VERBS = ("cordoned", "drain", "clear", "ignore_pid", "forget")


async def list_gpus(request: web.Request) -> web.StreamResponse:
    """The GPUs as they were read last, with who holds what."""
    context, who = request.app[CONTEXT], caller(request)
    read_query(request, NoQuery)
    snapshot = context.hub.snapshot
    views = await _views(context, who, snapshot.readings)
    return json_response(Gpus(gpus=views, read_at=snapshot.read_at, fault=snapshot.fault))


async def change_gpu(request: web.Request) -> web.StreamResponse:
    """Do what an operator says of one GPU; gives the GPU as it is then."""
    context, who = request.app[CONTEXT], caller(request)
    read_query(request, NoQuery)
    order = await read_body(request, GpuOrder)
    if not who.operator:
        raise TraindError(ErrorCode.FORBIDDEN, "only operators may change what a GPU is used for")
    verb = _verb(order)
    gpu = _found(context, request.match_info["gpu"])
    reading = _reading(context, gpu)
    if verb == "forget":
        (view,) = await _views(context, who, [reading])
        await _forget(context, gpu, reading)
    else:
        # A GPU that was read this very moment may not be remembered yet.
        await context.inventory.remember([gpu], now=datetime.now(UTC))
        await _say(context, gpu, order, who)
        (view,) = await _views(context, who, [reading])
    told = {name: value for name in _VERBS if (value := getattr(order, name)) is not None}
    log.warning("GPU order", extra={"gpu": gpu.index, "by": who.user, **told})
    return json_response(view)


def _verb(order: GpuOrder) -> str:
    """The one thing that is said. Raises INVALID for none, or several."""
    verbs = [name for name in _VERBS if getattr(order, name) is not None]
    errors = []
    if len(verbs) != 1:
        known = ", ".join(_VERBS)
        errors.append(FieldError(verbs[1] if verbs else "cordoned", f"give one of {known}"))
    if order.reason is not None and not (order.cordoned or order.drain):
        errors.append(FieldError("reason", "goes with cordoned: true, or with drain"))
    if errors:
        sentence = "; ".join(f"{error.field}: {error.message}" for error in errors)
        raise TraindError(ErrorCode.INVALID, sentence, errors)
    return verbs[0]


def _found(context: Context, wanted: str) -> Gpu:
    """The GPU that an index or UUID means. Raises NOT_FOUND."""
    known = context.known_gpus()
    found = next((gpu for gpu in known if gpu_means(gpu, wanted)), None)
    if found is None:
        there = ", ".join(str(gpu.index) for gpu in known) or "none"
        sentence = f"there is no GPU {wanted[:80]!r}; this box has {there}"
        raise TraindError(ErrorCode.NOT_FOUND, sentence)
    return found


def _reading(context: Context, gpu: Gpu) -> GpuReading:
    readings = context.hub.snapshot.readings
    unread = GpuReading(gpu=gpu, used_mib=0)
    return next((reading for reading in readings if reading.gpu.uuid == gpu.uuid), unread)


async def _say(context: Context, gpu: Gpu, order: GpuOrder, who: Caller) -> None:
    inventory, now = context.inventory, datetime.now(UTC)
    if order.clear:
        ended_before = now - context.config.gpus.release_wait
        await context.leases.give_up(gpu.uuid, ended_before=ended_before, now=now)
        await context.conditions.clear(gpu.uuid)
    elif order.ignore_pid is not None:
        await inventory.ignore(gpu.uuid, order.ignore_pid, start_time(order.ignore_pid))
    elif order.cordoned is False:
        await inventory.cordon(gpu.uuid, None)
    else:
        drains = order.drain is True
        cordon = Cordon(by=who.user, at=now, reason=order.reason, drains=drains)
        await inventory.cordon(gpu.uuid, cordon)


async def _forget(context: Context, gpu: Gpu, reading: GpuReading) -> None:
    """Forget a GPU that is gone. Raises CONFLICT for one that is there, or that a job holds."""
    gone = reading.fault_kind is FaultKind.MISSING
    if not gone or context.hub.snapshot.fault is not None:
        sentence = f"GPU {gpu.index} is not known to be gone; one that is there cannot be forgotten"
        raise TraindError(ErrorCode.CONFLICT, sentence)
    if any(lease.lease.gpu_uuid == gpu.uuid for lease in await context.leases.open()):
        raise TraindError(ErrorCode.CONFLICT, f"a job holds GPU {gpu.index}; cancel that first")
    await context.conditions.clear(gpu.uuid)
    await context.inventory.forget(gpu.uuid)
    context.monitor.forget(gpu.uuid)


async def _views(context: Context, who: Caller, readings: Iterable[GpuReading]) -> list[GpuView]:
    """GPUs as the API shows them to this caller."""
    leases = await context.leases.open()
    names = await _names(context, who, {lease.job_id for lease in leases})
    keys = {lease.attempt_id: (lease.job_id, lease.attempt) for lease in leases}
    seen = await context.supervisor.seen(keys.values())
    pids = {attempt_id: seen[key] for attempt_id, key in keys.items()}
    views = []
    for reading in readings:
        on_it = [lease for lease in leases if lease.lease.gpu_uuid == reading.gpu.uuid]
        views.append(_view(context, reading, on_it, pids, names))
    return views


async def _names(context: Context, who: Caller, job_ids: set[int]) -> dict[int, str]:
    """The names of the jobs as the caller may see them."""
    jobs = await context.store.find(JobFilter(ids=frozenset(job_ids), limit=len(job_ids)))
    return {job.id: job.spec.name if who.sees(job) else public_name(job) for job in jobs}


def _view(
    context: Context,
    reading: GpuReading,
    leases: Iterable[OpenLease],
    pids: dict[int, tuple[int, ...]],
    names: dict[int, str],
) -> GpuView:
    gpu = reading.gpu
    leases = list(leases)
    own = {pid for lease in leases for pid in pids[lease.attempt_id]}
    ignored = {pid for pid, _ in context.inventory.ignored.get(gpu.uuid, ())}
    known = {each.pid: each for each in context.hub.strangers.get(gpu.uuid, ()) if not each.gone_at}
    return GpuView(
        index=gpu.index,
        uuid=gpu.uuid,
        name=gpu.name,
        memory_mib=gpu.memory_mib,
        reserved_mib=gpu.reserved_mib,
        used_mib=reading.used_mib,
        busy_pct=reading.busy_pct,
        power_w=reading.power_w,
        temperature_c=reading.temperature_c,
        display=reading.place.display,
        mig=reading.place.mig,
        numa_node=reading.place.numa_node,
        cpus=reading.place.cpus,
        health=_health_view(context, reading),
        cordoned=cordon_view(context.inventory.cordons.get(gpu.uuid)),
        leases=[
            LeaseView(
                job_id=lease.job_id,
                attempt=lease.attempt,
                user=lease.user,
                name=names.get(lease.job_id, ""),
                memory_mib=lease.lease.memory_mib,
                observed_mib=observed(reading, pids[lease.attempt_id]),
                exclusive=lease.lease.exclusive,
                state=lease.lease.state,
            )
            for lease in leases
        ],
        foreign=[
            process_view(process, known.get(process.pid), ignored=process.pid in ignored)
            for process in reading.processes
            if process.pid not in own and process.pid != 0
        ],
    )


def _health_view(context: Context, reading: GpuReading) -> HealthView:
    uuid, vitals = reading.gpu.uuid, reading.vitals
    health = context.health()[uuid]
    return HealthView(
        allocatable=health.allocatable,
        sentence=health.sentence,
        conditions=[condition_view(c) for c in worst_first(context.conditions.of(uuid).conditions)],
        recovery_action=vitals.recovery_action,
        ecc_uncorrected=vitals.ecc_uncorrected,
        ecc_uncorrected_ever=vitals.ecc_uncorrected_ever,
    )
