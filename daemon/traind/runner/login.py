"""What a login gives beside the identity: limits and umask. Set by the job's person, never by root.

PAM is not asked. The limits are those of a login without it, then what limits.conf(5) says of the
account, as far as the launcher's own hard limits reach; the umask is the one of login.defs(5).
"""

import contextlib
import glob
import grp
import os
import resource

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
    os.umask(_umask())


def _lower(one: int, other: int) -> int:
    finite = [value for value in (one, other) if value != resource.RLIM_INFINITY]
    return min(finite, default=resource.RLIM_INFINITY)


def _value(text: str, unit: int) -> int | None:
    """The limit in bytes, seconds or pieces; None for what is no limit."""
    if text in ("unlimited", "infinity", "-1"):
        return resource.RLIM_INFINITY
    return int(text) * unit if text.isascii() and text.isdecimal() else None


def _configured(person: Person) -> dict[tuple[str, str], str]:
    """What limits.conf says of the person: of them by name before their groups before all."""
    domains = {"*": 0, **{f"@{name}": 1 for name in _group_names(person)}, person.name: 2}
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for path in ("/etc/security/limits.conf", *sorted(glob.glob("/etc/security/limits.d/*.conf"))):
        for line in _lines(path):
            match line.partition("#")[0].split():
                case [domain, kind, name, text] if domain in domains and name in _LIMITS:
                    for each in ("hard", "soft") if kind == "-" else (kind,):
                        rank = domains[domain]
                        if rank >= found.get((name, each), (0, ""))[0]:
                            found[name, each] = rank, text
    return {key: text for key, (_, text) in found.items()}


def _group_names(person: Person) -> list[str]:
    names = []
    for gid in {person.gid, *person.groups}:
        with contextlib.suppress(KeyError):
            names.append(grp.getgrgid(gid).gr_name)
    return names


def _umask() -> int:
    for line in _lines("/etc/login.defs"):
        match line.split():
            case ["UMASK", text]:
                with contextlib.suppress(ValueError):
                    return int(text, 8) & 0o777
    return 0o022


def _lines(path: str) -> list[str]:
    try:
        with open(path, errors="replace") as file:
            return file.readlines()
    except OSError:
        return []
