"""The log of an attempt over HTTP: raw bytes, ranges, tails, and following while it grows."""

import asyncio
import errno
import os
import re
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

from aiohttp import web
from pydantic import Field

from traind.api.context import CONTEXT, Context, caller, own_job, past_attempt
from traind.api.filewatch import FileWatch
from traind.api.routes import Query, read_query
from traind.api.streams import STREAMS
from traind.errors import ErrorCode, TraindError
from traind.hub import Watcher
from traind.job import OWNING, Job, JobState

_BLOCK = 256 * 1024
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class LogQuery(Query):
    """`tail` counts lines from the end; `follow=1` streams until the attempt ends."""

    attempt: Annotated[int, Field(ge=1)] | None = None
    tail: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    follow: bool = False


async def read_log(request: web.Request) -> web.StreamResponse:
    """The log of the last attempt, or of the one asked for."""
    context, who = request.app[CONTEXT], caller(request)
    query = read_query(request, LogQuery)
    job = await own_job(request)
    attempt = past_attempt(job, query.attempt)
    if query.follow:
        with request.app[STREAMS].slot(who.uid, context.config.api):
            return await _follow(request, context, job, query)
    descriptor = _open(_path(context, job.id, attempt)) if attempt else None
    if descriptor is None:
        if job.attempt and job.state is JobState.FINISHED:
            raise TraindError(ErrorCode.NOT_FOUND, f"the log of job {job.id} is gone")
        return web.Response(body=b"", headers=_headers(attempt))
    try:
        return await _send_part(request, descriptor, query, attempt)
    finally:
        os.close(descriptor)


def _path(context: Context, number: int, attempt: int) -> Path:
    return context.supervisor.path((number, attempt)) / "log"


