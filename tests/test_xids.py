"""XIDs by both roads, NVML and the kernel's log: each is told once, to whom it concerns."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_scene import CARD, attributed, closed, codes, gpu_of, health, reason, running, scene, xid
from harness import Daemon, alive, eventually

GONE = "NVRM: Xid (PCI:0000:01:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus"
LINES = """NVRM: The NVIDIA GPU 0000:01:00.0
NVRM: (PCI ID: 10de:2684) installed in this system has
NVRM: fallen off the bus and is not responding to commands."""


@pytest.fixture
def kernel_log(gpu_daemon: Daemon) -> Path:
    """A kernel's log of the test's own, which the daemon reads."""
    path = gpu_daemon.home / "kernel.log"
    path.write_text("6,1,1000,-;Linux version 6.8\n")
    gpu_daemon.config = gpu_daemon.config.replace("[gpus]\n", f'[gpus]\nkernel_log = "{path}"\n', 1)
    return path


def say(path: Path, line: str) -> None:
    with path.open("a") as log:
        log.write(line + "\n")


@pytest.mark.parametrize(
    "line",
    [
        GONE,
        f"3,512,99,-;{GONE}",
        f"[   12.345678] {GONE}",
        "NVRM: Xid (0000:01:00): 79, GPU has fallen off the bus.",
        "NVRM: GPU 0000:01:00.0: GPU has fallen off the bus.",
        LINES,
    ],
)
def test_what_only_the_kernels_log_tells_moves_the_job(
    gpu_daemon: Daemon, kernel_log: Path, line: str
) -> None:
    daemon = gpu_daemon.start()
    number, main = running(daemon, gpu_ids=[0])
    say(kernel_log, line)
    assert "XID 79" in reason(daemon, number, "gpu_unhealthy")
    assert not alive(main)
    assert health(daemon, 1)["allocatable"]


def test_what_was_logged_before_the_daemon_counts_and_is_told_once(
    gpu_daemon: Daemon, kernel_log: Path
) -> None:
    say(kernel_log, GONE)
    daemon = gpu_daemon.start()
    assert "XID 79" in closed(daemon, 0)
    daemon.ask("PATCH", "/v1/gpus/0", {"clear": True})
    daemon.restart()
    eventually(lambda: daemon.ask("GET", "/v1/gpus").json["read_at"])
    assert health(daemon, 0)["allocatable"]
    kernel_log.unlink()
    say(kernel_log, GONE)
    closed(daemon, 0)


def test_the_log_tells_whose_work_it_was_on_a_shared_gpu(
    gpu_daemon: Daemon, kernel_log: Path
) -> None:
    daemon = gpu_daemon.start()
    command = "until [ -e $HOME/go ]; do sleep 0.05; done; exit 1"
    guilty = daemon.submit(command, gpus=1, gpu_ids=[0], gpu_memory="2GiB")
    daemon.wait(guilty, "running")
    main = daemon.main_pid(guilty)
    innocent = daemon.submit(command, gpus=1, gpu_ids=[0], gpu_memory="2GiB")
    daemon.wait(innocent, "running")
    say(kernel_log, f"NVRM: Xid (PCI:0000:01:00): 31, pid={main}, name=python3, Ch 00000008, MMU")
    attributed(daemon, 31, guilty)
    daemon.home.joinpath("go").touch()
    assert daemon.wait(guilty)["cause"]["code"] == "cuda_app_bug"
    assert daemon.wait(innocent)["cause"]["code"] == "exit_code"
    assert health(daemon, 0)["allocatable"]


def test_both_roads_tell_of_one_and_the_same(gpu_daemon: Daemon, kernel_log: Path) -> None:
    daemon = gpu_daemon.start()
    scene(daemon, xid(32), {})
    eventually(lambda: codes(daemon, 0) == ["xid_32"])
    say(kernel_log, "NVRM: Xid (PCI:0000:01:00): 32, pid=1, Channel ID 0000002a")
    say(kernel_log, "NVRM: Xid (PCI:0000:02:00): 32, pid=1, Channel ID 0000002a")
    eventually(lambda: codes(daemon, 1) == ["xid_32"])
    assert health(daemon, 0)["conditions"][0]["ailment"] == "warn"
    scene(daemon, {"xids": [{"seq": 1, "xid": 32}, {"seq": 2, "xid": 32}]}, {})


def test_the_drivers_word_in_the_log_lifts_what_it_has_just_raised(
    gpu_daemon: Daemon, kernel_log: Path
) -> None:
    daemon = gpu_daemon.start()
    change = "NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from"
    say(kernel_log, "NVRM: Xid (PCI:0000:01:00): 119, pid=1, name=x, Timeout after 6s of waiting")
    say(kernel_log, f"{change} 0x0 (None) to 0x1 (GPU Reset Required)")
    eventually(lambda: codes(daemon, 0) == ["xid_119", "xid_154"], what="both XIDs")
    assert "XID 119" in closed(daemon, 0)
    say(kernel_log, f"{change} 0x1 (GPU Reset Required) to 0x0 (None)")
    eventually(lambda: health(daemon, 0)["allocatable"], what="a GPU that was reset")


def test_the_drivers_word_counts_also_in_a_log_that_is_read_in_one_go(
    gpu_daemon: Daemon, kernel_log: Path
) -> None:
    change = "NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from"
    say(kernel_log, "NVRM: Xid (PCI:0000:01:00): 119, pid=1, name=x, Timeout after 6s of waiting")
    say(kernel_log, f"{change} 0x0 (None) to 0x1 (GPU Reset Required)")
    say(kernel_log, f"{change} 0x1 (GPU Reset Required) to 0x0 (None)")
    daemon = gpu_daemon.start()
    daemon.wait(daemon.submit("true", gpus=1, gpu_ids=[0]), outcome="succeeded")


def test_a_log_that_cannot_be_read_keeps_nothing_from_running(gpu_daemon: Daemon) -> None:
    gpu_daemon.config = gpu_daemon.config.replace(
        "[gpus]\n", '[gpus]\nkernel_log = "/nonexistent/log"\n', 1
    )
    daemon = gpu_daemon.start()
    daemon.wait(daemon.submit("true", gpus=1), outcome="succeeded")
    eventually(lambda: "kernel log not read" in daemon.log.read_text(), what="the warning")


# NVML itself, over a library of our own


Write = Callable[[dict[str, object]], None]
GPU = {"name": "NVIDIA RTX A6000", "total": CARD, "reserved": 0, "free": CARD}
FREE = {"count": 2} | {
    f"{index}.{key}": value
    for index in (0, 1)
    for key, value in (GPU | {"uuid": f"GPU-{index}", "pci": f"00000000:0{index + 1}:00.0"}).items()
}


FIELDS = [f"0.field.{number}" for number in (230, 4, 6, 3, 29, 30, 31, 143, 144, 145)]
"""All fields that are asked for: what is not supported once is not asked for again."""


@pytest.fixture
def nvml(gpu_daemon: Daemon, nvml_library: Path) -> Write:
    """Has the fake NVML library answer so from now on; the daemon reads its GPUs through it."""
    path = gpu_daemon.home / "nvml.state"
    gpu_daemon.simulate = None
    gpu_daemon.env = {"FAKE_NVML": str(path), "LD_LIBRARY_PATH": str(nvml_library)}

    def write(changes: dict[str, object]) -> None:
        fresh = path.with_suffix(".new")
        fresh.write_text("".join(f"{k} {v}\n" for k, v in (FREE | changes).items()))
        fresh.rename(path)

    write({})
    return write


def test_nvml_tells_of_xid_79_and_the_job_moves_while_its_neighbour_runs_on(
    gpu_daemon: Daemon, nvml: Write
) -> None:
    daemon = gpu_daemon.start()
    struck, main = running(daemon)
    neighbour, other = running(daemon)
    first = gpu_of(daemon.job(struck))[0]
    nvml({f"{first}.xids": 79})
    assert "XID 79" in closed(daemon, first)
    daemon.wait(struck, "queued", attempt=1)
    eventually(lambda: not alive(main))
    assert alive(other)
    daemon.restart()
    assert "XID 79" in closed(daemon, first)
    assert daemon.job(neighbour)["attempt"] == 1
    daemon.ask("DELETE", f"/v1/jobs/{neighbour}?now=1")
    assert gpu_of(daemon.wait(struck, "running", attempt=2)) == [1 - first]


def test_nvml_tells_of_xid_31_and_the_gpu_stays(gpu_daemon: Daemon, nvml: Write) -> None:
    daemon = gpu_daemon.start()
    ready = daemon.home / "go"
    number = daemon.submit(f"until [ -e {ready} ]; do sleep 0.05; done; exit 1", gpus=1)
    daemon.wait(number, "running")
    (index,) = gpu_of(daemon.job(number))
    nvml({f"{index}.xids": 31})
    attributed(daemon, 31, number)
    ready.touch()
    ended = daemon.wait(number, outcome="failed")
    assert ended["cause"]["code"] == "cuda_app_bug"
    assert health(daemon, index)["allocatable"]


@pytest.mark.parametrize(
    ("trouble", "code", "fatal"),
    [
        ({"0.error.*": 15}, "lost", True),
        ({"0.error.*": 16}, "reset_required", True),
        ({"0.field.230": 2}, "recovery_action", True),
        ({"0.field.145": 1}, "remap_failed", True),
        ({"0.field.144": 1}, "remap_pending", False),
        ({"0.field.4": 1}, "ecc_uncorrected", True),
        ({"0.field.31": 1}, "retired_pending", False),
        ({"0.field.29": 60, "0.field.30": 3}, "retired_pages", True),
        ({"0.field.143": 512}, "remapped_rows", None),
        ({"0.slowdown": 64}, "slowed", None),
    ],
)
def test_what_nvml_says_of_a_gpus_health_is_believed(
    gpu_daemon: Daemon, nvml: Write, trouble: dict[str, object], code: str, fatal: bool | None
) -> None:
    well: dict[str, object] = {"0.slowdown": 0} | dict.fromkeys(FIELDS, 0)
    nvml(well)
    daemon = gpu_daemon.start()
    number, main = running(daemon, gpu_ids=[0])
    nvml(well | trouble)
    eventually(lambda: code in codes(daemon, 0), what=code)
    assert health(daemon, 0)["allocatable"] == (fatal is None)
    if fatal:
        eventually(lambda: not alive(main), what="its end")
    else:
        assert daemon.job(number)["state"] == "running"
    assert codes(daemon, 1) == []


def test_a_gpu_that_supports_nothing_is_healthy_and_watched_all_the_same(
    gpu_daemon: Daemon, nvml: Write
) -> None:
    nvml({"0.error.*": 3, "0.error.HandleByIndex": 0, "0.error.UUID": 0, "0.error.MemoryInfo": 0})
    daemon = gpu_daemon.start()
    number, _ = running(daemon, gpu_ids=[0])
    assert health(daemon, 0)["allocatable"]
    assert codes(daemon, 0) == []
    assert daemon.job(number)["state"] == "running"


def test_a_gpu_that_the_daemon_may_not_use_is_no_sick_one(gpu_daemon: Daemon, nvml: Write) -> None:
    daemon = gpu_daemon.start()
    nvml({"0.error.MemoryInfo_v2": 17})
    assert "/dev/nvidia" in closed(daemon, 0)
    assert codes(daemon, 0) == []
    nvml({})
    eventually(lambda: health(daemon, 0)["allocatable"])


def test_errors_in_a_row_close_a_gpu_until_it_has_settled(gpu_daemon: Daemon, nvml: Write) -> None:
    gpu_daemon.config += "errors = 2\n"
    daemon = gpu_daemon.start()
    nvml({"0.error.MemoryInfo_v2": 23})
    eventually(lambda: codes(daemon, 0) == ["errors"])
    nvml({})
    eventually(lambda: codes(daemon, 0) == [])
    eventually(lambda: health(daemon, 0)["allocatable"])


def test_a_hot_gpu_gets_no_new_job_and_keeps_the_one_it_has(
    gpu_daemon: Daemon, nvml: Write
) -> None:
    gpu_daemon.config += 'hot_for = "0s"\n'
    limit = {"0.slowdown_c": 90}
    nvml({"0.celsius": 50} | limit)
    daemon = gpu_daemon.start()
    number, _ = running(daemon, gpu_ids=[0], gpu_memory="2GiB")
    nvml({"0.celsius": 88} | limit)
    assert "slows down at 90" in closed(daemon, 0)
    nvml({"0.celsius": 91} | limit)
    eventually(lambda: codes(daemon, 0) == ["hot"])
    nvml({"0.celsius": 85} | limit)
    eventually(lambda: "slows down" not in health(daemon, 0)["sentence"])
    assert codes(daemon, 0) == ["hot"]
    nvml({"0.celsius": 60} | limit)
    eventually(lambda: health(daemon, 0)["allocatable"])
    assert daemon.job(number)["state"] == "running"


def test_a_driver_upgraded_on_disk_starts_no_gpu_job_and_ends_none(
    gpu_daemon: Daemon, nvml: Write, nvml_library: Path
) -> None:
    folder = gpu_daemon.home / "lib"
    folder.mkdir()
    shutil.copy(nvml_library / "libnvidia-ml.so.1", folder / "libnvidia-ml.so.615.71")
    link = folder / "libnvidia-ml.so.1"
    link.symlink_to("libnvidia-ml.so.615.71")
    gpu_daemon.env["LD_LIBRARY_PATH"] = str(folder)
    nvml({"driver": "615.71"})
    daemon = gpu_daemon.start()
    number, _ = running(daemon)
    shutil.copy(nvml_library / "libnvidia-ml.so.1", folder / "libnvidia-ml.so.620.10")
    fresh = folder / "new"
    fresh.symlink_to("libnvidia-ml.so.620.10")
    os.rename(fresh, link)
    eventually(lambda: daemon.ask("GET", "/v1/gpus").json["fault"], what="the upgrade noticed")
    waiting = daemon.submit("true", gpus=1)
    assert "was upgraded" in reason(daemon, waiting, "gpu_monitor")
    assert daemon.job(number)["state"] == "running"
