"""The GPU rooms through the real worker process: simulated GPUs, and a fake NVML library."""

import asyncio
import ctypes
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from harness import DEADLINE_S
from traind.config import GpuHealthSettings, GpuSettings
from traind.gpu import (
    FaultKind,
    Gpu,
    GpuHealth,
    GpuPlace,
    GpuProcess,
    GpuReading,
    GpuSnapshot,
    GpuVitals,
    LeaseClaim,
    MedicalRecord,
)
from traind.gpus import health, scenario
from traind.gpus.monitor import GpuMonitor
from traind.gpus.nvml_place import place_on_bus
from traind.gpus.reader import Reader
from traind.gpus.source import (
    SourceError,
    claim_json,
    claim_of,
    reading_json,
    reading_of,
)
from traind.hub import Hub

QUICK = {
    "sample_busy": "0.05s",
    "sample_idle": "0.05s",
    "answer_deadline": "60s",
    "first_answer_deadline": "60s",
    "respawn_delay": "0.1s",
}


def assessed(reading: GpuReading) -> GpuHealth:
    """How the GPU is when nothing is remembered of it."""
    return health.assess(reading, MedicalRecord(), None, settings=GpuHealthSettings())


A6000 = Gpu(uuid="GPU-a", index=1, name="NVIDIA RTX A6000", memory_mib=49140, reserved_mib=400)


def workers(state_dir: Path) -> list[psutil.Process]:
    """The worker processes of this test's daemon that live."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if str(state_dir) in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


class Watched:
    """A monitor that runs, and the hub it writes to."""

    def __init__(self, state_dir: Path, simulate: str | None, remembered, **settings):
        self.state_dir = state_dir
        self.hub = Hub()
        self.monitor = GpuMonitor(
            GpuSettings(**(QUICK | settings)),
            state_dir=state_dir,
            simulate=simulate,
            hub=self.hub,
            remembered=remembered,
        )
        self.run: asyncio.Task[None] | None = None

    async def until(self, holds: Callable[[GpuSnapshot], bool]) -> GpuSnapshot:
        """The first snapshot that holds; woken by the monitor, never asking the clock."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not holds(self.hub.snapshot):
                    await self.hub.next_wake(None)
        except TimeoutError:
            pytest.fail(f"never seen; the last was {self.hub.snapshot}")
        return self.hub.snapshot

    async def good(self) -> GpuSnapshot:
        return await self.until(lambda seen: seen.fault is None)

    async def newer(self) -> GpuSnapshot:
        before = self.hub.snapshot.read_at
        return await self.until(lambda seen: seen.fault is None and seen.read_at != before)


@asynccontextmanager
async def watching(state_dir: Path, simulate: str | None, remembered=(), **settings):
    """A running monitor; afterwards no worker of it may live."""
    watched = Watched(state_dir, simulate, remembered, **settings)
    assert watched.hub.snapshot.fault == "the GPUs have not been read yet"
    watched.run = asyncio.create_task(watched.monitor.run())
    try:
        yield watched
    finally:
        watched.run.cancel()
        with suppress(asyncio.CancelledError):
            await watched.run
    assert workers(state_dir) == []


class Described:
    """Simulated GPUs in a file that is replaced by rename."""

    def __init__(self, path: Path):
        self.path = path

    def __str__(self):
        return str(self.path)

    def write(self, *gpus: dict, **top) -> None:
        self.write_text(json.dumps({"gpus": list(gpus), **top}))

    def write_text(self, text: str) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(self.path)


@pytest.fixture
def described(tmp_path) -> Described:
    file = Described(tmp_path / "gpus.json")
    file.write({"memory_mib": 49140, "name": "NVIDIA RTX A6000"}, {"memory_mib": 24576})
    return file


# Simulated GPUs


async def test_two_simulated_gpus_are_read(tmp_path):
    async with watching(tmp_path, "2x24GiB") as watched:
        snapshot = await watched.good()
        assert snapshot.read_at is not None
        assert [reading.gpu.index for reading in snapshot.readings] == [0, 1]
        assert {reading.gpu.memory_mib for reading in snapshot.readings} == {24576}
        assert all(assessed(reading).allocatable for reading in snapshot.readings)
        assert watched.monitor.inventory == tuple(reading.gpu for reading in snapshot.readings)


