"""config.toml: file and code say the same, and what is wrong in it stops the start at once."""

import tomllib
from pathlib import Path

import pytest

from harness import Daemon
from traind.config import Config, GpuHealthSettings, check, load
from traind.errors import StartupError

FILE = Path(__file__).parent.parent / "config.toml"


def test_the_file_holds_every_setting_with_its_default() -> None:
    raw = tomllib.loads(FILE.read_text())
    assert load(FILE) == Config()
    for name, field in Config.model_fields.items():
        model = field.annotation
        assert model is not None
        assert set(raw[name]) == set(model.model_fields), name
    assert set(raw["gpus"]["health"]) == set(GpuHealthSettings.model_fields)


def test_every_setting_has_a_sentence_beside_it() -> None:
    for line in FILE.read_text().splitlines():
        assert "=" not in line or "#" in line, line


def test_all_wrong_keys_are_named_at_once() -> None:
    raw = {"gpus": {"max_job": 3, "ramp": 5}, "jobs": {"grace": "soon"}, "quue": {}}
    with pytest.raises(StartupError) as refused:
        check(raw, "test.toml")
    text = refused.value.sentence
    assert refused.value.exit_code == 78
    for part in ("gpus.max_job", "did you mean max_jobs", "gpus.ramp", "jobs.grace", "quue"):
        assert part in text


def test_a_daemon_with_a_wrong_config_exits_78_and_says_why(new_daemon: Daemon) -> None:
    new_daemon.config = "[gpus]\nmax_jobs = true\nfoo = 1\n"
    done = new_daemon.refused()
    assert done.returncode == 78
    assert "gpus.max_jobs" in done.stderr
    assert "gpus.foo" in done.stderr


@pytest.mark.parametrize(("mode", "accepted"), [(0o646, False), (0o666, False), (0o664, True)])
def test_a_file_that_everybody_may_write_is_not_believed(
    new_daemon: Daemon, mode: int, accepted: bool
) -> None:
    file = new_daemon.home / "config.toml"
    file.touch()
    file.chmod(mode)
    if accepted:
        new_daemon.start()  # a group of one's own is what many systems give people
        return
    done = new_daemon.refused()
    assert done.returncode == 78
    assert f"chmod go-w {file}" in done.stderr


def test_a_file_that_is_no_toml_exits_78(new_daemon: Daemon) -> None:
    new_daemon.config = "this is = not toml ="
    assert new_daemon.refused().returncode == 78
