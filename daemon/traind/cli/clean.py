"""`clean`: the checkpoints of finished jobs, listed; removed only when their owner says so."""

from __future__ import annotations

import json
import os
import shutil
import time

from traind.cli.client import Client
from traind.cli.errors import NotFound, UsageError
from traind.cli.render import age, instant, table
from traind.cli.terminal import complain, wants_colour, width_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from traind.cli.arguments import Parsed

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class Place:
    """A checkpoint directory; `idle_s` is None where it must stay, and `why` says so."""

    def __init__(self, path: str, size: int, idle_s: float | None, why: str) -> None:
        self.path = path
        self.size = size
        self.idle_s = idle_s
        self.why = why


def clean(parsed: Parsed, client: Client) -> int:
    """`clean`: lists ~/traind/ID; with `--checkpoints --yes` removes those of finished jobs."""
    if parsed.flag("yes") and not parsed.flag("checkpoints"):
        raise UsageError("say what to remove: `traind clean --checkpoints --yes`")
    import sys

    least_s = float(str(parsed.values.get("older") or 0))
    home = os.path.join(os.path.expanduser("~"), "traind")
    places = [_look(client, os.path.join(home, name), int(name)) for name in _numbers(home)]
    places = [p for p in places if p.idle_s is None or p.idle_s >= least_s]
    if parsed.flag("json"):
        print(json.dumps({"checkpoints": [_json(place) for place in places]}))
    elif places:
        rows = [(place.path, _size(place.size), place.why) for place in places]
        width, colour = width_of(sys.stdout), wants_colour(sys.stdout)
        print(table(("CHECKPOINTS", "SIZE", "JOB"), rows, width=width, colour=colour))
    free = [place for place in places if place.idle_s is not None]
    if not parsed.flag("yes"):
        total = _size(sum(place.size for place in free))
        complain(f"{len(free)} of them could go, {total}: `traind clean --checkpoints --yes`")
        return 0
    return max([0, *map(_remove, free)])


def _numbers(home: str) -> list[str]:
    """The checkpoint directories that carry a job's number; links are none."""
    try:
        entries = [e for e in os.scandir(home) if e.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    return sorted((e.name for e in entries if _is_id(e.name)), key=int)


def _is_id(name: str) -> bool:
    return name.isascii() and name.isdecimal() and not name.startswith("0") and len(name) < 19


def _look(client: Client, path: str, number: int) -> Place:
    """A directory and what its job says; one whose job the daemon does not know is left alone."""
    size = _bytes_below(path)
    try:
        job = client.call("GET", f"/v1/jobs/{number}").data
    except NotFound:
        return Place(path, size, None, "not known to this daemon, left alone")
    if job.get("uid") != os.getuid() or job.get("checkpoint_dir") != path:
        return Place(path, size, None, "of another daemon or person, left alone")
    ended = instant(job.get("finished_at"))
    if job.get("state") != "finished" or ended is None:
        return Place(path, size, None, f"{job.get('state')}, left alone")
    idle_s = time.time() - ended.timestamp()
    return Place(path, size, idle_s, f"{job.get('outcome')} {age(idle_s)} ago")


def _bytes_below(path: str) -> int:
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    return total


def _remove(place: Place) -> int:
    try:
        shutil.rmtree(place.path)
    except OSError as failure:
        complain(f"{place.path} is not gone: {failure.strerror}")
        return 3
    complain(f"removed {place.path}")
    return 0


def _json(place: Place) -> dict[str, object]:
    free = place.idle_s is not None
    return {"path": place.path, "bytes": place.size, "job": place.why, "removable": free}


def _size(count: float) -> str:
    for unit in _UNITS[:-1]:
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} {_UNITS[-1]}"
