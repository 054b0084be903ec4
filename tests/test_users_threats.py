"""What people may try against each other, the daemon and root: by paths, processes, descriptors."""

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from accounts import MARKS, Person, SharedDaemon
from harness import DEADLINE_S, command_line, eventually

pytestmark = MARKS


@pytest.mark.parametrize(
    "what",
    [
        'rm -f "$TRAIND_RUN_DIR/../log"',
        'ln -sf /etc/passwd "$TRAIND_RUN_DIR/../log"',
        'echo {} > "$TRAIND_RUN_DIR/../exit.json"',
        'mv "$TRAIND_RUN_DIR" "$TRAIND_RUN_DIR/../other"',
        'rmdir "$TRAIND_RUN_DIR"',
        'cat "$TRAIND_RUN_DIR/../spec"',
        'cat "$TRAIND_RUN_DIR/../shim.json"',
        'echo x >> "$TRAIND_STOP_FILE"',
        'ls "$TRAIND_RUN_DIR/../../.."',
        'ls "$TRAIND_RUN_DIR/../../../../daemon"',
        'touch "$TRAIND_RUN_DIR/../../../../x"',
        "kill -9 $PPID",
        "head -c1 /proc/$PPID/mem",
        "cat /proc/$PPID/environ",
        "ls /proc/$PPID/fd",
        "grep -q . /etc/shadow",
    ],
)
def test_a_job_cannot(shared: SharedDaemon, what: str) -> None:
    number = shared.ordered(shared.people.bob, f"({what}) && exit 9; exit 0")
    job = shared.wait(number)
    assert (job["outcome"], job["exit_code"]) == ("succeeded", 0), shared.log_of(number)


def test_nothing_of_a_submitters_environment_reaches_a_process_that_is_root(
    shared: SharedDaemon,
) -> None:
    mark = "marked-4d1f"
    names = ("LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONSTARTUP", "BASH_ENV", "HOME")
    env = dict.fromkeys(names, f"/nowhere/{mark}")
    alice = shared.people.alice
    number = shared.ordered(alice, ["/bin/sleep", "600"], env=env)
    main, shim = shared.main_pid(number), shared.shim_pid(number)
    assert shared.launcher is not None
    environ = Path(f"/proc/{main}/environ")
    eventually(lambda: mark.encode() in environ.read_bytes(), what="the command itself")
    for pid in (shim, shared.launcher.pid, shared.pid):
        assert mark.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
        assert mark.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert mark not in Path(f"/proc/{pid}/maps").read_text()
    assert uids(shim) == {0}
    assert uids(main) == {alice.uid}
    assert uids(shared.pid) == {shared.people.daemon.uid}
    shared.asked_by(alice, "DELETE", f"/v1/jobs/{number}?now=1")
    shared.wait(number, outcome="cancelled")


def uids(pid: int) -> set[int]:
    text = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith("Uid:"))
    return set(map(int, line.split()[1:]))


def test_the_daemon_holds_no_capability(shared: SharedDaemon) -> None:
    text = Path(f"/proc/{shared.pid}/status").read_text()
    assert "CapEff:\t0000000000000000" in text
    assert "CapPrm:\t0000000000000000" in text


def test_a_shim_keeps_nothing_but_its_lock_and_its_log(shared: SharedDaemon) -> None:
    number = shared.ordered(shared.people.alice, "sleep 600")
    main, shim = shared.main_pid(number), shared.shim_pid(number)
    run = shared.run_dir(number)
    eventually(lambda: command_line(main).startswith("sleep"), what="the command itself")
    wanted = {"/dev/null", str(run / "lock"), str(run / "log")}
    eventually(lambda: held(shim) == wanted, what="a shim that is done with its directories")
    assert held(main) == {"/dev/null", str(run / "log")}
    shared.asked_by(shared.people.alice, "DELETE", f"/v1/jobs/{number}?now=1")


def held(pid: int) -> set[str]:
    """What the descriptors of a process are of; a pipe of its own is nothing of another's."""
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return {path for path in found if not path.startswith("pipe:")}


