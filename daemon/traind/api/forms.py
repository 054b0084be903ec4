"""The forms in which orders come: JSON, TOML or a script, told apart by their type and looks."""

import asyncio
import re
import tomllib
from collections.abc import Mapping
from datetime import date, datetime, time
from enum import StrEnum
from typing import Any

import pydantic_core
from aiohttp import web

from traind.api.context import Context
from traind.directives import read_directives
from traind.errors import ErrorCode, FieldError, TraindError
from traind.script import PYTHON_SHEBANG, SHEBANG_SENTENCE

ONE_JOB_BYTES = 1 << 20
LIST_BYTES = 16 << 20

_UNNAMED = frozenset({"", "application/octet-stream", "application/x-www-form-urlencoded"})
"""What clients send who were not told what they send; the last one is curl's."""

_UTF_8 = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
TOML_KEY_PARTS = 8
TOML_TABLES = 5000
"""tomllib notes every prefix of every key: a single one of 1 MiB would take all of the memory, and
70,000 tables 300 MiB. An order has keys of 3 parts, a list of 1,000 jobs some 4,000 tables.
"""

_KEY_PART = r"""(?:[A-Za-z0-9_-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')"""
_LONG_KEY = re.compile(
    rf"(?m)(?:^[ \t]*+\[{{0,2}}+|[,{{])[ \t]*+(?:{_KEY_PART}[ \t]*+\.[ \t]*+){{{TOML_KEY_PARTS}}}"
)
"""A dotted key of too many parts, where a key may stand."""

_TABLE = re.compile(r"(?m)^[ \t]*+\[")


class Form(StrEnum):
    """How an order is written down."""

    JSON = "application/json"
    TOML = "application/toml"
    SCRIPT = "text/*"
    PYTHON = "text/x-python"


async def read_bytes(request: web.Request, context: Context) -> bytes:
    """The body, once it is all there. Raises MALFORMED where it does not come in time."""
    deadline = context.config.api.body_deadline.total_seconds()
    try:
        async with asyncio.timeout(deadline):
            return await request.read()
    except TimeoutError:
        raise TraindError(
            ErrorCode.MALFORMED, f"the body did not come within {deadline:g} s"
        ) from None


def check_json(request: web.Request, body: bytes) -> None:
    """Nothing. JSON may come unnamed when it looks like JSON. Raises MALFORMED, WRONG_TYPE."""
    given = _media_type(request)
    if given not in {Form.JSON, *_UNNAMED}:
        raise TraindError(ErrorCode.WRONG_TYPE, f"send application/json, not {given[:80]!r}")
    if given != Form.JSON and body and not _looks_like_json(body):
        raise TraindError(ErrorCode.MALFORMED, "the body is no JSON: it must start with {")


def form_of(request: web.Request, body: bytes) -> Form:
    """The form of an order, by its type, or its looks where nobody named it.

    Raises MALFORMED, WRONG_TYPE.
    """
    given = _media_type(request)
    if given in (Form.JSON, Form.TOML, Form.PYTHON):
        return Form(given)
    if given in _UNNAMED:
        if body.startswith(b"#!"):
            return Form.SCRIPT
        if not body or _looks_like_json(body):
            return Form.JSON
        raise TraindError(
            ErrorCode.MALFORMED,
            "the body is neither JSON, which starts with { or [, nor a script, which starts with "
            "a shebang such as #!/bin/bash",
        )
    if given.startswith("text/"):
        return Form.SCRIPT
    raise TraindError(
        ErrorCode.WRONG_TYPE,
        f"send application/json, application/toml, or text/* for a script, not {given[:80]!r}",
    )


