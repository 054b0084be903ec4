"""What jobs take of GPUs and host: sampled while they run, kept, thinned, summed up in the job."""

import json
import re
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from contract import CheckedDaemon
from harness import SHORT, daemon_in, eventually

QUICK = SHORT.replace('sample_busy = "1s"', 'sample_busy = "100ms"')
LONG = "exec sleep 600"
CARD = {"memory_mib": 24576, "busy_pct": 80, "power_w": 200, "temperature_c": 61}

Json = dict[str, Any]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[CheckedDaemon]:
    """A daemon that samples often and checks its answers; its GPUs are what `describe` says."""
    with daemon_in(tmp_path, CheckedDaemon, config=QUICK) as daemon:
        describe(daemon, CARD)
        daemon.simulate = str(daemon.home / "gpus.json")
        yield daemon


def describe(daemon: CheckedDaemon, *gpus: Json, **scene: Any) -> None:
    """Put the GPUs into the file that is read, whole or not at all."""
    path = daemon.home / "gpus.json"
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"gpus": list(gpus), **scene}))
    new.rename(path)


def samples(daemon: CheckedDaemon, number: int, query: str = "") -> list[Json]:
    answer = daemon.ask("GET", f"/v1/jobs/{number}/samples?{query}")
    assert answer.status == 200, answer.body
    found: list[Json] = answer.json["samples"]
    return found


def sampled(
    daemon: CheckedDaemon, number: int, like: Callable[[Json], bool] = lambda _: True
) -> Json:
    """The first sample of the last attempt that is like this, once there is one."""

    def found() -> Json | None:
        return next((one for one in samples(daemon, number) if like(one)), None)

    return eventually(found, what="a sample")


def both_seen(sample: Json) -> bool:
    """Whether the job's process is there, and what it has on its GPU."""
    return sample["processes"] == 1 and bool(sample["gpus"][0]["memory_mib"])


def running(daemon: CheckedDaemon, command: str = LONG, **fields: Any) -> int:
    number = daemon.submit(command, **fields)
    daemon.wait(number, "running")
    return number


@contextmanager
def database(daemon: CheckedDaemon) -> Iterator[sqlite3.Connection]:
    """The database of a daemon that is stopped meanwhile."""
    daemon.stop()
    connection = sqlite3.connect(daemon.state_dir / "daemon" / "traind.db")
    with connection:
        yield connection
    connection.close()
    daemon.start()