async def test_made_up_uuids_are_the_same_after_a_restart(tmp_path):
    seen = []
    for _ in range(2):
        async with watching(tmp_path, "3x8G") as watched:
            await watched.good()
            seen.append([gpu.uuid for gpu in watched.monitor.inventory])
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == 3
    assert all(len(uuid) == 40 and uuid.startswith("GPU-") for uuid in seen[0])


async def test_a_file_replaced_by_rename_is_seen(tmp_path, described):
    async with watching(tmp_path, str(described)) as watched:
        await watched.good()
        described.write({"memory_mib": 49140, "temperature_c": 83, "busy_pct": None})
        snapshot = await watched.until(lambda seen: seen.readings[0].temperature_c == 83)
        assert snapshot.readings[0].busy_pct is None
        assert "is gone" in (snapshot.readings[1].fault or "")


async def test_a_lost_gpu_says_so_with_its_last_figures_while_the_other_goes_on(
    tmp_path, described
):
    six = {"memory_mib": 49140, "name": "NVIDIA RTX A6000", "power_w": 210}
    async with watching(tmp_path, str(described)) as watched:
        described.write({"memory_mib": 24576}, six)
        await watched.until(
            lambda seen: len(seen.readings) == 2 and seen.readings[1].power_w == 210
        )
        described.write({"memory_mib": 24576, "busy_pct": 7}, six | {"lost": True})
        snapshot = await watched.until(lambda seen: seen.readings[0].busy_pct == 7)
        lost = snapshot.readings[1]
        assert lost.fault == ("GPU 1 (NVIDIA RTX A6000) has fallen off the bus (NVML: GPU is lost)")
        assert lost.power_w == 210
        assert assessed(lost).sentence == lost.fault
        assert not assessed(lost).allocatable
        assert snapshot.fault is None
        assert snapshot.readings[0].fault is None
        described.write({"memory_mib": 24576}, six)
        await watched.until(lambda seen: seen.readings[1].fault is None)


async def test_what_the_driver_says_of_its_health_is_told_and_nothing_else(tmp_path, described):
    said = {"recovery_action": 1, "ecc_uncorrected": 2, "row_remap_failed": True}
    described.write({"memory_mib": 1024, **said}, {"memory_mib": 1024})
    async with watching(tmp_path, str(described)) as watched:
        sick, silent = (await watched.good()).readings
        assert sick.vitals == GpuVitals(recovery_action=1, ecc_uncorrected=2, remap_failed=True)
        assert silent.vitals == GpuVitals()


async def test_a_simulated_xid_is_told_once(tmp_path, described):
    events = {"xids": [{"seq": 1, "xid": 79, "pid": 42}, {"seq": 2, "xid": 31}]}
    described.write({"memory_mib": 1024, **events})
    async with watching(tmp_path, str(described)) as watched:
        await watched.good()
        await watched.newer()
        told = [(xid.number, xid.pid) for _, xid in watched.monitor.take_xids()]
        assert told == [(79, 42), (31, None)]
        assert watched.hub.snapshot.readings[0].xids == ()
        await watched.newer()
        assert watched.monitor.take_xids() == []


async def test_what_jobs_declared_counts_as_their_memory(tmp_path, described):
    listed = {"pid": 50, "memory_mib": 2048, "kind": "compute"}
    display = {"pid": 60, "memory_mib": 100, "kind": "graphics"}
    described.write({"memory_mib": 24576, "processes": [listed, display]}, {"memory_mib": 24576})
    async with watching(tmp_path, str(described), sample_idle="1h", sample_busy="1h") as watched:
        await watched.good()
        first, second = (gpu.uuid for gpu in watched.monitor.inventory)
        claims = (
            LeaseClaim(gpu_uuid=first, memory_mib=8192, pids=(49, 50)),
            LeaseClaim(gpu_uuid=second, memory_mib=24576, pids=()),
        )
        watched.monitor.observe(claims, hurried=False)
        snapshot = await watched.until(lambda seen: seen.readings[1].used_mib > 0)
        shared, alone = snapshot.readings
        assert shared.used_mib == 8192 + 100
        assert health.observed(shared, (49, 50)) == 8192
        assert alone.used_mib == 24576
        described.write({"memory_mib": 24576, "processes": [listed]}, job_memory="none")
        watched.monitor.observe(claims, hurried=True)
        snapshot = await watched.until(lambda seen: seen.readings[0].used_mib == 2048)


