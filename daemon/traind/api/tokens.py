"""Tokens over HTTP: made, listed without their secrets, revoked."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, ClassVar

from aiohttp import web
from pydantic import Field

from traind.access import Scope
from traind.api.bodies import read_body
from traind.api.context import CONTEXT, HIGHEST_ID, caller
from traind.api.doors import json_response
from traind.api.routes import Body, NoQuery, read_query
from traind.boxwire import NewToken, Tokens, TokenView, token_view
from traind.errors import ErrorCode, TraindError
from traind.jobspec import Name

_DAY_S = 86400.0


class TokenOrder(Body):
    """A token that is wanted: what it is for, what it may do, and for how long it lets in."""

    spans: ClassVar[tuple[str, ...]] = ("expires",)

    name: Name
    scopes: Annotated[
        tuple[Annotated[Scope, Field(strict=False)], ...], Field(min_length=1, strict=False)
    ] = (
        Scope.READ,
        Scope.SUBMIT,
    )
    expires_s: Annotated[float, Field(gt=0, le=3660 * _DAY_S)] = 90 * _DAY_S


async def create_token(request: web.Request) -> web.StreamResponse:
    """Make a token; its secret is told in this answer and never again."""
    context, who = request.app[CONTEXT], caller(request)
    read_query(request, NoQuery)
    order = await read_body(request, TokenOrder)
    beyond = [scope for scope in order.scopes if not scope.within(who.scopes)]
    if beyond:
        allowed = " and ".join(who.scopes)
        sentence = f"your token may not {' or '.join(beyond)}: you yourself may {allowed}"
        raise TraindError(ErrorCode.FORBIDDEN, sentence)
    now = datetime.now(UTC)
    token, secret = await context.tokens.create(
        name=order.name,
        user=who.user,
        uid=who.uid,
        scopes=order.scopes,
        expires_at=now + timedelta(seconds=order.expires_s),
        now=now,
    )
    view = NewToken(**dict(token_view(token)), token=secret)
    return json_response(view, status=201, headers={"Location": f"/v1/tokens/{token.id}"})


async def list_tokens(request: web.Request) -> web.StreamResponse:
    """The caller's tokens."""
    context, who = request.app[CONTEXT], caller(request)
    read_query(request, NoQuery)
    return json_response(Tokens(tokens=[token_view(each) for each in context.tokens.of(who.uid)]))


async def revoke_token(request: web.Request) -> web.StreamResponse:
    """Let a token in no more, from this moment on."""
    context, who = request.app[CONTEXT], caller(request)
    read_query(request, NoQuery)
    text = request.match_info["id"]
    if not text.isascii() or not text.isdecimal() or len(text) > len(str(HIGHEST_ID)):
        sentence = f"{text[:80]!r} is no token; GET /v1/tokens lists their ids"
        raise TraindError(ErrorCode.NOT_FOUND, sentence)
    token = await context.tokens.revoke(int(text), uid=who.uid)
    view: TokenView = token_view(token)
    return json_response(view)
