"""Programs of nobody's job on the GPUs: what they are taken for, and which job waits for them."""

import os
import pwd
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gpu_scene import CARD, LONG, gpu_of, program_of_somebody, reason, scene, settle, settle_now
from harness import Daemon, eventually
from traind.config import GpuSettings
from traind.dispatcher.processes import container_of, face_of, program
from traind.gpu import Gpu, GpuProcess, GpuReading, Stranger, StrangerKind
from traind.gpus.strangers import Conduct, beside, kind_of, may_return, obstacle, watched, whose

ME = pwd.getpwuid(os.getuid()).pw_name


def on_gpu(pid: int, memory_mib: int, **facts: Any) -> dict[str, Any]:
    """A GPU on which the process holds so much."""
    kind = facts.pop("kind", "compute")
    return {"processes": [{"pid": pid, "memory_mib": memory_mib, "kind": kind}], **facts}


def foreign(daemon: Daemon, index: int = 0) -> list[dict[str, Any]]:
    """The strangers that a GPU is said to have, once their accounts are known."""

    def told() -> list[dict[str, Any]] | None:
        found: list[dict[str, Any]] = daemon.ask("GET", "/v1/gpus").json["gpus"][index]["foreign"]
        return found if all(each["user"] for each in found) else None

    return eventually(told, what="strangers by name")


def test_a_job_that_waits_for_a_strangers_program_says_whose_it_is(
    gpu_daemon: Daemon, stranger: int
) -> None:
    scene(gpu_daemon, on_gpu(stranger, 20480), {})
    daemon = gpu_daemon.start()
    number = daemon.submit("true", gpus=2)
    told = f"process {stranger} of {ME} (sleep 600) holds 20 GiB and is of no job"
    eventually(lambda: told in reason(daemon, number, "gpu_foreign"), what=told)
    (seen,) = foreign(daemon)
    assert (seen["pid"], seen["memory_mib"], seen["activity"]) == (stranger, 20480, "training")
    assert (seen["user"], seen["command"], seen["container"]) == (ME, "sleep 600", None)
    assert f"{ME} sleep 600 pid {stranger} 20 GiB" in daemon.cli("gpus").out
    assert told in daemon.cli("why", str(number)).out
    beside_it = daemon.submit("true", gpus=1, gpu_ids=[0], gpu_memory="2GiB")
    daemon.wait(beside_it, outcome="succeeded")
    too_big = daemon.submit("true", gpus=1, gpu_ids=[0], gpu_memory="10GiB")
    sentence = reason(daemon, too_big, "gpu_foreign")
    assert "holds 20 GiB" in sentence
    scene(daemon, {}, {})
    daemon.wait(number, outcome="succeeded")
    daemon.wait(too_big, outcome="succeeded")


def test_what_a_stranger_holds_is_not_given_out_and_a_job_beside_it_says_so(
    gpu_daemon: Daemon, stranger: int
) -> None:
    scene(gpu_daemon, on_gpu(stranger, 10240), {})
    daemon = gpu_daemon.start()
    first = daemon.submit(LONG, gpus=1, gpu_ids=[0], gpu_memory="4GiB")
    daemon.wait(first, "running")
    second = daemon.submit("true", gpus=1, gpu_ids=[0], gpu_memory="12GiB")
    told = f"left, as process {stranger} of {ME} (sleep 600) holds 10 GiB"
    eventually(lambda: told in reason(daemon, second, "resources"), what=told)
    scene(daemon, {}, {})
    daemon.wait(second, outcome="succeeded")


def test_a_desktop_never_keeps_a_job_away(gpu_daemon: Daemon, stranger: int) -> None:
    scene(gpu_daemon, on_gpu(stranger, 3000, kind="graphics", busy_pct=30), {})
    daemon = gpu_daemon.start()
    daemon.wait(daemon.submit("true", gpus=1, gpu_ids=[0]), outcome="succeeded")
    (seen,) = foreign(daemon)
    assert (seen["activity"], seen["kind"]) == ("display", "graphics")


def test_a_small_program_keeps_a_job_away_until_it_was_idle_for_long(
    gpu_daemon: Daemon, stranger: int
) -> None:
    scene(gpu_daemon, on_gpu(stranger, 400), {})
    daemon = gpu_daemon.start()
    number = daemon.submit("true", gpus=1, gpu_ids=[0])
    eventually(
        lambda: (
            "holds 400 MiB, and has not been idle for 30m" in reason(daemon, number, "gpu_foreign")
        ),
        what="the reason",
    )
    settle_now(daemon, foreign_idle="0s")
    daemon.wait(number, outcome="succeeded")
    eventually(lambda: foreign(daemon)[0]["activity"] == "idle", what="an idle program")
    assert "(idle)" in daemon.cli("gpus").out


