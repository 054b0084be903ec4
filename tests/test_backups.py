"""Backups: whole copies of a database in use, rotated by age, and put back with all that counts."""

import os
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

from harness import Daemon, eventually
from traind.store.backups import backups_in, kept_of

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def folder(daemon: Daemon) -> Path:
    return daemon.state_dir / "daemon" / "backups"


def test_a_backup_holds_what_was_acknowledged_and_is_its_owners_only(daemon: Daemon) -> None:
    number = daemon.submit("true")
    answer = daemon.ask("POST", "/v1/backups")
    assert answer.status == 201
    made = answer.json
    path = Path(made["path"])
    assert made["verified"] is True
    assert made["bytes"] == path.stat().st_size > 0
    assert made["took_s"] > 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with sqlite3.connect(path) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert copy.execute("SELECT id FROM job").fetchall() == [(number,)]
    copy.close()


def test_backups_are_listed_newest_first_and_none_is_ever_half_made(daemon: Daemon) -> None:
    assert daemon.ask("GET", "/v1/backups").json == {"backups": []}
    first, second = (daemon.ask("POST", "/v1/backups").json for _ in range(2))
    listed = daemon.ask("GET", "/v1/backups").json["backups"]
    assert [entry["path"] for entry in listed] == [second["path"], first["path"]]
    assert {str(path) for path in folder(daemon).iterdir()} == {first["path"], second["path"]}


def test_a_backup_that_cannot_be_written_is_refused_and_the_daemon_goes_on(daemon: Daemon) -> None:
    folder(daemon).write_text("a file stands in the way")
    answer = daemon.ask("POST", "/v1/backups")
    assert answer.status == 503
    assert "no backup could be made" in answer.json["detail"]
    daemon.wait(daemon.submit("true"), outcome="succeeded")


def test_the_newest_of_seven_days_and_four_weeks_stay() -> None:
    nights = [NOON - timedelta(days=days) for days in range(60)]
    twice = [at - timedelta(hours=6) for at in nights]
    kept = kept_of([*twice, *nights], daily=7, weekly=4)
    assert set(nights[:7]) <= kept
    sundays = [NOON, *(NOON - timedelta(days=7 * weeks) for weeks in range(1, 4))]
    assert kept == {*nights[:7], *sundays}
    assert kept_of(nights, daily=1, weekly=0) == {nights[0]}


