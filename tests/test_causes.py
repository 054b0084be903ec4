"""Of what jobs died, found out by the real daemon: by their logs, and by who else was there."""

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from contract import CheckedDaemon
from gpu_scene import LONG, gpu_of, running, scene
from harness import Daemon, daemon_in, eventually
from traind.causes import CauseCode
from traind.job import Exit, JobState, StopReason
from traind.jobspec import JobSpec
from traind.lifecycle import stop_order, submitted
from traind.verdict import GpuEvidence, judge
from traind.verdict import Testimony as Said  # by its own name pytest takes it for a test

Json = dict[str, Any]

GIB = "GiB memory in use."


def message(
    *others: tuple[int, float], wanted: float = 2, own: float = 1, free: float = 0.1
) -> str:
    """What PyTorch says on the only GPU that it sees."""
    told = " ".join(f"Process {pid} has {gib:.2f} {GIB}" for pid, gib in others)
    return (
        f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {wanted:.2f} GiB. GPU 0 "
        f"has a total capacity of 23.64 GiB of which {free:.2f} GiB is free. {told} Including "
        f"non-PyTorch memory, this process has {own:.2f} {GIB}"
    )


def dies(daemon: Daemon, text: str, *, code: int = 1) -> str:
    """A command that waits for `go` at home, says this and ends; in later attempts it does well."""
    said = daemon.home / f"said-{len(os.listdir(daemon.home))}"
    said.write_text(text + "\n")
    wait = f"until [ -e {daemon.home}/go ]; do sleep 0.05; done"
    return f"[ $TRAIND_ATTEMPT = 1 ] || exit 0; {wait}; cat {said} >&2; exit {code}"


def go(daemon: Daemon) -> None:
    """Let what waits for it die."""
    (daemon.home / "go").touch()


def first_end(daemon: Daemon, number: int) -> Json:
    """How the first attempt of a job ended."""
    attempts: list[Json] = daemon.ask("GET", f"/v1/jobs/{number}/attempts").json["attempts"]
    return attempts[0]


def stranger_seen(daemon: Daemon, index: int) -> None:
    """Wait until a process of no job was read on a GPU."""

    def seen() -> list[Json]:
        found: list[Json] = daemon.ask("GET", "/v1/gpus").json["gpus"][index]["foreign"]
        return found

    eventually(seen, what="the stranger")


def known(daemon: Daemon, memory_mib: int) -> None:
    """Wait until it was read what the only job on GPU 0 holds there, and then read once more: by
    then it is known of all its processes whose they are.
    """

    def gpus() -> Json:
        found: Json = daemon.ask("GET", "/v1/gpus").json
        return found

    def held() -> bool:
        return [one["observed_mib"] for one in gpus()["gpus"][0]["leases"]] == [memory_mib]

    eventually(held, what="its memory")
    before = gpus()["read_at"]
    eventually(lambda: gpus()["read_at"] != before, what="another reading")


NOW = datetime(2030, 1, 1, tzinfo=UTC)
JOB = replace(
    submitted(7, JobSpec(command="true"), user="alice", uid=1001, now=NOW),
    state=JobState.RUNNING,
    attempt=1,
)
SAID = Said(code=CauseCode.PORT_IN_USE, sentence="a port was taken")
FAULT = GpuEvidence(fault="GPU 0 had XID 79", faulty=frozenset({"GPU-0"}))
MISUSE = GpuEvidence(misuse="GPU 0 had XID 31")


def ending(code: int = 1, *, killed: int = 0) -> Exit:
    return Exit(exit_code=code, ended_at=NOW, run_s=1.0, oom_kills=killed)


@pytest.mark.parametrize(
    ("end", "gpus", "said", "code"),
    [
        (ending(), GpuEvidence(), SAID, "port_in_use"),
        (ending(), GpuEvidence(), None, "exit_code"),
        (ending(), MISUSE, SAID, "cuda_app_bug"),
        (ending(), FAULT, SAID, "gpu_fault"),
        (ending(killed=1), GpuEvidence(), SAID, "host_oom"),
        (ending(0, killed=1), GpuEvidence(), SAID, "exit_code"),
        (ending(75, killed=1), GpuEvidence(), SAID, "checkpointed"),
        (ending(127), GpuEvidence(), SAID, "command_not_found"),
    ],
)
def test_the_surer_evidence_outweighs_the_log(
    end: Exit, gpus: GpuEvidence, said: Said | None, code: str
) -> None:
    verdict = judge(JOB, end, gpus, said)
    assert verdict.cause.code == code
    assert verdict.exit_code == end.exit_code
    for kind in StopReason:
        if kind is not StopReason.GPU_FAULT or code != "gpu_fault":
            order = stop_order(
                JOB.spec, kind, by="bob", now=NOW, grace=timedelta(0), lead=timedelta(0)
            )
            ordered = judge(replace(JOB, stop=order), end, gpus, said)
            assert ordered.cause.code != code or end.exit_code == 75


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CheckedDaemon]:
    """A daemon that the tests here share; its GPUs have nothing to do with what jobs die of."""
    with daemon_in(tmp_path_factory.mktemp("desk"), CheckedDaemon) as daemon:
        daemon.start()
        go(daemon)
        yield daemon


