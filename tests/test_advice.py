"""What an order should ask for next time: only where figures support it, and where it is seen."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from contract import CheckedDaemon
from gpu_scene import describe
from harness import SHORT, daemon_in, eventually
from traind.advice import advice_on
from traind.causes import Cause, CauseCode
from traind.job import GpuUse, Job, Lease, Outcome
from traind.jobspec import read_spec
from traind.lifecycle import submitted

NOW = datetime(2030, 1, 1, tzinfo=UTC)
HALF_BUSY = {"memory_mib": 24576, "busy_pct": 60}
GIB = 1024


def lease(index: int, gib: float, *, exclusive: bool, busiest: float | None) -> Lease:
    return Lease(
        gpu_uuid=f"GPU-{index}",
        gpu_index=index,
        gpu_name="A",
        memory_mib=int(gib * GIB),
        exclusive=exclusive,
        baseline_mib=0,
        busiest_pct=busiest,
    )


def job(
    *busiest: float | None,
    peak: float | None = 23,
    had: float = 24,
    busy: float | None = 90,
    cpu_pct: float | None = 100,
    samples: int = 24,
    **order: Any,
) -> Job:
    """A job that succeeded on one GPU for each figure of `busiest`, which it had to itself unless
    it declared memory; sizes in GiB.
    """
    spec = read_spec({"command": "true", "gpus": len(busiest), **order})
    alone = spec.gpu_memory_mib is None
    leases = [lease(i, had, exclusive=alone, busiest=pct) for i, pct in enumerate(busiest)]
    return replace(
        submitted(7, spec, user="alice", uid=1001, now=NOW),
        outcome=Outcome.SUCCEEDED,
        cause=Cause(code=CauseCode.EXIT_CODE, detail="it exited with code 0"),
        leases=tuple(leases),
        gpu_use=GpuUse(
            peak_memory_mib=None if peak is None else int(peak * GIB), mean_busy_pct=busy
        ),
        mean_cpu_pct=cpu_pct,
        samples=samples,
    )


def ended_by(known: Job, code: CauseCode, **facts: Any) -> Job:
    cause = Cause(code=code, detail="why")
    return replace(known, outcome=Outcome.OUT_OF_MEMORY, cause=cause, **facts)


UNUSED = "its GPU was never busy: next time without --gpus, or see why it did not use them"
LOADER = "what loads its data is the bottleneck"
ROOMY = "peak 9.2 GiB of 24 GiB: next time --gpu-mem 11G, and others can share its GPU"


@pytest.mark.parametrize(
    ("known", "advice"),
    [
        (job(95, peak=9.2), [ROOMY]),
        (job(95, 90, peak=9.2), [ROOMY]),
        (
            job(95, peak=3, had=10, gpu_memory="10GiB"),
            ["peak 3 GiB of 10 GiB: next time --gpu-mem 4G"],
        ),
        (job(95, peak=9.2, samples=23), []),
        (job(95, peak=9.2, exclusive=True), []),
        (job(95, peak=18.1), []),
        (job(95, peak=0.7, had=1, gpu_memory="1GiB"), []),
        (job(95, peak=None), []),
        (job(), []),
        (job(None), []),
        (job(0), [UNUSED]),
        (job(95, 0, 0), ["GPUs 1, 2 were never busy: next time --gpus 1"]),
        (job(95, 0), ["GPU 1 was never busy: next time --gpus 1"]),
        (job(0, had=24, gpu_memory="23GiB"), []),
        (
            job(95, busy=30, cpu_pct=700),
            [f"its GPU was busy 30 %, its CPUs full (7.0 of 8): {LOADER}"],
        ),
        (
            job(95, 95, busy=30, cpu_pct=190, cpus=2),
            [f"its GPUs were busy 30 %, its CPUs full (1.9 of 2): {LOADER}; more --cpus may help"],
        ),
        (job(95, busy=30, cpu_pct=670), []),
        (job(95, busy=50, cpu_pct=800), []),
        (job(95, busy=None, cpu_pct=None), []),
        (replace(job(95, peak=9), outcome=Outcome.FAILED), []),
        (
            ended_by(
                job(9, had=10, peak=9, gpu_memory="10GiB", samples=0), CauseCode.CUDA_OOM_SELF
            ),
            ["it had asked for 10 GiB of the GPU: next time --gpu-mem 13G"],
        ),
        (
            ended_by(job(9, had=10, peak=12, gpu_memory="10GiB"), CauseCode.CUDA_OOM_SELF),
            ["it had asked for 10 GiB of the GPU: next time --gpu-mem 15G"],
        ),
        (
            ended_by(job(9), CauseCode.CUDA_OOM_SELF),
            ["it had all 24 GiB of the GPU: a smaller batch, or --gpu-min-memory for a larger one"],
        ),
        (ended_by(job(9), CauseCode.CUDA_OOM_NEIGHBOUR), []),
        (
            ended_by(job(memory="16GiB"), CauseCode.HOST_OOM, peak_memory_mib=15000),
            ["it had asked for 16 GiB of the host's memory: next time --mem 24G"],
        ),
        (
            ended_by(job(), CauseCode.HOST_OOM, peak_memory_mib=15000),
            ["it had not asked for any of the host's memory: next time --mem 22G"],
        ),
        (ended_by(job(), CauseCode.HOST_OOM), []),
    ],
)
def test_advice_is_given_where_figures_support_it(known: Job, advice: list[str]) -> None:
    assert advice_on(known, cores=8) == advice


@pytest.fixture
def box(tmp_path: Path) -> Iterator[CheckedDaemon]:
    """A daemon that samples often; its GPU is half busy, and has what its processes are said to."""
    config = SHORT.replace('sample_busy = "1s"', 'sample_busy = "20ms"')
    with daemon_in(tmp_path, CheckedDaemon, config=config) as daemon:
        daemon.simulate = str(describe(daemon.home / "gpus.json", HALF_BUSY, job_memory="none"))
        yield daemon.start()


def test_a_job_that_left_most_of_its_gpu_unused_is_told_so_wherever_its_end_is_seen(
    box: CheckedDaemon,
) -> None:
    go = box.home / "go"
    number = box.submit(f"until [ -e {go} ]; do sleep 0.05; done", gpus=1)
    box.wait(number, "running")
    own = {"pid": box.main_pid(number), "memory_mib": 9421}
    describe(box.home / "gpus.json", HALF_BUSY | {"processes": [own]}, job_memory="none")

    def known() -> bool:
        path = f"/v1/jobs/{number}/samples?limit=1000"
        enough = len(box.ask("GET", path).json["samples"]) > 24
        return enough and box.job(number)["peak_gpu_memory_mib"] == 9421

    eventually(known, what="samples")
    assert box.job(number)["advice"] == [], "it is not over"
    go.touch()
    ended = box.wait(number, outcome="succeeded")
    assert ended["mean_cpu_pct"] is not None
    (advice,) = ended["advice"]
    assert advice == ROOMY
    assert f" {advice}\n" in box.cli("show", str(number)).out
    assert box.cli("wait", str(number)).err == f"traind: job {number}: {advice}\n"
