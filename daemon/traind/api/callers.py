"""Who a call is from, by the uid that the kernel or a token vouches for: what they may do."""

from traind.access import Scope
from traind.api.context import Caller, Context
from traind.errors import ErrorCode, TraindError
from traind.runner.identity import NOBODY

_USUAL = (Scope.READ, Scope.SUBMIT)


async def caller_of(context: Context, uid: int) -> Caller:
    """The person on the Unix socket.

    Raises FORBIDDEN for whom this daemon does not serve, UNAVAILABLE while it does not know.
    """
    account = await context.accounts.find(uid)
    owner, access = context.owner, context.config.access
    if not context.link.others:
        if uid in (0, owner.uid):
            return Caller(user=account.name, uid=uid, operator=True, local=True)
        if context.link.others is None:
            sentence = f"nobody can be served yet: {context.link.fault}"
            raise TraindError(ErrorCode.UNAVAILABLE, sentence)
        sentence = f"this daemon was started by {owner.user} and serves {owner.user} only"
        raise TraindError(ErrorCode.FORBIDDEN, sentence)
    operator = uid == 0 or access.operators in account.groups
    inside = operator or uid == owner.uid or not access.groups
    if uid >= NOBODY and (uid in (NOBODY, 65535) or uid >= 1 << 31):
        sentence = (
            f"uid {uid} stands for nobody; call from outside of the container, or as yourself"
        )
        raise TraindError(ErrorCode.FORBIDDEN, sentence)
    if not inside and account.groups.isdisjoint(access.groups):
        groups = " or ".join(access.groups)
        sentence = f"this daemon serves the group {groups}, and {account.name} is not in it"
        raise TraindError(ErrorCode.FORBIDDEN, sentence)
    scopes = tuple(Scope) if operator else _USUAL
    return Caller(user=account.name, uid=uid, operator=operator, scopes=scopes, local=True)