def test_a_small_program_that_keeps_the_gpu_busy_keeps_a_job_away(
    gpu_daemon: Daemon, stranger: int
) -> None:
    settle(gpu_daemon, foreign_idle="0s")
    scene(gpu_daemon, on_gpu(stranger, 400, busy_pct=60), {})
    daemon = gpu_daemon.start()
    number = daemon.submit("true", gpus=1, gpu_ids=[0])
    assert "holds 400 MiB" in reason(daemon, number, "gpu_foreign")
    scene(daemon, on_gpu(stranger, 400, busy_pct=1), {})
    daemon.wait(number, outcome="succeeded")


def test_a_gpu_on_which_a_stranger_trained_is_kept_for_a_while_after_its_end(
    gpu_daemon: Daemon, stranger: int
) -> None:
    settle(gpu_daemon, foreign_gone="1h")
    scene(gpu_daemon, on_gpu(stranger, 20480), {})
    daemon = gpu_daemon.start()
    number = daemon.submit("true", gpus=1, gpu_ids=[0])
    reason(daemon, number, "gpu_foreign")
    scene(daemon, {}, {})
    eventually(
        lambda: (
            "UTC; the GPU is given out when nothing came back for 1h"
            in reason(daemon, number, "gpu_foreign")
        ),
        what="the end of the stranger",
    )
    daemon.wait(daemon.submit("true", gpus=1, gpu_ids=[0], gpu_memory="20GiB"), outcome="succeeded")
    settle_now(daemon, foreign_gone="0s")
    daemon.wait(number, outcome="succeeded")


def test_a_program_of_a_job_on_a_gpu_that_it_was_not_given_is_told_as_its(
    gpu_daemon: Daemon,
) -> None:
    daemon = gpu_daemon.start()
    number = daemon.submit(f"exec {LONG}", gpus=1, gpu_ids=[0])
    on_cpu = daemon.submit(f"exec {LONG}")
    daemon.wait(number, "running")
    daemon.wait(on_cpu, "running")
    assert gpu_of(daemon.job(number)) == [0]
    pids = [daemon.main_pid(number), daemon.main_pid(on_cpu)]
    both = [{"pid": pid, "memory_mib": 900} for pid in pids]
    scene(daemon, {}, {"processes": both})
    eventually(lambda: len(foreign(daemon, 1)) == 2, what="both of them")
    waits = daemon.submit("true", gpus=1, gpu_ids=[1])
    for job, pid in zip((number, on_cpu), pids, strict=True):
        told = f"process {pid} of job {job} (sleep 600) holds 900 MiB"
        eventually(lambda told=told: told in reason(daemon, waits, "gpu_foreign"), what=told)
    assert {each["job_id"] for each in foreign(daemon, 1)} == {number, on_cpu}
    assert f"job {on_cpu} sleep 600 pid {pids[1]} 900 MiB" in daemon.cli("gpus").out
    scene(daemon, {}, {})
    daemon.wait(waits, outcome="succeeded")


# What a process is taken for, pure

NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)
SETTINGS = GpuSettings()
GPU = Gpu(uuid="GPU-a", index=0, name="RTX", memory_mib=CARD, reserved_mib=0)


def compute(memory_mib: int | None, pid: int = 7) -> GpuProcess:
    return GpuProcess(pid=pid, memory_mib=memory_mib, kind="compute")


def judged(
    *readings: tuple[int, int | None, int | None], alone: bool = True, drawn_on: bool = False
) -> StrangerKind:
    """What it is taken for after readings: minute, MiB, and how busy the GPU was then."""
    conduct: Conduct | None = None
    kind = StrangerKind.DISPLAY
    for minute, memory_mib, busy_pct in readings:
        process, now = compute(memory_mib), NOW + timedelta(minutes=minute)
        screen = (GpuProcess(pid=9, memory_mib=100, kind="graphics"),) if drawn_on else ()
        reading = GpuReading(gpu=GPU, used_mib=900, processes=(process, *screen), busy_pct=busy_pct)
        conduct = watched(conduct, process, reading, alone=alone, settings=SETTINGS, now=now)
        kind = kind_of(process, conduct, settings=SETTINGS, now=now)
    return kind


@pytest.mark.parametrize(
    ("readings", "facts", "kind"),
    [
        ([(0, 700, 0)], {}, "training"),
        ([(0, 700, 0), (29, 700, 1)], {}, "training"),
        ([(0, 700, 0), (30, 700, 1)], {}, "idle"),
        ([(0, 700, 0), (30, 701, 1)], {}, "training"),
        ([(0, 700, 0), (30, None, 1)], {}, "training"),
        ([(0, 700, 0), (20, 700, 2), (49, 700, 0)], {}, "training"),
        ([(0, 700, 0), (20, 700, 2), (50, 700, 0)], {}, "idle"),
        ([(0, 700, None), (30, 700, None)], {}, "idle"),
        ([(0, 700, 90), (30, 700, 90)], {"alone": False}, "idle"),
        ([(0, 700, 90), (30, 700, 90)], {"drawn_on": True}, "idle"),
    ],
)
def test_idle_is_who_held_little_and_did_nothing_for_half_an_hour(
    readings: list[tuple[int, int | None, int | None]], facts: dict[str, bool], kind: str
) -> None:
    assert judged(*readings, **facts) == kind


