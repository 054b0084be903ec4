"""What is old goes, each thing after its own time; nothing else does, whatever lies in the way."""

import os
import signal
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from harness import SHORT, Daemon, eventually

PROOFS = {"log", "lock", "shim.json", "exec.intent", "exit.json"}


def keep(daemon: Daemon, *, run_dirs: str = "14d", logs: str = "90d", rows: str = "365d") -> Daemon:
    """The daemon, started anew with these spans."""
    spans = f'run_dirs = "{run_dirs}"\nlogs = "{logs}"\nrows = "{rows}"\n'
    daemon.config = f"{SHORT}\n[retention]\n{spans}"
    if daemon.process is not None:
        daemon.stop()
    return daemon.start()


def sweep(daemon: Daemon) -> dict[str, int]:
    answer = daemon.ask("POST", "/v1/retention")
    assert answer.status == 200, answer.body
    removed: dict[str, int] = answer.json
    del removed["samples"], removed["minutes"]  # how many were taken is told by test_samples
    return removed


def nothing(**but: int) -> dict[str, int]:
    return {"run_dirs": 0, "logs": 0, "jobs": 0, "keys": 0} | but


def ended(daemon: Daemon, command: str = "echo said", **fields: Any) -> int:
    """A job that has ended and holds no GPU any more."""
    number = daemon.submit(command, **fields)
    daemon.wait(number, outcome="succeeded")
    eventually(lambda: not any(gpu["leases"] for gpu in gpus(daemon)), what="its GPU's release")
    return number