@pytest.mark.parametrize(
    ("text", "outcome", "code", "said"),
    [
        ("ModuleNotFoundError: No module named 'torhc'", "failed", "missing_module", "'torhc'"),
        ("KeyError: 'lr'", "failed", "python_error", "KeyError: 'lr'"),
        ("MemoryError", "out_of_memory", "host_oom", "host's memory"),
        ("OSError: [Errno 28] No space left on device: '/x'", "failed", "disk_full", "'/x'"),
        ("RuntimeError: No CUDA GPUs are available", "failed", "cuda_setup", "asked for no GPU"),
        (message(), "out_of_memory", "cuda_oom_self", "wanted 2 GiB more, 103 MiB were free"),
        ("X: CUDA error: device-side assert triggered", "failed", "cuda_app_bug", "device-side"),
    ],
)
def test_the_log_says_of_what_a_job_died(
    desk: CheckedDaemon, text: str, outcome: str, code: str, said: str
) -> None:
    trace = 'Traceback (most recent call last):\n  File "train.py", line 3, in <module>\n'
    number = desk.submit(dies(desk, trace + text, code=3))
    ended = desk.wait(number, outcome=outcome, exit_code=3, attempt=1)
    assert ended["cause"]["code"] == code
    assert said in ended["cause"]["detail"]
    assert ended["cause"]["detail"].endswith("; it exited with code 3")
    assert ended["cause"]["detail"] in desk.ask("GET", f"/v1/jobs/{number}/why").json["detail"]
    assert ended["cause"]["detail"] in desk.cli("show", str(number)).out
    assert ended["cause"]["detail"] not in desk.log.read_text()


def test_a_job_that_waits_again_is_shown_with_what_ended_it(desk: CheckedDaemon) -> None:
    text = "OSError: [Errno 28] No space left on device: '/x'"
    number = desk.submit(dies(desk, text), retry={"max": 1, "delay": "1h"})
    desk.wait(number, "queued", attempt=1)
    shown = desk.cli("show", str(number)).out
    assert "a disk was full" in next(line for line in shown.splitlines() if "last attempt" in line)


def test_a_success_is_one_whatever_its_log_says(desk: CheckedDaemon) -> None:
    number = desk.submit(dies(desk, "CUDA out of memory", code=0))
    assert desk.wait(number, outcome="succeeded")["cause"]["code"] == "exit_code"


def test_what_somebody_did_to_a_job_outweighs_its_log(desk: CheckedDaemon) -> None:
    number = desk.submit(f"echo CUDA out of memory; {LONG}")
    eventually(lambda: desk.log_of(number), what="its log")
    desk.ask("DELETE", f"/v1/jobs/{number}?now=1")
    assert desk.wait(number, outcome="cancelled")["cause"]["code"] == "cancelled_by"


def test_a_signal_that_the_log_explains(desk: CheckedDaemon) -> None:
    number = desk.submit("echo Watchdog caught collective operation timeout; kill -ABRT $$")
    ended = desk.wait(number, outcome="failed", signal="ABRT")
    assert ended["cause"]["code"] == "nccl_timeout"
    assert "SIGABRT" in ended["cause"]["detail"]


def test_sigkill_that_nobody_explains_names_what_it_may_have_been(desk: CheckedDaemon) -> None:
    ended = desk.wait(desk.submit("kill -KILL $$"), outcome="failed", signal="KILL")
    assert ended["cause"]["code"] == "signal"
    assert "want of host memory" in ended["cause"]["detail"]


def test_what_a_log_holds_cannot_steer_who_reads_the_cause(desk: CheckedDaemon) -> None:
    trace = 'Traceback (most recent call last):\n  File "a"\nValueError: \x1b]0;x\x07\u202e\x9b'
    number = desk.submit(dies(desk, trace + "y" * 9000))
    detail = desk.wait(number, outcome="failed")["cause"]["detail"]
    assert detail.isprintable()
    assert detail.startswith("ValueError: ]0;x y")
    assert len(detail) < 300


