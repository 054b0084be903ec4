"""The example jobs as their users run them: real processes, real training, on the CPU."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from job_process import (
    DEADLINE_S,
    GATED,
    ROOT,
    Job,
    catches_sigterm,
    epochs_in,
    free_port,
    listens,
    metrics_in,
    wait_until,
)
from jobkit.checkpoint import read_checkpoint

from traind.jobspec import read_spec

pytestmark = pytest.mark.timeout(1200)
DIGITS = ROOT / "jobs" / "digits.py"
LAUNCH = ROOT / "jobs" / "launch.py"
TORCHRUN = ["-m", "torch.distributed.run"]
TWO_RANKS = ["--nproc-per-node", "2", str(DIGITS)]
CHECKPOINTED = 75
STEPS_PER_EPOCH = 22

# Interrupted in the middle of an epoch.
EPOCHS = 3
SHORT = ["--epochs", str(EPOCHS), "--checkpoint-every", "15"]
STEPS = EPOCHS * STEPS_PER_EPOCH
HELD_AT = "25"
"""Behind which step of a run it waits to be interrupted: 40 of one that was resumed from 15."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The short training, run to its end without an interruption."""
    job = Job(tmp_path_factory.mktemp("finished"))
    assert job.run(str(DIGITS), *SHORT) == 0, job.log()
    return job


def sigterm(job: Job, process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    return CHECKPOINTED


def stop_file(job: Job, process: subprocess.Popen[bytes]) -> int:
    job.stop_file.write_text(json.dumps({"reason": "preempted", "deadline": 1.5}))
    return CHECKPOINTED


def sigkill(job: Job, process: subprocess.Popen[bytes]) -> int:
    process.kill()
    return -signal.SIGKILL


def test_training_reaches_97_percent_on_cpu_with_the_default_options(job: Job) -> None:
    assert job.run(str(DIGITS)) == 0, job.log()
    last = job.log().splitlines()[-1]
    match = re.fullmatch(r"val_accuracy=(0\.\d{4}) epochs=30 seconds=\d+\.\d", last)
    assert match, job.log()
    assert float(match[1]) >= 0.97


def test_metrics_are_json_lines_whose_steps_grow_towards_the_total(finished: Job) -> None:
    lines = metrics_in(finished.metrics)
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps)
    assert steps[0] == 10
    assert steps[-1] == STEPS
    assert {line["total"] for line in lines} == {STEPS}
    epochs = epochs_in(finished.metrics)
    assert list(epochs) == [1, 2, 3]
    assert all(0 <= line["val_accuracy"] <= 1 for line in epochs.values())
    assert epochs[EPOCHS]["val_loss"] < epochs[1]["val_loss"]
    assert all("loss" in line for line in lines if "epoch" not in line)


def test_only_the_two_newest_checkpoints_are_kept(finished: Job) -> None:
    assert finished.saved_steps() == [60, STEPS]
    assert not list(finished.checkpoints.glob("*.tmp"))


@pytest.mark.parametrize(
    "interruptions",
    [[sigterm], pytest.param([sigkill, stop_file], marks=pytest.mark.slow)],
    ids=["SIGTERM", "a crash and a stop file"],
)
def test_an_interrupted_run_ends_with_the_same_result_as_an_uninterrupted_one(
    job: Job,
    finished: Job,
    interruptions: list[Callable[[Job, subprocess.Popen[bytes]], int]],
) -> None:
    for count, interrupt in enumerate(interruptions, start=1):
        process = job.start_held(HELD_AT, str(DIGITS), *SHORT)
        job.wait_for_step(20 * count)
        code = interrupt(job, process)
        job.gate.touch()
        assert process.wait(DEADLINE_S) == code, job.log()
        assert job.log().count("stopped (") == (code == CHECKPOINTED)
        assert 15 <= job.saved_steps()[-1] < STEPS
        job.stop_file.unlink(missing_ok=True)

    stopped_at = job.saved_steps()[-1]
    assert job.run(str(DIGITS), *SHORT) == 0, job.log()
    assert f"resumed from step {stopped_at}/{STEPS}" in job.log()
    assert epochs_in(job.metrics) == epochs_in(finished.metrics)


@pytest.mark.slow
def test_sigterm_while_torch_is_imported_is_answered_with_a_checkpoint(job: Job) -> None:
    process = job.start_held("torch", str(DIGITS), *SHORT)
    wait_until(lambda: catches_sigterm(process.pid), "the handler")
    process.terminate()
    job.gate.touch()
    assert process.wait(DEADLINE_S) == CHECKPOINTED, job.log()
    assert "stopped (SIGTERM): step 0/66" in job.log()
    assert job.saved_steps() == [0]


@pytest.mark.parametrize(
    "arguments",
    [
        "--epochs 0",
        "--epochs many",
        "--batch-size -64",
        "--lr 0",
        "--lr nan",
        "--lr -0.1",
        "--seed -1",
        "--seed 1.5",
        "--seed 99999999999999999999",
        "--checkpoint-every 0",
        "--step-delay -1",
        "--step-delay inf",
        "--warp 9",
    ],
)
def test_options_without_sense_are_refused_with_exit_code_2(job: Job, arguments: str) -> None:
    assert job.run(str(DIGITS), *arguments.split()) == 2
    assert "usage: digits.py" in job.log()
    assert not job.checkpoints.exists()


def test_a_batch_that_does_not_divide_among_the_ranks_is_refused(job: Job) -> None:
    assert job.run(str(DIGITS), "--batch-size", "63", WORLD_SIZE="2") == 2
    assert "--batch-size 63 does not divide by 2 ranks" in job.log()


@pytest.mark.slow
def test_two_ranks_agree_to_stop_and_end_with_one_network(job: Job) -> None:
    held = {"HOLD": HELD_AT, "GATE": str(job.gate)}
    process = job.start(str(LAUNCH), "--nproc-per-node", "2", GATED, str(DIGITS), *SHORT, **held)
    job.wait_for_step(20)
    tree = psutil.Process(process.pid).children(recursive=True)
    ranks = {member.environ()["RANK"]: member for member in tree}
    ranks["1"].terminate()
    job.gate.touch()
    assert process.wait(DEADLINE_S) == CHECKPOINTED, job.log()
    assert "stopped (asked on another rank)" in job.log()
    stopped_at = job.saved_steps()[-1]

    port = free_port()
    process = job.start(*TORCHRUN, *TWO_RANKS, *SHORT, PET_MASTER_PORT=str(port))
    wait_until(lambda: listens(process, port) or process.poll() is not None, f"port {port}")
    assert process.wait(DEADLINE_S) == 0, job.log()
    assert f"resumed from step {stopped_at}/{STEPS}" in job.log()
    assert "ranks=2 backend=gloo" in job.log()
    assert epochs_in(job.metrics)[EPOCHS]["val_accuracy"] > 0.85
    steps = [line["step"] for line in metrics_in(job.metrics) if "epoch" not in line]
    assert steps == [10, 20, 30, 40, 50, 60], "only rank 0 writes"
    first, second = read_checkpoint(job.newest_checkpoint())["parameter_digests"]
    assert first == second


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.toml")), ids=lambda p: p.name)
def test_every_job_file_is_a_valid_job_whose_scripts_exist(path: Path) -> None:
    spec = read_spec(tomllib.loads(path.read_text()))
    assert spec.command is not None
    scripts = [word for word in spec.command.split() if word.endswith(".py")]
    assert scripts
    assert all((ROOT / script).is_file() for script in scripts)
