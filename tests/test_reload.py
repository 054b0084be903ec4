"""SIGHUP: what may change while the daemon runs does, the rest is named, nonsense is refused."""

import os
import signal

from contract import FAR
from harness import SHORT, Daemon, eventually


def reload(daemon: Daemon, config: str) -> str:
    """What the daemon says of this configuration."""
    before = len(daemon.log.read_text())
    (daemon.home / "config.toml").write_text(config)
    os.kill(daemon.pid, signal.SIGHUP)
    return eventually(lambda: "event=" in (said := said_since(daemon, before)) and said)


def said_since(daemon: Daemon, place: int) -> str:
    """The lines about reloads since then."""
    lines = daemon.log.read_text()[place:].splitlines(keepends=True)
    return "".join(line for line in lines if "reload" in line and line.endswith("\n"))


def changed(config: str, **values: str) -> str:
    """The configuration with one value in each of some sections."""
    for section, line in values.items():
        config = config.replace(f"[{section}]\n", f"[{section}]\n{line}\n")
        config += "" if f"[{section}]" in config else f"[{section}]\n{line}\n"
    return config


def test_what_may_change_while_it_runs_does(daemon: Daemon) -> None:
    order = {"command": "true", "begin_at": FAR, "time_limit": "2h"}
    assert daemon.ask("POST", "/v1/jobs", order).status == 201
    said = reload(daemon, changed(SHORT, jobs='max_time_limit = "1h"', queue="jobs_per_user = 1"))
    assert "jobs.max_time_limit, queue.jobs_per_user" in said
    refused = daemon.ask("POST", "/v1/jobs", order)
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "time_limit")
    assert daemon.ask("POST", "/v1/jobs", {"command": "true"}).status == 409


def test_the_sharing_of_gpus_follows_a_reload(daemon: Daemon) -> None:
    half = {"gpus": 1, "gpu_ids": [0], "gpu_memory": "4GiB"}
    first = daemon.submit("exec sleep 600", **half)
    daemon.wait(first, "running")
    reload(daemon, changed(SHORT, gpus="max_jobs = 1"))
    second = daemon.submit("true", **half)
    eventually(lambda: daemon.job(second)["reason"]["code"] == "resources", what="its reason")
    daemon.wait(second, "queued")
    reload(daemon, changed(SHORT, gpus="max_jobs = 2"))
    daemon.wait(second, outcome="succeeded")
    assert daemon.job(first)["state"] == "running"


def test_the_log_level_follows_a_reload(daemon: Daemon) -> None:
    reload(daemon, changed(SHORT, daemon='log_level = "error"'))
    place = len(daemon.log.read_text())
    daemon.wait(daemon.submit("true"), outcome="succeeded")
    assert daemon.log.read_text()[place:] == ""


def test_what_the_night_does_follows_a_reload(daemon: Daemon) -> None:
    done = daemon.submit("true")
    daemon.wait(done, outcome="succeeded")
    assert daemon.ask("POST", "/v1/retention").json["logs"] == 0
    night = {"nightly": 'at = "04:00"', "backups": "daily = 2"}
    said = reload(daemon, changed(SHORT, retention='run_dirs = "0s"\nlogs = "0s"', **night))
    for name in ("nightly.at", "backups.daily", "retention.logs", "retention.run_dirs"):
        assert name in said
    assert daemon.ask("POST", "/v1/retention").json["logs"] == 1
    assert daemon.ask("GET", f"/v1/jobs/{done}/log").status == 404


def test_what_wants_a_restart_is_named(daemon: Daemon) -> None:
    config = changed(SHORT, api='keepalive = "5s"', queue="front = 7", gpus='source = "nvml"')
    said = reload(daemon, config)
    assert "changed=nothing" in said
    eventually(lambda: "want a restart" in daemon.log.read_text())
    assert "api.keepalive" in daemon.log.read_text()
    assert "queue.front" in daemon.log.read_text()
    assert daemon.ask("GET", "/v1/status").json["gpus"] == 2


def test_a_wrong_file_is_refused_by_its_keys_and_changes_nothing(daemon: Daemon) -> None:
    config = changed(SHORT, jobs='max_time_limit = "1h"\ngrase = "1s"', gpus="max_jobs = 0")
    said = reload(daemon, config)
    for part in (
        "level=error",
        "jobs.grase",
        "did you mean grace",
        "gpus.max_jobs",
        "old settings",
    ):
        assert part in said
    order = {"command": "true", "begin_at": FAR, "time_limit": "2h"}
    assert daemon.ask("POST", "/v1/jobs", order).status == 201
    assert "refused" in reload(daemon, "this is = no toml =")
    (daemon.home / "config.toml").unlink()
    os.kill(daemon.pid, signal.SIGHUP)
    eventually(lambda: "cannot be read: [Errno 2]" in daemon.log.read_text())
    assert daemon.ask("GET", "/healthz").status == 200
