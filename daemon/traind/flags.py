"""The command line of the daemon: what it overrides, and that it names the state directory."""

import argparse
import os
import sys
from pathlib import Path

from traind.config import EXIT_CONFIG, Config
from traind.errors import StartupError


def with_flags(config: Config, args: argparse.Namespace) -> Config:
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
