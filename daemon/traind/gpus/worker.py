"""The only process that talks to the driver: asked one line of JSON, it answers one; unasked it
only says that there is news.

It may hang for ever in a call; whoever asked has a deadline. It ends when nobody can ask any more.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from traind.gpus.source import GpuSource, NoDriver, SourceError, claim_of, reading_json


def main() -> None:
    """Answer each line of stdin on stdout until stdin ends."""
    # A terminal's Ctrl-C is for the daemon, which ends this process when it is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    simulate = _simulate(sys.argv[1:])
    say = _speaker(os.dup(1))
    os.dup2(2, 1)  # what a library prints must not look like an answer
    source: GpuSource | None = None
    try:
        for line in sys.stdin.buffer:
            request = json.loads(line)
            try:
                source = source or _open(simulate, lambda: say({"news": True}))
                answer = _answer(source, request)
            except NoDriver as none:
                answer = {"no_driver": True, "sentence": str(none)}
            except SourceError as wrong:
                answer = {"error": str(wrong)}
            say({"id": request["id"], **answer})
    except BrokenPipeError:
        os._exit(0)  # the daemon is gone, nothing is left to flush to


def _speaker(descriptor: int) -> Callable[[Mapping[str, Any]], None]:
    """Something that writes a line at a time, whichever thread speaks."""
    lines, turn = os.fdopen(descriptor, "wb"), threading.Lock()

    def say(line: Mapping[str, Any]) -> None:
        with turn:
            lines.write(json.dumps(line).encode() + b"\n")
            lines.flush()

    return say


def _simulate(arguments: list[str]) -> str | None:
    match arguments:
        case ["--state-dir", _]:
            return None
        case ["--state-dir", _, "--simulate", spec]:
            return spec
        case _:
            sys.exit("usage: python -m traind.gpus.worker --state-dir DIR [--simulate SPEC]")


def _open(simulate: str | None, on_news: Callable[[], None]) -> GpuSource:
    """The source, imported only when it is the one: simulated GPUs need no NVIDIA library."""
    if simulate is None:
        from traind.gpus.nvml import NvmlSource

        return NvmlSource(on_news)
    from traind.gpus.simulated import SimulatedSource

    return SimulatedSource(simulate)


def _answer(source: GpuSource, request: Mapping[str, Any]) -> dict[str, Any]:
    claims = [claim_of(claim) for claim in request["claims"]]
    return {"readings": [reading_json(reading) for reading in source.read(claims)]}


if __name__ == "__main__":
    main()
