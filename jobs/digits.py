"""Train a small convolutional network to read handwritten digits.

The data are the 1,797 scans of 8x8 pixels that scikit-learn ships, so nothing is downloaded. The
program runs on the CPU, on one GPU, and with several ranks under ``torchrun``:

    python jobs/digits.py
    torchrun --nproc-per-node 2 jobs/digits.py
    python jobs/launch.py --nproc-per-node 2 jobs/digits.py

It prints a line per epoch and at the end ``val_accuracy=0.9917 epochs=30 seconds=7.1``, where the
seconds are those of all runs that it took.

Environment, all optional:

* ``TRAIND_CHECKPOINT_DIR``: where checkpoints go, unless ``--checkpoint-dir`` says so; without
  both, ``./checkpoints``. The newest intact one is resumed from without being asked for. On the
  CPU, with the same number of threads and ranks, a resumed run ends with exactly the result of one
  that was never interrupted.
* ``TRAIND_STOP_FILE``: a path. When a file appears there (JSON with ``reason`` and ``deadline``),
  or on SIGTERM, the program saves a checkpoint before the next step and exits.
* ``TRAIND_METRICS``: a file to append JSON lines to: ``{"step": 10, "total": 660, "loss": ...,
  "lr": ...}`` every ten steps, and a line with ``epoch``, ``train_loss``, ``val_loss`` and
  ``val_accuracy`` after every epoch.
* ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``LOCAL_WORLD_SIZE``, ``MASTER_ADDR``, ``MASTER_PORT``:
  set by ``torchrun``. Only rank 0 prints and writes.

Exit codes: 0 trained to the end; 75 stopped, its work is in a checkpoint, run it again; 2 wrong
options; anything else is a failure.

Plain ``torchrun`` hides the 75. It exits with 1 whenever a rank exits with anything but 0, and also
when it gets SIGTERM itself; it forwards that to the ranks, waits at most 30 seconds
(``--shutdown-timeout``) and then kills them. The checkpoint is as good, only the exit code is lost.
``launch.py`` is ``torchrun`` with the 75 passed on and without that limit.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jobkit.stop import StopRequest


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="digits.py", description="Train a small network to read handwritten digits."
    )
    positive = _whole(1, 2**31)
    parser.add_argument("--epochs", type=positive, default=30, help="default: %(default)s")
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=64,
        help="images per step, over all ranks together (default: %(default)s)",
    )
    parser.add_argument(
        "--lr",
        type=_positive,
        default=0.003,
        help="peak learning rate (default: %(default)s)",
    )
    parser.add_argument("--seed", type=_whole(0, 2**32), default=0, help="default: %(default)s")
    parser.add_argument(
        "--checkpoint-dir",
        type=Path,
        help="default: $TRAIND_CHECKPOINT_DIR, or ./checkpoints without it",
    )
    parser.add_argument(
        "--checkpoint-every",
        type=positive,
        default=50,
        metavar="STEPS",
        help="steps between two checkpoints (default: %(default)s)",
    )
    parser.add_argument(
        "--step-delay",
        type=_real,
        default=0.0,
        metavar="SECONDS",
        help="sleep after every step, to slow a demonstration down (default: %(default)s)",
    )
    parser.add_argument(
        "--amp",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="mixed precision on a CUDA GPU; the CPU never uses it (default: on)",
    )
    return parser


def _whole(minimum: int, maximum: int) -> Callable[[str], int]:
    """Return a converter for argparse to a whole number from ``minimum`` to ``maximum``."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number from {minimum} to {maximum}"
            )
        return value

    return convert


def _real(text: str) -> float:
    """Return ``text`` as a finite number of at least 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def _positive(text: str) -> float:
    """Return ``text`` as a finite number above 0, for argparse."""
    value = _real(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 is too small")
    return value


def _environment_path(name: str) -> Path | None:
    """Return the path in the variable ``name``, or ``None`` when it is unset or empty."""
    value = os.environ.get(name)
    return Path(value) if value else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        arguments: the command line without the program's name; ``None`` takes the process's.

    Returns:
        The exit code.

    Raises:
        SystemExit: with code 2 for wrong options.
    """
    # Before anything slow: importing torch takes seconds, and SIGTERM may come meanwhile.
    stop = StopRequest(_environment_path("TRAIND_STOP_FILE"))
    stop.install()
    parser = build_parser()
    options = parser.parse_args(arguments)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if options.batch_size % ranks:
        parser.error(f"--batch-size {options.batch_size} does not divide by {ranks} ranks")

    from digits_training import Recipe, Settings, UnusableSettingsError, train

    settings = Settings(
        recipe=Recipe(options.batch_size, options.lr, options.seed),
        epochs=options.epochs,
        checkpoint_dir=options.checkpoint_dir
        or _environment_path("TRAIND_CHECKPOINT_DIR")
        or Path("checkpoints"),
        checkpoint_every=options.checkpoint_every,
        step_delay=options.step_delay,
        amp=options.amp,
        metrics=_environment_path("TRAIND_METRICS"),
    )
    try:
        code = train(settings, stop)
    except UnusableSettingsError as error:
        parser.error(str(error))
    stop.finish()
    return code


if __name__ == "__main__":
    sys.exit(main())
