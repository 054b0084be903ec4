"""Signals by order: the stop protocol (file, checkpoint signal, TERM, KILL), and asked ones."""

from dataclasses import replace
from datetime import datetime, timedelta

from traind.dispatcher.running import KILL_AGAIN, Running
from traind.job import Job, StopOrder
from traind.runner.supervisor import Supervisor
from traind.store.jobs import JobStore

RETRY = timedelta(milliseconds=50)
FILE_STAGE, TERM_STAGE, KILL_STAGE = 1, 2, 3


def due_stage(order: StopOrder, now: datetime) -> int:
    """The step of the protocol that should be taken by now."""
    if now >= order.kill_at:
        return KILL_STAGE
    return TERM_STAGE if now >= order.term_at else FILE_STAGE


def next_step_at(running: Running, now: datetime) -> datetime | None:
    """When the next step is due; None when nothing is to be done."""
    order = running.job.stop
    if running.job.signals:
        return now + RETRY
    if order is None:
        return None
    if order.stage < due_stage(order, now):
        return now + RETRY
    if order.stage < TERM_STAGE:
        return min(order.term_at, order.kill_at)
    if order.stage < KILL_STAGE:
        return order.kill_at
    return None if running.killed_at is None else running.killed_at + KILL_AGAIN


async def take_step(
    running: Running, supervisor: Supervisor, store: JobStore, *, now: datetime
) -> Running:
    """The job after the step that is due, if any; one that could not be taken stays due."""
    order = running.job.stop
    if order is None:
        return running
    stage = due_stage(order, now)
    if stage == KILL_STAGE:
        if running.killed_at is None or now >= running.killed_at + KILL_AGAIN:
            await supervisor.kill(running.key)
            running = replace(running, killed_at=now)
    elif order.stage < stage:
        if order.stage < FILE_STAGE:
            await _announce(running, order, supervisor)
        if stage == TERM_STAGE and not await _terminate(running, supervisor):
            return running
    if order.stage >= stage:
        return running
    await store.note_stop_stage(running.job.id, stage)
    return replace(running, job=replace(running.job, stop=replace(order, stage=stage)))


async def _terminate(running: Running, supervisor: Supervisor) -> bool:
    """SIGTERM to the main process, which must not sleep through it where somebody stopped it."""
    sent = await supervisor.signal(running.key, "TERM", everyone=False)
    await supervisor.signal(running.key, "CONT", everyone=False)
    return sent


async def send_signals(running: Running, supervisor: Supervisor, store: JobStore) -> Job:
    """The job after its processes got the signals it waits for; what nobody got yet stays."""
    job, sent = running.job, 0
    for name in job.signals:
        if not await supervisor.signal(running.key, name, everyone=True):
            break
        sent += 1
    return await store.note_signals_sent(job.id, job.attempt, sent) if sent else job


async def _announce(running: Running, order: StopOrder, supervisor: Supervisor) -> None:
    await supervisor.announce(running.key, reason=order.reason, deadline_at=order.kill_at)
    signal = running.job.spec.checkpoint_signal
    if signal is not None:
        await supervisor.signal(running.key, signal, everyone=True)
