"""Who a call over TCP is from: the token it bears, and what that token allows."""

from collections import OrderedDict, deque
from datetime import UTC, datetime

from aiohttp import web

from traind.access import Scope
from traind.api.callers import caller_of
from traind.api.context import CALLER, CONTEXT, Caller
from traind.api.doors import Handler
from traind.api.routes import Route
from traind.errors import ErrorCode, TraindError

_WITHIN_S = 60.0
_ADDRESSES = 4096
_MAKE_ONE = "make one on the box with `traind token create NAME`"


class Failures:
    """The sign-ins that failed within the last minute, by address; the oldest are forgotten first.

    Nobody is locked out by a neighbour's failures: they are counted where a token is wrong, and a
    right one cannot be guessed.
    """

    def __init__(self) -> None:
        self._failed_at: OrderedDict[str, deque[float]] = OrderedDict()

    def note(self, address: str, *, most: int, now_s: float) -> None:
        """Count one more. Raises TOO_MANY once there are more than `most`."""
        failed_at = self._failed_at.setdefault(address, deque())
        self._failed_at.move_to_end(address)
        if len(self._failed_at) > _ADDRESSES:
            self._failed_at.popitem(last=False)
        while failed_at and failed_at[0] <= now_s - _WITHIN_S:
            failed_at.popleft()
        if len(failed_at) < most:
            failed_at.append(now_s)
            return
        wait_s = int(failed_at[0] + _WITHIN_S - now_s) + 1
        sentence = f"too many wrong tokens came from {address}; {_MAKE_ONE}"
        raise TraindError(ErrorCode.TOO_MANY, sentence, retry_after_s=wait_s)


FAILURES = web.AppKey("failures", Failures)


def guarded(route: Route) -> Handler:
    """The route's handler behind its scope. Raises UNAUTHORIZED, FORBIDDEN, TOO_MANY."""
    scope = route.scope

    async def handle(request: web.Request) -> web.StreamResponse:
        if scope is not None:
            if CALLER not in request:
                request[CALLER] = await _signed_in(request)
            if not (route.personal and request[CALLER].local):
                operators = request.app[CONTEXT].config.access.operators
                _permit(request[CALLER], scope, operators=operators)
        return await route.handler(request)

    return handle


async def _signed_in(request: web.Request) -> Caller:
    context, now = request.app[CONTEXT], datetime.now(UTC)
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        sentence = f"this door needs a token, as 'Authorization: Bearer …'; {_MAKE_ONE}"
        raise TraindError(ErrorCode.UNAUTHORIZED, sentence)
    token = context.tokens.find(secret.strip(), now=now)
    if token is None:
        most, address = context.config.api.failed_signins, request.remote or ""
        request.app[FAILURES].note(address, most=most, now_s=now.timestamp())
        sentence = f"the token is not valid, or no longer; {_MAKE_ONE}"
        raise TraindError(ErrorCode.UNAUTHORIZED, sentence)
    await context.tokens.note_use(token, now=now)
    person = await caller_of(context, token.uid)
    scopes = tuple(scope for scope in token.scopes if scope.within(person.scopes))
    return Caller(
        user=token.user,
        uid=token.uid,
        operator=Scope.OPERATE.within(scopes),
        scopes=scopes,
    )


def _permit(who: Caller, scope: Scope, *, operators: str) -> None:
    if who.local and not scope.within(who.scopes):
        sentence = f"this is for operators: root, and the members of the group {operators}"
        raise TraindError(ErrorCode.FORBIDDEN, sentence)
    if not scope.within(who.scopes):
        allowed = " and ".join(who.scopes) or "nothing"
        raise TraindError(
            ErrorCode.FORBIDDEN,
            f"this token allows {allowed}, and this call needs {scope}; make another one with "
            f"`traind token create NAME --scopes {scope}`",
        )
