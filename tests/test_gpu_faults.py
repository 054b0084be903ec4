"""GPUs that fail under jobs: who is stopped, who is not, where they go on, what is said of it."""

import contextlib
import shutil
import sqlite3
import subprocess
from typing import Any

import pytest

from gpu_scene import LONG, attributed, closed, codes, gpu_of, health, reason, running, scene, xid
from harness import Daemon, alive, eventually


def test_xid_79_under_a_job_moves_it_to_another_gpu_and_leaves_the_neighbour_alone(
    gpu_daemon: Daemon,
) -> None:
    scene(gpu_daemon, {}, {}, {})
    daemon = gpu_daemon.start()
    struck, main = running(daemon, gpu_ids=[0, 2])
    neighbour, other = running(daemon, gpu_ids=[1])
    scene(daemon, xid(79), {}, {})
    moved = daemon.wait(struck, "running", attempt=2)
    assert gpu_of(moved) == [2]
    assert not alive(main)
    first = daemon.ask("GET", f"/v1/jobs/{struck}/attempts").json["attempts"][0]
    assert first["outcome"] == "gpu_fault"
    assert first["cause"]["code"] == "gpu_fault"
    assert "XID 79" in first["cause"]["detail"]
    assert "GPU 0" in first["cause"]["detail"]
    assert "XID 79" in closed(daemon, 0)
    assert "fallen off the bus" in health(daemon, 0)["sentence"]
    waiting = daemon.submit("true", gpus=1, gpu_ids=[0])
    assert "XID 79" in reason(daemon, waiting, "gpu_unhealthy")
    daemon.restart()
    assert "XID 79" in closed(daemon, 0)
    assert "XID 79" in reason(daemon, waiting, "gpu_unhealthy")
    assert daemon.job(struck)["attempt"] == 2
    assert daemon.job(neighbour)["attempt"] == 1
    assert alive(other)
    assert daemon.ask("PATCH", "/v1/gpus/0", {"clear": True}).status == 200
    daemon.wait(waiting, outcome="succeeded")
    daemon.restart()
    assert health(daemon, 0)["allocatable"], "what was told once is no event again"


def test_a_requeue_by_a_gpus_fault_is_free_of_charge_and_ends_after_the_allowed_times(
    gpu_daemon: Daemon,
) -> None:
    gpu_daemon.config += "\n[queue]\nfree_requeues = 1\nrequeue_delay = '100ms'\n"
    gpu_daemon.config = gpu_daemon.config.replace(
        '[queue]\nrequeue_delay = "100ms"\nlauncher_retry = "100ms"\n', ""
    )
    daemon = gpu_daemon.start()
    number, _ = running(daemon, retry={"max": 1, "on": ["failed"]})
    (first,) = gpu_of(daemon.job(number))
    scene(daemon, *(xid(79) if index == first else {} for index in (0, 1)))
    moved = daemon.wait(number, "running", attempt=2)
    assert gpu_of(moved) == [1 - first]
    scene(daemon, xid(79), xid(79))
    ended = daemon.wait(number, outcome="gpu_fault")
    assert ended["attempt"] == 2
    assert "XID 79" in ended["cause"]["detail"]


def test_a_job_that_wants_no_requeue_ends_with_the_gpu_it_ran_on(gpu_daemon: Daemon) -> None:
    daemon = gpu_daemon.start()
    number, _ = running(daemon, requeue=False, gpu_ids=[0])
    scene(daemon, {"lost": True}, {})
    ended = daemon.wait(number, outcome="gpu_fault")
    assert "fallen off the bus" in ended["cause"]["detail"]


def test_the_order_to_leave_a_gpu_survives_kill_9(gpu_daemon: Daemon) -> None:
    daemon = gpu_daemon.start()
    number, main = running(daemon, gpu_ids=[0])
    daemon.kill()
    scene(daemon, xid(79), {})
    assert alive(main)
    daemon.start()
    reason(daemon, number, "gpu_unhealthy")
    assert not alive(main)
    assert daemon.job(number)["cause"]["code"] == "gpu_fault"


def test_xid_31_fails_the_job_whose_fault_it_was_and_the_gpu_stays(gpu_daemon: Daemon) -> None:
    daemon = gpu_daemon.start()
    ready = daemon.home / "go"
    command = f"until [ -e {ready} ]; do sleep 0.05; done; exit 3"
    number = daemon.submit(command, gpus=1, gpu_ids=[0], gpu_memory="2GiB")
    beside = daemon.submit(f"exec {LONG}", gpus=1, gpu_ids=[0], gpu_memory="2GiB")
    daemon.wait(number, "running")
    daemon.wait(beside, "running")
    main = daemon.main_pid(number)
    scene(daemon, xid(31, pid=main), {})
    attributed(daemon, 31, number)
    ready.touch()
    ended = daemon.wait(number, outcome="failed")
    assert ended["exit_code"] == 3
    assert ended["cause"]["code"] == "cuda_app_bug"
    assert "XID 31" in ended["cause"]["detail"]
    assert "exited with code 3" in ended["cause"]["detail"]
    assert health(daemon, 0)["allocatable"]
    assert codes(daemon, 0) == []
    assert daemon.job(beside)["state"] == "running"