async def test_hurry_reads_again_and_again_without_waiting_for_the_period(tmp_path, described):
    async with watching(tmp_path, str(described), sample_idle="1h", sample_busy="1h") as watched:
        await watched.good()
        watched.monitor.observe((), hurried=True)
        for _ in range(3):
            await watched.newer()
        described.write({"memory_mib": 4096})
        await watched.until(lambda seen: seen.readings[0].gpu.memory_mib == 4096)


# A file that will not do


async def test_a_file_that_never_was_right_is_named_and_read_once_it_is(tmp_path, described):
    described.write({"memory_mib": 1024, "temprature_c": 40})
    async with watching(tmp_path, str(described)) as watched:
        snapshot = await watched.until(lambda seen: "unknown" in (seen.fault or ""))
        assert "gpus[0].temprature_c is unknown; did you mean temperature_c?" in snapshot.fault
        assert str(described) in snapshot.fault
        assert "running ones go on" in snapshot.fault
        described.write({"memory_mib": 1024, "temperature_c": 40})
        await watched.good()


async def test_a_file_that_becomes_wrong_makes_all_gpus_faulty_until_it_is_right(
    tmp_path, described
):
    async with watching(tmp_path, str(described)) as watched:
        await watched.good()
        described.write_text('{"gpus": [')
        snapshot = await watched.until(lambda seen: seen.readings[0].fault is not None)
        assert snapshot.fault is None
        assert len(snapshot.readings) == 2
        assert all("is not JSON" in (reading.fault or "") for reading in snapshot.readings)
        described.write({"memory_mib": 49140}, {"memory_mib": 24576})
        await watched.until(lambda seen: all(one.fault is None for one in seen.readings))


async def test_a_file_that_is_missing_is_named(tmp_path):
    async with watching(tmp_path, str(tmp_path / "none.json")) as watched:
        snapshot = await watched.until(lambda seen: "none.json" in (seen.fault or ""))
        assert "No such file" in snapshot.fault


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[]", "it must be an object"),
        ("{}", "gpus is missing"),
        ('{"gpus": {}}', "gpus must be a list"),
        ('{"gpus": [], "job_memory": "all"}', "job_memory must be 'declared' or 'none'"),
        ('{"gpus": [3]}', "gpus[0] must be an object"),
        ('{"gpus": [{}]}', "gpus[0].memory_mib is missing"),
        ('{"gpus": [{"memory_mib": "24G"}]}', "gpus[0].memory_mib must be a whole number"),
        ('{"gpus": [{"memory_mib": true}]}', "gpus[0].memory_mib must be a whole number"),
        ('{"gpus": [{"memory_mib": 1, "lost": 1}]}', "gpus[0].lost must be true or false"),
        ('{"gpus": [{"memory_mib": 1, "hang_s": 1e999}]}', "gpus[0].hang_s must be from 0"),
        ('{"gpus": [{"memory_mib": 1, "power_w": NaN}]}', "NaN is not a number"),
        ('{"gpus": [{"memory_mib": 1, "recovery_action": 8}]}', "recovery_action must be"),
        ('{"gpus": [{"memory_mib": 1, "processes": [{}]}]}', "gpus[0].processes[0].pid is missing"),
        (
            '{"gpus": [{"memory_mib": 1, "processes": [{"pid": 1, "kind": "M"}]}]}',
            "gpus[0].processes[0].kind must be",
        ),
        ('{"gpus": [{"memory_mib": 1, "xids": [{"seq": 1}]}]}', "gpus[0].xids[0].xid is missing"),
        (
            '{"gpus": [{"memory_mib": 1, "uuid": "G"}, {"memory_mib": 1, "uuid": "G"}]}',
            "gpus[1].uuid must be its own",
        ),
        (json.dumps({"gpus": [{"memory_mib": 1}] * 65}), "at most 64"),
    ],
)
def test_a_wrong_key_is_named(text, named):
    with pytest.raises(SourceError) as refused:
        scenario.parse(text)
    assert named in str(refused.value)


@pytest.mark.parametrize("spec", ["0x24GiB", "65x24GiB", "2x24", "2x0G", "2xlarge"])
def test_a_count_or_size_that_will_not_do_is_refused(spec):
    with pytest.raises(SourceError, match=spec):
        scenario.uniform(spec)


