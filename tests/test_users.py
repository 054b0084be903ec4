"""A daemon for people who do not trust each other: a job runs as whom it is of, as at login."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from accounts import MARKS, Person, SharedDaemon
from harness import command_line, eventually

pytestmark = MARKS


def owned(path: Path) -> tuple[int, int, int]:
    """Who owns it, and its mode."""
    found = path.lstat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def test_a_state_directory_is_laid_out_with_its_owners(shared: SharedDaemon) -> None:
    people = shared.people
    number = shared.ordered(people.alice, "sleep 600")
    shared.main_pid(number)
    own, alice = people.daemon, people.alice
    state, run = shared.state_dir, shared.run_dir(number)
    assert owned(state)[::2] == (0, 0o755)
    assert owned(state / "daemon") == (own.uid, own.gid, 0o700)
    for folder in (state / "runs", run.parent, run):
        assert owned(folder)[::2] == (0, 0o711)
    assert owned(run / "spec")[::2] == (0, 0o600)
    for name in ("lock", "shim.json", "exec.intent"):
        assert owned(run / name) == (0, own.gid, 0o640), name
    assert owned(run / "log") == (alice.uid, own.gid, 0o660)
    assert owned(run / "metrics") == (alice.uid, own.gid, 0o640)
    assert owned(run / "work")[::2] == (alice.uid, 0o700)
    assert shared.asked_by(alice, "DELETE", f"/v1/jobs/{number}").status == 202
    shared.wait(number, outcome="cancelled")
    assert owned(run / "stop")[::2] == (0, 0o644)
    assert owned(run / "exit.json") == (0, own.gid, 0o640)


def test_a_job_is_who_its_submitter_is_at_login(shared: SharedDaemon) -> None:
    alice = shared.people.alice
    switch = ["setpriv", f"--reuid={alice.uid}", f"--regid={alice.gid}", "--init-groups", "id"]
    expected = subprocess.check_output(switch, text=True)
    assert shared.people.extra in expected
    said = shared.result(alice, 'id; echo "$HOME $USER $LOGNAME $SHELL $PWD"; umask; ulimit -Sn')
    told, names, umask, files = said.splitlines()
    assert told + "\n" == expected
    home = str(alice.home)
    assert names.split() == [home, alice.name, alice.name, "/bin/bash", home]
    assert umask == "0022"
    assert int(files) <= 1024


def test_a_job_has_no_capability_no_descriptor_and_no_way_back(shared: SharedDaemon) -> None:
    said = shared.result(
        shared.people.alice,
        "grep -E '^(Cap(Prm|Eff|Amb)|Uid|Gid)' /proc/self/status; ls /proc/$$/fd; "
        "setpriv --reuid=0 true || echo refused",
    )
    caps = [line.split()[1] for line in said.splitlines() if line.startswith("Cap")]
    assert caps == ["0" * 16] * 3
    for line in said.splitlines():
        if line.startswith("Uid"):
            assert set(line.split()[1:]) == {str(shared.people.alice.uid)}
    assert {line for line in said.splitlines() if line.isdecimal()} <= {"0", "1", "2", "255"}
    assert "refused" in said


def test_what_a_job_makes_is_its_submitters(shared: SharedDaemon) -> None:
    alice = shared.people.alice
    made = 'touch "$TRAIND_RUN_DIR/a" "$TRAIND_CHECKPOINT_DIR/b" c; echo "$TRAIND_CHECKPOINT_DIR"'
    number = shared.ordered(alice, made)
    shared.wait(number, outcome="succeeded")
    folder = Path(shared.log_of(number).strip())
    assert folder == alice.home / "traind" / str(number)
    work = shared.run_dir(number) / "work"
    for path in (work / "a", folder, folder / "b", alice.home / "c"):
        assert owned(path)[:2] == (alice.uid, alice.gid), path
    job = shared.asked_by(alice, "GET", f"/v1/jobs/{number}").json
    assert (job["user"], job["uid"]) == (alice.name, alice.uid)
    assert job["checkpoint_dir"] == str(folder)


@pytest.mark.parametrize("kind", ["script", "argv", "env"])
def test_all_kinds_of_orders_run_as_their_submitter(shared: SharedDaemon, kind: str) -> None:
    bob = shared.people.bob
    match kind:
        case "script":
            with bob.acting():
                answer = shared.ask(
                    "POST", "/v1/jobs", b"#!/bin/sh\nid -u\n", {"Content-Type": "text/plain"}
                )
            number = answer.json["id"]
        case "argv":
            number = shared.ordered(bob, ["id", "-u"])
        case _:
            number = shared.ordered(bob, "id -u", env={"HOME": "/", "USER": "root", "UID": "0"})
    shared.wait(number, outcome="succeeded")
    assert shared.log_of(number) == f"{bob.uid}\n"


def test_a_job_that_is_cancelled_or_lost_leaves_no_process(shared: SharedDaemon) -> None:
    alice = shared.people.alice
    for how in ("cancel", "lose"):
        number = shared.ordered(alice, "(trap '' TERM; setsid sleep 601) & sleep 602", gpus=1)
        main = shared.main_pid(number)
        if how == "cancel":
            shared.asked_by(alice, "DELETE", f"/v1/jobs/{number}?now=1")
        else:
            os.kill(shared.shim_pid(number), 9)
        shared.wait(number, outcome="cancelled" if how == "cancel" else "lost")
        eventually(lambda pid=main: not command_line(pid), what="the end of the job")
        assert not [p for p in shared.processes() if command_line(p).startswith("sleep 60")]


def test_a_job_outlives_both_halves_and_is_adopted(new_shared: SharedDaemon) -> None:
    daemon = new_shared.start()
    alice = daemon.people.alice
    os.mkfifo(alice.home / "gate", 0o666)
    os.chown(alice.home / "gate", alice.uid, alice.gid)
    number = daemon.ordered(alice, "read -r _ < gate; exit 3", gpus=1)
    main = daemon.main_pid(number)
    assert daemon.launcher is not None
    daemon.launcher.kill()
    daemon.launcher.wait()
    daemon.kill()
    daemon.start()
    daemon.wait(number, "running", attempt=1)
    assert daemon.main_pid(number) == main
    (alice.home / "gate").write_text("\n")
    daemon.wait(number, outcome="failed", exit_code=3, attempt=1)
    daemon.kill()
    (daemon.state_dir / "daemon" / "traind.db").unlink()
    assert daemon.refuses_to_start() == 78, "its runs are not taken for those of new jobs"


def test_root_submits_for_nobody_and_nobody_is_nobody(shared: SharedDaemon) -> None:
    people = shared.people
    order = {"command": "id"}
    for who in (people.root, people.daemon):
        refused = shared.asked_by(who, "POST", "/v1/jobs", order)
        assert refused.status == 403
        assert "submit as yourself, not with sudo" in refused.json["detail"]
        assert shared.asked_by(who, "POST", "/v1/jobs?dry_run=1", order).status == 403
    assert shared.asked_by(people.root, "GET", "/v1/jobs").status == 200
    nobody = Person("nobody", 65534, 65534, Path("/"))
    assert shared.asked_by(nobody, "GET", "/v1/jobs").status == 403
    stranger = Person(people.bob.name, 54321, people.bob.gid, Path("/"))
    assert shared.asked_by(stranger, "GET", "/v1/jobs").status == 200
    assert shared.asked_by(stranger, "POST", "/v1/jobs", order).status == 403


def test_only_the_groups_that_are_named_may_use_it(new_shared: SharedDaemon) -> None:
    people = new_shared.people
    access = f'[access]\noperators = "{people.operators}"\ngroups = ["{people.extra}"]\n'
    new_shared.config += access
    daemon = new_shared.start()
    for who, status in ((people.alice, 200), (people.carol, 200), (people.root, 200)):
        assert daemon.asked_by(who, "GET", "/v1/jobs").status == status
    refused = daemon.asked_by(people.bob, "GET", "/v1/jobs")
    assert refused.status == 403
    assert people.extra in refused.json["detail"]


@pytest.mark.parametrize("how", ["of another", "missing", "read-only"])
def test_a_home_that_will_not_do_harms_its_owners_job_only(shared: SharedDaemon, how: str) -> None:
    people = shared.people
    alice, home = people.alice, people.alice.home
    aside = home.with_name("aside")
    home.rename(aside)
    try:
        if how != "missing":
            home.mkdir(0o700 if how == "of another" else 0o555)
            os.chown(home, people.bob.uid if how == "of another" else alice.uid, -1)
        number = shared.ordered(alice, "touch x || true")
        if how == "read-only":
            shared.wait(number, outcome="succeeded")
            assert f"{home}/traind/{number} could not be made" in shared.log_of(number)
        else:
            job = shared.wait(number, outcome="launch_failed")
            assert job["cause"]["code"] == "workdir"
            assert str(home) in job["cause"]["detail"]
        assert shared.result(alice, "id -un", workdir="/").endswith(f"{alice.name}\n")
        assert shared.result(people.bob, "pwd") == f"{people.bob.home}\n"
    finally:
        if home.exists():
            home.rmdir()
        aside.rename(home)


def test_what_a_job_left_behind_is_deleted_as_its_submitter(new_shared: SharedDaemon) -> None:
    new_shared.config += '[retention]\nrun_dirs = "0s"\nlogs = "0s"\n'
    daemon = new_shared.start()
    alice = daemon.people.alice
    precious = daemon.home / "precious"
    precious.mkdir()
    (precious / "data").write_text("roots")
    number = daemon.ordered(
        alice,
        f'cd "$TRAIND_RUN_DIR"; mkdir -p a/b; touch a/b/c; ln -s {precious} link; '
        f"ln -s {precious}/data a/b/file; chmod 000 a/b a",
    )
    daemon.wait(number, outcome="succeeded")
    swept = daemon.asked_by(daemon.people.carol, "POST", "/v1/retention")
    assert swept.json["logs"] == 1, swept.body
    assert not daemon.run_dir(number).parent.exists()
    assert (precious / "data").read_text() == "roots"
