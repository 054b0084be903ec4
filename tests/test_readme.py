"""What README.md tells people to type, typed: its curl calls and its `traind` commands."""

import getpass
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from contract import FAR
from harness import DEADLINE_S, Daemon, eventually

README = (Path(__file__).parent.parent / "README.md").read_text()
SECTIONS = dict(re.findall(r"^### (.*?)\n(.*?)(?=^##)", README, re.MULTILINE | re.DOTALL))
MENTIONED = sorted(set(re.findall(r"`(traind [^`]+)`", README)))
PROMPTS = {name for name, text in SECTIONS.items() if "\n$ " in text}

TYPED_ELSEWHERE = {
    "serve": "every test starts one",
    "restore": "in test_backups.py, with the daemon stopped",
    "config": "in test_config.py, on files of its own",
    "unplug": "in test_unplug.py; it would stop what the others wait for",
    "token": "in test_tokens.py",
    "completion": "in test_completion.py, by the shells themselves",
    "clean": "in test_doctor.py, with checkpoints of its own",
    "events": "in test_events.py; with -f it never ends",
    "doctor": "in test_doctor.py; whether all is well depends on the machine",
}
"""The verbs that are not typed here, each with the place where they are."""

RUNNING = {"extend", "signal", "requeue"}
FINISHED = {"show", "logs", "wait", "rerun"}
"""The verbs that are for jobs that run or are finished; the others are typed of a waiting one."""

TRAINING = """\
print("epoch 5/5 train_loss=0.2067 val_loss=0.1393 val_accuracy=0.9611")
print("val_accuracy=0.9611 epochs=5 seconds=2.9", flush=True)
import time; time.sleep(600)
"""


def typed(daemon: Daemon, command: str) -> subprocess.CompletedProcess[str]:
    """What a shell makes of the command where README's files are at hand."""
    socket = "~/.local/state/traind/traind.sock"
    return subprocess.run(
        ["bash", "-c", command.replace(socket, str(daemon.socket))],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
        cwd=daemon.home,
        env={
            "HOME": str(daemon.home),
            "PATH": f"{daemon.home}/bin:/usr/local/bin:/usr/bin:/bin",
            "TRAIND_SOCKET": str(daemon.socket),
        },
    )


@pytest.fixture
def desk(daemon: Daemon) -> Daemon:
    """A daemon, and a folder with the programs and files that README names."""
    (daemon.home / "bin").mkdir()
    for name, line in (
        ("traind", f'exec {sys.executable} -m traind "$@"'),
        ("python", f'exec {sys.executable} "$@"'),
        ("python3", f'exec {sys.executable} "$@"'),
    ):
        program = daemon.home / "bin" / name
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)
    (daemon.home / "jobs").mkdir()
    (daemon.home / "jobs" / "digits.py").write_text(TRAINING)
    shutil.copy(Path(__file__).parent.parent / "jobs" / "digits.toml", daemon.home / "jobs")
    script = re.search(r"^\$ cat train.sh\n(.*?)\n\n", README, re.MULTILINE | re.DOTALL)
    assert script is not None
    (daemon.home / "train.sh").write_text(script[1] + "\n")
    (daemon.home / "train.sh").chmod(0o755)
    (daemon.home / "jobs.toml").write_text('[[jobs]]\ncommand = "true"\n')
    for name in ("train.py", "x.py"):
        (daemon.home / name).write_text("print(1)\n")
    return daemon


def dialogues(text: str) -> list[tuple[str, list[str]]]:
    """Each command behind a prompt, and the parts of its answer that README prints."""
    found = []
    for block in re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for turn in block.replace("\\\n", " ").split("$ ")[1:] if block.startswith("$ ") else ():
            command, *answer = turn.strip().splitlines()
            parts = [part.strip(" {},") for line in answer for part in line.split("…")]
            found.append((command, [part for part in parts if part]))
    return found


@pytest.mark.parametrize("section", sorted(PROMPTS))
def test_what_stands_behind_a_prompt_answers_as_it_says(desk: Daemon, section: str) -> None:
    told = dialogues(SECTIONS[section])
    first = re.search(r"Submitted batch job (\d+)", SECTIONS[section])
    for _ in range(int(first[1]) - 1 if first else 0):
        desk.wait(desk.submit("true"))
    variables = ""
    for command, parts in told:
        if re.fullmatch(r"[A-Z]=\S+", command):
            variables += f"{command}; "
            continue
        if command.startswith("traind why"):
            desk.wait(2, "running")
            eventually(lambda: desk.job(3)["reason"]["code"] == "resources", what="its reason")
        if command.startswith("traind logs"):
            eventually(lambda: "seconds=2.9" in desk.log_of(2), what="its last line")
        answer = typed(desk, variables + command)
        assert answer.returncode == 0, (command, answer)
        if command == "traind ls":  # its columns are as wide as what happens to stand in them
            parts = [word for word in parts[0].split() if word]
        for part in parts:
            assert part.replace("alice", getpass.getuser()) in answer.stdout, (command, answer)


def test_every_prompt_of_readme_is_in_a_section_that_is_typed() -> None:
    assert README.count("\n$ ") == sum(SECTIONS[name].count("\n$ ") for name in PROMPTS)
    assert len(PROMPTS) >= 3


def test_a_verb_is_excused_only_while_readme_mentions_it() -> None:
    assert {command.split()[1] for command in MENTIONED} >= TYPED_ELSEWHERE.keys()


@pytest.mark.parametrize(
    "command", [each for each in MENTIONED if each.split()[1] not in TYPED_ELSEWHERE]
)
def test_a_command_that_readme_mentions_is_one(desk: Daemon, command: str) -> None:
    command = command.rstrip(" …&")  # what is to be filled in
    verb, *rest = command.split()[1:]
    if verb in ("submit", "run") and all(word.startswith("--") or word == "-W" for word in rest):
        command += " -- true"
    if verb in RUNNING:
        number = desk.submit("exec sleep 600", time_limit="1h")
        desk.wait(number, "running")
    elif verb in FINISHED:
        number = desk.submit("true")
        desk.wait(number, outcome="succeeded")
    else:
        number = desk.submit("true", begin_at=FAR, hold=verb == "release")
    if verb == "cancel" and "--all" in command:
        command += " --dry-run"
    command = re.sub(r"(?<= )(2|3|42)\b(?![:.])", str(number), command, count=1)
    stdin = 'echo \'{"command": "true"}\' | ' if command.endswith(" -") else ""
    answer = typed(desk, stdin + command)
    assert answer.returncode == 0, (command, answer)
