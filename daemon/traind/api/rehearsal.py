"""A submission without its commit: where each job would start now, or why it would wait."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from traind.api.context import HIGHEST_ID, NOT_PLANNED, Context
from traind.job import Job, JobState, request_of
from traind.scheduler import Plan, Start, World, plan
from traind.store.submission import Submission
from traind.wire import JobView, ReasonView, reason_view


def rehearse(context: Context, submission: Submission, *, now: datetime) -> list[JobView]:
    """The jobs as they would be, each with a reason: why it waits, or `starts` with its GPUs."""
    drafts = [_draft(submission, number, now) for number in range(len(submission.specs))]
    waiting = [job for job in drafts if job.state is JobState.QUEUED]
    thought = _planned(context.hub.world, waiting, now)
    return [_view(context, job, thought) for job in drafts]


def _planned(world: object, jobs: Sequence[Job], now: datetime) -> Plan | None:
    """What would be decided with these jobs at the end of the queue; None before the first look."""
    if not isinstance(world, World):
        return None
    requests = tuple(request_of(job) for job in jobs)
    return plan(replace(world, now=now, waiting=(*world.waiting, *requests)))


def _draft(submission: Submission, number: int, now: datetime) -> Job:
    """An order as a job that is not stored; its id puts it behind everybody else's."""
    return submission.job(HIGHEST_ID + 1 + number, submission.specs[number], now)


def _view(context: Context, job: Job, thought: Plan | None) -> JobView:
    """The draft as the API shows it, with the id 0."""
    reason = job.hold
    if reason is None and thought is not None:
        reason = thought.reasons.get(job.id)
    view = context.view_with(replace(job, id=0), reason)
    if reason is not None:
        return view
    start = next((s for s in thought.starts if s.job_id == job.id), None) if thought else None
    told = reason_view(NOT_PLANNED) if start is None else _start_view(start)
    return view.model_copy(update={"reason": told})


def _start_view(start: Start) -> ReasonView:
    gpus = [grant.gpu.index for grant in start.grants]
    where = f" on GPU {', '.join(map(str, gpus))}" if gpus else ""
    return ReasonView(code="starts", detail=f"it would start now{where}", facts={"gpus": gpus})
