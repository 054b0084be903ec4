"""`python_env`: a venv or conda environment without activating it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from contract import CheckedDaemon
from harness import SHORT, daemon_in

SHOW = (
    'echo "$(command -v python) ${VIRTUAL_ENV-none} ${CONDA_PREFIX-none} ${CONDA_DEFAULT_ENV-none}"'
)


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real virtual environment."""
    prefix = tmp_path_factory.mktemp("venv") / "of mine"
    command = [sys.executable, "-m", "venv", "--without-pip", str(prefix)]
    subprocess.run(command, check=True, timeout=60)
    return prefix


def make_conda(prefix: Path) -> Path:
    """What looks like a conda environment."""
    (prefix / "conda-meta").mkdir(parents=True)
    (prefix / "bin").mkdir()
    (prefix / "bin" / "python").symlink_to(sys.executable)
    return prefix


def output(box: CheckedDaemon, **order: Any) -> str:
    """What a job that succeeds writes, without its last line break."""
    answer = box.ask("POST", "/v1/jobs", order)
    assert answer.status == 201, answer.body
    box.wait(answer.json["id"], outcome="succeeded")
    return box.log_of(answer.json["id"]).rstrip("\n")


def test_a_venv_comes_first_in_path(box: CheckedDaemon, venv: Path) -> None:
    said = output(box, command=SHOW, python_env=str(venv))
    assert said == f"{venv}/bin/python {venv} none none"
    mine = {"PATH": "/usr/bin:/bin", "OTHER": "1"}
    assert output(box, command="echo $PATH", python_env=str(venv), env=mine) == (
        f"{venv}/bin:/usr/bin:/bin"
    )


def test_the_first_word_and_a_shebang_find_its_python(box: CheckedDaemon, venv: Path) -> None:
    words = "import sys; print(sys.prefix)"
    assert output(box, argv=["python", "-c", words], python_env=str(venv)) == str(venv)
    script = f"#!/usr/bin/env python3\n{words}\n"
    assert output(box, script=script, python_env=str(venv)) == str(venv)
    assert output(box, command=f"python3 -c '{words}'") != str(venv)


def test_python_source_runs_in_it(box: CheckedDaemon, venv: Path) -> None:
    query = f"?python-env={str(venv).replace(' ', '%20')}"
    body = b"import sys\nprint(sys.prefix)\n"
    kind = {"Content-Type": "text/x-python"}
    number = box.ask("POST", f"/v1/jobs{query}", body, kind).json["id"]
    box.wait(number, outcome="succeeded")
    assert box.log_of(number) == f"{venv}\n"


def test_what_the_job_says_itself_wins(box: CheckedDaemon, venv: Path) -> None:
    said = output(box, command=SHOW, python_env=str(venv), env={"VIRTUAL_ENV": "/mine"})
    assert said.split("none")[0] == f"{venv}/bin/python /mine "


@pytest.mark.parametrize(
    "place",
    [
        *("miniconda3/envs/ml", "anaconda3/envs/ml", "miniforge3/envs/ml", "mambaforge/envs/ml"),
        *(".conda/envs/ml", "micromamba/envs/ml", "elsewhere/ml"),
    ],
)
def test_a_conda_environment_is_found_by_its_name(tmp_path: Path, place: str) -> None:
    with daemon_in(tmp_path, CheckedDaemon) as daemon:
        prefix = make_conda(daemon.home / place)
        noted = daemon.home / ".conda" / "environments.txt"
        noted.parent.mkdir(exist_ok=True)
        noted.write_text(f"/no/such/place/ml\n{daemon.home}/elsewhere/ml\n")
        daemon.start()
        name = "ml" if "envs" in place else prefix
        said = output(daemon, command=SHOW, python_env="ml")
        assert said == f"{prefix}/bin/python none {prefix} {name}"


def test_base_is_where_conda_itself_lies(tmp_path: Path) -> None:
    with daemon_in(tmp_path, CheckedDaemon) as daemon:
        prefix = make_conda(daemon.home / "miniforge3")
        (prefix / "condabin").mkdir()
        daemon.start()
        for wanted in ("base", str(prefix)):
            said = output(daemon, command=SHOW, python_env=wanted)
            assert said == f"{prefix}/bin/python none {prefix} base"


def test_it_outweighs_the_environment_of_the_box(tmp_path: Path, venv: Path) -> None:
    box_env = '[jobs.env]\nVIRTUAL_ENV = "/box"\nPATH = "/usr/bin:/bin:/box"\n'
    with daemon_in(tmp_path, CheckedDaemon, config=SHORT + box_env) as daemon:
        daemon.start()
        assert output(daemon, command="echo $VIRTUAL_ENV") == "/box"
        said = output(daemon, command="echo $VIRTUAL_ENV $PATH", python_env=str(venv))
        assert said == f"{venv} {venv}/bin:/usr/bin:/bin:/box"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A venv whose Python was taken away."""
    prefix = tmp_path / "broken"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "pyvenv.cfg").touch()
    (prefix / "bin" / "python").symlink_to(tmp_path / "gone")
    return prefix


def test_an_environment_that_is_missing_is_a_failed_launch(
    box: CheckedDaemon, broken: Path
) -> None:
    for wanted in ("/no/such/prefix", str(broken), "no-such-name", "base"):
        number = box.submit("echo never", python_env=wanted)
        job = box.wait(number, outcome="launch_failed", exit_code=127)
        assert job["cause"]["code"] == "python_env"
        assert f"'{wanted}'" in job["cause"]["detail"]
        assert box.log_of(number) == ""


@pytest.mark.parametrize(
    "wanted", ["venv/here", "./venv", "..", ".", "", "a\nb", "a\0", "~/v", "/a:b"]
)
def test_what_is_neither_a_prefix_nor_a_name_is_refused(box: CheckedDaemon, wanted: str) -> None:
    refused = box.ask("POST", "/v1/jobs", {"command": "true", "python_env": wanted})
    assert list(box.fields(refused)) == ["python_env"]