def test_another_persons_folder_is_no_place_to_work_in(shared: SharedDaemon) -> None:
    alice, bob = shared.people.alice, shared.people.bob
    private = bob.home / "private"
    private.mkdir(0o700, exist_ok=True)
    os.chown(private, bob.uid, bob.gid)
    link = alice.home / "link"
    link.unlink(missing_ok=True)
    link.symlink_to(private)
    for path in (private, link):
        number = shared.ordered(alice, "id", workdir=str(path))
        job = shared.wait(number, outcome="launch_failed")
        assert job["cause"]["code"] == "workdir"
        number = shared.ordered(alice, "id", checkpoint_dir=f"{path}/mine")
        job = shared.wait(number, outcome="launch_failed")
        assert "checkpoint directory" in job["cause"]["detail"]
    assert list(private.iterdir()) == []


def test_a_log_that_its_owner_locked_away_is_told_so(shared: SharedDaemon) -> None:
    alice = shared.people.alice
    number = shared.ordered(alice, 'chmod 000 "$TRAIND_RUN_DIR/../log" "$TRAIND_METRICS"; echo x')
    shared.wait(number, outcome="succeeded")
    for query in ("", "?follow=1", "?tail=1"):
        refused = shared.asked_by(alice, "GET", f"/v1/jobs/{number}/log{query}")
        assert refused.status == 404, refused.body
        assert "its owner took the right" in refused.json["detail"]
    assert shared.asked_by(alice, "GET", f"/v1/jobs/{number}/metrics").json["metrics"] == []


def test_the_launcher_hears_its_daemon_and_root_alone(shared: SharedDaemon) -> None:
    people, path = shared.people, shared.launcher_socket
    for who in (people.alice, people.carol):
        with who.acting(), socket.socket(socket.AF_UNIX) as door, pytest.raises(PermissionError):
            door.connect(str(path))
    mode = path.stat().st_mode
    path.chmod(0o666)
    try:
        with people.alice.acting(), socket.socket(socket.AF_UNIX) as door:
            door.connect(str(path))
            door.settimeout(DEADLINE_S)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                door.sendall(b'{"op": "hello"}\n')
                assert door.recv(100) == b""
    finally:
        path.chmod(mode)
    eventually(lambda: shared.ask("GET", "/readyz").status == 200, what="ready")


@contextlib.contextmanager
def unheard(daemon: SharedDaemon) -> Iterator[None]:
    """Meanwhile the daemon does not connect to its launcher again, which has one ear only."""
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


