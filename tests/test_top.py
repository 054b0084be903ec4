"""`traind top`: once into a pipe, again and again on a terminal, and Ctrl-C ends it well."""

import os
import pty
import signal
import subprocess
import sys

from harness import DEADLINE_S, Daemon, eventually


def test_into_a_pipe_it_is_printed_once(daemon: Daemon) -> None:
    number = daemon.submit("sleep 600", gpus=1, name="night run")
    daemon.submit("true", hold=True)
    daemon.wait(number, "running")
    shown = eventually(
        lambda: found if "%" in (found := _job_line(daemon, number)) else None, what="a sample"
    )
    assert "night run" in shown
    assert "MiB" in shown or "GiB" in shown
    done = daemon.cli("top")
    assert done.code == 0
    assert done.out.splitlines()[-1] == "1 running, 0 queued, 1 held"
    assert "\x1b" not in done.out


def _job_line(daemon: Daemon, number: int) -> str:
    lines = daemon.cli("top").out.split("ID ", 1)[1].splitlines()
    return next(line for line in lines if line.startswith(f"{number} "))


def test_on_a_terminal_it_is_drawn_anew_until_ctrl_c(daemon: Daemon) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "traind", "top", "--interval", "200ms"]
    command += ["--socket", str(daemon.socket)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        while seen.count(b"\x1b[H") < 3:
            seen += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0
    os.close(ours)
    assert b"0 running, 0 queued, 0 held" in seen
