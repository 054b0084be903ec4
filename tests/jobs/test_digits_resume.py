"""How the digits job treats the checkpoints it finds, in this process to save torch's import."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import digits
import pytest
import torch
from job_process import epochs_in, metrics_in

SHORT = ["--epochs", "2", "--checkpoint-every", "15"]


@contextmanager
def job_environment(directory: Path) -> Iterator[None]:
    """The environment of a job on ``directory``, on the CPU, and afterwards as it was."""
    handler = signal.getsignal(signal.SIGTERM)
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE", "TRAIND_STOP_FILE"):
            patch.delenv(name, raising=False)
        # CUDA_VISIBLE_DEVICES comes too late for a process that may know its GPUs already.
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setenv("TRAIND_CHECKPOINT_DIR", str(directory / "checkpoints"))
        patch.setenv("TRAIND_METRICS", str(directory / "metrics"))
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a finished training in it."""
    directory = tmp_path_factory.mktemp("finished")
    with job_environment(directory):
        assert digits.main(SHORT) == 0
    return directory


@pytest.fixture
def directory(tmp_path: Path, finished: Path) -> Iterator[Path]:
    """A copy of the finished training, in the environment of a job on it."""
    directory = tmp_path / "job"
    shutil.copytree(finished, directory)
    with job_environment(directory):
        yield directory


def saved(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


def test_a_truncated_newest_checkpoint_costs_only_the_steps_since_the_one_before(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = epochs_in(directory / "metrics")[2]
    (directory / "metrics").unlink()
    newest = directory / "checkpoints" / "checkpoint-000000044.pt"
    os.truncate(newest, newest.stat().st_size // 2)

    assert digits.main(SHORT) == 0
    said = capsys.readouterr().out
    assert f"checkpoint {newest.name} is damaged" in said
    assert "resumed from step 30/44" in said
    assert epochs_in(directory / "metrics") == {2: before}
    assert saved(directory) == [
        "checkpoint-000000030.pt",
        "checkpoint-000000044.damaged",
        "checkpoint-000000044.pt",
    ]


def test_a_finished_run_that_is_run_again_reports_its_result_again(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = metrics_in(directory / "metrics")
    assert digits.main(SHORT) == 0
    accuracy = lines[-1]["val_accuracy"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"val_accuracy={accuracy:.4f} epochs=2 seconds=")
    assert metrics_in(directory / "metrics") == lines


def test_a_longer_training_continues_a_finished_one(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert digits.main(["--epochs", "3"]) == 0
    assert "resumed from step 44/66" in capsys.readouterr().out
    assert list(epochs_in(directory / "metrics")) == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "7"], "made with seed 0, not 7: choose another --checkpoint-dir"),
        (["--lr", "0.5", "--batch-size", "32"], "made with batch_size 64, not 32, lr 0.003"),
        (["--batch-size", "1438"], "--batch-size 1438 is more than the 1437 training images"),
    ],
)
def test_settings_that_fit_neither_data_nor_checkpoint_are_refused(
    directory: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    before = saved(directory)
    with pytest.raises(SystemExit, match="2"):
        digits.main([*SHORT, *options])
    assert message in capsys.readouterr().err
    assert saved(directory) == before


def test_a_checkpoint_that_another_program_made_is_refused(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(directory / "checkpoints")
    (directory / "checkpoints").mkdir()
    torch.save({"step": 3}, directory / "checkpoints" / "checkpoint-000000003.pt")
    with pytest.raises(SystemExit, match="2"):
        digits.main(SHORT)
    assert "choose another --checkpoint-dir" in capsys.readouterr().err