def test_every_key_of_the_contract_is_accepted():
    text = """{"gpus": [
      {"name": "NVIDIA RTX A6000", "uuid": "GPU-x", "memory_mib": 49140, "reserved_mib": 400,
       "temperature_c": 41, "busy_pct": 0, "power_w": 30,
       "processes": [{"pid": 4242, "memory_mib": 2048, "kind": "compute"}],
       "lost": false, "hang_s": 0, "ecc_uncorrected": 0, "row_remap_pending": false,
       "row_remap_failed": false, "recovery_action": 0,
       "xids": [{"seq": 1, "xid": 79, "pid": 4242}]}],
     "job_memory": "none"}"""
    read = scenario.parse(text)
    assert not read.declared
    assert read.gpus[0].gpu == Gpu(
        uuid="GPU-x",
        index=0,
        name="NVIDIA RTX A6000",
        memory_mib=49140,
        reserved_mib=400,
        pci="0000:01:00.0",
    )
    assert not read.gpus[0].lost
    assert [(xid.number, xid.pid, xid.seq) for xid in read.gpus[0].xids] == [(79, 4242, 1)]


# A worker that hangs, dies, or has nothing to read


async def test_a_hang_is_told_with_its_time_and_ends_by_itself(tmp_path, described):
    quick = {"answer_deadline": "0.5s", "first_answer_deadline": "20s"}
    async with watching(tmp_path, str(described), **quick) as watched:
        good = await watched.good()
        described.write({"memory_mib": 49140, "hang_s": 3600}, {"memory_mib": 24576})
        snapshot = await watched.until(lambda seen: seen.fault is not None)
        described.write({"memory_mib": 49140}, {"memory_mib": 24576})
        assert snapshot.read_at is not None
        assert snapshot.read_at >= good.read_at
        assert snapshot.fault == (
            f"NVML has not answered since {snapshot.read_at:%H:%M:%S} UTC; "
            "no GPU job is started until it does, running ones go on"
        )
        assert len(snapshot.readings) == 2
        assert all(reading.fault is None for reading in snapshot.readings)
        await watched.good()
        while len(workers(tmp_path)) > 1:  # one that was killed takes a moment to die
            await watched.newer()


async def test_a_hang_before_the_first_answer_is_told(tmp_path, described):
    described.write({"memory_mib": 49140, "hang_s": 3600})
    async with watching(tmp_path, str(described), first_answer_deadline="0.5s") as watched:
        snapshot = await watched.until(lambda seen: "has not answered" in (seen.fault or ""))
        assert snapshot.read_at is None
        assert snapshot.readings == ()


async def test_no_more_than_three_workers_that_cannot_be_killed_are_left(
    tmp_path, described, monkeypatch
):
    described.write({"memory_mib": 49140, "hang_s": 3600})
    with monkeypatch.context() as kernel:
        kernel.setattr(Reader, "kill", lambda _: None)  # as in an uninterruptible driver call
        quick = {"first_answer_deadline": "0.3s", "respawn_delay": "0s"}
        async with watching(tmp_path, str(described), **quick) as watched:
            snapshot = await watched.until(lambda seen: "cannot be killed" in (seen.fault or ""))
            assert "3 processes that asked it cannot be killed" in snapshot.fault
            assert len(workers(tmp_path)) == 3
            described.write({"memory_mib": 49140})
            kernel.setattr(watched.monitor, "_settings", GpuSettings(**QUICK))

            def freed(seen: GpuSnapshot) -> bool:
                if "cannot be killed" in (seen.fault or ""):
                    workers(tmp_path)[0].kill()
                return seen.fault is None

            await watched.until(freed)
            assert len(workers(tmp_path)) <= 3
            kernel.undo()


async def test_a_killed_worker_is_replaced_at_once(tmp_path):
    async with watching(tmp_path, "2x24GiB", respawn_delay="1h") as watched:
        await watched.good()
        (worker,) = workers(tmp_path)
        worker.kill()
        snapshot = await watched.until(lambda seen: seen.fault is not None)
        assert "was killed by signal 9" in snapshot.fault
        await watched.good()
        (successor,) = workers(tmp_path)
        assert successor.pid != worker.pid


async def test_a_worker_that_dies_again_is_replaced_later(tmp_path):
    async with watching(tmp_path, "2x24GiB", respawn_delay="1h") as watched:
        for _ in range(2):
            await watched.good()
            workers(tmp_path)[0].kill()
            await watched.until(lambda seen: seen.fault is not None)
        assert workers(tmp_path) == []


