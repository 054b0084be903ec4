"""Who a job runs as: looked up by uid, dropped to in one direction, and verified after the fact."""

import grp
import os
import pwd
from collections.abc import Callable
from typing import NamedTuple

FIRST_UID, NOBODY = 1000, 65534


class IdentityError(Exception):
    """The process cannot become who it must be; nothing of the job may run."""


class Person(NamedTuple):
    """An account as a login would have it."""

    uid: int
    gid: int
    name: str
    home: str
    shell: str
    groups: tuple[int, ...]


def is_persons(uid: int) -> bool:
    """Whether the number may be a person's; the highest of 16 and 32 bits stand for nobody."""
    return FIRST_UID <= uid < 1 << 31 and uid not in (NOBODY, 65535)


def bare(uid: int) -> Person:
    """The submitter as who owns files and processes, without any group; nobody for no person."""
    person = uid if uid == os.getuid() or is_persons(uid) else NOBODY
    return Person(person, NOBODY, f"uid {uid}", "/", "", ())


def look_up(uid: int, *, others: bool, group: str | None) -> Person:
    """The account of `uid`, in `group` as well: with `others` any person's, else this process's
    own, which may have none (containers); HOME then says where. Blocks: the name service may hang.
    Raises IdentityError, KeyError when there is no such group.
    """
    if not (is_persons(uid) if others else uid == os.getuid()):
        raise IdentityError(f"no job runs as uid {uid} here")
    entry = pwd.struct_passwd((str(uid), "x", uid, os.getgid(), "", "/", ""))
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        if others:
            raise IdentityError(f"there is no account with uid {uid}") from None
    name, gid, shell = entry.pw_name, entry.pw_gid, entry.pw_shell or "/bin/sh"
    if not others:
        return Person(uid, gid, name, os.environ.get("HOME", entry.pw_dir), shell, ())
    if gid == 0 or pwd.getpwnam(name).pw_uid != uid:
        raise IdentityError(f"{name} has root's group, or stands for two accounts")
    groups = os.getgrouplist(name, gid) + ([grp.getgrnam(group).gr_gid] if group else [])
    return Person(uid, gid, name, entry.pw_dir, shell, tuple(groups))


def become(person: Person) -> bool:
    """Make this process run as `person`, for good; whether it was somebody else before.

    Raises IdentityError, after which it must end.
    """
    if os.getresuid() == (person.uid,) * 3:
        return False
    try:
        os.setgroups(person.groups)
        os.setresgid(person.gid, person.gid, person.gid)
        os.setresuid(person.uid, person.uid, person.uid)
    except OSError as error:
        raise IdentityError(f"cannot become {person.name}: {error.strerror}") from None
    with open("/proc/self/status") as file:
        kept = [s.split()[1] for s in file if s.startswith(("CapPrm", "CapEff", "CapAmb"))]
    changed = os.getresuid() == (person.uid,) * 3 and os.getresgid() == (person.gid,) * 3
    if not changed or set(os.getgroups()) != set(person.groups) or any(int(s, 16) for s in kept):
        raise IdentityError(f"became somebody else than {person.name}")
    try:
        os.setuid(0)
    except PermissionError:
        return True
    raise IdentityError(f"could become root again after becoming {person.name}")


def fork_as(person: Person, errand: Callable[[], int]) -> int:
    """The pid of a child that does the errand as `person`, with no descriptor of ours; its exit
    status is the answer, 255 where it failed.
    """
    pid = os.fork()
    if pid == 0:
        try:
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            become(person)
            os._exit(min(errand(), 254))
        finally:
            os._exit(255)
    return pid
