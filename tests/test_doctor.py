"""doctor, clean and config: what a person asks of a box, each answer with what to do about it."""

import json
import os
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

from harness import Daemon
from traind.config import Config, check

FILE = Path(__file__).parent.parent / "config.toml"


def checks(daemon: Daemon) -> dict[str, dict[str, Any]]:
    done = daemon.cli("doctor", "--json", "--state-dir", str(daemon.state_dir))
    found = {finding["check"]: finding for finding in json.loads(done.out)["checks"]}
    assert done.code == int(any(finding["level"] == "WRONG" for finding in found.values()))
    for finding in found.values():
        assert finding["level"] == "ok" or finding["mend"], finding
    return found


def test_doctor_finds_a_sound_daemon_in_order(daemon: Daemon) -> None:
    daemon.ask("POST", "/v1/backups")
    daemon.await_launcher()
    found = checks(daemon)
    expected = {"daemon", "launcher", "python", "sqlite", "gpus", "cgroups", "state", "disk"}
    assert expected | {"clock", "open files", "backups", "kernel", "shm"} <= set(found)
    for name in ("daemon", "launcher", "python", "sqlite", "gpus", "state", "backups"):
        assert found[name]["level"] == "ok", found[name]
    assert f"pid {daemon.pid}" in found["daemon"]["sentence"]
    assert "2 GPUs" in found["gpus"]["sentence"]


def test_doctor_works_without_a_daemon_and_says_how_to_start_one(daemon: Daemon) -> None:
    daemon.ask("POST", "/v1/backups")
    daemon.stop()
    found = checks(daemon)
    assert found["daemon"]["level"] == "WRONG"
    assert "traind serve" in found["daemon"]["mend"]
    assert found["backups"]["level"] == "ok"
    done = daemon.cli("doctor", "--state-dir", str(daemon.state_dir))
    assert done.code == 1
    assert "to mend it: start it" in done.out


def test_doctor_names_a_state_directory_that_others_may_write(daemon: Daemon) -> None:
    daemon.state_dir.chmod(0o777)
    found = checks(daemon)["state"]
    assert found["level"] == "WRONG"
    assert found["mend"] == f"chmod go-w {daemon.state_dir}"


def test_doctor_names_a_database_that_others_may_read(daemon: Daemon) -> None:
    (daemon.state_dir / "daemon").chmod(0o755)
    found = checks(daemon)["state"]
    assert found["level"] == "WRONG"
    assert found["mend"] == f"chmod go-rwx {daemon.state_dir}/daemon"


def test_doctor_says_which_limits_the_cgroups_of_jobs_lack(daemon: Daemon) -> None:
    found = checks(daemon)["cgroups"]
    number = daemon.submit("true")
    daemon.wait(number, outcome="succeeded")
    record = daemon.record(number, "shim.json")
    assert record is not None
    if record["cgroup"] is None:
        assert found["level"] == "note"
    else:
        assert str(Path(record["cgroup"]).parent) in found["sentence"]
        handed_on = (Path(record["cgroup"]).parent / "cgroup.subtree_control").read_text().split()
        assert ("without limits" in found["sentence"]) == ("memory" not in handed_on)


def test_doctor_complains_when_nights_went_by_without_a_backup(daemon: Daemon) -> None:
    assert checks(daemon)["backups"]["level"] == "note"
    folder = daemon.state_dir / "daemon" / "backups"
    folder.mkdir()
    (folder / "traind-20260101T000000.000000Z.db").write_bytes(b"x")
    found = checks(daemon)["backups"]
    assert found["level"] == "WRONG"
    assert "traind backup" in found["mend"]


def test_doctor_tells_of_a_driver_that_does_not_answer(new_daemon: Daemon) -> None:
    scene = new_daemon.home / "gpus.json"
    scene.write_text("no JSON")
    new_daemon.simulate = str(scene)
    new_daemon.start()
    found = checks(new_daemon)["gpus"]
    assert found["level"] == "WRONG"
    assert "nvidia-smi" in found["mend"]


def checkpoint(daemon: Daemon, command: str = "exit 0") -> tuple[int, Path]:
    """A job that made a checkpoint, and where that is."""
    number = daemon.submit(f'echo model > "$TRAIND_CHECKPOINT_DIR/model.pt"; {command}')
    return number, daemon.home / "traind" / str(number)