def age_last_night(daemon: Daemon, by: timedelta) -> None:
    """Make the stopped daemon's last nightly work so much older."""
    with sqlite3.connect(daemon.state_dir / "daemon" / "traind.db") as database:
        statement = "UPDATE counter SET value = value - ? WHERE name LIKE '%_done_at'"
        assert database.execute(statement, (by // timedelta(microseconds=1),)).rowcount == 2
    database.close()


def test_a_night_that_was_slept_through_is_made_up_for_at_the_start(new_daemon: Daemon) -> None:
    new_daemon.start().stop()
    assert not backups_in(folder(new_daemon)), "a new state has missed nothing"
    age_last_night(new_daemon, timedelta(days=3))
    folder(new_daemon).mkdir(exist_ok=True)
    old = [NOON - timedelta(days=days) for days in range(200, 230)]
    for at in old:
        (folder(new_daemon) / at.strftime("traind-%Y%m%dT%H%M%S.%fZ.db")).write_bytes(b"x")
    new_daemon.start()
    eventually(lambda: "old things removed" in new_daemon.log.read_text(), what="the night's work")
    rotated = backups_in(folder(new_daemon))
    assert rotated[0].made_at > NOON
    assert [backup.made_at for backup in rotated[1:7]] == old[:6]
    assert 7 < len(rotated) <= 7 + 4
    new_daemon.stop()
    new_daemon.start().stop()
    assert backups_in(folder(new_daemon)) == rotated, "it was made up for once"


def test_a_restored_backup_gives_no_id_again_and_runs_no_job_twice(new_daemon: Daemon) -> None:
    daemon = new_daemon.start()
    before = daemon.submit("echo before")
    daemon.wait(before, outcome="succeeded")
    waiting = daemon.submit("echo once >> once; exit 3", workdir=str(daemon.home))
    daemon.wait(waiting, outcome="failed")
    backup = daemon.ask("POST", "/v1/backups").json["path"]
    ran = daemon.submit("echo ran >> ran", workdir=str(daemon.home))
    daemon.wait(ran, outcome="succeeded")
    never_ran = daemon.submit("true", begin_at="2099-01-01T00:00:00Z")
    last_event = daemon.ask("GET", f"/v1/jobs/{never_ran}/events").json["events"][-1]["id"]
    daemon.kill()  # its last commits are in the write-ahead log only

    done = daemon.cli("restore", "--state-dir", str(daemon.state_dir), backup)
    assert done.code == 0, done.err
    assert "what was there before is in" in done.out
    daemon.start()
    assert daemon.job(before)["outcome"] == "succeeded"
    assert daemon.log_of(before) == "before\n"
    assert daemon.job(waiting)["exit_code"] == 3
    assert daemon.ask("GET", f"/v1/jobs/{ran}").status == 404
    after = daemon.submit("true")
    assert after > never_ran > ran
    assert daemon.ask("GET", f"/v1/jobs/{after}/events").json["events"][0]["id"] > last_event
    daemon.wait(after, outcome="succeeded")
    assert (daemon.home / "ran").read_text() == "ran\n"
    (aside,) = (daemon.state_dir / "daemon").glob("set-aside-*")
    assert (aside / "traind.db").exists()
    assert (aside / "traind.db-wal").exists()


def test_jobs_that_ended_after_the_backup_keep_their_endings(new_daemon: Daemon) -> None:
    daemon = new_daemon.start()
    os.mkfifo(daemon.home / "gate")
    here = {"workdir": str(daemon.home)}
    running = daemon.submit("echo 1 >> a; read < gate; exit 3", gpus=2, **here)
    daemon.main_pid(running)
    waiting = daemon.submit("echo 1 >> b; exit 4", gpus=2, **here)
    backup = daemon.ask("POST", "/v1/backups").json["path"]
    assert daemon.job(waiting)["state"] == "queued"
    (daemon.home / "gate").write_text("go\n")
    daemon.wait(running, outcome="failed", exit_code=3)
    daemon.wait(waiting, outcome="failed", exit_code=4)
    daemon.stop()
    assert daemon.cli("restore", "--state-dir", str(daemon.state_dir), backup).code == 0
    daemon.start()
    daemon.wait(running, outcome="failed", exit_code=3, attempt=1)
    daemon.wait(waiting, outcome="failed", exit_code=4, attempt=1)
    assert (daemon.home / "a").read_text() == (daemon.home / "b").read_text() == "1\n"


def test_restore_is_refused_while_a_daemon_runs(daemon: Daemon) -> None:
    backup = daemon.ask("POST", "/v1/backups").json["path"]
    done = daemon.cli("restore", "--state-dir", str(daemon.state_dir), backup)
    assert done.code == 75
    assert f"pid {daemon.pid}" in done.err
    assert not list((daemon.state_dir / "daemon").glob("set-aside-*"))


def test_a_file_that_is_no_whole_backup_changes_nothing(daemon: Daemon) -> None:
    number = daemon.submit("true")
    backup = Path(daemon.ask("POST", "/v1/backups").json["path"])
    daemon.stop()
    half = daemon.home / "half.db"
    half.write_bytes(backup.read_bytes()[: backup.stat().st_size // 2])
    for wrong in (half, daemon.home / "config.toml", daemon.home / "nowhere.db"):
        done = daemon.cli("restore", "--state-dir", str(daemon.state_dir), str(wrong))
        assert done.code == 78
        assert str(wrong) in done.err
    assert not list((daemon.state_dir / "daemon").glob("set-aside-*"))
    assert daemon.start().job(number)["id"] == number


def test_traind_backup_says_where_it_is(daemon: Daemon) -> None:
    done = daemon.cli("backup")
    assert done.code == 0
    assert "verified" in done.out
    assert Path(done.out.partition(": ")[0]).exists()