def test_a_program_that_lives_on_after_its_xid_has_not_failed(gpu_daemon: Daemon) -> None:
    daemon = gpu_daemon.start()
    ready = daemon.home / "go"
    number = daemon.submit(f"until [ -e {ready} ]; do sleep 0.05; done", gpus=1, gpu_ids=[0])
    daemon.wait(number, "running")
    scene(daemon, xid(43), {})
    ready.touch()
    daemon.wait(number, outcome="succeeded")


def test_a_contained_memory_error_costs_the_job_nothing_and_the_gpu_is_given_out_last(
    gpu_daemon: Daemon,
) -> None:
    daemon = gpu_daemon.start()
    ready = daemon.home / "go"
    command = f"[ $TRAIND_ATTEMPT = 2 ] || until [ -e {ready} ]; do sleep 0.05; done; "
    command += "[ $TRAIND_ATTEMPT = 2 ]"
    number = daemon.submit(command, gpus=1)
    daemon.wait(number, "running")
    scene(daemon, xid(94) | {"recovery_action": 0}, {"recovery_action": 0})
    ready.touch()
    ended = daemon.wait(number, outcome="succeeded")
    assert (ended["attempt"], gpu_of(ended)) == (2, [1])
    assert health(daemon, 0)["allocatable"]
    assert codes(daemon, 0) == ["xid_94"]
    eventually(lambda: held(daemon) == [0, 0], what="the release of both GPUs")
    running(daemon)
    assert held(daemon) == [0, 1]


def held(daemon: Daemon) -> list[int]:
    """How many leases each GPU has."""
    return [len(gpu["leases"]) for gpu in daemon.ask("GET", "/v1/gpus").json["gpus"]]


@pytest.mark.parametrize(
    ("trouble", "ailment", "word"),
    [
        ({"recovery_action": 1}, "fatal_reset", "reset"),
        ({"recovery_action": 2}, "fatal_reboot", "rebooted"),
        ({"recovery_action": 4}, "degraded", "drained"),
        ({"row_remap_failed": True}, "fatal_reset", "remapped"),
        ({"row_remap_pending": True, "name": "NVIDIA RTX A6000"}, "degraded", "remaps"),
        ({"lost": True}, "fatal_reboot", "fallen off the bus"),
        (xid(48), "fatal_reset", "XID 48"),
        (xid(54), "degraded", "XID 54"),
        (xid(63) | {"name": "NVIDIA GeForce RTX 4090"}, "degraded", "XID 63"),
        (xid(109), "degraded", "XID 109"),
        (xid(119), "fatal_reset", "XID 119"),
        (xid(999), "degraded", "XID 999"),
    ],
)
def test_what_closes_a_gpu_says_why_and_stops_what_runs_there_only_where_that_is_lost(
    gpu_daemon: Daemon, trouble: dict[str, Any], ailment: str, word: str
) -> None:
    name = {"name": trouble["name"]} if "name" in trouble else {}
    scene(gpu_daemon, name, {})
    daemon = gpu_daemon.start()
    number, main = running(daemon, gpu_ids=[0])
    scene(daemon, trouble, {})
    eventually(lambda: codes(daemon, 0), what="its record")
    assert word in closed(daemon, 0)
    assert health(daemon, 0)["conditions"][0]["ailment"] == ailment
    if ailment.startswith("fatal"):
        assert word in reason(daemon, number, "gpu_unhealthy")
        assert not alive(main)
    else:
        assert daemon.job(number)["state"] == "running"
    assert health(daemon, 1)["allocatable"]


@pytest.mark.parametrize(
    "trouble",
    [
        {"row_remap_pending": True, "name": "NVIDIA H200"},
        {"ecc_uncorrected": 3},
        {"recovery_action": 5},
        {"recovery_action": 0, **xid(999)},
        xid(45),
        xid(13),
        xid(63) | {"name": "NVIDIA A100-SXM4-80GB"},
        xid(94),
    ],
)
def test_what_is_no_reason_to_close_a_gpu_does_not(
    gpu_daemon: Daemon, trouble: dict[str, Any]
) -> None:
    scene(gpu_daemon, trouble, {})
    daemon = gpu_daemon.start()
    eventually(lambda: daemon.ask("GET", "/v1/gpus").json["read_at"])
    daemon.wait(daemon.submit("true", gpus=1, gpu_ids=[0]), outcome="succeeded")
    assert health(daemon, 0)["allocatable"]


