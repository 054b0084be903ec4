"""What cannot be exec'ed is a failed launch and its sentence names it."""

import os
from pathlib import Path

import pytest

from contract import CheckedDaemon


def launched(box: CheckedDaemon, **order: object) -> dict[str, object]:
    """A job that could not be launched, once it is over."""
    answer = box.ask("POST", "/v1/jobs", order)
    assert answer.status == 201, answer.body
    job = box.wait(answer.json["id"], outcome="launch_failed", signal=None)
    assert job["attempt"] == 1
    detail = job["cause"]["detail"]
    why = box.ask("GET", f"/v1/jobs/{job['id']}/why").json
    assert why["detail"] == detail
    shown = box.cli("show", str(job["id"]))
    assert shown.code == 0
    assert detail[:60] in " ".join(shown.out.split())
    return job


def test_a_program_that_is_nowhere_is_127(box: CheckedDaemon) -> None:
    job = launched(box, argv=["no-such-program", "--flag"])
    assert (job["exit_code"], job["cause"]["code"]) == (127, "command_not_found")
    assert job["cause"]["detail"] == "the program 'no-such-program' was not found in PATH"
    job = launched(box, argv=["/no/such/program"])
    assert (job["exit_code"], job["cause"]["code"]) == (127, "command_not_found")
    assert "'/no/such/program' could not be started" in job["cause"]["detail"]


def test_a_program_is_looked_for_in_the_path_of_the_job(box: CheckedDaemon, tmp_path: Path) -> None:
    program = tmp_path / "mine"
    program.write_text("#!/bin/sh\necho mine\n")
    program.chmod(0o755)
    number = box.submit(["mine"], env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    box.wait(number, outcome="succeeded")
    assert box.log_of(number) == "mine\n"
    assert launched(box, argv=["mine"])["exit_code"] == 127


@pytest.mark.parametrize("make", ["text", "directory", "no such interpreter", "garbage", "empty"])
def test_a_file_that_is_no_program_is_126(box: CheckedDaemon, tmp_path: Path, make: str) -> None:
    program = tmp_path / "program"
    match make:
        case "text":
            program.write_text("#!/bin/sh\n")
        case "directory":
            program.mkdir()
        case "no such interpreter":
            program.write_text("#!/no/such/interpreter\n")
            program.chmod(0o755)
        case "garbage":
            program.write_bytes(b"\x7fELF" + bytes(60))
            program.chmod(0o755)
        case "empty":
            program.touch(0o755)
            program.chmod(0o755)
    job = launched(box, argv=[str(program)])
    assert job["exit_code"] == (127 if make == "no such interpreter" else 126)
    assert str(program) in job["cause"]["detail"]


def test_an_argv_of_empty_words_is_not_found(box: CheckedDaemon) -> None:
    assert launched(box, argv=[""])["exit_code"] == 127


def test_a_shell_that_is_none_is_named(box: CheckedDaemon) -> None:
    job = launched(box, command="true", shell="/no/such/shell")
    assert "/no/such/shell" in job["cause"]["detail"]
    number = box.submit("echo $0", shell="/bin/sh")
    box.wait(number, outcome="succeeded")
    assert box.log_of(number) == "/bin/sh\n"


def test_a_command_that_its_shell_does_not_find_is_a_failure_of_the_job(box: CheckedDaemon) -> None:
    job = box.wait(box.submit("no-such-command"), outcome="failed", exit_code=127)
    assert job["cause"]["code"] == "command_not_found"
    assert box.wait(box.submit("exit 126"), outcome="failed")["cause"]["code"] == "exit_code"


@pytest.mark.parametrize("make", ["missing", "file", "dangling link", "too long", "odd name"])
def test_a_working_directory_that_cannot_be_entered_is_named(
    box: CheckedDaemon, tmp_path: Path, make: str
) -> None:
    workdir = str(tmp_path / "where")
    match make:
        case "file":
            Path(workdir).touch()
        case "dangling link":
            os.symlink("/no/such/place", workdir)
        case "too long":
            workdir = f"{tmp_path}/{'x' * 300}"
        case "odd name":
            workdir = f"{tmp_path}/\n\x1b[31m\u202e"
    job = launched(box, command="true", workdir=workdir)
    assert (job["exit_code"], job["cause"]["code"]) == (None, "workdir")
    assert str(tmp_path)[:40] in job["cause"]["detail"]
    assert "cannot be entered" in job["cause"]["detail"]


def test_a_checkpoint_directory_that_cannot_be_made_is_named(
    box: CheckedDaemon, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    job = launched(box, command="true", checkpoint_dir=f"{tmp_path}/file/below")
    assert "file/below" in job["cause"]["detail"]


def test_failed_launches_give_their_gpus_back(box: CheckedDaemon) -> None:
    for _ in range(4):
        launched(box, argv=["/no/such/program"], gpus=2, retry=None)
    box.wait(box.submit("true", gpus=2), outcome="succeeded")
    retried = {"max": 3, "on": ["failed"], "delay": "0s"}
    assert launched(box, argv=["/no/such/program"], retry=retried)["attempt"] == 1
