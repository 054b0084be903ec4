"""The state on disk: one daemon has it, and what is not ours is never touched."""

import os
import shutil
import socket
from pathlib import Path

import pytest

from contract import FAR
from harness import Daemon, daemon_in


def database(daemon: Daemon) -> Path:
    return daemon.state_dir / "daemon" / "traind.db"


def test_a_second_daemon_on_the_same_state_is_refused_naming_the_first(daemon: Daemon) -> None:
    refused = daemon.refused()
    assert refused.returncode == 75
    assert f"pid {daemon.pid}" in refused.stderr
    assert str(daemon.state_dir) in refused.stderr
    assert daemon.ask("GET", "/healthz").status == 200
    assert daemon.job(daemon.submit("true"))["state"]


def test_the_lock_of_a_killed_daemon_holds_nobody_up(daemon: Daemon) -> None:
    first = daemon.pid
    daemon.restart()
    refused = daemon.refused()
    assert f"pid {daemon.pid}" in refused.stderr
    assert f"pid {first}" not in refused.stderr


def test_a_missing_database_beside_runs_is_refused(daemon: Daemon) -> None:
    daemon.wait(daemon.submit("true"))
    daemon.stop()
    database(daemon).rename(daemon.home / "moved.db")
    refused = daemon.refused()
    assert refused.returncode == 78
    assert "traind.db is missing" in refused.stderr
    assert not database(daemon).exists()
    shutil.copy(daemon.home / "moved.db", database(daemon))
    daemon.start()
    assert daemon.job(1)["outcome"] == "succeeded"


def test_an_older_backup_gives_no_id_twice(daemon: Daemon) -> None:
    daemon.stop()
    shutil.copy(database(daemon), daemon.home / "backup.db")
    daemon.start()
    for _ in range(3):
        last = daemon.submit("true")
    daemon.wait(last)
    daemon.stop()
    for leftover in database(daemon).parent.glob("traind.db*"):
        leftover.unlink()
    shutil.copy(daemon.home / "backup.db", database(daemon))
    daemon.start()
    number = daemon.submit("true")
    assert number == last + 1
    daemon.wait(number, outcome="succeeded")


def test_a_first_start_that_was_killed_holds_the_next_up_by_nothing(new_daemon: Daemon) -> None:
    folder = new_daemon.state_dir / "daemon"
    folder.mkdir(parents=True, mode=0o700)
    for name in ("traind.new", "traind.new-wal", "traind.new-journal"):
        (folder / name).write_bytes(os.urandom(5000))
    new_daemon.start()
    assert new_daemon.submit("true", begin_at=FAR) == 1
    assert not list(folder.glob("traind.new*"))


def test_a_damaged_database_is_refused_with_78_and_the_way_out(daemon: Daemon) -> None:
    daemon.stop()
    os.truncate(database(daemon), 8192)
    refused = daemon.refused()
    assert refused.returncode == 78
    assert f"{database(daemon)} is not touched: it " in refused.stderr
    assert "Put a backup in its place" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert database(daemon).stat().st_size == 8192


@pytest.mark.parametrize("name", ["daemon", "runs", "."])
def test_a_state_directory_that_is_none_is_refused(new_daemon: Daemon, name: str) -> None:
    path = new_daemon.state_dir / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("mine")
    refused = new_daemon.refused()
    assert refused.returncode == 78
    assert f"the state directory {new_daemon.state_dir} cannot be used" in refused.stderr
    assert path.read_text() == "mine"


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_the_state_directory_of_another_account_is_left_alone(new_daemon: Daemon) -> None:
    new_daemon.state_dir.mkdir()
    os.chown(new_daemon.state_dir, 65533, 65533)
    refused = new_daemon.refused()
    assert refused.returncode == 78
    assert "belongs to 65533; use your own" in refused.stderr
    assert not list(new_daemon.state_dir.iterdir())


def test_a_socket_path_that_no_address_holds_is_refused_in_words(new_daemon: Daemon) -> None:
    new_daemon.flags = ("--socket", f"{new_daemon.home}/{'s' * 108}")
    refused = new_daemon.refused()
    assert refused.returncode == 78
    assert "107" in refused.stderr
    assert "--socket" in refused.stderr
    longest = f"{new_daemon.home}/".ljust(107, "s")
    new_daemon.flags = ("--socket", longest)
    new_daemon.start()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(longest)


def test_a_socket_that_another_daemon_serves_is_not_stolen(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with daemon_in(tmp_path / "other", flags=("--socket", str(daemon.socket))) as other:
        refused = other.refused()
        assert refused.returncode == 75
        assert f"another daemon already listens on {daemon.socket}" in refused.stderr
    assert daemon.ask("GET", "/v1/status").json["pid"] == daemon.pid


def test_a_socket_that_was_left_over_is_replaced(daemon: Daemon) -> None:
    daemon.kill()
    assert daemon.socket.is_socket()
    daemon.start()
    assert daemon.ask("GET", "/healthz").status == 200
    daemon.stop()
    assert not daemon.socket.exists()


@pytest.mark.parametrize("what", ["file", "directory", "link"])
def test_what_is_no_socket_is_never_replaced_by_one(new_daemon: Daemon, what: str) -> None:
    thesis = new_daemon.home / "thesis.tex"
    if what == "directory":
        thesis.mkdir()
    elif what == "link":
        thesis.symlink_to(new_daemon.home / "missing")
    else:
        thesis.write_text("three years of work")
    new_daemon.flags = ("--socket", str(thesis))
    refused = new_daemon.refused()
    assert refused.returncode == 78
    assert f"{thesis} is no socket" in refused.stderr
    assert what != "file" or thesis.read_text() == "three years of work"
    assert os.path.lexists(thesis)


def test_a_place_where_no_socket_can_be_is_refused_in_words(new_daemon: Daemon) -> None:
    new_daemon.flags = ("--socket", "/no/such/place/traind.sock")
    refused = new_daemon.refused()
    assert refused.returncode == 78
    assert "cannot listen" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_tcp_door_that_is_taken_is_refused_in_words(new_daemon: Daemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "{}:{}".format(*taken.getsockname())
        new_daemon.flags = ("--http", address)
        refused = new_daemon.refused()
    assert refused.returncode == 78
    assert "cannot listen" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not new_daemon.socket.exists()
