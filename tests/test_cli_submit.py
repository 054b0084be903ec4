"""`traind submit` in its many forms on a real daemon: requests, job files, the environment."""

import json
from pathlib import Path

import pytest

from contract import CheckedDaemon
from harness import Completed, eventually


def submitted(done: Completed) -> list[int]:
    """The ids that `--parsable` printed, one a line."""
    assert done.code == 0, done.err
    return [int(line) for line in done.out.splitlines()]


def test_a_job_from_standard_input_is_submitted(box: CheckedDaemon, tmp_path: Path) -> None:
    order = {"command": "pwd; echo $GREETING", "env": {"GREETING": "hello"}, "name": "piped"}
    (number,) = submitted(
        box.cli("submit", "--parsable", "-", cwd=tmp_path, stdin=json.dumps(order))
    )
    assert box.wait(number, outcome="succeeded")["name"] == "piped"
    assert box.log_of(number) == f"{tmp_path}\nhello\n"


def test_a_list_is_one_request_and_tells_its_ids_as_a_range(box: CheckedDaemon) -> None:
    orders = [{"command": "exit 0"}, {"command": "exit 3"}, {"argv": ["sh", "-c", "exit 2"]}]
    done = box.cli("submit", "--wait", "-", stdin=json.dumps(orders))
    assert done.code == 3
    first, second = done.out.splitlines()
    low, high = map(int, first.removeprefix("Submitted batch jobs ").split("-"))
    assert (high - low, second) == (2, "How they stand: traind ls --me")
    assert [box.job(low + i)["exit_code"] for i in range(3)] == [0, 3, 2]
    reply = json.loads(box.cli("submit", "--json", "-", stdin=json.dumps(orders[:1])).out)
    assert box.wait(reply["jobs"][0]["id"])["exit_code"] == 0


def test_what_is_typed_outweighs_every_job_of_a_request(box: CheckedDaemon) -> None:
    request = {
        "defaults": {"time_limit": "1h", "labels": {"from": "defaults"}, "env": {"A": "1"}},
        "jobs": [
            {"command": "echo $A $B", "name": "one"},
            {"command": "echo $A $B", "time_limit": "2h", "env": {"A": "2"}},
        ],
    }
    words = ("submit", "--parsable", "-", "--time", "5", "--label", "typed=yes", "--env", "B=3")
    first, second = submitted(box.cli(*words, stdin=json.dumps(request)))
    for number, log in ((first, "1 3\n"), (second, "2 3\n")):
        job = box.wait(number, outcome="succeeded")
        assert (job["time_limit_s"], box.log_of(number)) == (300.0, log)
        assert job["labels"] == {"from": "defaults", "typed": "yes"}


def test_a_job_file_may_hold_several_jobs_with_what_they_share(
    box: CheckedDaemon, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "jobs.toml").write_text(
        '[defaults]\nname = "swept"\nworkdir = "sub"\n'
        '[[jobs]]\ncommand = "pwd"\n[[jobs]]\ncommand = "pwd"\nworkdir = "."\n'
    )
    first, second = submitted(box.cli("submit", "--parsable", str(tmp_path / "jobs.toml")))
    assert box.wait(first, outcome="succeeded")["name"] == "swept"
    assert box.wait(second, outcome="succeeded")["name"] == "swept"
    assert (box.log_of(first), box.log_of(second)) == (f"{tmp_path}/sub\n", f"{tmp_path}\n")


def test_a_list_is_refused_whole_and_the_job_is_named(box: CheckedDaemon) -> None:
    before = box.ask("GET", "/v1/jobs?limit=1").json["jobs"]
    orders = [{"command": "true"}, {"command": "true", "gpuz": 1}]
    done = box.cli("submit", "-", stdin=json.dumps(orders))
    assert (done.code, done.out) == (3, "")
    assert "jobs.1.gpuz" in done.err
    assert "did you mean gpus" in done.err
    assert box.ask("GET", "/v1/jobs?limit=1").json["jobs"] == before


def test_several_jobs_are_rehearsed_one_by_one_and_store_nothing(box: CheckedDaemon) -> None:
    before = box.ask("GET", "/v1/jobs?limit=1").json["jobs"]
    orders = [
        {"command": "true", "name": "free"},
        {"command": "true", "name": "kept", "hold": True},
    ]

    def rehearsed() -> list[str]:
        done = box.cli("submit", "--test-only", "-", stdin=json.dumps(orders))
        assert done.code == 0, done.err
        return done.out.splitlines()

    eventually(lambda: rehearsed()[0] == "free: it would start now", what="room for a job")
    _, second = rehearsed()
    assert second.startswith("kept: it would wait: ")
    assert box.ask("GET", "/v1/jobs?limit=1").json["jobs"] == before


def test_run_follows_one_job_and_sends_no_list(box: CheckedDaemon) -> None:
    done = box.cli("run", "-", stdin='[{"command": "true"}]')
    assert (done.code, "follows one job" in done.err) == (2, True)
    assert box.cli("run", "-", stdin='{"command": "echo one; exit 4"}').out == "one\n"


@pytest.mark.parametrize(
    ("stdin", "sentence"),
    [
        ("", "standard input holds nothing; such as: traind submit - < train.sh"),
        ("echo hello\n", "neither JSON nor a script that begins with #!"),
        ("{'command': 'true'}", "standard input is not JSON"),
        ('{"command": "true", "priority": NaN}', "NaN is no number"),
        ("[" * 100_000, "standard input is not JSON"),
        ("[1]", "a job is an object"),
        ('{"jobs": 1}', "jobs is a list"),
        ('{"jobs": [], "gpus": 1}', "beside jobs there may only be defaults; move 'gpus' there"),
        ('{"defaults": {}}', "give jobs as well"),
        ('{"command": "\\ud800"}', "command is not UTF-8"),
        ("#!/bin/sh\0\n", "standard input holds a NUL character"),
    ],
)
def test_a_request_that_is_none_is_refused_before_it_is_sent(
    box: CheckedDaemon, stdin: str, sentence: str
) -> None:
    done = box.cli("submit", "-", stdin=stdin)
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err


