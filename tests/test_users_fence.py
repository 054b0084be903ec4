"""The fence: GPUs belong to a group that their jobs are given, and nobody else."""

import grp
import os
from pathlib import Path

import pytest

from accounts import MARKS, SharedDaemon
from harness import SHORT, Daemon, eventually

pytestmark = MARKS

FENCED = SHORT.replace("[gpus]", '[gpus]\nfence = "group"')


@pytest.fixture
def fenced(new_shared: SharedDaemon) -> SharedDaemon:
    """A daemon, not started yet, that gives jobs with GPUs a group."""
    new_shared.config = FENCED
    new_shared.launcher_flags = ("--gpu-group", new_shared.people.gpus)
    return new_shared


@pytest.fixture
def node(fenced: SharedDaemon) -> Path:
    """What stands for a GPU's device file: only its group, and root, can read it."""
    path = fenced.home / "nvidia0"
    path.write_text("a GPU\n")
    os.chown(path, 0, grp.getgrnam(fenced.people.gpus).gr_gid)
    path.chmod(0o660)
    return path


def test_only_jobs_with_gpus_reach_them(fenced: SharedDaemon, node: Path) -> None:
    daemon = fenced.start()
    look = f"cat {node} || echo closed; id -Gn; touch mine; stat -c %G mine; rm mine"
    for who in (daemon.people.alice, daemon.people.bob):
        with who.acting(), pytest.raises(PermissionError):
            node.read_text()
        for wanted in ({"gpus": 1}, {"gpus": 2}, {"gpus": 1, "gpu_memory": "1GiB"}):
            seen, groups, made = daemon.result(who, look, **wanted).splitlines()
            assert seen == "a GPU"
            assert groups.split().count(daemon.people.gpus) == 1
            assert made == who.name, "what it makes is as at login"
        said = daemon.result(who, look).splitlines()
        assert "closed" in said
        assert daemon.people.gpus not in " ".join(said)
    other = daemon.people.extra
    assert other in daemon.result(daemon.people.alice, "id -Gn", gpus=1), "her own groups stay"


def test_a_job_keeps_the_group_over_its_attempts_and_other_peoples_do_not_get_it(
    fenced: SharedDaemon, node: Path
) -> None:
    daemon = fenced.start()
    alice = daemon.people.alice
    number = daemon.ordered(alice, f'cat {node} && test "$TRAIND_ATTEMPT" = 2 || exit 75', gpus=1)
    daemon.wait(number, outcome="succeeded", attempt=2)
    beside = daemon.ordered(daemon.people.bob, f"cat {node} && exit 9; exit 0")
    assert daemon.wait(beside)["exit_code"] == 0


def test_without_a_fence_a_job_gets_nothing_but_its_own_groups(
    fenced: SharedDaemon, node: Path
) -> None:
    fenced.config = SHORT
    daemon = fenced.start()
    number = daemon.ordered(daemon.people.bob, f"cat {node} && exit 9; exit 0", gpus=1)
    assert daemon.wait(number)["exit_code"] == 0
    assert daemon.ask("GET", "/v1/status").json["gpu_group"] is None


def test_nothing_starts_while_the_group_is_missing(fenced: SharedDaemon) -> None:
    fenced.launcher_flags = ("--gpu-group", "no-such-group")
    daemon = fenced.start()
    number = daemon.ordered(daemon.people.alice, "id -Gn", gpus=1)
    what = eventually(lambda: launcher_fault(daemon, number), what="the reason")
    assert "groupadd --system no-such-group" in what
    assert daemon.launcher is not None
    daemon.launcher.kill()
    daemon.launcher.wait()
    daemon.launcher_flags = ("--gpu-group", daemon.people.gpus)
    daemon.start_launcher()
    daemon.wait(number, outcome="succeeded")
    assert daemon.people.gpus in daemon.log_of(number)
    assert daemon.ask("GET", "/v1/status").json["gpu_group"] == daemon.people.gpus


def launcher_fault(daemon: SharedDaemon, number: int) -> str | None:
    """Why the job waits for the launcher, None while it is not known to."""
    reason = daemon.job(number)["reason"]
    return reason["detail"] if reason and reason["code"] == "launcher" else None


def test_a_daemon_of_ones_own_has_no_fence_to_offer(new_daemon: Daemon) -> None:
    new_daemon.config = FENCED
    done = new_daemon.refused()
    assert done.returncode == 78
    assert "gpus.fence" in done.stderr
    assert "'off'" in done.stderr