def test_an_ecc_count_that_grows_is_a_fault_and_one_that_was_there_is_a_warning(
    gpu_daemon: Daemon,
) -> None:
    scene(gpu_daemon, {"ecc_uncorrected": 2}, {"ecc_uncorrected": 0})
    daemon = gpu_daemon.start()
    number, _ = running(daemon, gpu_ids=[0])
    assert codes(daemon, 0) == ["ecc_past"]
    scene(daemon, {"ecc_uncorrected": 3}, {"ecc_uncorrected": 0})
    assert "uncorrectable memory error" in reason(daemon, number, "gpu_unhealthy")
    scene(daemon, {"ecc_uncorrected": 0}, {"ecc_uncorrected": 0})
    daemon.wait(number, "running", attempt=2)
    assert codes(daemon, 0) == [], "a count that begins anew is a reset"


def test_a_verdict_of_the_driver_ends_with_it_after_the_hold_down(gpu_daemon: Daemon) -> None:
    gpu_daemon.config = gpu_daemon.config.replace('hold_down = "200ms"', 'hold_down = "1h"')
    daemon = gpu_daemon.start()
    scene(daemon, {"recovery_action": 1}, {})
    assert "needs to be reset" in closed(daemon, 0)
    scene(daemon, {"recovery_action": 0}, {})
    eventually(lambda: "watched for a while" in health(daemon, 0)["sentence"])
    assert not health(daemon, 0)["allocatable"]
    daemon.restart()
    assert "watched for a while" in health(daemon, 0)["sentence"]
    daemon.stop()
    daemon.config = daemon.config.replace('hold_down = "1h"', 'hold_down = "10ms"')
    daemon.start()
    eventually(lambda: health(daemon, 0)["allocatable"], what="the end of the hold-down")


def test_a_reboot_ends_what_only_a_reboot_ends(gpu_daemon: Daemon) -> None:
    daemon = gpu_daemon.start()
    scene(daemon, {"lost": True}, {})
    eventually(lambda: codes(daemon, 0) == ["lost"], what="its record")
    scene(daemon, {}, {})
    daemon.restart()
    eventually(lambda: daemon.ask("GET", "/v1/gpus").json["read_at"])
    assert "fallen off the bus" in closed(daemon, 0)
    daemon.stop()
    before_this_boot(daemon)
    daemon.start()
    eventually(lambda: health(daemon, 0)["allocatable"], what="a GPU that is back")


def test_what_returns_after_two_reboots_is_the_hardwares_and_a_persons_to_clear(
    gpu_daemon: Daemon,
) -> None:
    daemon = gpu_daemon.start()
    for time in range(3):
        scene(daemon, xid(79, seq=time), {})
        closed(daemon, 0)
        ailment = health(daemon, 0)["conditions"][0]["ailment"]
        assert ailment == ("hardware" if time == 2 else "fatal_reboot")
        daemon.stop()
        before_this_boot(daemon)
        scene(daemon, {}, {})
        daemon.start()
        if time < 2:
            eventually(lambda: health(daemon, 0)["allocatable"], what="a GPU that is back")
    assert "somebody has seen to it" in closed(daemon, 0)
    daemon.ask("PATCH", "/v1/gpus/0", {"clear": True})
    eventually(lambda: health(daemon, 0)["allocatable"], what="a GPU that was cleared")


def before_this_boot(daemon: Daemon) -> None:
    """Have what is wrong with the GPUs be from an earlier boot."""
    with contextlib.closing(sqlite3.connect(daemon.state_dir / "daemon" / "traind.db")) as disk:
        disk.execute("UPDATE gpu_condition SET boot_id = 'an earlier one'")
        disk.commit()


def test_a_process_that_the_kernel_does_not_let_go_is_told(gpu_daemon: Daemon) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to build a process that waits in the kernel")
    # Who forks with vfork waits in the kernel, as in a driver, until its child is gone.
    source = gpu_daemon.home / "waits.c"
    source.write_text("#include <unistd.h>\nint main(void) { if (!vfork()) for (;;) pause(); }\n")
    program = gpu_daemon.home / "waits"
    subprocess.run([compiler, "-w", "-o", str(program), str(source)], check=True, timeout=60)
    gpu_daemon.config += 'stuck_after = "0s"\n'
    daemon = gpu_daemon.start()
    number = daemon.submit([str(program)], gpus=1, gpu_ids=[0])
    daemon.wait(number, "running")
    main = daemon.main_pid(number)
    eventually(lambda: codes(daemon, 0) == ["stuck"], what="the stuck process")
    assert f"process {main} " in health(daemon, 0)["sentence"]
    assert daemon.job(number)["state"] == "running"
