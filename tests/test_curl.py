"""Every call of the API as people type it: curl, on the daemon's socket."""

import json
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from contract import FAR
from harness import DEADLINE_S, Daemon, daemon_in

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

JSON = "-H 'Content-Type: application/json'"
SCRIPT = "-H 'Content-Type: text/x-shellscript' --data-binary @train.sh"

SUBMITTED = (
    f"""-i $T/v1/jobs {JSON} -d '{{"command": "python3 train.py", "workdir": "'"$PWD"'",
        "python_env": "'"$PWD"'", "gpus": 1}}'""",
    """$T/v1/jobs -d '{"command": "true"}'""",
    """$T/v1/jobs -d '[{"command": "true"}, {"argv": ["true"]}]'""",
    """$T/v1/jobs -d '{"defaults": {"gpus": 1}, "jobs": [{"command": "true"}]}'""",
    "$T/v1/jobs -H 'Content-Type: application/toml' --data-binary @job.toml",
    f"$T/v1/jobs {SCRIPT}",
    f"'$T/v1/jobs?gpus=1&name=x&directives=slurm' {SCRIPT}",
    "$T/v1/jobs -H 'Content-Type: text/x-python' --data-binary @train.py",
    """$T/v1/jobs -H 'Idempotency-Key: once' -d '{"command": "true"}'""",
)  # fmt: skip
"""What answers 201."""