def microseconds(instant: datetime) -> int:
    return (instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def test_a_running_gpu_job_is_sampled_and_the_job_sums_it_up(box: CheckedDaemon) -> None:
    daemon = box.start()
    number = running(daemon, gpus=1, gpu_memory="10GiB")
    gpu = sampled(daemon, number, both_seen)["gpus"][0]
    assert (gpu["index"], gpu["memory_mib"]) == (0, 10240)
    assert (gpu["busy_pct"], gpu["power_w"], gpu["temperature_c"]) == (80, 200, 61)
    assert gpu["uuid"] == daemon.job(number)["gpus_allotted"][0]["uuid"]
    now = eventually(lambda: (job := daemon.job(number))["energy_wh"] and job, what="energy")
    assert (now["peak_gpu_memory_mib"], now["mean_gpu_busy_pct"]) == (10240, 80)
    shown = daemon.cli("show", str(number)).out
    assert re.search(r"peak GPU memory: +10 GiB", shown)
    assert re.search(r"GPU busy: +80% on average", shown)
    assert re.search(r"energy: +about [0-9.e-]+ Wh", shown)


def test_what_was_sampled_stays_after_the_end_and_a_restart(box: CheckedDaemon) -> None:
    daemon = box.start()
    number = running(daemon, gpus=1)
    sampled(daemon, number, lambda one: bool(one["gpus"][0]["memory_mib"]))
    daemon.ask("DELETE", f"/v1/jobs/{number}?now=1")
    ended = daemon.wait(number, outcome="cancelled")
    assert ended["peak_gpu_memory_mib"] == 24576
    assert ended["energy_wh"] > 0
    known = samples(daemon, number)
    daemon.restart()
    assert samples(daemon, number) == known
    again = daemon.job(number)
    for figure in ("peak_gpu_memory_mib", "mean_gpu_busy_pct", "energy_wh"):
        assert again[figure] == ended[figure]


def test_sampling_goes_on_after_a_kill_of_the_daemon(box: CheckedDaemon) -> None:
    daemon = box.start()
    number = running(daemon, gpus=1)
    sampled(daemon, number, lambda one: one["gpus"][0]["power_w"] is not None)
    daemon.kill()
    daemon.start()
    known = samples(daemon, number)
    before = daemon.job(number)["energy_wh"]
    eventually(lambda: len(samples(daemon, number)) > len(known) + 1, what="new samples")
    assert samples(daemon, number)[: len(known)] == known
    eventually(lambda: daemon.job(number)["energy_wh"] > before, what="more energy")


def test_a_job_without_gpus_is_sampled_with_all_its_processes(box: CheckedDaemon) -> None:
    daemon = box.start()
    burn = "import os; held = bytearray(200 << 20); os.fork()\nwhile True: pass"
    number = running(daemon, ["python3", "-c", burn])
    sample = sampled(
        daemon, number, lambda one: one["processes"] == 2 and (one["cpu_pct"] or 0) > 20
    )
    assert sample["gpus"] == []
    assert sample["memory_mib"] >= 200
    job = daemon.job(number)
    for figure in ("peak_gpu_memory_mib", "mean_gpu_busy_pct", "energy_wh"):
        assert job[figure] is None


def test_memory_that_processes_share_is_counted_once(box: CheckedDaemon) -> None:
    daemon = box.start()
    share = (
        "import mmap, os, time; held = mmap.mmap(-1, 100 << 20); held.write(bytes(100 << 20))\n"
        "for _ in range(4):\n    if os.fork() == 0:\n        break\n"
        "sum(held[::4096]); print('ready', flush=True); time.sleep(600)"
    )
    number = running(daemon, ["python3", "-c", share])
    eventually(lambda: daemon.log_of(number).count("ready") == 5, what="all of them")
    last = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    eventually(lambda: samples(daemon, number, f"since={last}"), what="a sample of it")
    sample = samples(daemon, number, f"since={last}")[0]
    assert sample["processes"] == 5
    assert 100 <= sample["memory_mib"] < 300


def test_what_a_job_writes_to_disk_is_counted_also_of_a_process_that_ended(
    box: CheckedDaemon,
) -> None:
    daemon = box.start()
    number = running(daemon, f"dd if=/dev/zero of=blob bs=1M count=8 conv=fsync; {LONG}")
    sample = sampled(daemon, number)
    if sample["write_bytes"] is None:
        pytest.skip("this kernel does not count what processes write")
    (daemon.home / "probe").write_bytes(bytes(8 << 20))
    mine = Path("/proc/self/io").read_text()
    if "write_bytes: 0\n" in mine:
        pytest.skip("nothing that is written here reaches a disk")
    sampled(daemon, number, lambda one: one["write_bytes"] >= 8 << 20)


def test_the_power_of_a_shared_gpu_is_split_by_memory(box: CheckedDaemon) -> None:
    daemon = box.start()
    large = running(daemon, gpus=1, gpu_memory="6GiB")
    small = running(daemon, gpus=1, gpu_memory="2GiB")
    for number in (large, small):
        sampled(daemon, number, lambda one: bool(one["gpus"][0]["memory_mib"]))

    def energy() -> dict[int, float]:
        jobs = daemon.ask("GET", "/v1/jobs?state=running").json["jobs"]
        return {job["id"]: job["energy_wh"] for job in jobs}

    before = energy()
    after = eventually(
        lambda: (now := energy())[small] > before[small] + 0.05 and now, what="energy"
    )
    ratio = (after[large] - before[large]) / (after[small] - before[small])
    assert ratio == pytest.approx(3, rel=0.1)


def test_a_gpu_that_does_not_tell_leaves_gaps_and_no_nought(box: CheckedDaemon) -> None:
    describe(box, {"memory_mib": 24576, "busy_pct": None, "power_w": None, "temperature_c": None})
    daemon = box.start()
    number = running(daemon, gpus=1)
    gpu = sampled(daemon, number, lambda one: bool(one["gpus"][0]["memory_mib"]))["gpus"][0]
    assert (gpu["busy_pct"], gpu["power_w"], gpu["temperature_c"]) == (None, None, None)
    job = daemon.job(number)
    assert (job["mean_gpu_busy_pct"], job["energy_wh"]) == (None, None)
    assert job["peak_gpu_memory_mib"] == 24576


def test_a_gpu_that_cannot_be_read_has_no_figures_and_the_host_has(box: CheckedDaemon) -> None:
    daemon = box.start()
    number = running(daemon, gpus=1)
    sampled(daemon, number, lambda one: one["gpus"][0]["busy_pct"] == 80)
    describe(daemon, CARD | {"hang_s": 600})
    last = samples(daemon, number)[-1]["at"]
    sample = sampled(
        daemon, number, lambda one: one["gpus"][0]["busy_pct"] is None and one["at"] > last
    )
    assert sample["gpus"][0]["memory_mib"] is None
    assert sample["processes"] == 1
    assert daemon.job(number)["mean_gpu_busy_pct"] == 80


def test_a_box_without_gpus_samples_its_jobs(box: CheckedDaemon) -> None:
    describe(box)
    daemon = box.start()
    assert sampled(daemon, running(daemon))["gpus"] == []


def test_each_attempt_has_its_own_samples_and_the_job_the_energy_of_all(
    box: CheckedDaemon,
) -> None:
    daemon = box.start()
    number = running(daemon, gpus=1, gpu_memory="10GiB")
    sampled(daemon, number, lambda one: bool(one["gpus"][0]["memory_mib"]))
    daemon.ask("POST", f"/v1/jobs/{number}/requeue", {"hold": True})
    daemon.wait(number, "held")
    daemon.ask("PATCH", f"/v1/jobs/{number}", {"gpu_memory": "4GiB", "hold": False})
    daemon.wait(number, "running", attempt=2)
    sampled(daemon, number, lambda one: one["gpus"][0]["memory_mib"] == 4096)
    job = daemon.job(number)
    assert job["peak_gpu_memory_mib"] == 4096
    first, second = daemon.ask("GET", f"/v1/jobs/{number}/attempts").json["attempts"]
    assert (first["peak_gpu_memory_mib"], second["peak_gpu_memory_mib"]) == (10240, 4096)
    assert job["energy_wh"] > first["energy_wh"] > 0
    of_first = samples(daemon, number, "attempt=1")
    assert of_first
    assert max(one["at"] for one in of_first) < samples(daemon, number)[0]["at"]
    refused = daemon.ask("GET", f"/v1/jobs/{number}/samples?attempt=3")
    assert refused.status == 404
    assert "2 attempts" in refused.json["detail"]


def test_what_is_asked_wrongly_is_refused_by_name(box: CheckedDaemon) -> None:
    daemon = box.start()
    number = daemon.waiting()
    assert samples(daemon, number) == []
    assert daemon.ask("GET", f"/v1/jobs/{number + 1}/samples").status == 404
    for query, field in (
        ("every=5", "every"),
        ("step=0", "step"),
        ("step=1.5", "step"),
        ("limit=0", "limit"),
        ("limit=2001", "limit"),
        ("since=yesterday", "since"),
        ("until=2030-01-01", "until"),
        ("attempt=0", "attempt"),
    ):
        refused = daemon.ask("GET", f"/v1/jobs/{number}/samples?{query}")
        assert field in daemon.fields(refused), query


def fill(daemon: CheckedDaemon, number: int, begin: datetime, count: int) -> None:
    """Put a sample every 5 s into the place of those of an ended job, with figures 0, 1, 2 …"""
    with database(daemon) as connection:
        attempt, lease = connection.execute(
            "SELECT attempt.id, lease.id FROM attempt JOIN lease ON attempt_id = attempt.id "
            "WHERE job_id = ?",
            (number,),
        ).fetchone()
        connection.execute("DELETE FROM sample")
        connection.execute("DELETE FROM gpu_sample")
        for turn in range(count):
            at = microseconds(begin + turn * timedelta(seconds=5))
            row = (attempt, at, turn, turn, turn, turn, turn)
            connection.execute("INSERT INTO sample VALUES (?, 0, ?, ?, ?, ?, ?, ?)", row)
            connection.execute(
                "INSERT INTO gpu_sample VALUES (?, 0, ?, ?, ?, ?, ?)",
                (lease, at, turn, turn, turn, turn),
            )
        connection.execute("UPDATE attempt SET samples_from = ?", (microseconds(begin),))


def ended(daemon: CheckedDaemon) -> int:
    number = daemon.submit("true", gpus=1)
    daemon.wait(number, outcome="succeeded")

    def released() -> bool:
        return not any(gpu["leases"] for gpu in daemon.ask("GET", "/v1/gpus").json["gpus"])

    eventually(released, what="its GPU's release")
    return number


def test_samples_come_by_pages_and_as_means_of_a_step(box: CheckedDaemon) -> None:
    daemon = box.start()
    number, begin = ended(daemon), datetime(2026, 1, 1, tzinfo=UTC)
    fill(daemon, number, begin, 30)
    every = samples(daemon, number)
    assert [one["memory_mib"] for one in every] == list(range(30))
    assert every[2]["at"] == "2026-01-01T00:00:10.000000Z"
    path = f"/v1/jobs/{number}/samples"
    paged: list[Json] = []
    page = daemon.ask("GET", f"{path}?limit=7").json
    while page["next"] is not None:
        assert len(page["samples"]) == 7
        paged += page["samples"]
        page = daemon.ask("GET", f"{path}?limit=7&since={page['next']}").json
    assert paged + page["samples"] == every
    part = samples(daemon, number, "since=2026-01-01T00:00:20Z&until=2026-01-01T00:00:30Z")
    assert part == every[4:6]
    minutes = daemon.ask("GET", f"{path}?step=60&limit=2").json
    assert [one["memory_mib"] for one in minutes["samples"]] == [6, 18]  # of 0…11 and 12…23
    assert minutes["samples"][1]["gpus"][0]["busy_pct"] == 17.5
    assert minutes["samples"][1]["at"] == "2026-01-01T00:01:00.000000Z"
    rest = samples(daemon, number, f"step=60&since={minutes['next']}")
    assert [one["cpu_pct"] for one in rest] == [26.5]
    assert samples(daemon, number, "since=2026-01-02T00:00:00Z") == []


def keep(daemon: CheckedDaemon, **spans: str) -> None:
    lines = "\n".join(f'{name} = "{span}"' for name, span in spans.items())
    daemon.config = f"{QUICK}\n[retention]\n{lines}\n"


def swept(daemon: CheckedDaemon) -> tuple[int, int]:
    removed = daemon.ask("POST", "/v1/retention").json
    return removed["samples"], removed["minutes"]


def test_samples_give_way_to_minute_means_and_these_go_in_their_time(box: CheckedDaemon) -> None:
    daemon = box.start()
    number = ended(daemon)
    now = datetime.now(UTC)
    old = (now - timedelta(days=8)).replace(second=0, microsecond=0)
    fill(daemon, number, old, 1440)
    before = daemon.job(number)
    assert swept(daemon) == (1440, 0)
    assert swept(daemon) == (0, 0), "it is done once"
    means = samples(daemon, number)
    assert len(means) == 120
    assert [one["memory_mib"] for one in means[:2]] == [6, 18]
    assert [one["cpu_pct"] for one in means[:2]] == [5.5, 17.5]
    assert [one["write_bytes"] for one in means[:2]] == [11, 23]
    assert [one["gpus"][0]["power_w"] for one in means[:2]] == [5.5, 17.5]
    assert means[1]["at"] == (old + timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%S.000000Z")
    assert daemon.job(number) == before
    hours = samples(daemon, number, "step=86400")
    assert sum(one["processes"] > 0 for one in hours) == len(hours) <= 2
    keep(daemon, samples_minutes="7d")
    daemon.restart()
    assert swept(daemon) == (0, 120)
    assert samples(daemon, number) == []


def test_samples_that_are_young_stay_and_old_ones_of_a_running_job_are_thinned(
    box: CheckedDaemon,
) -> None:
    daemon = box.start()
    number = running(daemon, gpus=1)
    sampled(daemon, number)
    assert swept(daemon) == (0, 0)
    with database(daemon) as connection:
        day = microseconds(datetime(1970, 1, 9, tzinfo=UTC))
        for table in ("sample", "gpu_sample"):
            connection.execute(f"UPDATE {table} SET at = at - ?", (day,))
        connection.execute("UPDATE attempt SET samples_from = samples_from - ?", (day,))
    assert swept(daemon)[0] > 0
    today = datetime.now(UTC).strftime("%Y-%m-%dT00:00:00Z")
    eventually(lambda: samples(daemon, number, f"since={today}"), what="new samples")
    assert samples(daemon, number)[0]["at"] < today


def test_a_job_goes_with_its_samples(box: CheckedDaemon) -> None:
    keep(box, run_dirs="0s", logs="0s", rows="0s")
    daemon = box.start()
    number = running(daemon, gpus=1)
    sampled(daemon, number)
    daemon.ask("DELETE", f"/v1/jobs/{number}?now=1")
    daemon.wait(number, outcome="cancelled")
    eventually(
        lambda: (
            daemon.ask("POST", "/v1/retention")
            and daemon.ask("GET", f"/v1/jobs/{number}").status == 404
        ),
        what="its row gone",
    )
    with database(daemon) as connection:
        for table in ("sample", "gpu_sample", "attempt"):
            assert connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone() == (0,), table


def test_where_nothing_runs_nothing_is_written(box: CheckedDaemon) -> None:
    daemon = box.start()
    number = running(daemon)
    sampled(daemon, number)
    daemon.ask("DELETE", f"/v1/jobs/{number}?now=1")
    daemon.wait(number, outcome="cancelled")
    held = daemon.submit("true", hold=True)

    def commits() -> int:
        text = daemon.ask("GET", "/metrics").body.decode()
        return int(re.findall(r"^traind_db_commit_seconds_count (\d+)", text, re.MULTILINE)[0])

    before = commits()
    assert daemon.ask("GET", f"/v1/jobs/{held}?wait=2").json["state"] == "held"
    assert commits() - before < 8, "about twenty rounds were due"


def test_a_job_that_is_stopped_by_a_signal_keeps_its_samples(box: CheckedDaemon) -> None:
    daemon = box.start()
    number = running(daemon, gpus=1)
    sampled(daemon, number, lambda one: one["cpu_pct"] is not None)
    daemon.ask("POST", f"/v1/jobs/{number}/signal", {"signal": signal.SIGKILL.name[3:]})
    daemon.wait(number, outcome="failed")
    assert samples(daemon, number)
