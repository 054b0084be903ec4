"""Who a process is, as /proc tells everybody: its account, what it runs, the container it is in."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_LONGEST = 60
_CONTAINER = re.compile(r"[/:-]([0-9a-f]{64})(?:\.scope)?(?:/|$)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """What a process shows of itself; None is what it does not."""

    uid: int
    command: str | None = None
    container: str | None = None


def face_of(pid: int) -> Face | None:
    """Who a process is, None when it is gone or hidden."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            uid, name = process.uids().real, process.name()
            try:
                words = process.cmdline()
            except psutil.AccessDenied:
                words = []
        cgroups = Path(f"/proc/{pid}/cgroup").read_text()
    except (psutil.Error, OSError):
        return None
    return Face(uid=uid, command=program(words) or name, container=container_of(cgroups))


def program(words: Sequence[str]) -> str | None:
    """What a command line runs, such as 'python train.py', without arguments: they are its own."""
    first = words[0].split()[:1] if words else []
    if not first:
        return None
    found = [os.path.basename(first[0].rstrip(":")) or first[0]]
    for place, word in enumerate(words[1:], start=1):
        if word == "-m" and place + 1 < len(words):
            found += ["-m", words[place + 1]]
            break
        if word == "-c" or not word:
            break
        if not word.startswith("-"):
            found.append(os.path.basename(word) or word)
            break
    text = " ".join(found)
    clean = "".join(letter if letter.isprintable() else "?" for letter in text)
    return clean if len(clean) <= _LONGEST else f"{clean[: _LONGEST - 1]}…"


def container_of(cgroups: str) -> str | None:
    """The short id of the container that a process is in, by its /proc/PID/cgroup; None without.

    Docker, containerd, CRI-O and Podman name cgroups after the 64 digits of the container's id.
    """
    found = _CONTAINER.search(cgroups)
    return found[1][:12] if found else None