def somebody(pid: int, memory_mib: int, **facts: Any) -> Stranger:
    known = {"gpu_uuid": "GPU-a", "started": 1, "kind": StrangerKind.TRAINING, "since": NOW}
    return Stranger(**{**known, "pid": pid, "memory_mib": memory_mib, **facts})


def test_a_stranger_is_named_by_what_is_known_of_it() -> None:
    assert whose(somebody(7, 1)) == "process 7"
    assert whose(somebody(7, 1, uid=1001)) == "process 7 of uid 1001"
    full = somebody(7, 1, uid=1001, user="bob", command="python", container="3f2a1b0c9d8e")
    assert whose(full) == "process 7 of bob (python, container 3f2a1b0c9d8e)"
    assert whose(somebody(7, 1, user="bob", job_id=41)) == "process 7 of job 41"


def test_only_what_trains_and_is_not_let_be_is_in_the_way() -> None:
    idle, drawing = StrangerKind.IDLE, StrangerKind.DISPLAY
    harmless = [somebody(1, 500, kind=idle), somebody(2, 9000, kind=drawing)]
    assert obstacle(GPU, [*harmless, somebody(3, 9000, ignored=True)], SETTINGS) is None
    several = [*harmless, *(somebody(pid, 1024 * pid) for pid in range(3, 8))]
    assert obstacle(GPU, several, SETTINGS) == (
        "GPU 0 (RTX): process 7 holds 7 GiB, process 6 holds 6 GiB, process 5 holds 5 GiB, "
        "2 more hold the rest"
    )
    assert beside(harmless) == "process 2 holds 8.79 GiB, process 1 holds 500 MiB"
    assert beside([somebody(3, 9000, gone_at=NOW)]) is None


def test_who_trained_may_return_and_who_only_looked_in_does_not() -> None:
    gone, minute = somebody(7, 9000, gone_at=NOW), timedelta(minutes=1)
    busy, quiet = Conduct(since=NOW, worked_at=NOW), Conduct(since=NOW)
    soon, late = NOW + timedelta(seconds=59), NOW + minute
    assert may_return(gone, busy, patience=minute, now=soon)
    assert not may_return(gone, busy, patience=minute, now=late)
    assert not may_return(gone, quiet, patience=minute, now=soon)
    container = somebody(7, 9000, gone_at=NOW, during_job=41)
    assert not may_return(container, busy, patience=minute, now=soon)
    there = somebody(7, 9000)
    assert not may_return(there, busy, patience=minute, now=soon)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["/usr/bin/python3", "train.py", "--lr", "1"], "python3 train.py"),
        (["python", "-u", "/home/bob/train.py"], "python train.py"),
        (["python", "-m", "torch.distributed.run", "x.py"], "python -m torch.distributed.run"),
        (["python", "-c", "import secret"], "python"),
        (["sshd: bob [priv]"], "sshd"),
        (["/opt/a b/run\x07", "x" * 90], "a " + "x" * 57 + "…"),
        ([""], None),
        (["  "], None),
        ([], None),
    ],
)
def test_a_command_is_told_without_its_arguments(words: list[str], told: str | None) -> None:
    assert program(words) == told


@pytest.mark.parametrize(
    ("cgroups", "told"),
    [
        ("0::/system.slice/docker-{id}.scope\n", True),
        ("12:memory:/docker/{id}\n0::/\n", True),
        ("0::/machine.slice/libpod-{id}.scope/container\n", True),
        ("0::/kubepods.slice/kubepods-pod9/cri-containerd-{id}.scope\n", True),
        ("0::/user.slice/user-1000.slice/session-2.scope\n", False),
        ("0::/x/{id}0/y\n", False),
    ],
)
def test_a_container_is_told_by_its_short_id(cgroups: str, told: bool) -> None:
    identity = "3f2a1b0c9d8e" + "0" * 52
    assert container_of(cgroups.format(id=identity)) == ("3f2a1b0c9d8e" if told else None)


def test_a_process_that_is_gone_shows_no_face(stranger: int) -> None:
    face = face_of(stranger)
    assert face is not None
    assert (face.uid, face.command) == (os.getuid(), "sleep 600")
    with program_of_somebody() as pid:
        pass
    assert face_of(pid) is None
