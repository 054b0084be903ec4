"""Homes on disks that do not answer: whose they are waits in vain, and nobody else waits at all."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from accounts import MARKS, SharedDaemon
from harness import SHORT

pytestmark = MARKS

LIBC = ctypes.CDLL(None, use_errno=True)
MNT_DETACH = 2


@contextmanager
def dead_automount(path: Path) -> Iterator[None]:
    """Whoever but this process and its group goes into the folder waits for an automounter that
    never answers, as after a file server went away. Source: the kernel's filesystems/autofs.
    """
    asked, ask = os.pipe()
    options = f"fd={ask},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
    done = LIBC.mount(b"dead", os.fsencode(path), b"autofs", 0, options.encode())
    os.close(ask)
    try:
        if done != 0:
            pytest.skip(f"no automount can be made here: {os.strerror(ctypes.get_errno())}")
        yield
    finally:
        if done == 0:
            LIBC.umount2(os.fsencode(path), MNT_DETACH)
        os.close(asked)


def with_deadline(daemon: SharedDaemon, deadline: str) -> SharedDaemon:
    """A daemon whose jobs wait for a disk for so long."""
    daemon.config = SHORT.replace("[jobs]", f'[jobs]\nlaunch_deadline = "{deadline}"')
    return daemon.start()


def test_a_disk_that_does_not_answer_ends_who_needs_it_with_a_reason_and_nobody_else(
    new_shared: SharedDaemon,
) -> None:
    daemon = with_deadline(new_shared, "10s")
    alice, bob, far = daemon.people.alice, daemon.people.bob, daemon.home / "far"
    far.mkdir()
    near = {"workdir": "/", "checkpoint_dir": "/tmp"}
    with dead_automount(alice.home), dead_automount(far):
        number = daemon.ordered(alice, "true", gpus=2)
        waiting = {number: f"the checkpoint directory '{alice.home}/traind/{number}'"}
        for field, called in (
            ("workdir", "working directory"),
            ("checkpoint_dir", "checkpoint directory"),
            ("python_env", "Python environment"),
        ):
            number = daemon.ordered(bob, "true", **{**near, field: f"{far}/mine"})
            waiting[number] = f"the {called} '{far}/mine'"
        waiting[daemon.ordered(bob, [f"{far}/train"], **near)] = f"the program '{far}/train'"
        assert daemon.result(bob, "pwd") == f"{bob.home}\n"
        for number, what in waiting.items():
            job = daemon.wait(number, outcome="launch_failed")
            assert job["cause"]["detail"] == f"{what} did not answer within 10 s"
            assert (job["exit_code"], job["signal"]) == (None, None)
        assert daemon.result(bob, "pwd", gpus=2) == f"{bob.home}\n", "the GPUs are free again"
    assert daemon.result(alice, "pwd") == f"{alice.home}\n"


def test_a_job_that_waits_for_its_home_is_cancelled_like_any_other(
    new_shared: SharedDaemon,
) -> None:
    daemon = with_deadline(new_shared, "10m")
    alice, bob = daemon.people.alice, daemon.people.bob
    with dead_automount(alice.home):
        number = daemon.ordered(alice, "true")
        daemon.wait(number, "running")
        assert daemon.result(bob, "id -un") == f"{bob.name}\n", "the launcher goes on meanwhile"
        assert daemon.asked_by(alice, "DELETE", f"/v1/jobs/{number}?now=1").status == 202
        job = daemon.wait(number, outcome="cancelled")
        assert job["cause"]["code"] == "cancelled_by"
        assert "did not answer" not in job["cause"]["detail"]
