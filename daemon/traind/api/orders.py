"""Bodies that order jobs: one or a list, in any form, checked all at once."""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from traind.api.context import Context
from traind.api.forms import (
    ONE_JOB_BYTES,
    Form,
    form_of,
    parse_json,
    parse_script,
    parse_toml,
    read_bytes,
)
from traind.api.overrides import meant_by, override, read_overrides
from traind.errors import ErrorCode, FieldError, TraindError
from traind.job import Request
from traind.jobspec import ERRORS_TOLD, JobSpec, read_spec
from traind.scheduler import refusals

LIST_JOBS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a body orders. `several`: it came as a list. `warnings`: what was not understood as it
    may have been meant. `fingerprint`: the same for the same orders.
    """

    specs: list[JobSpec]
    several: bool
    warnings: tuple[str, ...]
    fingerprint: bytes


async def read_orders(request: web.Request, context: Context, *, slurm: bool) -> Orders:
    """The orders of a body, whatever its form, with what the query says in place of it.

    Raises MALFORMED, WRONG_TYPE, TOO_LARGE, INVALID.
    """
    overrides = read_overrides(request)
    body = await read_bytes(request, context)
    form = form_of(request, body)
    warnings: tuple[str, ...] = ()
    raw: Any
    match form:
        case Form.JSON:
            raw = parse_json(body)
        case Form.TOML:
            raw = await asyncio.to_thread(parse_toml, body)
        case Form.SCRIPT | Form.PYTHON:
            raw, warnings = await asyncio.to_thread(
                parse_script, body, python=form is Form.PYTHON, slurm=slurm
            )
    if slurm and form in (Form.JSON, Form.TOML):
        message = f"directives are read from scripts that come as text/*; this is {form}"
        error = FieldError("directives", message)
        raise TraindError(ErrorCode.INVALID, f"{error.field}: {message}", [error])
    several = isinstance(raw, list) or (isinstance(raw, dict) and "jobs" in raw)
    if not several and len(body) > ONE_JOB_BYTES:
        raise TraindError(ErrorCode.TOO_LARGE, "a job may take 1 MiB, a list of jobs 16 MiB")
    orders = [override(order, overrides) for order in (_several(raw) if several else [raw])]
    meant = json.dumps([form, slurm, meant_by(request, overrides)], sort_keys=True).encode()
    return Orders(
        specs=_checked(orders, several, context),
        several=several,
        warnings=warnings,
        fingerprint=hashlib.sha256(meant + b"\n" + body).digest(),
    )


def _several(raw: Any) -> list[Any]:  # noqa: ANN401 whatever was sent
    """The orders of a list body, its defaults put into each."""
    if isinstance(raw, list):
        orders, defaults = raw, {}
    else:
        unknown = sorted(set(raw) - {"defaults", "jobs"})
        if unknown:
            message = "beside jobs there may only be defaults"
            error = FieldError(str(unknown[0])[:200], message)
            raise TraindError(ErrorCode.INVALID, f"{error.field}: {message}", [error])
        orders, defaults = raw["jobs"], raw.get("defaults", {})
    if not isinstance(orders, list) or not isinstance(defaults, dict):
        raise TraindError(ErrorCode.INVALID, "jobs is a list, and defaults is an object")
    if not 1 <= len(orders) <= LIST_JOBS:
        raise TraindError(
            ErrorCode.INVALID, f"a list holds 1 to {LIST_JOBS} jobs, not {len(orders)}"
        )
    return [{**defaults, **order} if isinstance(order, dict) else order for order in orders]


def _checked(orders: Sequence[Any], several: bool, context: Context) -> list[JobSpec]:
    specs: list[JobSpec] = []
    errors: list[FieldError] = []
    for index, order in enumerate(orders):
        if len(errors) >= ERRORS_TOLD:
            break
        prefix = f"jobs.{index}." if several else ""
        try:
            spec = read_spec(order)
        except TraindError as refused:
            fields = refused.fields or (FieldError("body", refused.sentence),)
            errors += [FieldError(prefix + f.field, f.message) for f in fields]
            continue
        specs.append(spec)
        wrong = beyond_the_box(spec, context)
        errors += [FieldError(prefix + f.field, f.message) for f in wrong]
    if errors:
        sentence = "; ".join(f"{error.field}: {error.message}" for error in errors[:5])
        raise TraindError(ErrorCode.INVALID, sentence, errors[:ERRORS_TOLD])
    return specs


def beyond_the_box(spec: JobSpec, context: Context) -> list[FieldError]:
    """What this box can never give."""
    longest = context.config.jobs.max_time_limit.total_seconds()
    errors = []
    if spec.time_limit_s is not None and spec.time_limit_s > longest:
        errors.append(FieldError("time_limit", f"this box gives an attempt at most {longest:g} s"))
    gpus = context.known_gpus()
    if not gpus and not context.hub.gpus_read.is_set():
        return errors  # nobody knows yet what the box has: the job waits and says why
    request = Request(
        job_id=0,
        user="",
        priority=spec.priority,
        eligible_at=context.started_at,
        gpus=spec.gpus,
        gpu_memory_mib=spec.gpu_memory_mib,
        exclusive=spec.exclusive,
        gpu_type=spec.gpu_type,
        gpu_min_memory_mib=spec.gpu_min_memory_mib,
        gpu_ids=spec.gpu_ids,
        gpu_exclude=spec.gpu_exclude,
        cpus=spec.cpus,
        memory_mib=spec.memory_mib,
    )
    never = refusals(request, gpus, context.host, context.policy)
    return [*errors, *(FieldError(name, sentence) for name, sentence in never)]