def _open(path: Path) -> int | None:
    """A descriptor of the log, or None when there is no such file; never of what a link leads to,
    as its owner may have put anything there.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EACCES:
            sentence = "the log cannot be read: its owner took the right to from traind's group"
            raise TraindError(ErrorCode.NOT_FOUND, sentence) from None
        if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            raise
        return None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None


def _headers(attempt: int) -> dict[str, str]:
    return {
        "Content-Type": "text/plain; charset=utf-8",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
        "Accept-Ranges": "bytes",
        "X-Traind-Attempt": str(attempt),
    }


async def _send_part(
    request: web.Request, descriptor: int, query: LogQuery, attempt: int
) -> web.StreamResponse:
    size = os.fstat(descriptor).st_size
    first, last, partial = _asked(request, size)
    if query.tail is not None:
        first, last, partial = await _tail(descriptor, size, query.tail), size, False
    response = web.StreamResponse(status=206 if partial else 200, headers=_headers(attempt))
    response.headers["X-Log-Offset"] = str(first)
    if partial:
        response.headers["Content-Range"] = f"bytes {first}-{last - 1}/{size}"
    whole = _next_hole(descriptor, first, last) >= last
    if partial or whole:
        response.content_length = last - first
    else:
        response.enable_chunked_encoding()
    await response.prepare(request)
    async for block, _ in _blocks(descriptor, first, last, raw=partial):
        await response.write(block)
    await response.write_eof()
    return response


def _asked(request: web.Request, size: int) -> tuple[int, int, bool]:
    """(first byte, byte behind the last, whether a range was asked). Raises 416.

    Source: RFC 9110, 14.1.2; a header that is no single range of bytes is ignored.
    """
    found = _RANGE.fullmatch(request.headers.get("Range", "").strip())
    if found is None or found[1] == found[2] == "":
        return 0, size, False
    if found[1] and found[2] and int(found[1]) > int(found[2]):
        return 0, size, False
    if found[1] == "":
        first, last = max(0, size - int(found[2])), size
    else:
        first = int(found[1])
        last = min(size, int(found[2]) + 1) if found[2] else size
    if first >= last:
        raise web.HTTPRequestRangeNotSatisfiable(
            text=f"the log has {size} bytes", headers={"Content-Range": f"bytes */{size}"}
        )
    return first, last, True


async def _blocks(
    descriptor: int, first: int, last: int, *, raw: bool = False
) -> AsyncIterator[tuple[bytes, int]]:
    """Blocks of the log, each with the offset behind it. What was dropped to keep the log within
    its cap is told in a line, unless `raw` bytes are wanted, where it is noughts.
    """
    while first < last:
        start = first if raw else _next_data(descriptor, first, last)
        if start > first:
            note = f"\n[traind: {start - first} bytes were dropped here, the log is capped]\n"
            first = start
            yield note.encode(), first
        end = last if raw else _next_hole(descriptor, first, last)
        block = os.pread(descriptor, min(_BLOCK, end - first), first)
        if not block:
            return
        first += len(block)
        yield block, first


def _next_data(descriptor: int, offset: int, last: int) -> int:
    try:
        return min(last, os.lseek(descriptor, offset, os.SEEK_DATA))
    except OSError:  # nothing but a hole up to the end
        return last


def _next_hole(descriptor: int, offset: int, last: int) -> int:
    try:
        return min(last, os.lseek(descriptor, offset, os.SEEK_HOLE))
    except OSError:  # nothing there any more
        return last


async def _tail(descriptor: int, size: int, lines: int) -> int:
    """Where the last `lines` lines begin, looked for in a thread: it may be all of a huge log."""
    return await asyncio.to_thread(_tail_offset, descriptor, size, lines)


def _tail_offset(descriptor: int, size: int, lines: int) -> int:
    """Where the last `lines` lines begin; a last line without its end counts. Blocks."""
    if lines == 0 or size == 0:
        return size
    wanted = lines + (os.pread(descriptor, 1, size - 1) == b"\n")
    end = size
    while end > 0:
        start = max(0, end - _BLOCK)
        block = os.pread(descriptor, end - start, start)
        count = block.count(b"\n")
        if count >= wanted:
            place = len(block)
            for _ in range(wanted):
                place = block.rindex(b"\n", 0, place)
            return start + place + 1
        wanted -= count
        end = start
    return 0


async def _follow(
    request: web.Request, context: Context, job: Job, query: LogQuery
) -> web.StreamResponse:
    """Wait for the attempt, then stream its log until it is over."""
    with context.hub.watch(job.id) as changed:
        job = await context.store.get(job.id)  # what changed before the watch is seen here
        while not (job.attempt or job.state is JobState.FINISHED or changed.closing):
            await changed.wait()
            changed.clear()
            job = changed.job or job
        attempt = query.attempt or job.attempt
        path = _path(context, job.id, attempt)
        with FileWatch(path, changed) as watch:
            offset = await _first_offset(request, path, query.tail)
            response = web.StreamResponse(headers=_headers(attempt))
            response.headers["X-Log-Offset"] = str(offset)
            response.enable_chunked_encoding()
            await response.prepare(request)
            await _stream(request, response, job, attempt, offset, changed, watch)
        await response.write_eof()
    return response


async def _stream(
    request: web.Request,
    response: web.StreamResponse,
    job: Job,
    attempt: int,
    offset: int,
    changed: Watcher,
    watch: FileWatch,
) -> None:
    """Send the log from `offset` on until the attempt is over, or the daemon stops."""
    while True:
        changed.clear()
        job = changed.job or job
        over = changed.closing or job.attempt != attempt or job.state not in OWNING
        descriptor = _open(watch.path)
        if descriptor is not None:
            watch.follow()
            try:
                size = os.fstat(descriptor).st_size
                async for block, behind in _blocks(descriptor, offset, size):
                    await response.write(block)
                    offset = behind
            finally:
                os.close(descriptor)
        if over:
            return
        await changed.wait()


async def _first_offset(request: web.Request, path: Path, tail: int | None) -> int:
    """Where following begins: at the tail, at the range asked for, or at the beginning."""
    found = _RANGE.fullmatch(request.headers.get("Range", "").strip())
    descriptor = _open(path)
    if tail is None or descriptor is None:
        if descriptor is not None:
            os.close(descriptor)
        return int(found[1]) if found is not None and found[1] else 0
    try:
        return await _tail(descriptor, os.fstat(descriptor).st_size, tail)
    finally:
        os.close(descriptor)
