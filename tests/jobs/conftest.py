"""What the tests of the example jobs share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# A job finds jobkit beside its script. The tests are elsewhere.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "jobs"))

from job_process import Job


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    job = Job(tmp_path / "job")
    yield job
    job.kill_all()