def spoken(path: Path, who: Person, orders: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the launcher answers to this person's orders."""
    with who.acting(), socket.socket(socket.AF_UNIX) as door:
        door.connect(str(path))
        door.settimeout(DEADLINE_S)
        answers = []
        for order in orders:
            door.sendall(json.dumps(order).encode() + b"\n")
            data = b""
            while not data.endswith(b"\n"):
                block = door.recv(65536)
                assert block, "the launcher hung up"
                data += block
            answers.append(json.loads(data))
        return answers


@pytest.mark.parametrize("uid", [0, 1, 999, 65534, 65535, 4294967295, -1, 54321])
def test_a_daemon_that_was_taken_over_cannot_make_a_job_of_anybody_but_a_person(
    new_shared: SharedDaemon, uid: int
) -> None:
    new_shared.start_launcher()
    made = new_shared.people.folder / f"made-by-{uid}"
    spec = {
        "job": 7,
        "attempt": 1,
        "uid": uid,
        "command": f"touch {made}",
        "argv": None,
        "script": None,
        "interpreter": None,
        "script_args": [],
        "shell": "/bin/sh",
        "workdir": "/",
        "python_env": None,
        "checkpoint_dir": None,
        "env": {},
        "job_env": {},
        "leftover_grace_s": 1,
        "fenced": True,
        "launch_deadline_s": 60,
        "limits": {"own": {}, "together": {}},
    }
    order = {"op": "start", "spec": spec}
    (told,) = spoken(new_shared.launcher_socket, new_shared.people.daemon, [order])
    if "error" not in told:
        ending = eventually(lambda: new_shared.record(7, "exit.json"), what="the end")
        assert ending["launch_error"]["step"] == "identity"
    assert not made.exists()
    for verb in ("signal", "delete"):
        order = {"op": verb, "job": 7, "attempt": 1, "keep_log": False}
        order |= {"signal": "KILL", "scope": "all"}
        spoken(new_shared.launcher_socket, new_shared.people.daemon, [order])


@pytest.mark.parametrize(
    "order",
    [
        {"op": "__init__"},
        {"op": "_start"},
        {"op": "path"},
        {"op": "start", "spec": {"job": "../../x", "attempt": 1, "uid": 1000}},
        {"op": "delete", "job": "../..", "attempt": 1, "keep_log": False},
        {"op": "announce", "job": "1/../..", "attempt": 1, "stop": {}},
        {"op": "signal", "job": 1, "attempt": 1, "signal": "NONE", "scope": "all"},
        {},
    ],
)
def test_the_launcher_refuses_what_is_no_order(shared: SharedDaemon, order: dict[str, Any]) -> None:
    with unheard(shared):
        (told,) = spoken(shared.launcher_socket, shared.people.root, [order])
    assert told["error"]
    eventually(lambda: shared.ask("GET", "/readyz").status == 200, what="ready")


@pytest.mark.parametrize("line", [b"\xff\x00", b"[]", b"1", b'"x"', b"null", b"[" * 100_000])
def test_the_launcher_survives_what_is_no_json(shared: SharedDaemon, line: bytes) -> None:
    before = shared.ask("GET", "/v1/status").json["launcher_pid"]
    with unheard(shared), socket.socket(socket.AF_UNIX) as door:
        door.connect(str(shared.launcher_socket))
        door.settimeout(DEADLINE_S)
        door.sendall(line + b"\n")
        assert b"error" in door.recv(65536)
    eventually(lambda: shared.ask("GET", "/readyz").status == 200, what="ready")
    assert shared.ask("GET", "/v1/status").json["launcher_pid"] == before


def refused_launcher(daemon: SharedDaemon, by: Person, user: str) -> str:
    """What a launcher says that this person starts in vain."""
    command = [daemon.people.python, "-m", "traind.runner.launcher", "--for", user]
    command += ["--state-dir", str(daemon.state_dir), "--socket", str(daemon.launcher_socket)]
    env = {"PYTHONPATH": str(daemon.people.tree)}
    process = by.popen(command, stderr=subprocess.PIPE, env=env)
    said = process.communicate(timeout=DEADLINE_S)[1]
    assert process.returncode == 1, said
    assert "Traceback" not in said
    return said


def test_a_state_directory_that_others_may_write_is_refused(new_shared: SharedDaemon) -> None:
    new_shared.state_dir.mkdir()
    new_shared.state_dir.chmod(0o777)
    people = new_shared.people
    assert "root's alone" in refused_launcher(new_shared, people.root, people.daemon.name)


def test_a_launcher_says_whom_it_cannot_serve(new_shared: SharedDaemon) -> None:
    people = new_shared.people
    assert "no account" in refused_launcher(new_shared, people.root, "nobody-of-that-name")
    assert "only root" in refused_launcher(new_shared, people.bob, people.alice.name)


def test_nobody_takes_all_connections_for_themselves(new_shared: SharedDaemon) -> None:
    new_shared.config += "[api]\nconnections = 8\n"
    daemon = new_shared.start()
    alice, bob = daemon.people.alice, daemon.people.bob

    def status_for(who: Person) -> int:
        """What they are answered; nought where the door was shut before they asked."""
        with contextlib.suppress(ConnectionError):
            return daemon.asked_by(who, "GET", "/v1/whoami").status
        return 0

    eventually(lambda: status_for(bob) == 200, what="an open door")
    with contextlib.ExitStack() as held_open:
        for _ in range(12):
            door = held_open.enter_context(socket.socket(socket.AF_UNIX))
            with bob.acting():
                door.connect(str(daemon.socket))
        eventually(lambda: status_for(bob) == 429, what="the end of bob's share")
        eventually(lambda: status_for(alice) == 200, what="alice's own share")
    eventually(lambda: status_for(bob) == 200, what="room again")


def test_root_of_a_container_is_nobody_here(shared: SharedDaemon) -> None:
    """A person who is root in a namespace of their own is still that person to the kernel."""
    bob = shared.people.bob
    call = ["unshare", "-Ur", shared.people.python, "-c", _WHO, str(shared.socket)]
    process = bob.popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=DEADLINE_S)
    if process.returncode != 0 and "unshare" in err:
        pytest.skip(f"no user namespaces here: {err.strip()}")
    assert json.loads(out)["uid"] == bob.uid, err


_WHO = """
import http.client, socket, sys
connection = http.client.HTTPConnection("traind")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(sys.argv[1])
connection.request("GET", "/v1/whoami")
print(connection.getresponse().read().decode())
"""
