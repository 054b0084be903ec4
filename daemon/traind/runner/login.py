"""What a login gives beside the identity: limits and umask. Set by the job's person, never by root.

PAM is not asked; its files are read as its own modules read them. The limits are those of a login
without it, then what limits.conf(5) says of the account, as far as the launcher's own hard limits
reach. The umask is that of login.defs(5), and pam_umask(8) where logins go through it.
"""

import contextlib
import glob
import grp
import os
import resource
from collections.abc import Sequence

from traind.runner.identity import Person

_KIB, _ONE, _MINUTE = 1024, 1, 60
_LIMITS = {
    "core": (resource.RLIMIT_CORE, _KIB),
    "data": (resource.RLIMIT_DATA, _KIB),
    "fsize": (resource.RLIMIT_FSIZE, _KIB),
    "memlock": (resource.RLIMIT_MEMLOCK, _KIB),
    "nofile": (resource.RLIMIT_NOFILE, _ONE),
    "rss": (resource.RLIMIT_RSS, _KIB),
    "stack": (resource.RLIMIT_STACK, _KIB),
    "cpu": (resource.RLIMIT_CPU, _MINUTE),
    "nproc": (resource.RLIMIT_NPROC, _ONE),
    "as": (resource.RLIMIT_AS, _KIB),
    "sigpending": (resource.RLIMIT_SIGPENDING, _ONE),
    "msgqueue": (resource.RLIMIT_MSGQUEUE, _ONE),
}
"""By their names in limits.conf, each with the size of its unit."""

_USUAL = {"core": 0, "nofile": 1024, "stack": 8192}
"""The soft limits that a login starts with where the launcher's own are higher."""


def settle_in(person: Person) -> None:
    """Take on the limits and the umask of a login."""
    wanted = {(name, "soft"): str(value) for name, value in _USUAL.items()}
    for (name, kind), text in (wanted | _configured(person)).items():
        number, unit = _LIMITS[name]
        soft, hard = resource.getrlimit(number)
        value = _value(text, unit)
        if value is None:
            continue
        if kind == "soft":
            soft = value
        else:
            hard = _lower(value, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(number, (_lower(soft, hard), hard))
    os.umask(_umask(person))


def _lower(one: int, other: int) -> int:
    finite = [value for value in (one, other) if value != resource.RLIM_INFINITY]
    return min(finite, default=resource.RLIM_INFINITY)


def _value(text: str, unit: int) -> int | None:
    """The limit in bytes, seconds or pieces; None for what is no limit."""
    if text in ("unlimited", "infinity", "-1", "-"):
        return resource.RLIM_INFINITY
    return int(text) * unit if text.isascii() and text.isdecimal() else None


def _configured(person: Person) -> dict[tuple[str, str], str]:
    """What limits.conf says of the person: of them by name or uid before their groups before all.

    Nothing where a line with a lone "-" takes them out.
    """
    groups = _group_names(person)
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for path in ("/etc/security/limits.conf", *sorted(glob.glob("/etc/security/limits.d/*.conf"))):
        for line in _lines(path):
            domain, *words = line.partition("#")[0].split() or [""]
            rank = _rank(domain, person, groups)
            match [word.lower() for word in words]:
                case ["-"] if rank:
                    return {}
                case [("-" | "hard" | "soft") as kind, name, text] if name in _LIMITS:
                    # In this order, and no further than what outranks it, as pam_limits.
                    for each in ("soft", "hard") if kind == "-" else (kind,):
                        if rank is None or rank < found.get((name, each), (0, ""))[0]:
                            break
                        found[name, each] = rank, text
    return {key: text for key, (_, text) in found.items()}


def _rank(domain: str, person: Person, groups: set[str]) -> int | None:
    """How near to the person the domain of a line is, None when it is not of them."""
    if domain == "*":
        return 0
    if domain.startswith("@"):
        return (
            1 if domain[1:] in groups or _in_range(domain[1:], person.gid, person.groups) else None
        )
    return 2 if domain == person.name or _in_range(domain, person.uid, ()) else None


def _in_range(text: str, number: int, further: Sequence[int]) -> bool:
    """Whether a "least:most", "least:" or ":exactly" means the number; `further` count for exactly
    that one only.
    """
    least, colon, most = text.partition(":")
    if not colon or not all(part.isascii() and part.isdecimal() for part in (least, most) if part):
        return False
    if not least:
        return most != "" and int(most) in (number, *further)
    return int(least) <= number and (not most or number <= int(most))


def _group_names(person: Person) -> set[str]:
    names = set()
    for gid in {person.gid, *person.groups}:
        with contextlib.suppress(KeyError):
            names.add(grp.getgrgid(gid).gr_name)
    return names


def _umask(person: Person) -> int:
    said = dict(words for line in _lines("/etc/login.defs") if len(words := line.split()) == 2)
    options = _pam_umask()
    own = [word.removeprefix("umask=") for word in options if word.startswith("umask=")]
    try:
        mask = int((own or [said.get("UMASK", "022")])[-1], 8) & 0o777
    except ValueError:
        mask = 0o022
    if "usergroups" in options and person.name in _group_names(person._replace(groups=())):
        mask = mask & ~0o070 | mask >> 3 & 0o070  # their group is theirs alone
    return mask


def _pam_umask() -> list[str]:
    """The options of pam_umask(8), where logins go through that."""
    for path in sorted(glob.glob("/etc/pam.d/*")):
        for line in _lines(path):
            words = line.partition("#")[0].split()
            for place, word in enumerate(words):
                if os.path.basename(word) == "pam_umask.so":
                    return words[place + 1 :]
    return []


def _lines(path: str) -> list[str]:
    try:
        with open(path, errors="replace") as file:
            return file.readlines()
    except OSError:
        return []
