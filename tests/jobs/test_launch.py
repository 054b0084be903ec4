"""The launcher with scripts that are too small to need torch."""

from __future__ import annotations

import pytest
from job_process import DEADLINE_S, ROOT, Job, catches_sigterm, wait_until

pytestmark = pytest.mark.timeout(1200)
LAUNCH = str(ROOT / "jobs" / "launch.py")
CHECKPOINTED = 75

ENTER = "Path(f'rank-{rank}').touch()"
IGNORE_SIGTERM = f"signal.signal(signal.SIGTERM, signal.SIG_IGN); {ENTER}"
ANSWER_SIGTERM = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))"
WAIT_FOR_SIGTERM = f"{ANSWER_SIGTERM}; {ENTER}; time.sleep(600)"
WAIT_FOR_RANK_1 = "[time.sleep(0.01) for _ in iter(Path('rank-1').exists, True)]"


def script_of(job: Job, rank_0: str, rank_1: str) -> list[str]:
    """The command line of a launch of two ranks that do this."""
    script = job.directory / "script.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "rank = os.environ['RANK']\n"
        f"if rank == '0': {rank_0}\n"
        f"else: {rank_1}\n"
    )
    return [LAUNCH, "--nproc-per-node", "2", str(script)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank_0", "rank_1", "code"),
    [
        (f"{WAIT_FOR_RANK_1}; sys.exit(75)", f"{IGNORE_SIGTERM}; sys.exit(0)", 1),
        (WAIT_FOR_SIGTERM, "sys.exit(3)", 3),
        (WAIT_FOR_SIGTERM, "os.kill(os.getpid(), signal.SIGKILL)", 137),
    ],
    ids=["the other finished", "the other failed", "the other was killed"],
)
def test_75_from_one_rank_alone_is_not_passed_on(
    job: Job, rank_0: str, rank_1: str, code: int
) -> None:
    process = job.start(*script_of(job, rank_0, rank_1))
    assert process.wait(DEADLINE_S) == code, job.log()


@pytest.mark.slow
def test_sigterm_reaches_every_rank_however_often_it_comes(job: Job) -> None:
    process = job.start(*script_of(job, WAIT_FOR_SIGTERM, WAIT_FOR_SIGTERM))
    ranks = [job.directory / "rank-0", job.directory / "rank-1"]
    wait_until(lambda: all(rank.exists() for rank in ranks), "the start of both ranks")
    for _ in range(3):
        process.terminate()
    assert process.wait(DEADLINE_S) == CHECKPOINTED, job.log()
    assert "Traceback" not in job.log()
    assert "FAILED" not in job.log()


@pytest.mark.slow
def test_sigterm_before_there_are_ranks_keeps_the_script_from_running(job: Job) -> None:
    process = job.start_held("torch", *script_of(job, ENTER, ENTER))
    wait_until(lambda: catches_sigterm(process.pid), "the handler")
    process.terminate()
    job.gate.touch()
    assert process.wait(DEADLINE_S) == CHECKPOINTED, job.log()
    assert not list(job.directory.glob("rank-*"))


@pytest.mark.slow
@pytest.mark.parametrize("options", ["--no-python true", "--max-restarts 3 script.py"])
def test_other_programs_and_restarts_are_refused(job: Job, options: str) -> None:
    assert job.run(LAUNCH, *options.split()) == 2
    assert "runs Python scripts only, and only once" in job.log()
