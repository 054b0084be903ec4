"""Scripts as they are sent: stored, run by their interpreter, and told by their directives."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from contract import FAR, CheckedDaemon
from harness import Answer

CLUSTER = """\
#!/bin/bash
#SBATCH --job-name=resnet
#SBATCH --partition=gpu
#SBATCH --nodes=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=2
#SBATCH --mem=1G
#SBATCH --time=00:10:00
#SBATCH --output=%x-%j.out

module() { echo "module $*"; }
module load cuda
echo "gpus=$CUDA_VISIBLE_DEVICES threads=$OMP_NUM_THREADS"
"""


def curl(box: CheckedDaemon, file: Path, *options: str, query: str = "") -> dict[str, Any]:
    """What the real curl is answered when it sends a file as it is."""
    done = subprocess.run(
        [
            *("curl", "--silent", "--show-error", "--unix-socket", str(box.socket)),
            *(f"http://traind/v1/jobs{query}", "--data-binary", f"@{file}", *options),
        ],
        capture_output=True,
        check=True,
        timeout=30,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def send(box: CheckedDaemon, script: str, kind: str = "text/plain", query: str = "") -> Answer:
    """The answer to a script."""
    return box.ask("POST", f"/v1/jobs{query}", script.encode(), {"Content-Type": kind})


def output(box: CheckedDaemon, script: str, kind: str = "text/plain", query: str = "") -> str:
    """What a script that succeeds writes."""
    answer = send(box, script, kind, query)
    assert answer.status == 201, answer.body
    box.wait(answer.json["id"], outcome="succeeded")
    return box.log_of(answer.json["id"])


def test_a_script_of_a_cluster_runs_unchanged(box: CheckedDaemon, tmp_path: Path) -> None:
    file = tmp_path / "train.sh"
    file.write_text(CLUSTER)
    job = curl(
        box, file, "-H", "Content-Type: text/x-shellscript", query="?directives=slurm&gpu-mem=1G"
    )
    assert (job["name"], job["gpus"], job["cpus"]) == ("resnet", 1, 2)
    assert (job["memory_mib"], job["time_limit_s"], job["gpu_memory_mib"]) == (1024, 600, 1024)
    ignored = [warning for warning in job["warnings"] if warning.startswith("#SBATCH")]
    assert [sentence.split()[1] for sentence in ignored] == [
        "--partition=gpu",
        "--output=%x-%j.out",
    ]
    ended = box.wait(job["id"], outcome="succeeded")
    assert box.log_of(job["id"]) == "module load cuda\ngpus=0 threads=2\n"
    assert ended["warnings"] == job["warnings"]
    assert ended["script"] == CLUSTER
    assert (box.run_dir(job["id"]) / "work" / "script").read_text() == CLUSTER


def test_without_being_asked_for_slurm_its_lines_are_comments(box: CheckedDaemon) -> None:
    job = send(box, CLUSTER).json
    assert (job["name"], job["gpus"], job["time_limit_s"]) == ("script", 0, None)
    assert not [warning for warning in job["warnings"] if "SBATCH" in warning]


def test_curl_may_leave_out_the_type_of_a_script(box: CheckedDaemon, tmp_path: Path) -> None:
    file = tmp_path / "job.sh"
    file.write_text('#!/bin/sh\n#TRAIND --name "two words"\necho "$0"\n')
    job = curl(box, file)
    assert job["name"] == "two words"
    box.wait(job["id"], outcome="succeeded")
    assert box.log_of(job["id"]) == f"{box.run_dir(job['id'])}/work/script\n"


def test_python_without_a_shebang_imports_what_lies_in_its_workdir(
    box: CheckedDaemon, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("word = 'from the workdir'\n")
    (tmp_path / "theirs.py").write_text("word = 'wrong'\n")
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.py").write_text("word = 'wrong'\n")
    (other / "theirs.py").write_text("word = 'from PYTHONPATH'\n")
    (tmp_path / "theirs.py").unlink()
    query = f"?workdir={tmp_path}&env=PYTHONPATH={other}"
    script = "import mine, theirs\nprint(mine.word, theirs.word)\n"
    assert output(box, script, "text/x-python", query) == "from the workdir from PYTHONPATH\n"
    with_mark = "\ufeff" + script
    assert output(box, with_mark, "text/x-python", query) == "from the workdir from PYTHONPATH\n"
    assert send(box, script, "text/plain", query).status == 415


@pytest.mark.parametrize(
    ("shebang", "says"),
    [
        ("#!/bin/sh", "plain"),
        ("#! /bin/sh", "plain"),
        ("#!\t/bin/sh  ", "plain"),
        ("#!/bin/sh -e", "ended early"),
        ("#!/bin/sh\t-e\t", "ended early"),
        ("#!/usr/bin/env sh", "plain"),
        ("#!/usr/bin/env -S sh -e", "ended early"),
    ],
)
def test_a_shebang_is_read_as_the_kernel_does(
    box: CheckedDaemon, tmp_path: Path, shebang: str, says: str
) -> None:
    script = f"{shebang}\ntrap 'echo ended early' EXIT\nfalse\ntrap - EXIT\necho plain\n"
    file = tmp_path / "script"
    file.write_text(script)
    file.chmod(0o700)
    kernel = subprocess.run([str(file)], capture_output=True, text=True, check=False)
    job = send(box, script).json
    ended = box.wait(job["id"])
    assert box.log_of(job["id"]) == kernel.stdout == f"{says}\n"
    assert ended["exit_code"] == kernel.returncode


def test_an_interpreter_gets_one_argument_the_script_and_its_words(box: CheckedDaemon) -> None:
    order = {"script": "#!/bin/echo  one two\t three \n", "script_args": ["", "a b", "--x"]}
    number = box.ask("POST", "/v1/jobs", order).json["id"]
    box.wait(number, outcome="succeeded")
    script = f"{box.run_dir(number)}/work/script"
    assert box.log_of(number) == f"one two\t three {script}  a b --x\n"


def test_a_missing_interpreter_is_named(box: CheckedDaemon, tmp_path: Path) -> None:
    def cause(shebang: str) -> tuple[object, ...]:
        job = box.wait(send(box, f"{shebang}\n").json["id"], outcome="launch_failed")
        assert shebang[2:] in job["cause"]["detail"]
        return job["exit_code"], job["cause"]["code"]

    text = tmp_path / "text"
    text.write_text("no program")
    assert cause("#!/no/such/interpreter") == (127, "command_not_found")
    assert cause(f"#!{text}") == (126, "not_executable")
    assert cause(f"#!{tmp_path}") == (126, "not_executable")


def test_a_command_that_a_script_does_not_find_is_its_own_failure(box: CheckedDaemon) -> None:
    for script in ("#!/bin/sh\nno-such-command\n", "#!/usr/bin/env no-such-command\n"):
        job = box.wait(send(box, script).json["id"], outcome="failed", exit_code=127)
        assert job["cause"]["code"] == "command_not_found"


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("", "shebang"),
        ("echo hello\n", "shebang"),
        ("\n#!/bin/sh\n", "shebang"),
        (" #!/bin/sh\n", "shebang"),
        ("#!\n", "no absolute path"),
        ("#!sh\n", "no absolute path"),
        ("#!./run\n", "no absolute path"),
        ("#!env python3\n", "no absolute path"),
        ("#!/bin/sh\r\necho\r\n", "CRLF"),
        ("#!/bin/sh" + "x" * 5000, "bytes"),
        ("#!/bin/sh\n\0", "NUL"),
        ("#!/bin/sh\n" + "ü" * (256 * 1024), "512 KiB"),
    ],
    ids=lambda text: repr(text[:20]),
)
def test_a_script_that_nothing_could_run_is_refused(
    box: CheckedDaemon, script: str, told: str
) -> None:
    refused = box.post(json.dumps({"script": script}, ensure_ascii=False).encode())
    assert told in box.fields(refused)["script"]
    if script.startswith("#!"):
        assert told in box.fields(box.post(script.encode(), "text/plain"))["script"]


def test_a_script_may_be_almost_half_a_megabyte(box: CheckedDaemon) -> None:
    script = "#!/bin/sh\nexec tail -n 1 $0\n" + "#\u0001\n" * 150_000
    script += "#" * (512 * 1024 - 1 - len(script) - len("\nthe end\n")) + "\nthe end\n"
    assert output(box, script) == "the end\n"


@pytest.mark.parametrize(
    ("order", "field"),
    [
        ({"script": "#!/bin/sh\n", "command": "true"}, "command"),
        ({"script": "#!/bin/sh\n", "argv": ["true"]}, "command"),
        ({"script": "#!/bin/sh\n", "shell": "/bin/sh"}, "shell"),
        ({"command": "true", "script_args": ["a"]}, "script_args"),
        ({"script": "#!/bin/sh\n", "script_args": "a"}, "script_args"),
        ({"script": "#!/bin/sh\n", "script_args": ["a\0"]}, "script_args.0"),
        ({"script": ["#!/bin/sh"]}, "script"),
    ],
)
def test_a_script_stands_alone(box: CheckedDaemon, order: dict[str, Any], field: str) -> None:
    assert list(box.fields(box.post(json.dumps(order).encode()))) == [field]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("#TRAIND --gpu=1", "line 2: #TRAIND --gpu: there is no such option; did you mean --gpus?"),
        ("#TRAIND --gpus=many", "is not a number of GPUs"),
        ("#TRAIND --name='x", "a quote is not closed"),
        ("#SBATCH --time=soon", "is not a span"),
        ("#TRAIND --env=A=" + "x" * 40_000, "longer than 32 KiB"),
    ],
    ids=lambda text: text[:30],
)
def test_a_wrong_directive_is_refused_with_its_line(
    box: CheckedDaemon, line: str, told: str
) -> None:
    refused = send(box, f"#!/bin/sh\n{line}\n", query="?directives=slurm")
    assert told in box.fields(refused)["script"]


def test_a_directive_may_not_ask_for_what_a_field_may_not(box: CheckedDaemon) -> None:
    fields = box.fields(send(box, "#!/bin/sh\n#TRAIND --gpus=3 --workdir=here --env=TRAIND_A=1\n"))
    assert fields.keys() == {"workdir", "env"}
    assert "gpus" in box.fields(send(box, "#!/bin/sh\n#TRAIND --gpus=3\n"))


def test_the_query_outweighs_traind_lines_and_these_outweigh_those_of_slurm(
    box: CheckedDaemon,
) -> None:
    script = (
        "#!/bin/sh\n#SBATCH --job-name=slurm --mem=1G --time=5 --export=ALL,A=1,B=1,C=1\n"
        "#TRAIND --name=traind --memory=2G --env=B=2 --env=C=2\n"
    )
    query = f"?directives=slurm&begin={FAR}&name=query&env=C=3&env=D=3"
    job = send(box, script, query=query).json
    assert (job["name"], job["memory_mib"], job["time_limit_s"]) == ("query", 2048, 300)
    assert job["env"] == {"A": "1", "B": "2", "C": "3", "D": "3"}


def test_directives_are_read_from_text_only(box: CheckedDaemon) -> None:
    order = {"script": "#!/bin/sh\n#TRAIND --name=mine\n#SBATCH --mem=1G\n", "begin_at": FAR}
    assert box.ask("POST", "/v1/jobs", order).json["name"] == "script"
    refused = box.ask("POST", "/v1/jobs?directives=slurm", order)
    assert "text/*" in box.fields(refused)["directives"]
    assert "directives" in box.fields(send(box, "#!/bin/sh\n", query="?directives=pbs"))


def test_a_job_that_waits_may_get_a_script_or_something_else(box: CheckedDaemon) -> None:
    number = box.waiting(shell="/bin/sh")
    script = {"script": "#!/bin/sh\necho $1\n", "script_args": ["one"]}
    job = box.ask("PATCH", f"/v1/jobs/{number}", script).json
    assert (job["command"], job["shell"], job["script_args"]) == (None, None, ["one"])
    job = box.ask("PATCH", f"/v1/jobs/{number}", {"script": "#!/bin/sh\necho two $1\n"}).json
    assert job["script_args"] == ["one"]
    box.ask("PATCH", f"/v1/jobs/{number}", {"begin_at": None})
    box.wait(number, outcome="succeeded")
    assert box.log_of(number) == "two one\n"
    number = send(box, CLUSTER, query=f"?directives=slurm&begin={FAR}").json["id"]
    assert box.ask("PATCH", f"/v1/jobs/{number}", {"name": "x"}).json["warnings"]
    job = box.ask("PATCH", f"/v1/jobs/{number}", {"argv": ["true"]}).json
    assert (job["script"], job["warnings"]) == (None, [])


def test_a_copy_and_another_attempt_run_the_same_script(box: CheckedDaemon) -> None:
    script = CLUSTER + "test $TRAIND_ATTEMPT = 2 || exit 75\n"
    first = send(box, script, query="?directives=slurm").json
    box.wait(first["id"], outcome="succeeded", attempt=2)
    copy = box.ask("POST", f"/v1/jobs/{first['id']}/rerun").json
    assert (copy["script"], copy["warnings"]) == (script, first["warnings"])
    box.wait(copy["id"], outcome="succeeded", attempt=2)


def test_a_rehearsal_tells_of_ignored_lines_and_stores_nothing(box: CheckedDaemon) -> None:
    before = box.newest()
    told = send(box, CLUSTER, query="?directives=slurm&dry_run=1")
    assert told.status == 200
    assert any("--partition" in warning for warning in told.json["warnings"])
    assert box.newest() == before