def _media_type(request: web.Request) -> str:
    """The type without its parameters. Raises WRONG_TYPE for a coding that is not read."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise TraindError(ErrorCode.WRONG_TYPE, "send the body uncompressed")
    charset = request.charset
    if charset is not None and charset.lower() not in _UTF_8:
        raise TraindError(ErrorCode.WRONG_TYPE, f"send the body as UTF-8, not {charset[:80]!r}")
    return request.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _looks_like_json(body: bytes) -> bool:
    return body.lstrip()[:1] in (b"{", b"[")


def parse_json(body: bytes) -> Any:  # noqa: ANN401 whatever was sent
    """The body's JSON. Raises MALFORMED."""
    try:
        return pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as wrong:
        sentence = f"the body is no JSON: {wrong}" if body else "the body is empty; send a job"
        raise TraindError(ErrorCode.MALFORMED, sentence) from None


def parse_toml(body: bytes) -> dict[str, Any]:
    """The body's TOML, with its instants as text. Blocks. Raises MALFORMED, TOO_LARGE, INVALID."""
    text = _text(body, "1 MiB of TOML may come; a longer list of jobs comes as JSON, up to 16 MiB")
    if _LONG_KEY.search(text):
        sentence = f"a key of the TOML has more than {TOML_KEY_PARTS} dotted parts"
        raise TraindError(ErrorCode.MALFORMED, sentence)
    if len(_TABLE.findall(text)) > TOML_TABLES:
        sentence = f"the TOML has more than {TOML_TABLES} tables; send a long list as JSON"
        raise TraindError(ErrorCode.MALFORMED, sentence)
    try:
        return {name: _without_dates(value, name) for name, value in tomllib.loads(text).items()}
    except RecursionError:
        raise TraindError(ErrorCode.MALFORMED, "the TOML is nested too deeply") from None
    except ValueError as wrong:
        raise TraindError(ErrorCode.MALFORMED, f"the body is no TOML: {wrong}"[:300]) from None


def _without_dates(value: object, where: str) -> object:
    """The value with text for its instants. Raises INVALID for one that leaves its offset open."""
    match value:
        case dict():
            return {k: _without_dates(inner, f"{where}.{k}") for k, inner in value.items()}
        case list():
            return [_without_dates(inner, f"{where}.{i}") for i, inner in enumerate(value)]
        case datetime(tzinfo=zone) if zone is not None:
            return value.isoformat()
        case date() | time():
            message = "an instant has date, time and offset, such as 2030-01-31T18:00:00Z"
            error = FieldError(where[:200], message)
            raise TraindError(ErrorCode.INVALID, f"{error.field}: {message}", [error])
        case _:
            return value


def parse_script(
    body: bytes, *, python: bool, slurm: bool
) -> tuple[Mapping[str, object], tuple[str, ...]]:
    """(the order that a script and its directives are, what of these means nothing here). Blocks.

    Raises MALFORMED, TOO_LARGE, WRONG_TYPE, INVALID.
    """
    text = _text(body, "a script is shorter than 512 KiB").removeprefix("\ufeff")
    if not text:
        raise TraindError(ErrorCode.MALFORMED, "the body is empty; send a job")
    if not text.startswith("#!") and not python:
        raise TraindError(
            ErrorCode.WRONG_TYPE,
            f"text is taken for a script, and {SHEBANG_SENTENCE}; "
            "Python without one comes as text/x-python, JSON as application/json, "
            "TOML as application/toml",
        )
    try:
        told = read_directives(text, slurm=slurm)
    except ValueError as wrong:
        error = FieldError("script", str(wrong)[:500])
        raise TraindError(ErrorCode.INVALID, f"script: {error.message}", [error]) from None
    script = text if text.startswith("#!") else PYTHON_SHEBANG + text
    return {**told.values, "script": script}, told.ignored


def _text(body: bytes, limit: str) -> str:
    if len(body) > ONE_JOB_BYTES:
        raise TraindError(ErrorCode.TOO_LARGE, limit)
    try:
        return body.decode()
    except UnicodeDecodeError as wrong:
        sentence = f"the body is not UTF-8: byte {wrong.start} cannot be read"
        raise TraindError(ErrorCode.MALFORMED, sentence) from None
