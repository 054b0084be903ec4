"""ETags of jobs: what a caller has seen, to be told when that is still true, or no longer.

A tag is "id-version.digest": the version counts the changes of the job, which If-Match is about;
the digest covers the rest of the answer, such as its reason and progress, for If-None-Match.
"""

import zlib

from aiohttp import web

from traind.api.doors import json_response
from traind.errors import ErrorCode, TraindError
from traind.job import Job
from traind.publicwire import AnyJobView


def job_response(
    request: web.Request, view: AnyJobView, job: Job, status: int = 200
) -> web.StreamResponse:
    """The job with its ETag, or 304 to a GET whose caller has it already."""
    answer = json_response(view, status=status)
    digest = zlib.crc32(answer.body) if isinstance(answer.body, bytes) else 0
    tag = f'"{job.id}-{job.version}.{digest:08x}"'
    known = request.headers.get("If-None-Match")
    seen = [] if known is None or request.method != "GET" else _tags(known)
    if "*" in seen or tag in [each.removeprefix("W/") for each in seen]:
        return web.Response(status=304, headers={"ETag": tag, "Cache-Control": "no-store"})
    answer.headers["ETag"] = tag
    return answer


def check_match(request: web.Request, job: Job) -> None:
    """Raises PRECONDITION when the request is about the job as it was before a change."""
    known = request.headers.get("If-Match")
    if known is None or known.strip() == "*":
        return
    own = f'"{job.id}-{job.version}'
    if own not in [each.partition(".")[0].rstrip('"') for each in _tags(known)]:
        raise TraindError(
            ErrorCode.PRECONDITION,
            f"job {job.id} was changed since you looked; get it again and use its new ETag",
        )


def _tags(header: str) -> list[str]:
    return [each.strip() for each in header.split(",")]
