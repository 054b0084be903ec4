"""What the shells complete, asked of the shells themselves on a real daemon."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from contract import CheckedDaemon
from harness import DEADLINE_S, Daemon
from traind.cli.verbs import VERBS

SHELLS = ("bash", "zsh", "fish")

COMPLETE = """
source <(traind completion bash)
COMP_WORDS=("$@")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_traind
printf '%s\\n' "${COMPREPLY[@]}"
"""


def needs(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")


def program(folder: Path) -> Path:
    """A folder with `traind`, as an installation has it."""
    place = folder / "bin"
    place.mkdir(exist_ok=True)
    (place / "traind").write_text(f'#!/bin/sh\nexec {sys.executable} -m traind "$@"\n')
    (place / "traind").chmod(0o755)
    return place


def asked(box: Daemon, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """How a shell that can reach this daemon ended."""
    return subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
        cwd=folder,
        env={
            "PATH": f"{program(folder)}:/usr/bin:/bin",
            "HOME": str(folder),
            "TRAIND_SOCKET": str(box.socket),
        },
    )


def in_bash(box: Daemon, folder: Path, *words: str) -> list[str]:
    """What bash offers for the last of the words; nothing means file names."""
    done = asked(box, folder, "bash", "--norc", "-c", COMPLETE, "bash", "traind", *words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["sub"], ["submit"]),
        (["--ver"], ["--version"]),
        (["--socket", "x", "his"], ["history"]),
        (["submit", "--python"], ["--python-env"]),
        (["submit", "--gpus", "2", "--no-"], ["--no-requeue"]),
        (["submit", "--gpus", "=", "2", "--no-"], ["--no-requeue"]),
        (["submit", "--workdir", ""], []),
        (["submit", "--workdir", "="], []),
        (["submit", "--workdir", "=", "x"], []),
        (["submit", ""], []),
        (["submit", "train.sh", "--no-"], []),
        (["submit", "--", "--no-"], []),
        (["config", ""], ["check", "show"]),
        (["token", "cr"], ["create"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["logs", "--ta"], ["--tail"]),
        (["nonsense", ""], []),
    ],
)
def test_bash_completes_verbs_and_their_options(
    box: CheckedDaemon, tmp_path: Path, words: list[str], offered: list[str]
) -> None:
    assert in_bash(box, tmp_path, *words) == offered


def test_bash_offers_every_verb_and_every_option_that_help_shows(
    box: CheckedDaemon, tmp_path: Path
) -> None:
    assert in_bash(box, tmp_path, "") == list(VERBS)
    for name in ("submit", "ls", "serve"):
        offered = set(in_bash(box, tmp_path, name, "-"))
        shown = {f for option in VERBS[name].options if option.help for f in option.flags}
        assert shown <= offered


def test_job_ids_are_completed_behind_the_verbs_that_take_them(
    box: CheckedDaemon, tmp_path: Path
) -> None:
    number = box.submit("true", name="$(touch hacked) `touch hacked`")
    box.wait(number)
    assert str(number) in in_bash(box, tmp_path, "logs", "")
    assert str(number) in in_bash(box, tmp_path, "logs", "--tail", "5", "1", "")
    assert in_bash(box, tmp_path, "logs", "--tail", "") == []
    assert not (tmp_path / "hacked").exists()


def test_without_a_daemon_there_are_no_ids_and_not_a_word(
    new_daemon: Daemon, tmp_path: Path
) -> None:
    assert in_bash(new_daemon, tmp_path, "show", "") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_can_read_its_script(box: CheckedDaemon, tmp_path: Path, shell: str) -> None:
    needs(shell)
    script = tmp_path / "completion"
    script.write_text(box.cli("completion", shell).out)
    flag = "--no-execute" if shell == "fish" else "-n"
    done = asked(box, tmp_path, shell, flag, str(script))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_fish_completes_verbs_options_and_ids(box: CheckedDaemon, tmp_path: Path) -> None:
    needs("fish")
    number = box.submit("true", name="fishy")
    box.wait(number)

    def offered(line: str) -> list[str]:
        program = f"traind completion fish | source; complete -C '{line}'"
        done = asked(box, tmp_path, "fish", "--no-config", "-c", program)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    assert offered("traind histo") == [f"history\t{VERBS['history'].summary}"]
    assert [line.split("\t")[0] for line in offered("traind submit --no-")] == ["--no-requeue"]
    (found,) = (line for line in offered("traind logs ") if line.startswith(f"{number}\t"))
    assert "fishy" in found


def test_zsh_takes_the_script_as_the_completion_of_traind(
    box: CheckedDaemon, tmp_path: Path
) -> None:
    needs("zsh")
    program = (
        "autoload -U compinit; compinit -u -D; source <(traind completion zsh); "
        "print $_comps[traind]; _traind_ids() {}; print $+functions[_traind]"
    )
    done = asked(box, tmp_path, "zsh", "-f", "-c", program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "_traind\n1\n", "")


def test_a_shell_that_is_not_known_is_refused(box: CheckedDaemon) -> None:
    for words in ((), ("tcsh",), ("bash", "zsh")):
        done = box.cli("completion", *words)
        assert (done.code, "traind completion bash" in done.err) == (2, True)
