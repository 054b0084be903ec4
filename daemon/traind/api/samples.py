"""What a job took of GPUs and host while it ran, over HTTP."""

from typing import Annotated

from aiohttp import web
from pydantic import Field

from traind.api.context import CONTEXT, own_job, past_attempt
from traind.api.doors import json_response
from traind.api.routes import Query, read_query
from traind.boxwire import GpuSampleView, Samples, SampleView
from traind.jobspec import Instant
from traind.store.samples import GpuSample, Sample
from traind.wire import rounded


class SampleQuery(Query):
    """The samples from the instant `since` to before `until`, of the last attempt or of `attempt`;
    with `step` the means of so many seconds each; `limit` at most.
    """

    attempt: Annotated[int, Field(ge=1)] | None = None
    since: Instant | None = None
    until: Instant | None = None
    limit: Annotated[int, Field(ge=1, le=2000)] = 1000
    step: Annotated[int, Field(ge=1, le=86_400)] | None = None


async def list_samples(request: web.Request) -> web.StreamResponse:
    """The samples of an attempt; before the first one there are none."""
    context = request.app[CONTEXT]
    query = read_query(request, SampleQuery)
    job = await own_job(request)
    attempt = past_attempt(job, query.attempt)
    samples, following = await context.samples.page(
        job.id,
        attempt,
        since=query.since,
        until=query.until,
        step_s=query.step,
        limit=query.limit,
    )
    views = [_view(sample) for sample in samples]
    return json_response(Samples(samples=views, attempt=attempt, next=following))


def _view(sample: Sample) -> SampleView:
    return SampleView(
        at=sample.at,
        gpus=[_gpu_view(gpu) for gpu in sample.gpus],
        memory_mib=sample.memory_mib,
        cpu_pct=rounded(sample.cpu_pct, 1),
        processes=sample.processes,
        read_bytes=sample.read_bytes,
        write_bytes=sample.write_bytes,
    )


def _gpu_view(gpu: GpuSample) -> GpuSampleView:
    return GpuSampleView(
        index=gpu.index,
        uuid=gpu.uuid,
        memory_mib=gpu.memory_mib,
        busy_pct=rounded(gpu.busy_pct, 1),
        power_w=rounded(gpu.power_w, 1),
        temperature_c=gpu.temperature_c,
    )
