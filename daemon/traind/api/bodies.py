"""Bodies of calls that are no orders for jobs: small JSON objects, checked all at once."""

from typing import Any, TypeVar

from aiohttp import web
from pydantic import ValidationError

from traind.api.context import CONTEXT
from traind.api.forms import ONE_JOB_BYTES, check_json, parse_json, read_bytes
from traind.api.routes import Body
from traind.errors import ErrorCode, FieldError, TraindError
from traind.jobspec import field_errors
from traind.options import parse_span

B = TypeVar("B", bound=Body)


async def read_body(request: web.Request, model: type[B]) -> B:
    """What the body says; none at all says nothing.

    Raises MALFORMED, WRONG_TYPE, TOO_LARGE, INVALID.
    """
    body = await read_bytes(request, request.app[CONTEXT])
    raw = _object(request, body) if body.strip() else {}
    normal, errors = _in_seconds(raw, model.spans)
    known = (*model.model_fields, *model.spans)
    try:
        told = model.model_validate(normal)
        if not errors:
            return told
    except ValidationError as failed:
        errors += field_errors(failed, known)
    sentence = "; ".join(f"{error.field}: {error.message}" for error in errors[:5])
    raise TraindError(ErrorCode.INVALID, sentence, errors[:100])


async def read_object(request: web.Request) -> dict[str, Any]:
    """The body's JSON object as it came. Raises MALFORMED, WRONG_TYPE, TOO_LARGE, INVALID."""
    return _object(request, await read_bytes(request, request.app[CONTEXT]))


def _object(request: web.Request, body: bytes) -> dict[str, Any]:
    if len(body) > ONE_JOB_BYTES:
        raise TraindError(ErrorCode.TOO_LARGE, "this body may take 1 MiB")
    check_json(request, body)
    raw = parse_json(body)
    if not isinstance(raw, dict):
        raise TraindError(ErrorCode.INVALID, 'send an object, such as {"name": "x"}')
    return raw


def _in_seconds(
    given: dict[str, Any], spans: tuple[str, ...]
) -> tuple[dict[str, Any], list[FieldError]]:
    """The fields with every span in seconds, and what was wrong with those."""
    normal, errors = dict(given), []
    for name in spans:
        if name not in normal:
            continue
        value = normal.pop(name)
        if f"{name}_s" in given:
            errors.append(FieldError(name, f"give {name} or {name}_s, not both"))
        elif not isinstance(value, str):
            message = f"must be a span with its unit, such as '90s'; a number goes into {name}_s"
            errors.append(FieldError(name, message))
        else:
            try:
                normal[f"{name}_s"] = parse_span(value)
            except (ValueError, OverflowError) as wrong:
                errors.append(FieldError(name, str(wrong)[:300]))
    return normal, errors
