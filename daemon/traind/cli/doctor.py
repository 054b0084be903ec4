"""`doctor`: what a person would ask of a box, each answer with how to mend what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import sys
import time

from traind import __version__
from traind.cli import machine
from traind.cli.client import Client
from traind.cli.errors import ClientError, UsageError
from traind.cli.finding import BAD, GOOD, NOTE, Finding
from traind.cli.render import age, instant
from traind.cli.terminal import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from traind.cli.arguments import Parsed

_GIB = 1 << 30
_DAY_S = 86400
_SERVICE, _SETTINGS = "/var/lib/traind", "/etc/traind/config.toml"
_NETWORK_DISKS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph")


def doctor(parsed: Parsed) -> int:
    """`doctor`: 1 when anything is wrong, 0 otherwise; works without a daemon too."""
    if parsed.words:
        raise UsageError(f"`traind doctor` takes no {parsed.words[0]!r}")
    client = Client(parsed.text("socket"), os.environ)
    found = list(findings(client, parsed.text("state_dir")))
    if parsed.flag("json"):
        print(json.dumps({"checks": [vars(finding) for finding in found]}))
    else:
        for finding in found:
            print(f"{finding.level:6}{finding.check + ':':13}{safe(finding.sentence)}")
            if finding.mend:
                print(f"{'':19}to mend it: {safe(finding.mend)}")
    return int(any(finding.level == BAD for finding in found))


def findings(client: Client, state_dir: str | None) -> Iterator[Finding]:
    """Every check in turn; the daemon is asked first, as it knows its own state directory."""
    status, unreachable = _status(client)
    yield from _daemon(status, unreachable)
    state_dir = state_dir or str(status.get("state_dir") or _usual_state_dir())
    yield _python()
    yield _sqlite()
    yield from machine.findings(status, state_dir)
    yield from _state(state_dir)
    yield _backups(client if status else None, state_dir)


def _status(client: Client) -> tuple[dict[str, Any], str]:
    try:
        return dict(client.call("GET", "/v1/status").data), ""
    except ClientError as failure:
        return {}, failure.sentence


def _daemon(status: dict[str, Any], unreachable: str) -> Iterator[Finding]:
    if not status:
        mend = "start it: `systemctl start traind`, or `traind serve`"
        yield Finding("daemon", BAD, unreachable, mend)
        return
    version = status["version"]
    sentence = f"traind {version} runs as pid {status['pid']}"
    if version == __version__:
        yield Finding("daemon", GOOD, sentence)
    else:
        mend = "start the daemon again; jobs run on meanwhile"
        yield Finding("daemon", NOTE, f"{sentence}, this client is {__version__}", mend)
    if status["launcher_fault"]:
        mend = "see `journalctl -u traind-launcher`, or launcher.log in the state directory"
        yield Finding("launcher", BAD, status["launcher_fault"], mend)
    else:
        yield Finding("launcher", GOOD, f"the launcher runs as pid {status['launcher_pid']}")


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", GOOD, f"Python {version} in {sys.prefix}")


def _sqlite() -> Finding:
    """Source: sqlite.org/wal.html, "The WAL-Reset Bug": 3.7.0 to 3.51.2, two connections."""
    version = sqlite3.sqlite_version
    if sqlite3.sqlite_version_info < (3, 37):
        mend = "use a Python whose SQLite is 3.37 or newer: tables are STRICT"
        return Finding("sqlite", BAD, f"SQLite {version} is too old", mend)
    if sqlite3.sqlite_version_info > (3, 51, 2):
        return Finding("sqlite", GOOD, f"SQLite {version}")
    why = "has the WAL-reset bug, which needs two connections; traind's only one locks others out"
    return Finding("sqlite", GOOD, f"SQLite {version} {why}")


def _usual_state_dir() -> str:
    state_home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    own = os.path.join(state_home, "traind")
    return _SERVICE if os.path.isdir(_SERVICE) and not os.path.isdir(own) else own


def _state(path: str) -> Iterator[Finding]:
    try:
        os.stat(path)
    except OSError as failure:
        mend = "name the right one with --state-dir, or start a daemon, which makes it"
        yield Finding("state", NOTE, f"{path} cannot be read: {failure.strerror}", mend)
        return
    yield _permissions(path)
    yield _disk(path)


def _permissions(path: str) -> Finding:
    """Nobody but its owner writes it, and nobody else reads what is in daemon/."""
    written = stat.S_IWGRP | stat.S_IWOTH
    places = [(path, written, "go-w"), (f"{path}/runs", written, "go-w")]
    places.append((f"{path}/daemon", stat.S_IRWXG | stat.S_IRWXO, "go-rwx"))
    if path == _SERVICE:
        places.append((_SETTINGS, written, "go-w"))
    for place, forbidden, change in places:
        if os.path.exists(place) and os.stat(place).st_mode & forbidden:
            deed = "write" if change == "go-w" else "read"
            sentence = f"others than its owner may {deed} {place}"
            return Finding("state", BAD, sentence, f"chmod {change} {place}")
    return Finding("state", GOOD, f"only its owner writes {path}")


def _disk(path: str) -> Finding:
    kind, usage = _disk_kind(path), shutil.disk_usage(path)
    sentence = f"{usage.free / _GIB:.1f} of {usage.total / _GIB:.1f} GiB free on {kind}"
    if kind in _NETWORK_DISKS:
        mend = "move the state directory to a disk of this machine"
        return Finding("disk", BAD, f"{path} is on {kind}, where locks do not hold", mend)
    if usage.free < max(5 * _GIB, usage.total // 20):
        mend = "free some space: `traind clean` lists your checkpoints"
        return Finding("disk", BAD, f"only {sentence}; 5 GiB and 5 % are too little", mend)
    return Finding("disk", GOOD, sentence)


def _disk_kind(path: str) -> str:
    """Source: proc(5), mountinfo."""
    device = os.stat(path).st_dev
    name, kind = f"{os.major(device)}:{os.minor(device)}", "unknown"
    with open("/proc/self/mountinfo") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            if left.split()[2] == name:
                kind = right.split()[0]
    return kind


def _backups(client: Client | None, state_dir: str) -> Finding:
    mend = "`traind backup` makes one now"
    folder = os.path.join(state_dir, "daemon", "backups")
    try:
        ages = _ages_told(client) if client else _ages_seen(folder)
    except (ClientError, OSError) as failure:
        rather = "ask as the account that the daemon runs as, or as an operator"
        return Finding("backups", NOTE, f"{folder} cannot be looked at: {failure}", rather)
    if not ages:
        return Finding("backups", NOTE, f"there are none in {folder}", mend)
    sentence = f"{len(ages)} in {folder}, the newest made {age(min(ages))} ago"
    if min(ages) > 2 * _DAY_S:
        return Finding("backups", BAD, f"{sentence}: nights went by without one", mend)
    return Finding("backups", GOOD, f"{sentence}; copy them to another machine too")


def _ages_told(client: Client) -> list[float]:
    backups = client.call("GET", "/v1/backups").data["backups"]
    made = [instant(backup["made_at"]) for backup in backups]
    return [time.time() - at.timestamp() for at in made if at is not None]


def _ages_seen(folder: str) -> list[float]:
    if not os.path.isdir(folder):
        return []
    entries = [e for e in os.scandir(folder) if e.name.startswith("traind-")]
    return [time.time() - e.stat().st_mtime for e in entries]
