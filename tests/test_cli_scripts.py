"""Scripts that are stored with their job, as somebody submits them on a real daemon."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from contract import FAR, CheckedDaemon
from harness import Completed, eventually


def write(folder: Path, text: str, name: str = "train.sh") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def submitted(done: Completed) -> int:
    assert done.code == 0, done.err
    return int(done.out)


def test_a_script_is_stored_and_runs_as_it_was_when_it_was_submitted(
    box: CheckedDaemon, tmp_path: Path
) -> None:
    script = write(tmp_path, '#!/bin/bash\necho "as it was: $1 in $PWD"\n')
    words = ("submit", "--parsable", "--hold", "train.sh", "two words", "--gpus")
    number = submitted(box.cli(*words, cwd=tmp_path))
    script.write_text("#!/bin/bash\necho changed\n")
    assert box.cli("release", str(number)).code == 0
    assert box.wait(number, outcome="succeeded")["name"] == "train.sh two words --gpus"
    assert box.log_of(number) == f"as it was: two words in {tmp_path}\n"


@pytest.mark.parametrize("name", ["train.sbatch", "job.slurm", "bare", "sub/dir.sh"])
def test_whatever_begins_with_its_interpreter_is_a_script(
    box: CheckedDaemon, tmp_path: Path, name: str
) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path, "#!/bin/sh -e\necho hello from $PWD\n", name)
    number = submitted(box.cli("submit", "--parsable", name, cwd=tmp_path))
    box.wait(number, outcome="succeeded")
    assert box.log_of(number) == f"hello from {tmp_path}\n"


def test_a_script_of_a_cluster_is_taken_unchanged_and_told_what_means_nothing_here(
    box: CheckedDaemon, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    write(
        tmp_path,
        "#!/bin/bash\n#SBATCH --job-name=resnet --partition=gpu --nodes=1\n"
        "#SBATCH --gres=gpu:1 -c 2 --mem=4G --time=0-1:00:00\n#SBATCH --chdir=data\n"
        "#SBATCH --output=%x-%j.out --signal=B:USR1@90 --export=ALL,LR=0.1\n\npwd; echo $LR\n",
    )
    done = box.cli("submit", "--parsable", "train.sh", cwd=tmp_path)
    job = box.wait(submitted(done), outcome="succeeded")
    assert {name: job[name] for name in ("name", "gpus", "cpus", "memory_mib")} == {
        "name": "resnet",
        "gpus": 1,
        "cpus": 2,
        "memory_mib": 4096,
    }
    assert (job["time_limit_s"], job["workdir"]) == (3600.0, f"{tmp_path}/data")
    assert (job["checkpoint_signal"], job["checkpoint_lead_s"]) == ("USR1", 90.0)
    assert box.log_of(job["id"]) == f"{tmp_path}/data\n0.1\n"
    assert "warning: #SBATCH --partition=gpu ignored: one box has no partitions" in done.err
    assert "warning: #SBATCH --output=%x-%j.out ignored: `traind logs ID`" in done.err


def test_typed_options_outweigh_traind_lines_and_these_slurms(
    box: CheckedDaemon, tmp_path: Path
) -> None:
    write(
        tmp_path,
        "#!/bin/bash\n#TRAIND --time=2h --cpus 1 --label a=traind --env X=traind\n"
        "#SBATCH --time=3:00:00 --gpus=2 -c 2 -J slurm\necho $X $Y\n",
    )
    words = ("-t", "5", "--label", "b=typed", "--env", "Y=typed")
    done = box.cli("submit", "--parsable", *words, "train.sh", cwd=tmp_path)
    job = box.wait(submitted(done), outcome="succeeded")
    assert (job["time_limit_s"], job["cpus"], job["gpus"], job["name"]) == (300.0, 1, 2, "slurm")
    assert job["labels"] == {"a": "traind", "b": "typed"}
    assert box.log_of(job["id"]) == "traind typed\n"


def test_what_the_script_exports_is_chosen_from_the_callers_environment(
    box: CheckedDaemon, tmp_path: Path
) -> None:
    write(tmp_path, "#!/bin/bash\n#SBATCH --export=CHOSEN,X=1\necho $CHOSEN $OTHER $X\n")
    box.env |= {"CHOSEN": "chosen", "OTHER": "other"}
    try:
        number = submitted(box.cli("submit", "--parsable", "train.sh", cwd=tmp_path))
        every = ("submit", "--parsable", "--export", "ALL", "train.sh")
        everything = submitted(box.cli(*every, cwd=tmp_path))
        none = ("submit", "--parsable", "--export=NONE", "train.sh")
        nothing = submitted(box.cli(*none, cwd=tmp_path))
    finally:
        del box.env["CHOSEN"], box.env["OTHER"]
    for job_id in (number, everything, nothing):
        box.wait(job_id, outcome="succeeded")
    assert box.log_of(number) == "chosen 1\n"
    assert box.log_of(everything) == "chosen other\n", "what is typed replaces the line"
    assert box.log_of(nothing) == "\n"


def test_what_is_typed_replaces_what_a_line_exports_and_leaves_what_traind_lines_set(
    box: CheckedDaemon, tmp_path: Path
) -> None:
    lines = "#TRAIND --env A=mine\n#SBATCH --export=NONE,A=theirs,B=2\n"
    write(tmp_path, f"#!/bin/bash\n{lines}true\n")
    words = ("submit", "--parsable", "--begin", FAR, "--env", "C=typed")
    as_written = submitted(box.cli(*words, "train.sh", cwd=tmp_path))
    replaced = submitted(box.cli(*words, "--export=NONE", "train.sh", cwd=tmp_path))
    assert box.job(as_written)["env"] == {"A": "mine", "B": "2", "C": "typed"}
    assert box.job(replaced)["env"] == {"A": "mine", "C": "typed"}


def test_a_script_may_begin_so_and_so_long_from_now(box: CheckedDaemon, tmp_path: Path) -> None:
    write(tmp_path, "#!/bin/bash\n#SBATCH --begin=now+2days\ntrue\n")
    before = datetime.now(UTC)
    for words in (("train.sh",), ("--begin", "now + 2 days", "--", "true")):
        number = submitted(box.cli("submit", "--parsable", *words, cwd=tmp_path))
        begin_at = datetime.fromisoformat(box.job(number)["begin_at"])
        assert before <= begin_at - timedelta(days=2) <= datetime.now(UTC)


def test_a_script_may_come_from_standard_input_with_its_arguments(
    box: CheckedDaemon, tmp_path: Path
) -> None:
    words = ("submit", "--parsable", "--name", "piped", "-", "one", "--two")
    script = "#!/bin/bash\n#TRAIND --cpus=1\necho $# $2\n"
    number = submitted(box.cli(*words, cwd=tmp_path, stdin=script))
    assert box.wait(number, outcome="succeeded")["cpus"] == 1
    assert box.log_of(number) == "2 --two\n"


def test_run_follows_a_script_and_test_only_stores_nothing(
    box: CheckedDaemon, tmp_path: Path
) -> None:
    write(tmp_path, "#!/bin/bash\necho hello; exit 4\n")
    done = box.cli("run", "train.sh", cwd=tmp_path)
    assert (done.code, done.out) == (4, "hello\n")
    before = box.ask("GET", "/v1/jobs?limit=1").json["jobs"]
    told = box.cli("submit", "--test-only", "train.sh", cwd=tmp_path)
    assert (told.code, told.out) == (0, "it would start now\n")
    assert box.ask("GET", "/v1/jobs?limit=1").json["jobs"] == before


def test_a_job_gets_the_venv_that_the_caller_sits_in_unless_another_is_named(
    box: CheckedDaemon, tmp_path: Path
) -> None:
    for name in ("active", "named"):
        tool = tmp_path / name / "bin" / "tool"
        tool.parent.mkdir(parents=True)
        tool.write_text(f"#!/bin/sh\necho {name} $VIRTUAL_ENV\n")
        tool.chmod(0o755)
        (tool.parent / "python").symlink_to("/usr/bin/env")
    (tmp_path / "active" / "pyvenv.cfg").touch()
    (tmp_path / "named" / "pyvenv.cfg").touch()
    box.env["VIRTUAL_ENV"] = f"{tmp_path}/active"
    try:
        mine = submitted(box.cli("submit", "--parsable", "--", "tool", cwd=tmp_path))
        words = ("submit", "--parsable", "--python-env", "named", "--wrap", "tool")
        other = submitted(box.cli(*words, cwd=tmp_path))
        none = submitted(box.cli("submit", "--parsable", "--export=NONE", "true", cwd=tmp_path))
    finally:
        del box.env["VIRTUAL_ENV"]
    box.wait(mine, outcome="succeeded")
    assert box.log_of(mine) == f"active {tmp_path}/active\n"
    assert box.wait(other, outcome="succeeded")["python_env"] == f"{tmp_path}/named"
    assert box.log_of(other).startswith("named ")
    assert box.wait(none, outcome="succeeded")["python_env"] is None


def test_a_scripts_name_reaches_the_terminal_as_text_only(
    box: CheckedDaemon, tmp_path: Path
) -> None:
    name = os.fsdecode(b"\x1b]0;owned\x07\n\xff.sh")
    write(tmp_path, "#!/bin/bash\necho '\x1b]0;x\x07'\n", name)
    number = submitted(box.cli("submit", "--parsable", name, cwd=tmp_path))
    assert box.wait(number, outcome="succeeded")["name"] == "?]0;owned???.sh"
    for words in (("show", str(number)), ("ls", "-a"), ("why", str(number))):
        assert not {"\x1b", "\x07"} & set(box.cli(*words).out)


def test_rerun_copies_the_script_and_its_arguments(box: CheckedDaemon, tmp_path: Path) -> None:
    write(tmp_path, "#!/bin/bash\necho ran with $1\n")
    number = submitted(box.cli("submit", "--parsable", "train.sh", "one", cwd=tmp_path))
    box.wait(number, outcome="succeeded")
    again = json.loads(box.cli("rerun", "--json", str(number)).out)["id"]
    eventually(lambda: box.job(again)["state"] == "finished", what="its end")
    assert box.log_of(again) == "ran with one\n"