async def test_the_interrupt_of_a_terminal_does_not_end_the_worker(tmp_path):
    async with watching(tmp_path, "1x24GiB") as watched:
        await watched.good()
        (worker,) = workers(tmp_path)
        worker.send_signal(signal.SIGINT)
        for _ in range(2):
            await watched.newer()
        assert [one.pid for one in workers(tmp_path)] == [worker.pid]


def test_the_worker_ends_when_nobody_can_ask_it_any_more(tmp_path):
    command = [sys.executable, "-P", "-m", "traind.gpus.worker", "--state-dir", str(tmp_path)]
    ended = subprocess.run(
        [*command, "--simulate", "1x8G"],
        input=b'{"id": 7, "claims": []}\n',
        capture_output=True,
        timeout=DEADLINE_S,
        check=True,
    )
    answer = json.loads(ended.stdout)
    assert answer["id"] == 7
    assert len(answer["readings"]) == 1
    assert ended.stderr == b""


async def test_simulated_gpus_never_load_the_nvidia_binding(tmp_path):
    async with watching(tmp_path, "1x24GiB") as watched:
        await watched.good()
        (worker,) = workers(tmp_path)
        assert not any("ctypes" in part.path for part in worker.memory_maps())


async def test_gpus_of_before_that_no_longer_answer_stay_with_a_fault(tmp_path):
    async with watching(tmp_path, "1x24GiB", remembered=(A6000,)) as watched:
        assert watched.monitor.inventory == (A6000,)
        snapshot = await watched.good()
        assert [reading.gpu.index for reading in snapshot.readings] == [0, 1]
        assert snapshot.readings[1].gpu == A6000
        assert snapshot.readings[1].fault == (
            "GPU 1 (NVIDIA RTX A6000) is gone: the driver no longer lists it"
        )


def has_nvml() -> bool:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


@pytest.mark.skipif(has_nvml(), reason="this machine has an NVIDIA driver")
async def test_a_machine_without_a_driver_has_no_gpus_and_no_worker(tmp_path):
    async with watching(tmp_path, None) as watched:
        snapshot = await watched.good()
        assert snapshot.readings == ()
        assert snapshot.read_at is not None
        async with asyncio.timeout(DEADLINE_S):
            await watched.run  # it ends: nothing is left that could wake anybody
        assert workers(tmp_path) == []


@pytest.mark.skipif(has_nvml(), reason="this machine has an NVIDIA driver")
async def test_a_machine_that_lost_its_driver_says_so(tmp_path):
    async with watching(tmp_path, None, remembered=(A6000,)) as watched:
        snapshot = await watched.until(lambda seen: "no NVIDIA driver" in (seen.fault or ""))
        assert [reading.gpu for reading in snapshot.readings] == [A6000]
        assert snapshot.readings[0].fault is not None


# The real binding over a library of our own


CARD = {"name": "NVIDIA RTX A6000", "total": 49140, "reserved": 400, "free": 44000}
FIGURES = {"busy": 37, "milliwatts": 250500, "celsius": 61}
CARDS = {"count": 2, "0.uuid": "GPU-zero", "1.uuid": "GPU-one"} | {
    f"{index}.{key}": value for index in (0, 1) for key, value in (CARD | FIGURES).items()
}
IDENTITY = {"1.error.UUID": 0, "1.error.HandleByIndex": 0}


@pytest.fixture
def card_state(nvml_library, tmp_path, monkeypatch):
    """Writes what the fake library answers from now on."""
    path = tmp_path / "nvml.state"
    monkeypatch.setenv("FAKE_NVML", str(path))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml_library))

    def write(state: dict[str, object]) -> None:
        fresh = path.with_suffix(".new")
        fresh.write_text("".join(f"{key} {value}\n" for key, value in state.items()))
        fresh.rename(path)

    write(CARDS)
    return write


