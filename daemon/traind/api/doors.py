"""Every request passes here: who asks, from where, and each error as a problem."""

import json
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from traind.api.callers import caller_of
from traind.api.context import CALLER, CONTEXT
from traind.api.listening import peer_uid
from traind.errors import ErrorCode, TraindError
from traind.wire import Problem, problem

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

STATUS: dict[ErrorCode, tuple[int, str]] = {
    ErrorCode.MALFORMED: (400, "The request cannot be read"),
    ErrorCode.UNAUTHORIZED: (401, "Not signed in"),
    ErrorCode.FORBIDDEN: (403, "Not allowed"),
    ErrorCode.NOT_FOUND: (404, "Not found"),
    ErrorCode.WRONG_METHOD: (405, "Wrong method"),
    ErrorCode.CONFLICT: (409, "The state does not allow it"),
    ErrorCode.PRECONDITION: (412, "It was changed meanwhile"),
    ErrorCode.TOO_LARGE: (413, "Too large"),
    ErrorCode.WRONG_TYPE: (415, "Wrong content type"),
    ErrorCode.WRONG_RANGE: (416, "The log has no such bytes"),
    ErrorCode.INVALID: (422, "Invalid"),
    ErrorCode.TOO_MANY: (429, "Too many"),
    ErrorCode.UNAVAILABLE: (503, "Not possible now"),
}

_HEADERS = {
    ErrorCode.UNAUTHORIZED: {"WWW-Authenticate": "Bearer"},
    ErrorCode.UNAVAILABLE: {"Retry-After": "1"},
}
_OWN_HOSTS = frozenset({"traind", "localhost", "127.0.0.1", "[::1]"})
_BY_STATUS = {status: code for code, (status, _) in STATUS.items()}
log = logging.getLogger(__name__)


def json_response(
    view: BaseModel, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    """An answer from one of the views of `wire`."""
    return web.Response(
        body=view.model_dump_json().encode(),
        status=status,
        headers={"Cache-Control": "no-store", **(headers or {})},
        content_type="application/json",
    )


def problem_response(view: Problem, headers: dict[str, str] | None = None) -> web.Response:
    """A problem as an answer."""
    return web.Response(
        body=view.model_dump_json(exclude_none=True).encode(),
        status=view.status,
        headers={"Cache-Control": "no-store", **(headers or {})},
        content_type="application/problem+json",
    )


def refusal(error: TraindError) -> web.Response:
    """The error as a problem."""
    status, title = STATUS[error.code]
    view = problem(status, title, error.sentence, error.code, error.fields)
    headers = dict(_HEADERS.get(error.code, {}))
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    return problem_response(view, headers)


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever goes wrong into a problem; what is our own fault gets a number to look up."""
    try:
        return await handler(request)
    except TraindError as error:
        return refusal(error)
    except web.HTTPException as error:
        return _http_problem(error)
    except Exception:
        if request.transport is None or request.transport.is_closing():
            return web.Response()  # nobody is there any more to be told
        incident = secrets.token_hex(4)
        log.exception("request failed", extra={"path": request.path, "incident": incident})
        detail = f"this is a bug of traind; its log has more under incident {incident}"
        return problem_response(problem(500, "Internal error", detail, "internal"))


def _http_problem(error: web.HTTPException) -> web.Response:
    code = _BY_STATUS.get(error.status, ErrorCode.MALFORMED)
    title = STATUS[code][1] if error.status in _BY_STATUS else error.reason
    detail = error.text or error.reason
    headers = {name: value for name, value in error.headers.items() if name == "Content-Range"}
    if isinstance(error, web.HTTPNotFound):
        detail = "there is no such path; GET /openapi.json lists them"
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        detail = f"{error.method} is not for this path; it takes {allowed}"
        headers["Allow"] = allowed
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        detail = "a job may take 1 MiB, a list of jobs 16 MiB"
    return problem_response(problem(error.status, title, detail, code), headers)


@web.middleware
async def same_site(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse names that are not ours and pages of other sites: a browser may be led astray."""
    allowed = _OWN_HOSTS | set(request.app[CONTEXT].config.daemon.hosts)
    host = request.headers.get("Host", "")
    if _host_name(host) not in allowed:
        raise TraindError(
            ErrorCode.FORBIDDEN,
            f"this daemon is not {host[:80]!r}; ask for http://traind/ or http://localhost/",
        )
    origin = request.headers.get("Origin")
    if origin is not None and _host_name(origin.partition("://")[2]) not in allowed:
        raise TraindError(ErrorCode.FORBIDDEN, "pages of other sites may not call this daemon")
    if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        raise TraindError(ErrorCode.FORBIDDEN, "pages of other sites may not call this daemon")
    return await handler(request)


def _host_name(netloc: str) -> str:
    """The name without its port; an IPv6 address keeps its brackets."""
    name, colon, port = netloc.rpartition(":")
    return (name if colon and (port.isdecimal() or not port) else netloc).lower()


@web.middleware
async def who_asks(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Note the caller of a Unix socket by the kernel's word; who is not served is turned away."""
    uid = peer_uid(request.transport)
    if uid is not None:
        request[CALLER] = await caller_of(request.app[CONTEXT], uid)
    return await handler(request)


def dump(document: dict[str, Any]) -> bytes:
    """A document as JSON."""
    return json.dumps(document).encode()