def gpus(daemon: Daemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = daemon.ask("GET", "/v1/gpus").json["gpus"]
    return found


def test_what_is_young_or_not_over_stays(new_daemon: Daemon) -> None:
    daemon = keep(new_daemon)
    done = ended(daemon)
    assert sweep(daemon) == nothing()
    keep(daemon, run_dirs="0s", logs="0s", rows="0s")
    os.mkfifo(daemon.home / "gate")
    running = daemon.submit("read < gate", workdir=str(daemon.home))
    daemon.main_pid(running)
    assert sweep(daemon) == nothing(run_dirs=0, logs=1, jobs=1)
    assert not daemon.run_dir(done).parent.exists()
    assert daemon.run_dir(running).is_dir()
    (daemon.home / "gate").write_text("go\n")
    daemon.wait(running, outcome="succeeded")


def test_a_run_directory_goes_and_its_log_stays_until_its_own_time(new_daemon: Daemon) -> None:
    daemon = keep(new_daemon, run_dirs="0s")
    number = ended(daemon, 'echo said; echo x > "$TRAIND_RUN_DIR/scratch"', gpus=1)
    assert sweep(daemon) == nothing(run_dirs=1)
    assert set(os.listdir(daemon.run_dir(number))) == PROOFS
    assert daemon.log_of(number) == "said\n"
    assert sweep(daemon) == nothing(), "it is done once"
    keep(daemon, run_dirs="0s", logs="0s")
    assert daemon.log_of(number) == "said\n"
    assert sweep(daemon) == nothing(logs=1)
    assert not daemon.run_dir(number).parent.exists()
    gone = daemon.ask("GET", f"/v1/jobs/{number}/log")
    assert gone.status == 404
    assert "is gone" in gone.json["detail"]
    assert daemon.job(number)["outcome"] == "succeeded"
    assert daemon.submit("true") == number + 1


def test_a_sweep_waits_for_a_launcher_that_is_being_replaced(new_daemon: Daemon) -> None:
    daemon = keep(new_daemon, run_dirs="0s", logs="0s")
    ended(daemon)
    for pid in daemon.launcher_pids():
        os.kill(pid, signal.SIGKILL)
    assert sweep(daemon) == nothing(logs=1)


def test_rows_go_with_their_history_and_their_ids_are_not_given_again(new_daemon: Daemon) -> None:
    daemon = keep(new_daemon, run_dirs="0s", logs="0s", rows="0s")
    numbers = [ended(daemon, gpus=1), *[ended(daemon) for _ in range(3)]]
    assert sweep(daemon) == nothing(logs=4, jobs=4)
    assert daemon.ask("GET", "/v1/jobs").json["jobs"] == []
    assert daemon.ask("GET", f"/v1/jobs/{numbers[0]}").status == 404
    daemon.stop()
    with sqlite3.connect(daemon.state_dir / "daemon" / "traind.db") as database:
        for table in ("job", "attempt", "lease", "job_event"):
            assert database.execute(f"SELECT COUNT(*) FROM {table}").fetchone() == (0,), table
    database.close()
    assert daemon.start().submit("true") == numbers[-1] + 1


def test_rows_stay_for_as_long_as_their_files_do(new_daemon: Daemon) -> None:
    daemon = keep(new_daemon, rows="0s")
    number = ended(daemon)
    assert sweep(daemon) == nothing()
    assert daemon.job(number)["outcome"] == "succeeded"


def test_checkpoints_are_never_removed(new_daemon: Daemon) -> None:
    daemon = keep(new_daemon, run_dirs="0s", logs="0s", rows="0s")
    number = ended(daemon, 'echo 1 > "$TRAIND_CHECKPOINT_DIR/model.pt"')
    sweep(daemon)
    assert (daemon.home / "traind" / str(number) / "model.pt").read_text() == "1\n"


def test_links_that_a_job_left_behind_are_not_followed(new_daemon: Daemon) -> None:
    daemon = keep(new_daemon, run_dirs="0s", logs="0s")
    precious = daemon.home / "precious"
    (precious / "deep").mkdir(parents=True)
    (precious / "deep" / "data").write_text("all of it")
    precious.chmod(0o755)
    number = ended(
        daemon,
        f'cd "$TRAIND_RUN_DIR"; ln -s {precious} link; mkdir -p a/b; ln -s {precious} a/b/link; '
        f"ln {precious}/deep/data hard; chmod 500 a/b a; cd ..; ln -s {precious} beside",
    )
    swapped = ended(daemon, f'cd "$TRAIND_RUN_DIR/.."; rmdir work; ln -s {precious} work')
    assert sweep(daemon) == nothing(logs=2)
    assert (precious / "deep" / "data").read_text() == "all of it"
    assert precious.stat().st_mode & 0o777 == 0o755
    assert not daemon.run_dir(number).parent.exists()
    assert not daemon.run_dir(swapped).parent.exists()


def test_a_link_in_place_of_a_run_directory_is_left_alone(new_daemon: Daemon) -> None:
    daemon = keep(new_daemon, run_dirs="0s", logs="0s")
    number = ended(daemon)
    elsewhere = daemon.home / "elsewhere"
    daemon.run_dir(number).rename(elsewhere)
    daemon.run_dir(number).symlink_to(elsewhere)
    assert sweep(daemon) == nothing()
    assert (elsewhere / "log").read_text() == "said\n"


def test_a_large_run_directory_does_not_keep_starts_waiting(new_daemon: Daemon) -> None:
    daemon = keep(new_daemon, run_dirs="0s", logs="0s")
    many = 'cd "$TRAIND_RUN_DIR"; for d in $(seq 60); do mkdir $d; (cd $d; touch $(seq 60)); done'
    ended(daemon, many)
    assert sweep(daemon) == nothing(logs=1)
    ended(daemon)


def test_keys_go_after_their_time(new_daemon: Daemon) -> None:
    new_daemon.config = f'{SHORT}\n[api]\nidempotency = "0s"\n'
    daemon = new_daemon.start()
    for key in ("one", "two"):
        answer = daemon.ask("POST", "/v1/jobs", {"command": "true"}, {"Idempotency-Key": key})
        assert answer.status == 201
    assert sweep(daemon)["keys"] <= 2
    assert sweep(daemon) == nothing()


def test_a_thousand_old_jobs_go_while_others_are_accepted(new_daemon: Daemon) -> None:
    daemon = keep(new_daemon, rows="30d")
    daemon.stop()
    insert_old_jobs(daemon.state_dir / "daemon" / "traind.db", 1000)
    daemon.start()
    young = daemon.submit("true")
    assert sweep(daemon)["jobs"] == 1000
    daemon.wait(young, outcome="succeeded")


def insert_old_jobs(path: Path, count: int) -> None:
    old = (datetime.now(UTC) - timedelta(days=60)) - datetime(1970, 1, 1, tzinfo=UTC)
    at = old // timedelta(microseconds=1)
    with sqlite3.connect(path) as database:
        database.executemany(
            "INSERT INTO job (id, user, uid, name, spec, priority, gpus, state, outcome, "
            "submitted_at, eligible_at, finished_at) VALUES "
            "(?, 'old', 1, 'old', '{}', 0, 0, 'finished', 'cancelled', ?, ?, ?)",
            [(number, at, at, at) for number in range(1, count + 1)],
        )
        database.execute("UPDATE counter SET value = ? WHERE name = 'id'", (count,))
    database.close()