async def test_two_nvml_gpus_tell_memory_processes_and_figures(tmp_path, card_state):
    card_state(
        CARDS | {"0.compute": "4242:2048 77:-", "0.graphics": "4242:2048 900:50", "1.free": 48740}
    )
    async with watching(tmp_path, None) as watched:
        busy, idle = (await watched.good()).readings
        assert busy == GpuReading(
            gpu=Gpu(
                uuid="GPU-zero",
                index=0,
                name="NVIDIA RTX A6000",
                memory_mib=49140,
                reserved_mib=400,
            ),
            used_mib=4740,
            processes=(
                GpuProcess(pid=4242, memory_mib=2048, kind="compute"),
                GpuProcess(pid=77, memory_mib=None, kind="compute"),
                GpuProcess(pid=900, memory_mib=50, kind="graphics"),
            ),
            busy_pct=37,
            power_w=250.5,
            temperature_c=61,
            vitals=GpuVitals(xids_told=True),
        )
        assert idle.used_mib == 0
        assert idle.processes == ()
        card_state(CARDS | {"0.free": 48740})
        await watched.until(lambda seen: seen.readings[0].used_mib == 0)


async def test_nvml_tells_where_gpus_sit_and_who_looks_at_them(tmp_path, card_state):
    buses = {f"{index}.pci": f"00000000:{index + 1}A:00.0" for index in range(3)}
    third = {"count": 3, "2.uuid": "GPU-two"} | {f"2.{k}": v for k, v in (CARD | FIGURES).items()}
    levels = {"0.level.1": 10, "0.level.2": 50, "1.level.2": 20}
    links = {"0.link.0": "00000000:3A:00.0", "0.link.1": "-", "0.link.2": "00000000:3A:00.0"}
    links |= {"2.link.0": "00000000:1A:00.0", "2.link.1": "00000000:FF:00.0"}
    card_state(CARDS | third | buses | levels | links | {"0.display": 1, "1.mig": 1, "2.mig": 0})
    async with watching(tmp_path, None) as watched:
        zero, one, two = (await watched.good()).readings
        assert zero.place == GpuPlace(
            display=True, mig=None, near=(("GPU-one", 50), ("GPU-two", 200))
        )
        assert one.place == GpuPlace(mig=True, near=(("GPU-zero", 50), ("GPU-two", 40)))
        assert two.place == GpuPlace(mig=False, near=(("GPU-zero", 100), ("GPU-one", 40)))
        assert assessed(two).allocatable
        assert "divided into instances (MIG)" in assessed(one).sentence
        assert not assessed(one).allocatable


def test_the_kernel_tells_which_cores_are_next_to_a_gpu(tmp_path):
    folder = tmp_path / "0000:2a:00.0"
    folder.mkdir()
    (folder / "numa_node").write_text("1\n")
    (folder / "local_cpulist").write_text("8-15,24-31\n")
    bus = "00000000:2A:00.0"
    assert place_on_bus(bus, tmp_path) == GpuPlace(numa_node=1, cpus="8-15,24-31")
    (folder / "numa_node").write_text("-1\n")
    assert place_on_bus(bus, tmp_path) == GpuPlace(cpus="8-15,24-31")
    assert place_on_bus("00000000:3A:00.0", tmp_path) == GpuPlace()
    assert place_on_bus(None, tmp_path) == GpuPlace()


async def test_memory_is_read_the_old_way_where_the_driver_is_old(tmp_path, card_state):
    card_state(CARDS | {"0.error.MemoryInfo_v2": 13})
    async with watching(tmp_path, None) as watched:
        old, new = (await watched.good()).readings
        assert (old.used_mib, old.gpu.reserved_mib) == (5140, 0)
        assert (new.used_mib, new.gpu.reserved_mib) == (4740, 400)


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (15, "GPU 1 (NVIDIA RTX A6000) has fallen off the bus (NVML: GPU is lost)"),
        (16, "GPU 1 (NVIDIA RTX A6000) needs to be reset (NVML: GPU requires restart)"),
        (999, "GPU 1 (NVIDIA RTX A6000) answers with an error (NVML: Unknown Error)"),
        (4711, "GPU 1 (NVIDIA RTX A6000) answers with an error (NVML: NVML Error with code 4711)"),
    ],
)
async def test_an_nvml_gpu_that_fails_says_how_while_the_other_goes_on(
    tmp_path, card_state, code, fault
):
    async with watching(tmp_path, None) as watched:
        await watched.good()
        card_state(CARDS | {"1.error.*": code, "0.busy": 99})
        snapshot = await watched.until(lambda seen: seen.readings[0].busy_pct == 99)
        assert snapshot.readings[0].fault is None
        assert snapshot.readings[1].fault == fault
        assert snapshot.readings[1].used_mib == 4740
        card_state(CARDS)
        await watched.until(lambda seen: seen.readings[1].fault is None)


