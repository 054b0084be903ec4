"""``torchrun`` for one machine that passes exit code 75 on.

    python jobs/launch.py --nproc-per-node 2 jobs/digits.py --epochs 30

The options are those of ``torchrun`` and so is what they do; ``PET_MASTER_PORT`` and the other
``PET_`` variables work too. Three things differ:

* When every rank exits with 75 ("checkpointed, run me again"), so does this program. ``torchrun``
  makes 1 of it. Any other failure gives the code of the rank that failed first, and 128 plus the
  number of the signal when one killed it.
* SIGTERM is passed on to every rank, as often as it comes, and the launcher then waits for them
  without a limit of its own: how long a job may take is up to whoever sent the signal. Only once a
  rank has ended do the others have no more than 30 seconds. ``torchrun`` kills the ranks 30 seconds
  after the signal (``--shutdown-timeout``), leaves them behind when a third SIGTERM comes in, and
  exits with 1 whatever they did.
* Only Python scripts can be launched, neither modules (``--module``) nor other programs
  (``--no-python``), and they are not restarted (``--max-restarts``).

Each rank is this file again, which runs the script in the same process and notes its exit code in
a directory that the launcher made.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from jobkit.stop import CHECKPOINTED

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

_RANK_MODE = "--as-rank"


class RankBoard:
    """The directory in which the ranks announce themselves and leave their exit codes.

    An entry is a file called ``<rank>-<world size>-<process id>``. It is empty while the rank runs
    and holds the exit code afterwards.
    """

    def __init__(self, directory: Path) -> None:
        """Use ``directory``, which exists."""
        self._directory = directory
        self._stop = directory / "stop"

    def announce(self, rank: int, world_size: int) -> Path:
        """Enter the calling process as ``rank`` of ``world_size`` and return its entry."""
        entry = self._directory / f"{rank}-{world_size}-{os.getpid()}"
        entry.touch()
        return entry

    @property
    def stopping(self) -> bool:
        """Whether ``terminate`` was called, in any process."""
        return self._stop.exists()

    def terminate(self) -> None:
        """Send SIGTERM to every rank that runs, and have those that start later stop at once."""
        # In this order: a rank enters itself before it looks, so that one of the two sees it.
        self._stop.touch()
        for entry in self._directory.glob("*-*-*"):
            if not entry.read_text():
                # One that was killed left no exit code, and no process either.
                with suppress(ProcessLookupError):
                    os.kill(int(entry.name.split("-")[2]), signal.SIGTERM)

    def all_exited_with(self, code: int) -> bool:
        """Return whether all ranks of the group are entered and left ``code``."""
        entries = list(self._directory.glob("*-*-*"))
        world_sizes = {int(entry.name.split("-")[1]) for entry in entries}
        return world_sizes == {len(entries)} and all(
            entry.read_text() == str(code) for entry in entries
        )


def run_rank(directory: Path, script: str, arguments: Sequence[str]) -> int:
    """Run ``script`` in this process as the rank that the environment says, noting its exit code.

    Returns:
        The exit code.

    Raises:
        Exception: whatever the script raises; no exit code is noted then.
    """
    board = RankBoard(directory)
    entry = board.announce(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    code = CHECKPOINTED if board.stopping else _run_script(script, arguments)
    entry.write_text(str(code))
    return code


def _run_script(script: str, arguments: Sequence[str]) -> int:
    """Run ``script`` as ``python script arguments`` would and return its exit code."""
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        # sys.exit("text") is a failure with a message.
        print(end.code, file=sys.stderr)
        return 1
    return 0


def launch(arguments: Sequence[str]) -> int:
    """Start the ranks that ``arguments``, a command line of ``torchrun``, ask for, and wait.

    Returns:
        The exit code, as the module's text describes it.

    Raises:
        SystemExit: with code 2 for wrong options.
    """
    with tempfile.TemporaryDirectory(prefix="launch-") as directory:
        board = RankBoard(Path(directory))

        def pass_on(signum: int, frame: FrameType | None) -> None:
            board.terminate()

        # Before the slow import. From here on SIGTERM is never lost: it reaches the ranks that
        # run, and those that are still to come find the note of it.
        signal.signal(signal.SIGTERM, pass_on)
        try:
            error = _run_agent(arguments, directory)
            if error is None:
                return 0
            if board.all_exited_with(CHECKPOINTED):
                return CHECKPOINTED
            print(error, file=sys.stderr)
            return _first_failure(error)
        finally:
            # The directory goes, and nobody is left to pass anything on to.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _run_agent(arguments: Sequence[str], directory: str) -> ChildFailedError | None:
    """Have torch's agent run this file once for each rank, and return what failed."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options = torchrun.parse_args(list(arguments))  # type: ignore[no-untyped-call] # no types
    if options.module or options.no_python or options.max_restarts:
        print("launch.py: runs Python scripts only, and only once", file=sys.stderr)
        raise SystemExit(2)
    script = [options.training_script, *options.training_script_args]
    options.training_script = __file__
    options.training_script_args = [_RANK_MODE, directory, *script]
    # The agent answers a signal by ending the ranks itself, so this one must not be its own.
    names = [name.strip() for name in options.signals_to_handle.split(",")]
    options.signals_to_handle = ",".join(name for name in names if name != "SIGTERM")
    try:
        torchrun.run(options)  # type: ignore[no-untyped-call] # likewise
    except ChildFailedError as error:
        return error
    return None


def _first_failure(error: ChildFailedError) -> int:
    """Return the exit code for the rank that failed first; 75 is a failure only by itself."""
    failures = [item for item in error.failures.values() if item.exitcode != CHECKPOINTED]
    if not failures:
        # Some ranks want to be run again and the others reached the end.
        return 1
    code: int = min(failures, key=lambda failure: failure.timestamp).exitcode
    return 128 - code if code < 0 else code


def main() -> int:
    """Run as the launcher, or as one of its ranks, and return the exit code."""
    if sys.argv[1:2] == [_RANK_MODE]:
        directory, script, *arguments = sys.argv[2:]
        return run_rank(Path(directory), script, arguments)
    return launch(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
