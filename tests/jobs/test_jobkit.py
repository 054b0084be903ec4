"""The helpers of the example jobs, in this process."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from jobkit.checkpoint import CheckpointStore, DamagedCheckpointError, read_checkpoint
from jobkit.metrics import MetricsLog
from jobkit.stop import StopRequest


@pytest.fixture
def stop(tmp_path: Path) -> Iterator[StopRequest]:
    before = signal.getsignal(signal.SIGTERM)
    request = StopRequest(tmp_path / "stop")
    request.install()
    yield request
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"reason": "preempted", "deadline": 12.5}', "stop file: preempted, deadline 12.5"),
        ('{"reason": "time limit"}', "stop file: time limit"),
        ('{"reason": "cut sho', "stop file"),
        ("", "stop file"),
        ("[1]", "stop file"),
    ],
)
def test_a_stop_file_is_a_request_whatever_is_in_it(
    stop: StopRequest, tmp_path: Path, content: str, reason: str
) -> None:
    assert stop.reason() is None
    (tmp_path / "stop").write_text(content)
    assert stop.reason() == reason


def test_sigterm_is_a_request_until_the_exit_code_is_decided(stop: StopRequest) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.reason() == "SIGTERM"
    stop.finish()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def by_signal(directory: Path) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def by_file(directory: Path) -> None:
    (directory / "stop").touch()


@pytest.mark.parametrize("request_stop", [by_signal, by_file])
def test_a_request_ends_a_sleep(
    stop: StopRequest, tmp_path: Path, request_stop: Callable[[Path], None]
) -> None:
    timer = threading.Timer(0.2, request_stop, [tmp_path])
    timer.start()
    stop.sleep(3600)  # longer than a test may take
    timer.join()


def test_metrics_are_appended_as_lines_and_an_undefined_number_is_null(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics"
    for step in (1, 2):
        with MetricsLog(path) as metrics:
            metrics.write(step=step, loss=float("nan"))
    lines = path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": None},
        {"step": 2, "loss": None},
    ]


def test_metrics_without_a_path_are_dropped() -> None:
    with MetricsLog(None) as metrics:
        metrics.write(step=1)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path)


def never(line: str) -> None:
    raise AssertionError(line)


def test_the_newest_checkpoint_comes_back_as_it_was_saved(store: CheckpointStore) -> None:
    assert store.load_latest(never) is None
    for step in (9, 10, 100):
        path = store.save(step, {"step": step, "weights": torch.arange(step)})
    latest = store.load_latest(never)
    assert latest is not None
    assert latest.path == path
    assert latest.state["step"] == 100
    assert torch.equal(latest.state["weights"], torch.arange(100))


def test_saving_drops_old_checkpoints_and_what_a_killed_process_left(
    store: CheckpointStore, tmp_path: Path
) -> None:
    (tmp_path / "checkpoint-000000003.tmp").write_bytes(b"half")
    paths = [store.save(step, {"step": step}) for step in (1, 2, 3)]
    assert sorted(tmp_path.iterdir()) == paths[1:]


def test_a_save_that_fails_leaves_the_earlier_checkpoint_and_no_temporary_file(
    store: CheckpointStore, tmp_path: Path
) -> None:
    path = store.save(1, {"step": 1})
    with pytest.raises(AttributeError, match="pickle"):
        store.save(2, {"step": lambda: 2})
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_checkpoints_are_put_aside_one_after_the_other(
    store: CheckpointStore, tmp_path: Path
) -> None:
    first, second = (store.save(step, {"step": step}) for step in (1, 2))
    second.write_bytes(b"")
    said: list[str] = []
    latest = store.load_latest(said.append)
    assert latest is not None
    assert latest.path == first
    first.write_bytes(b"not a zip file")
    assert store.load_latest(said.append) is None
    assert [line.split(" is ")[0] for line in said] == [
        f"checkpoint {second.name}",
        f"checkpoint {first.name}",
    ]
    assert {path.suffix for path in tmp_path.iterdir()} == {".damaged"}


def test_a_file_with_random_damage_is_either_refused_or_read_as_it_was_saved(
    store: CheckpointStore, tmp_path: Path
) -> None:
    weights = torch.arange(200)
    good = store.save(1, {"weights": weights}).read_bytes()
    bad = tmp_path / "bad"
    rng = random.Random(0)
    refused = 0
    for _ in range(500):
        content = bytearray(good)
        if rng.random() < 0.3:
            del content[rng.randrange(len(content)) :]
        else:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        bad.write_bytes(content)
        try:
            state = read_checkpoint(bad)
        except DamagedCheckpointError:
            refused += 1
        else:
            assert torch.equal(state["weights"], weights)
    assert refused > 250


def test_fewer_than_two_kept_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        CheckpointStore(tmp_path, keep=1)
