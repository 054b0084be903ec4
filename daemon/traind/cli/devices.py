"""What `doctor` says of /dev/nvidia*: jobs open these files themselves, as whom they are of.

Without nvidiactl and a GPU's own node the others are of no use, so only those are fenced.
Source: nvidia-modprobe, which makes the nodes as the module's NVreg_DeviceFile* say, and nvidia-uvm
open to all whatever these say.
"""

from __future__ import annotations

import glob
import os
import stat

from traind.cli.finding import BAD, GOOD, NOTE, Finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_NEEDED = ("nvidiactl", "nvidia0", "nvidia-uvm")
_FENCED = 0o660


def devices(status: dict[str, Any]) -> Iterator[Finding]:
    """Who can reach the GPUs, and who should: everybody, or the group that the daemon names."""
    missing = [name for name in _NEEDED if not os.path.exists(f"/dev/{name}")]
    if missing:
        mend = "`nvidia-modprobe -c 0 -u` makes them; nvidia-persistenced does so at each boot"
        yield Finding("devices", BAD, f"/dev has no {', '.join(missing)}", mend)
        return
    nodes = ["/dev/nvidiactl", *sorted(glob.glob("/dev/nvidia[0-9]*"))]
    if status.get("gpu_group"):
        yield from _fenced(nodes, status["gpu_group"], _owner(status["pid"]))
    else:
        yield _open_to_all([*nodes, "/dev/nvidia-uvm"])


def _open_to_all(nodes: list[str]) -> Finding:
    closed = [f"{path} ({_rights(path)})" for path in nodes if os.stat(path).st_mode & 6 != 6]
    if closed:
        mend = (
            "add everybody who submits to that group, or set NVreg_DeviceFileMode=0666; or"
            ' fence = "group" under [gpus], where jobs alone are to reach them'
        )
        return Finding("devices", NOTE, f"not everybody can reach {', '.join(closed)}", mend)
    return Finding("devices", GOOD, "everybody on this machine can reach /dev/nvidia*")


def _fenced(nodes: list[str], group: str, daemon: int) -> Iterator[Finding]:
    """Whether the fence has holes; what root and sudo can do is none, nor is the daemon's uid."""
    gid, members = _members(group, daemon)
    wrong = [path for path in nodes if gid is None or not _is_fenced(path, gid)]
    if wrong:
        holes = ", ".join(f"{path} ({_rights(path)})" for path in wrong)
        mend = "`sudo make fence`, then restart the machine"
        sentence = f"[gpus] fence is group, but not only {group} can reach {holes}"
        yield Finding("devices", BAD, sentence, mend)
    if members:
        sentence = f"{', '.join(members)} can reach the GPUs without a job, as members of {group}"
        mend = f"`gpasswd -d {members[0]} {group}`; jobs are given the group without that"
        yield Finding("fence", NOTE, sentence, mend)
    if not wrong:
        sentence = f"/dev/nvidia* belong to {group}, which only jobs with GPUs are given"
        yield Finding("devices", GOOD, sentence)


def _is_fenced(path: str, gid: int) -> bool:
    found = os.stat(path)
    rights = found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)
    return rights == (0, gid, _FENCED) and not _has_acl(path)


def _has_acl(path: str) -> bool:
    """Whether somebody is let in beside owner and group, as logind does with who sits there."""
    try:
        return "system.posix_acl_access" in os.listxattr(path)
    except OSError:
        return False


def _rights(path: str) -> str:
    found = os.stat(path)
    acl = ", with an ACL" if _has_acl(path) else ""
    return f"mode {stat.S_IMODE(found.st_mode):o}, group {_group_name(found.st_gid)}{acl}"


def _owner(pid: int) -> int:
    """As whom a process runs, root where it is gone."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return 0


def _members(group: str, daemon: int) -> tuple[int | None, list[str]]:
    """The group's id, None where there is none, and who is in it beside root and the daemon."""
    import grp
    import pwd

    try:
        entry = grp.getgrnam(group)
    except KeyError:
        return None, []
    everybody = {account.pw_name: account for account in pwd.getpwall()}
    primary = [name for name, account in everybody.items() if account.pw_gid == entry.gr_gid]
    trusted = {name for name, account in everybody.items() if account.pw_uid in (0, daemon)}
    return entry.gr_gid, sorted({*entry.gr_mem, *primary} - trusted)


def _group_name(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