def test_what_a_job_put_into_the_place_of_its_log_says_nothing(desk: CheckedDaemon) -> None:
    place = "$TRAIND_RUN_DIR/../log"
    number = desk.submit(f"echo CUDA out of memory; rm {place}; mkfifo {place}; exit 3")
    assert desk.wait(number, exit_code=3)["cause"]["code"] == "exit_code"


def test_only_the_end_of_a_long_log_counts(desk: CheckedDaemon) -> None:
    number = desk.submit("echo CUDA out of memory; head -c 1000000 /dev/zero; exit 3")
    assert desk.wait(number, outcome="failed")["cause"]["code"] == "exit_code"


def test_a_neighbours_memory_sends_the_job_to_another_gpu_free_of_charge(
    gpu_daemon: CheckedDaemon,
) -> None:
    daemon = gpu_daemon.start()
    stranger = os.getpid()
    text = message((stranger, 20))
    number = daemon.submit(dies(daemon, text), gpus=1, gpu_memory="10GiB", gpu_ids=[0, 1])
    daemon.wait(number, "running")
    (index,) = gpu_of(daemon.job(number))
    taken: Json = {"processes": [{"pid": stranger, "memory_mib": 20480}]}
    scene(daemon, *(taken if place == index else {} for place in (0, 1)))
    stranger_seen(daemon, index)
    go(daemon)
    ended = daemon.wait(number, outcome="succeeded", attempt=2)
    assert gpu_of(ended) == [1 - index]
    first = first_end(daemon, number)
    assert first["outcome"] == "out_of_memory"
    assert first["cause"]["code"] == "cuda_oom_neighbour"
    owner = Path("/proc/self").owner()
    assert f"pid {stranger} of {owner} held 20 GiB" in first["cause"]["detail"]
    assert f"on GPU {index}" in first["cause"]["detail"]


def test_a_job_that_took_more_than_its_share_is_not_run_again(gpu_daemon: CheckedDaemon) -> None:
    daemon = gpu_daemon.start()
    beside, pid = running(daemon, gpu_memory="8GiB", gpu_ids=[0])
    known(daemon, 8192)
    text = message((pid, 8), own=9)
    number = daemon.submit(dies(daemon, text), gpus=1, gpu_memory="10GiB", gpu_ids=[0])
    daemon.wait(number, "running")
    go(daemon)
    ended = daemon.wait(number, outcome="out_of_memory", attempt=1)
    assert ended["cause"]["code"] == "cuda_oom_self"
    assert f"(job {beside}) held 8 GiB" in ended["cause"]["detail"]
    assert "it held 9 GiB itself" in ended["cause"]["detail"]


def test_a_log_alone_accuses_nobody(gpu_daemon: CheckedDaemon) -> None:
    daemon = gpu_daemon.start()
    number = daemon.submit(dies(daemon, message((1, 20))), gpus=1, gpu_memory="10GiB")
    daemon.wait(number, "running")
    go(daemon)
    ended = daemon.wait(number, outcome="out_of_memory", attempt=1)
    assert ended["cause"]["code"] == "cuda_oom_self"
    assert "pid 1 " not in ended["cause"]["detail"]


def test_an_older_message_is_explained_by_who_was_there(gpu_daemon: CheckedDaemon) -> None:
    daemon = gpu_daemon.start()
    beside, _ = running(daemon, gpu_memory="12GiB", gpu_ids=[0])
    known(daemon, 12288)
    text = (
        "RuntimeError: CUDA out of memory. Tried to allocate 4.00 GiB (GPU 0; 23.69 GiB total "
        "capacity; 0.40 GiB already allocated; 1.00 GiB free; 0.50 GiB reserved in total)"
    )
    number = daemon.submit(dies(daemon, text), gpus=1, gpu_memory="6GiB", gpu_ids=[0])
    daemon.wait(number, "running")
    go(daemon)
    first = eventually(lambda: (end := first_end(daemon, number))["cause"] and end, what="its end")
    assert f"of {daemon.job(beside)['user']} (job {beside}) held 12 GiB" in first["cause"]["detail"]


def test_a_taken_port_costs_the_job_nothing_and_the_next_attempt_has_another(
    gpu_daemon: CheckedDaemon,
) -> None:
    daemon = gpu_daemon.start()
    go(daemon)
    text = "OSError: [Errno 98] Address already in use"
    number = daemon.submit(f"echo $MASTER_PORT; {dies(daemon, text)}")
    daemon.wait(number, outcome="succeeded", attempt=2)
    assert first_end(daemon, number)["cause"]["code"] == "port_in_use"
    ports = [daemon.log_of(number, f"?attempt={one}").split()[0] for one in (1, 2)]
    assert ports[0] != ports[1]
