"""Who used how much: hours, GPU hours and energy by person, label and GPU."""

import os
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from harness import Daemon, eventually


def usage(daemon: Daemon, query: str = "") -> list[dict[str, Any]]:
    answer = daemon.ask("GET", f"/v1/usage{query}")
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = answer.json["usage"]
    return found


def hours(job: dict[str, Any]) -> float:
    """From the start to the end of its one attempt, as the API tells them."""
    began, ended = (datetime.fromisoformat(job[name]) for name in ("started_at", "finished_at"))
    return (ended - began) / timedelta(hours=1)


def test_hours_and_gpu_hours_are_those_of_the_attempts(daemon: Daemon) -> None:
    first = daemon.submit("true", gpus=2, labels={"project": "digits"})
    second = daemon.submit("true", labels={"project": "digits", "stage": "test"})
    ended = [daemon.wait(number, outcome="succeeded") for number in (first, second)]
    spent = [hours(job) for job in ended]

    [person] = usage(daemon)
    assert (person["name"], person["jobs"], person["attempts"]) == (ended[0]["user"], 2, 2)
    assert person["hours"] == pytest.approx(sum(spent), abs=1e-5)
    assert person["gpu_hours"] == pytest.approx(2 * spent[0], abs=1e-5)

    labels = {used["name"]: used for used in usage(daemon, "?by=label")}
    assert {name: used["jobs"] for name, used in labels.items()} == {
        "project=digits": 2,
        "stage=test": 1,
    }
    assert labels["stage=test"]["gpu_hours"] == 0

    gpus = usage(daemon, "?by=gpu")
    assert {used["name"] for used in gpus} == {g["uuid"] for g in ended[0]["gpus_allotted"]}
    assert all(used["jobs"] == 1 for used in gpus)


def test_what_still_runs_counts_up_to_now(daemon: Daemon) -> None:
    os.mkfifo(daemon.home / "gate")
    running = daemon.submit("read < gate", workdir=str(daemon.home), gpus=1)
    daemon.wait(running, "running")
    before = usage(daemon)[0]["gpu_hours"]
    eventually(lambda: usage(daemon)[0]["gpu_hours"] > before, what="more GPU time")
    (daemon.home / "gate").write_text("go\n")
    daemon.wait(running, outcome="succeeded")


def test_a_span_counts_only_what_ran_within_it(daemon: Daemon) -> None:
    daemon.wait(daemon.submit("true"), outcome="succeeded")
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    assert usage(daemon, f"?since={tomorrow:%Y-%m-%dT%H:%M:%SZ}&until=9999-12-31T00:00:00Z") == []
    assert usage(daemon, "?until=2001-01-01T00:00:00Z") == []
    assert usage(daemon, "?until=0001-01-01T00:00:01Z") == []
    assert len(usage(daemon, f"?until={tomorrow:%Y-%m-%dT%H:%M:%SZ}")) == 1


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("by=planet", "by"),
        ("since=yesterday", "since"),
        ("since=2030-01-02T00:00:00Z&until=2030-01-01T00:00:00Z", "since"),
        ("sinces=2030-01-01T00:00:00Z", "sinces"),
    ],
)
def test_a_wrong_span_is_refused_by_name(daemon: Daemon, query: str, field: str) -> None:
    answer = daemon.ask("GET", f"/v1/usage?{query}")
    assert answer.status == 422
    assert answer.json["errors"][0]["field"] == field


def test_the_client_prints_a_table_of_it(daemon: Daemon) -> None:
    assert "nothing ran" in daemon.cli("usage").out
    job = daemon.wait(daemon.submit("true", gpus=1), outcome="succeeded")
    lines = daemon.cli("usage").out.splitlines()
    assert lines[1].split()[:3] == ["USER", "JOBS", "ATTEMPTS"]
    assert lines[2].split()[:3] == [job["user"], "1", "1"]
    gpu = job["gpus_allotted"][0]
    assert f"{gpu['index']} {gpu['name']}" in daemon.cli("usage", "--by", "gpu").out
    refused = daemon.cli("usage", "--by", "planet")
    assert refused.code == 3
    assert "by:" in refused.err
