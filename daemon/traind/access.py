"""Who a caller is and what they may do: scopes, each of which includes those before it."""

import pwd
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Scope(StrEnum):
    """A step of what may be done: look, submit and cancel jobs, operate the box."""

    READ = "read"
    SUBMIT = "submit"
    OPERATE = "operate"

    def within(self, scopes: Iterable["Scope"]) -> bool:
        """Whether one of the scopes is this one or includes it."""
        steps = list(Scope)
        return any(steps.index(scope) >= steps.index(self) for scope in scopes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What is known of a token; the secret itself is not. `last_used_at` None: never."""

    id: int
    name: str
    user: str
    uid: int
    scopes: tuple[Scope, ...]
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None


def account_name(uid: int) -> str:
    """The name of an account, or its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
