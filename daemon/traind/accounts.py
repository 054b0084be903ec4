"""The accounts of the box as its name service has them, asked aside and remembered for a while."""

import asyncio
import grp
import os
import pwd
import time
from dataclasses import dataclass

_KEPT_S = 60.0
"""How long an account is remembered: so long somebody who left a group is still taken for in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Who a uid is. `home` None: there is no such account; it has no groups then."""

    uid: int
    name: str
    home: str | None
    groups: frozenset[str]


class Accounts:
    """Looks accounts up by uid; the name service may be slow, and keeps nobody else waiting."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[float, Account]] = {}

    async def find(self, uid: int) -> Account:
        """The account, as it was within the last minute."""
        known = self._known.get(uid)
        if known is not None and time.monotonic() < known[0] + _KEPT_S:
            return known[1]
        account = await asyncio.to_thread(look_up, uid)
        self._known[uid] = time.monotonic(), account
        return account

    def name(self, uid: int) -> str | None:
        """The name of an account that was looked up before, None of any other."""
        known = self._known.get(uid)
        return None if known is None else known[1].name

    def home(self, uid: int) -> str | None:
        """The home of an account that was looked up before, None of any other."""
        known = self._known.get(uid)
        return None if known is None else known[1].home


def look_up(uid: int) -> Account:
    """The account. **Blocks** for the name service. HOME says where its own user is at home."""
    home = os.environ.get("HOME") if uid == os.getuid() else None
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Account(uid=uid, name=str(uid), home=home, groups=frozenset())
    groups = set()
    for gid in os.getgrouplist(entry.pw_name, entry.pw_gid):
        try:
            groups.add(grp.getgrgid(gid).gr_name)
        except KeyError:
            continue
    name = entry.pw_name
    return Account(uid=uid, name=name, home=home or entry.pw_dir, groups=frozenset(groups))