async def test_an_nvml_gpu_that_is_lost_from_the_start_is_missed(tmp_path, card_state, capfd):
    card_state(CARDS | {"1.error.*": 15})
    remembered = replace(A6000, uuid="GPU-one")
    async with watching(tmp_path, None, remembered=(remembered,)) as watched:
        snapshot = await watched.good()
        assert snapshot.readings[0].fault is None
        assert "fallen off the bus" in (snapshot.readings[1].fault or "")
        assert snapshot.readings[1].fault_kind is FaultKind.LOST
        assert snapshot.readings[1].gpu == remembered
    assert 'index=1 error="GPU is lost"' in capfd.readouterr().err


async def test_figures_that_are_not_supported_are_none_and_no_fault(tmp_path, card_state):
    card_state(CARDS | {"1.error.*": 3} | IDENTITY)
    async with watching(tmp_path, None) as watched:
        bare = (await watched.good()).readings[1]
        assert bare == GpuReading(
            gpu=Gpu(uuid="GPU-one", index=1, name="NVIDIA GPU", memory_mib=0, reserved_mib=0),
            used_mib=0,
        )


async def test_a_driver_upgraded_under_its_feet_is_told_until_it_is_reloaded(tmp_path, card_state):
    card_state(CARDS | {"init": 18})
    async with watching(tmp_path, None) as watched:
        snapshot = await watched.until(lambda seen: "upgraded" in (seen.fault or ""))
        assert "reload it or restart the machine" in snapshot.fault
        card_state(CARDS)
        await watched.good()


async def test_a_driver_that_is_not_loaded_means_no_gpus(tmp_path, card_state):
    card_state({"init": 9})
    async with watching(tmp_path, None) as watched:
        assert (await watched.good()).readings == ()
        async with asyncio.timeout(DEADLINE_S):
            await watched.run
        assert workers(tmp_path) == []


async def test_a_driver_that_is_not_loaded_yet_is_waited_for_where_gpus_are_known(
    tmp_path, card_state
):
    card_state({"init": 9})
    remembered = replace(A6000, uuid="GPU-one")
    async with watching(tmp_path, None, remembered=(remembered,)) as watched:
        snapshot = await watched.until(lambda seen: "Driver Not Loaded" in (seen.fault or ""))
        assert [reading.gpu for reading in snapshot.readings] == [remembered]
        card_state(CARDS)
        assert all(one.fault is None for one in (await watched.good()).readings)


# Health, pure


def reading(used_mib: int, *processes: GpuProcess, fault: str | None = None) -> GpuReading:
    return GpuReading(gpu=A6000, used_mib=used_mib, processes=processes, fault=fault)


def process(pid: int, memory_mib: int | None, kind: str = "compute") -> GpuProcess:
    return GpuProcess(pid=pid, memory_mib=memory_mib, kind=kind)


def test_a_job_is_seen_to_hold_what_its_processes_hold():
    seen = reading(9000, process(1, 3000), process(2, 1000), process(3, 4000))
    assert health.observed(seen, {1, 2}) == 4000
    assert health.observed(seen, {9}) == 0


def test_what_the_driver_does_not_say_is_not_measured():
    seen = reading(9000, process(1, 3000), process(2, None))
    assert health.measured(seen, {1, 9}) == 3000
    assert health.measured(seen, {1, 2}) is None
    assert health.measured(seen, ()) == 0


def test_a_process_of_which_the_driver_does_not_say_holds_what_nobody_explains():
    seen = reading(9000, process(1, 3000), process(2, None))
    assert health.observed(seen, {2}) == 6000
    assert health.observed(seen, {1, 2}) == 9000
    assert health.observed(seen, {1}) == 3000
    assert health.held_by(seen, seen.processes[1]) == 6000
    assert health.held_by(seen, seen.processes[0]) == 3000


def test_readings_and_claims_cross_the_pipe_unchanged():
    seen = reading(100, process(5, None), fault="lost")
    assert reading_of(json.loads(json.dumps(reading_json(seen)))) == seen
    claim = LeaseClaim(gpu_uuid="GPU-a", memory_mib=8192, pids=(1, 2))
    assert claim_of(json.loads(json.dumps(claim_json(claim)))) == claim