def test_words_behind_a_request_are_options_and_nothing_else(box: CheckedDaemon) -> None:
    done = box.cli("submit", "-", "python", stdin='{"command": "true"}')
    assert (done.code, "leave out 'python'" in done.err) == (2, True)


SESSION = (
    *("SSH_CONNECTION", "DISPLAY", "DBUS_SESSION_BUS_ADDRESS", "XDG_SESSION_ID", "TMUX"),
    *("TMUX_PANE", "SLURM_JOB_ID", "MASTER_ADDR", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    *("TORCHELASTIC_RUN_ID", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "CUDA_VISIBLE_DEVICES"),
)


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ((), {"WORK": "1", "OTHER": "2"}),
        (("--export", "ALL"), {"WORK": "1", "OTHER": "2"}),
        (("--export=ALL,X=1,WORK=9",), {"WORK": "9", "OTHER": "2", "X": "1"}),
        (("--export", "WORK,X=a b,MISSING"), {"WORK": "1", "X": "a b"}),
        (("--export", "NONE"), {}),
        (("--export=NONE", "--env", "X=1"), {"X": "1"}),
        (("--export=TMUX",), {"TMUX": "session"}),
    ],
)
def test_a_job_gets_the_callers_variables_that_were_asked_for_and_none_of_the_session(
    box: CheckedDaemon, typed: tuple[str, ...], found: dict[str, str]
) -> None:
    mine = {"WORK": "1", "OTHER": "2"} | dict.fromkeys(SESSION, "session")
    box.env |= mine
    try:
        done = box.cli("submit", "--parsable", *typed, "--", "env")
    finally:
        for name in mine:
            del box.env[name]
    (number,) = submitted(done)
    box.wait(number, outcome="succeeded")
    seen = dict(line.partition("=")[::2] for line in box.log_of(number).splitlines())
    asked = {*mine, "X", "MISSING"}
    own = {"CUDA_VISIBLE_DEVICES": "", "MASTER_ADDR": "127.0.0.1"}
    assert {name: seen[name] for name in asked & seen.keys()} == own | found


def test_an_export_that_cannot_go_along_is_refused(box: CheckedDaemon) -> None:
    done = box.cli("submit", "--export=A-B=1", "--", "true")
    assert (done.code, "'A-B' cannot go along" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"echo hello\n", "`traind submit -- bash x.sh` runs it where it lies"),
        (b"#!/bin/bash\r\necho\r\n", "x.sh has the line ends of Windows; `dos2unix x.sh` mends"),
        (b"#!/bin/bash\n# \xe9t\xe9\n", "x.sh is not UTF-8, so it cannot be stored"),
        (b"#!/bin/bash\n\0", "x.sh holds a NUL character"),
        (b"#!/bin/bash\n" + b"#" * 524288, "x.sh is not shorter than 512 KiB, so it is not stored"),
        (b"#!/bin/bash\n\n#TRAIND --gpuz=1\n", "x.sh, line 3: #TRAIND --gpuz: there is no such"),
        (b"#!/bin/bash\n#SBATCH --array=0-9\n", "x.sh, line 2: #SBATCH --array: arrays are not"),
    ],
)
def test_a_script_that_cannot_be_stored_is_refused_with_the_way_out(
    box: CheckedDaemon, tmp_path: Path, content: bytes, sentence: str
) -> None:
    (tmp_path / "x.sh").write_bytes(content)
    done = box.cli("submit", "x.sh", cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err


def test_a_script_that_is_not_there_is_refused_and_a_program_is_not_mistaken_for_one(
    box: CheckedDaemon, tmp_path: Path
) -> None:
    done = box.cli("submit", "x.sh", cwd=tmp_path)
    assert (done.code, f"there is no x.sh in {tmp_path}" in done.err) == (2, True)
    (number,) = submitted(box.cli("submit", "--parsable", "echo", "x.sh", cwd=tmp_path))
    assert box.wait(number, outcome="succeeded")["argv"] == ["echo", "x.sh"]


def test_no_name_of_a_script_can_steer_the_terminal(box: CheckedDaemon, tmp_path: Path) -> None:
    name = "\x1b]0;owned\x07\n\u202e.sh"
    (tmp_path / name).write_text("#!/bin/bash\r\n")
    (tmp_path / f"{name}.toml").write_text("= =")
    for words in (
        (name,),
        (f"no{name}",),
        (f"no{name}.py",),
        (f"no{name}.toml",),
        (f"{name}.toml",),
    ):
        done = box.cli("submit", *words, cwd=tmp_path)
        assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
        assert not {"\x1b", "\x07", "\u202e"} & set(done.err)


def test_a_python_file_runs_with_the_callers_python_also_in_a_venv(
    box: CheckedDaemon, tmp_path: Path
) -> None:
    (tmp_path / "where.py").write_text("import sys; print(sys.executable, *sys.argv[1:])")
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python3"
    python.write_text('#!/bin/sh\necho "mine: $@"\n')
    python.chmod(0o755)
    box.env |= {"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
    words = ("submit", "--parsable", "--export", "NONE", "where.py", "--lr", "1")
    try:
        (number,) = submitted(box.cli(*words, cwd=tmp_path))
    finally:
        del box.env["PATH"]
    box.wait(number, outcome="succeeded")
    assert box.log_of(number) == "mine: where.py --lr 1\n"