CALLS = (
    ("""'$T/v1/jobs?dry_run=1' -d '{"command": "true"}'""", 200),
    ("""$T/v1/jobs -d '{"command": "true", "gpu": 1}'""", 422),
    ("""$T/v1/jobs -d '{"command": "true"'""", 400),
    ("""$T/v1/jobs -H 'Content-Type: application/xml' -d '<job/>'""", 415),
    ("""$T/v1/jobs -d '{"command": "true", "array": "0-9%4"}'""", 422),
    ("'$T/v1/jobs?state=queued,running&user=root&label=a=b&q=x&limit=5'", 200),
    ("'$T/v1/jobs?outcome=succeeded&cursor=3'", 200),
    ("'$T/v1/jobs?stat=queued'", 422),
    ("$T/v1/jobs/$WAITS", 200),
    ("'$T/v1/jobs/$DONE?wait=60'", 200),
    ("$T/v1/jobs/999999", 404),
    ("-X PUT $T/v1/jobs/$WAITS", 405),
    ("""-X PATCH $T/v1/jobs/$WAITS -d '{"time_limit": "4h", "gpus": 1}'""", 200),
    ("""-X PATCH $T/v1/jobs/$WAITS -H 'If-Match: "no"' -d '{"gpus": 1}'""", 412),
    ("""-X PATCH $T/v1/jobs/$WAITS -d '{"hold": true}'""", 200),
    ("""-X PATCH $T/v1/jobs/$WAITS -d '{"hold": false}'""", 200),
    ("""-X PATCH $T/v1/jobs/$RUNS -d '{"name": "n", "labels": {"a": "b"}}'""", 200),
    ("""-X PATCH $T/v1/jobs/$RUNS -d '{"gpus": 2}'""", 409),
    ("-X DELETE $T/v1/jobs/$WAITS", 200),
    ("-X DELETE '$T/v1/jobs/$RUNS?now=1'", 202),
    ("-X POST $T/v1/jobs/$RUNS/requeue", 202),
    ("""$T/v1/jobs/$RUNS/requeue -d '{"hold": true}'""", 202),
    ("-X POST $T/v1/jobs/$DONE/requeue", 200),
    ("-X POST $T/v1/jobs/$DONE/rerun", 201),
    ("""$T/v1/jobs/$RUNS/signal -d '{"signal": "USR1"}'""", 202),
    ("""$T/v1/jobs/$DONE/signal -d '{"signal": "USR1"}'""", 409),
    ("""$T/v1/jobs/actions -d '{"action": "cancel", "select": {"ids": [$WAITS]},
        "dry_run": true}'""", 200),
    ("$T/v1/jobs/$DONE/log", 200),
    ("'$T/v1/jobs/$DONE/log?attempt=1&tail=1'", 200),
    ("'$T/v1/jobs/$DONE/log?follow=1'", 200),
    ("-r 0-2 $T/v1/jobs/$DONE/log", 206),
    ("-r 1000- $T/v1/jobs/$DONE/log", 416),
    *((f"$T/v1/jobs/$DONE/{name}", 200) for name in ("why", "events", "attempts", "metrics")),
    ("$T/v1/gpus", 200),
    ("'$T/v1/queue?limit=5'", 200),
    ("'$T/v1/events?follow=0'", 200),
    ("-H 'Last-Event-ID: 1' '$T/v1/events?follow=0'", 200),
    ("$T/v1/whoami", 200),
    ("$T/v1/status", 200),
    ("""$T/v1/tokens -d '{"name": "laptop"}'""", 201),
    ("$T/v1/tokens", 200),
    ("-X DELETE $T/v1/tokens/$KEY", 200),
    ("-X POST $T/v1/backups", 201),
    *((f"$T/{name}", 200) for name in ("healthz", "readyz", "metrics", "openapi.json")),
    ("-H 'Host: evil.example' $T/v1/jobs", 403),
    ("-H 'Origin: http://evil.example' $T/v1/jobs", 403),
    ("$T/nothing", 404),
)  # fmt: skip


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon, the files that the commands name, and a curl that tells the status."""
    with daemon_in(tmp_path_factory.mktemp("desk")) as daemon:
        daemon.start()
        daemon.await_launcher()
        (daemon.home / ".curlrc").write_text('silent\nwrite-out = "\\n%{http_code}"\n')
        (daemon.home / "train.sh").write_text("#!/bin/bash\n#SBATCH --mem=1G\ntrue\n")
        (daemon.home / "train.py").write_text("print(1)\n")
        (daemon.home / "job.toml").write_text('command = "true"\n')
        yield daemon


def curl(desk: Daemon, command: str, **numbers: int) -> tuple[int, str]:
    """(the status, what came) when this is typed."""
    command = command.replace("$T", "http://traind")
    for name, number in numbers.items():
        command = command.replace(f"${name.upper()}", str(number))
    done = subprocess.run(
        ["bash", "-c", f"curl --unix-socket {desk.socket} {command}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_S,
        cwd=desk.home,
        env={"HOME": str(desk.home), "PATH": "/usr/local/bin:/usr/bin:/bin"},
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


@pytest.mark.parametrize("command", SUBMITTED)
def test_an_order_that_curl_sends_is_a_job(desk: Daemon, command: str) -> None:
    before = {job["id"] for job in desk.ask("GET", "/v1/jobs?limit=1000").json["jobs"]}
    status, answer = curl(desk, command)
    assert status == 201, answer
    told = json.loads(answer.splitlines()[-1])
    ids = {job["id"] for job in told.get("jobs", [told])}
    assert ids
    assert not ids & before
    assert all(desk.ask("GET", f"/v1/jobs/{number}").status == 200 for number in ids)


@pytest.mark.parametrize(("command", "status"), CALLS)
def test_what_curl_is_answered_is_what_the_contract_says(
    desk: Daemon, command: str, status: int
) -> None:
    numbers = {}
    if "$DONE" in command:
        numbers["done"] = desk.submit("echo hello")
        desk.wait(numbers["done"], outcome="succeeded")
    if "$WAITS" in command:
        numbers["waits"] = desk.submit("true", begin_at=FAR)
    if "$RUNS" in command:
        numbers["runs"] = desk.submit("exec sleep 600")
        desk.wait(numbers["runs"], "running")
    if "$KEY" in command:
        numbers["key"] = desk.ask("POST", "/v1/tokens", {"name": "to be revoked"}).json["id"]
    told, answer = curl(desk, command, **numbers)
    assert told == status, answer
    if status >= 400:
        assert json.loads(answer)["detail"]
    if "$RUNS" in command:
        desk.ask("DELETE", f"/v1/jobs/{numbers['runs']}?now=1")


def test_the_plug_is_pulled_and_put_back(desk: Daemon) -> None:
    number = desk.submit("exec sleep 600")
    desk.wait(number, "running")
    status, answer = curl(desk, """$T/v1/unplug -d '{"grace": "0s", "checkpoint": false}'""")
    assert status == 202, answer
    assert number in json.loads(answer)["stopping"]
    assert desk.wait(number, "held")["cause"]["code"] == "unplugged"
    status, answer = curl(desk, "-X DELETE $T/v1/unplug")
    assert (status, json.loads(answer)["paused"]) == (200, None)
    assert curl(desk, f"-X DELETE $T/v1/jobs/{number}")[0] == 200
