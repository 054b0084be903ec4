"""Every call of the document asked at random, by a client that knows nothing but the document."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness import SHORT, Daemon, eventually

CONFIG = Path(__file__).with_name("schemathesis.toml")
GUESSED = 40
"""As many tokens may be revoked by their ids before that of the run itself is in danger."""


@pytest.fixture
def open_door(new_daemon: Daemon) -> Daemon:
    """A daemon with a TCP door that does not mind how often a wrong token comes."""
    new_daemon.config = SHORT + "[api]\nfailed_signins = 100000\n"
    new_daemon.flags = ("--http", "127.0.0.1:0")
    return new_daemon.start()


def asked_at_random(
    daemon: Daemon, token: str, *selection: str
) -> subprocess.CompletedProcess[str]:
    address = daemon.ask("GET", "/v1/status").json["http"]
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run"]
    command += [f"http://{address}/openapi.json", "-H", f"Authorization: Bearer {token}"]
    return subprocess.run(
        [*command, "--no-color", "--continue-on-failure", *selection],
        capture_output=True,
        text=True,
        check=False,
        cwd=daemon.home,
    )


def operator_token(daemon: Daemon, name: str) -> str:
    order = {"name": name, "scopes": ["read", "submit", "operate"]}
    token: str = daemon.ask("POST", "/v1/tokens", order).json["token"]
    return token


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_call_at_random_finds_the_daemon_and_its_document_at_odds(open_door: Daemon) -> None:
    command = """echo hello; echo '{"step": 1, "total": 2}' >> $TRAIND_METRICS"""
    open_door.wait(open_door.submit(command, gpus=1), outcome="succeeded")
    # Nothing that is submitted at random may run.
    assert open_door.ask("POST", "/v1/unplug").status == 202
    token = [operator_token(open_door, f"t{number}") for number in range(GUESSED)][-1]
    told = asked_at_random(open_door, token, "--exclude-operation-id", "resume")
    assert told.returncode == 0, told.stdout
    assert open_door.ask("GET", "/v1/status").json["jobs"]["queued"] > 0
    assert "request failed" not in open_door.log.read_text()


def test_pulling_the_plug_at_random_is_as_the_document_says(open_door: Daemon) -> None:
    token = operator_token(open_door, "plug")
    told = asked_at_random(open_door, token, "--include-path", "/v1/unplug")
    assert told.returncode == 0, told.stdout
    assert eventually(lambda: open_door.ask("GET", "/readyz").status == 200, what="its health")