def test_clean_lists_and_removes_only_when_asked_and_only_what_is_over(daemon: Daemon) -> None:
    done, gone = checkpoint(daemon)
    daemon.wait(done, outcome="succeeded")
    os.mkfifo(daemon.home / "gate")
    running, kept = checkpoint(daemon, f"read < {daemon.home}/gate")
    daemon.main_pid(running)
    daemon.wait(running, "running")
    unknown, named = daemon.home / "traind" / "4711", daemon.home / "traind" / "mine"
    link = daemon.home / "traind" / "4712"
    for folder in (unknown, named):
        folder.mkdir()
    link.symlink_to(named)

    listed = daemon.cli("clean")
    assert listed.code == 0
    assert str(gone) in listed.out
    assert "1 of them could go" in listed.err
    assert daemon.cli("clean", "--yes").code == 2
    assert daemon.cli("clean", "--checkpoints", "--older", "30d", "--yes").code == 0
    assert gone.exists()
    removed = daemon.cli("clean", "--checkpoints", "--yes")
    assert removed.code == 0, removed.err
    assert f"removed {gone}" in removed.err
    assert not gone.exists()
    assert all(path.exists() for path in (kept, unknown, named, link))
    (daemon.home / "gate").write_text("go\n")
    daemon.wait(running, outcome="succeeded")


def test_clean_says_in_json_what_could_go(daemon: Daemon) -> None:
    number, path = checkpoint(daemon)
    daemon.wait(number, outcome="succeeded")
    found = json.loads(daemon.cli("clean", "--json").out)["checkpoints"]
    assert [entry["path"] for entry in found] == [str(path)]
    assert found[0]["removable"] is True
    assert found[0]["bytes"] == len("model\n")


def test_clean_without_a_daemon_removes_nothing(daemon: Daemon) -> None:
    number, path = checkpoint(daemon)
    daemon.wait(number, outcome="succeeded")
    daemon.stop()
    assert daemon.cli("clean", "--checkpoints", "--yes").code == 69
    assert path.exists()


def test_config_check_tells_good_from_bad(new_daemon: Daemon) -> None:
    good = new_daemon.cli("config", "check", str(FILE))
    assert (good.code, good.out) == (0, f"{FILE} is in order\n")
    wrong = new_daemon.home / "wrong.toml"
    wrong.write_text('[nightly]\nat = "25:00"\ntimezone = "Mars/Olympus"\n[backup]\n')
    bad = new_daemon.cli("config", "check", str(wrong))
    assert bad.code == 78
    for part in ("nightly.at", "03:30", "nightly.timezone", "Europe/Berlin", "did you mean"):
        assert part in bad.err
    assert new_daemon.cli("config", "check").code == 2
    assert new_daemon.cli("config", "mend", str(FILE)).code == 2


def test_config_show_is_a_config_with_every_setting_and_its_origin(new_daemon: Daemon) -> None:
    file = new_daemon.home / "some.toml"
    text = '[jobs]\ngrace = "90s"\nlog_tail = "1GiB"\n[jobs.env]\nA = "say \\"x\\""\n'
    file.write_text(text + '[queue]\nrequeue_delay = "100ms"\n')
    shown = new_daemon.cli("config", "show", str(file))
    assert shown.code == 0
    again = check(tomllib.loads(shown.out), "shown")
    assert again.jobs.grace == timedelta(seconds=90)
    assert again.jobs.log_tail == 1024
    assert again.jobs.env == {"A": 'say "x"'}
    assert again.queue.requeue_delay == timedelta(milliseconds=100)
    origins = {
        line.split(" = ")[0]: line.rpartition("# ")[2]
        for line in shown.out.splitlines()
        if " = " in line
    }
    assert origins["grace"] == origins["requeue_delay"] == str(file)
    assert origins["cancel_grace"] == "default"


def test_config_show_without_a_file_shows_the_defaults(new_daemon: Daemon) -> None:
    shown = new_daemon.cli("config", "show")
    assert check(tomllib.loads(shown.out), "shown") == Config()
