"""The numbers of the box for Prometheus: worked out when asked, without names of jobs or people.

Source: prometheus.io/docs/instrumenting/exposition_formats, text format 0.0.4.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from aiohttp import web

import traind
from traind.api.context import CONTEXT, Context, caller
from traind.api.routes import NoQuery, read_query
from traind.gpu import GpuReading
from traind.meters import Histogram

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MIB = 1 << 20

Sample = tuple[Mapping[str, str], float]


async def show_metrics(request: web.Request) -> web.StreamResponse:
    """All numbers, as text."""
    context, _ = request.app[CONTEXT], caller(request)
    read_query(request, NoQuery)
    counts, finished = await context.store.counts(), await context.events.attempts_finished()
    leases = await context.leases.open()
    lines = [
        *_family("build_info", "gauge", "The version", [({"version": traind.__version__}, 1)]),
        *_family(
            "start_time_seconds",
            "gauge",
            "When the daemon started, seconds since 1970",
            [({}, context.started_at.timestamp())],
        ),
        *_family(
            "jobs",
            "gauge",
            "Jobs that are not finished, by state",
            [({"state": state}, count) for state, count in counts.items()],
        ),
        *_family(
            "attempts_finished_total",
            "counter",
            "Attempts that ended, by outcome",
            [({"outcome": outcome}, count) for outcome, count in finished.items()],
        ),
        *_family(
            "paused", "gauge", "1 while the queue is paused", [({}, _flag(context.controls.pause))]
        ),
        *_gpus(context, Counter(lease.lease.gpu_uuid for lease in leases)),
        *_histogram(
            "queue_wait_seconds",
            "From when a job's time had come to its start",
            context.store.queue_wait_s,
        ),
        *_histogram("db_commit_seconds", "What a commit took", context.store.commit_s),
        *_histogram(
            "event_loop_lag_seconds",
            "For how long the event loop was busy while something else may have waited",
            context.lag_s,
        ),
    ]
    text = "\n".join(lines) + "\n"
    headers = {"Content-Type": _CONTENT_TYPE, "Cache-Control": "no-store"}
    return web.Response(body=text.encode(), headers=headers)


def _flag(value: object) -> int:
    return int(value is not None)


def _gpus(context: Context, leased: Counter[str]) -> list[str]:
    """The GPUs as they were read last; one that does not answer is told by its health only."""
    readings = context.hub.snapshot.readings
    health = context.health()
    answering = [reading for reading in readings if reading.fault is None]

    def of(reading: GpuReading) -> dict[str, str]:
        return {"gpu": str(reading.gpu.index)}

    return [
        *_family(
            "gpu_leases",
            "gauge",
            "Attempts that hold a part of the GPU or all of it",
            [(of(each), leased[each.gpu.uuid]) for each in readings],
        ),
        *_family(
            "gpu_leased",
            "gauge",
            "1 while any attempt holds the GPU",
            [(of(each), int(leased[each.gpu.uuid] > 0)) for each in readings],
        ),
        *_family(
            "gpu_healthy",
            "gauge",
            "1 while new work may start on the GPU",
            [(of(each), int(health[each.gpu.uuid].allocatable)) for each in readings],
        ),
        *_family(
            "gpu_memory_bytes",
            "gauge",
            "The GPU's memory",
            [(of(each), each.gpu.memory_mib * _MIB) for each in readings],
        ),
        *_family(
            "gpu_memory_used_bytes",
            "gauge",
            "The GPU's memory in use, by whomever",
            [(of(each), each.used_mib * _MIB) for each in answering],
        ),
    ]


def _family(name: str, kind: str, says: str, samples: Iterable[Sample]) -> list[str]:
    """The lines of a metric. No label of ours has a character that wants escaping."""
    full = f"traind_{name}"
    lines = [f"# HELP {full} {says}.", f"# TYPE {full} {kind}"]
    for labels, value in samples:
        inside = ",".join(f'{label}="{text}"' for label, text in labels.items())
        lines.append(f"{full}{{{inside}}} {value}" if inside else f"{full} {value}")
    return lines


def _histogram(name: str, says: str, histogram: Histogram) -> list[str]:
    full, buckets = f"traind_{name}", list(histogram.cumulated())
    lines = [f"# HELP {full} {says}.", f"# TYPE {full} histogram"]
    lines += [f'{full}_bucket{{le="{bound}"}} {count}' for bound, count in buckets]
    return [*lines, f"{full}_sum {histogram.sum}", f"{full}_count {buckets[-1][1]}"]
