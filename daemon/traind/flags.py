"""The command line of the daemon: which settings it overrides, and that it names the state
directory; and whose settings are trusted.
"""

import argparse
import os
import stat
import sys
from pathlib import Path

from traind.config import EXIT_CONFIG, Config, load
from traind.errors import StartupError


def settings(args: argparse.Namespace) -> Config:
    """The settings of the file and the command line. Raises StartupError for wrong ones, and for a
    file that others could have written: it says what every job finds in its environment.
    """
    path = Path(args.config) if args.config else None
    if path is not None:
        _check_writers(path, shared=args.launcher is not None)
    return _with_flags(load(path), args)


def _check_writers(path: Path, *, shared: bool) -> None:
    """Whoever writes the file can have anything done as those whom the daemon serves; a group of
    one's own is usual where these are oneself.
    """
    try:
        found = path.stat()
    except OSError:
        return  # whoever reads it says why not
    forbidden = stat.S_IWOTH | (stat.S_IWGRP if shared and found.st_gid != 0 else 0)
    if found.st_uid not in (0, os.getuid()):
        sentence = f"{path} is neither root's nor the daemon's own: chown root {path}"
        raise StartupError(EXIT_CONFIG, sentence)
    if found.st_mode & forbidden:
        sentence = f"others than its owner may write {path}: chmod go-w {path}"
        raise StartupError(EXIT_CONFIG, sentence)


def _with_flags(config: Config, args: argparse.Namespace) -> Config:
    """The settings with what the command line overrides. Raises StartupError where they and the
    command line do not go together.
    """
    given = {"state_dir": args.state_dir, "socket": args.socket, "http": args.http}
    given |= {"log_level": args.log_level}
    changed = {name: value for name, value in given.items() if value is not None}
    raw = {"daemon": config.daemon.model_dump() | changed}
    if args.simulate is not None:
        raw["gpus"] = {"source": "simulated", "simulate": args.simulate}
    try:
        daemon = type(config.daemon).model_validate(raw["daemon"])
    except ValueError as wrong:
        raise StartupError(2, f"the command line is refused: {wrong}") from None
    gpus = config.gpus.model_copy(update=raw.get("gpus", {}))
    if gpus.fence == "group" and args.launcher is None:
        sentence = (
            "gpus.fence: only a launcher that is root can give jobs a group; 'off' is what a "
            "daemon of your own can have"
        )
        raise StartupError(EXIT_CONFIG, sentence)
    return config.model_copy(update={"daemon": daemon, "gpus": gpus})


def name_state_dir(state_dir: Path) -> None:
    """Start over with the state directory in the command line, where people look for it."""
    command = [sys.executable, "-m", "traind", *sys.argv[1:], "--state-dir", str(state_dir)]
    os.execv(sys.executable, command)
