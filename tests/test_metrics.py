"""Numbers: those of the box for Prometheus, and those that a job tells about itself."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from contract import FAR, CheckedDaemon
from harness import Daemon, eventually

SAMPLE = re.compile(r'(traind_[a-z_]+)((?:\{[a-z]+="[^"\\\n]*"\})?) (-?[0-9.e+-]+)')


def numbers(daemon: Daemon) -> dict[str, float]:
    """Every sample by its name and labels; the text must be what Prometheus reads."""
    answer = daemon.ask("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    text = answer.body.decode()
    assert text.endswith("\n")
    found: dict[str, float] = {}
    kinds: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            name, kind = line.split()[2:]
            assert name not in kinds, "a family is told twice"
            kinds[name] = kind
        elif not line.startswith("# HELP "):
            sample = SAMPLE.fullmatch(line)
            assert sample is not None, line
            base = re.sub("_(bucket|sum|count)$", "", sample[1])
            assert sample[1] in kinds or kinds[base] == "histogram", line
            assert sample[1] + sample[2] not in found, line
            found[sample[1] + sample[2]] = float(sample[3])
    return found


def test_prometheus_is_told_the_state_of_the_box(daemon: Daemon) -> None:
    before = numbers(daemon)
    assert before['traind_jobs{state="queued"}'] == 0
    assert before['traind_gpu_healthy{gpu="1"}'] == 1
    assert before['traind_gpu_memory_bytes{gpu="0"}'] == 24 << 30
    daemon.wait(daemon.submit("true", gpus=1))
    daemon.wait(daemon.submit("false"))
    number = daemon.submit("exec sleep 600", gpus=1, gpu_ids=[1], name="secret name")
    daemon.submit("true", begin_at=FAR)
    daemon.wait(number, "running")
    eventually(
        lambda: numbers(daemon)['traind_gpu_memory_used_bytes{gpu="1"}'] > 1 << 30, what="its use"
    )
    now = numbers(daemon)
    assert now['traind_attempts_finished_total{outcome="succeeded"}'] == 1
    assert now['traind_attempts_finished_total{outcome="failed"}'] == 1
    assert (now['traind_jobs{state="running"}'], now['traind_jobs{state="queued"}']) == (1, 1)
    assert now['traind_gpu_leased{gpu="1"}'] == 1
    assert now["traind_queue_wait_seconds_count"] == 3
    assert now['traind_queue_wait_seconds_bucket{le="+Inf"}'] == 3
    assert now["traind_db_commit_seconds_count"] > before["traind_db_commit_seconds_count"] > 0
    assert now["traind_db_commit_seconds_sum"] > 0
    lag = "traind_event_loop_lag_seconds_count"
    assert now[lag] > before[lag] > 0
    text = daemon.ask("GET", "/metrics").body.decode()
    assert "secret" not in text
    assert daemon.ask("GET", "/v1/whoami").json["user"] not in re.sub("# .*", "", text)


def test_what_is_counted_for_ever_outlives_a_restart(daemon: Daemon) -> None:
    daemon.wait(daemon.submit("exit 75; :", retry=None), "held")
    daemon.restart()
    assert numbers(daemon)['traind_attempts_finished_total{outcome="failed"}'] == 3


def told(box: CheckedDaemon, tmp_path: Path, raw: bytes) -> int:
    """A finished job that wrote these metrics."""
    (tmp_path / "raw").write_bytes(raw)
    number = box.submit(f'cat {tmp_path}/raw >> "$TRAIND_METRICS"')
    box.wait(number, outcome="succeeded")
    return number


def metrics(box: CheckedDaemon, number: int, query: str = "") -> Any:
    answer = box.ask("GET", f"/v1/jobs/{number}/metrics{query}")
    assert answer.status == 200, answer.body
    return answer.json


def test_what_a_job_told_is_answered_line_by_line(box: CheckedDaemon, tmp_path: Path) -> None:
    lines = [{"step": n, "loss": 1 / (n + 1), "phase": "träin"} for n in range(25)]
    number = told(box, tmp_path, b"".join(json.dumps(x).encode() + b"\n" for x in lines))
    assert metrics(box, number) == {
        "metrics": lines,
        "attempt": 1,
        "line": 25,
        "skipped": 0,
        "next": None,
    }
    seen, place = [], 0
    while place is not None:
        page = metrics(box, number, f"?since={place}&limit=10")
        seen += page["metrics"]
        place = page["next"]
    assert seen == lines
    assert metrics(box, number, "?since=25")["metrics"] == []
    assert metrics(box, number, "?since=99")["line"] == 99


@pytest.mark.parametrize(
    ("raw", "metrics_told", "skipped"),
    [
        (b"", [], 0),
        (b'{"step": 1}', [], 0),  # it is still being written
        (b'no\n{"step": 1}\n[1]\n3\nnull\n\n', [{"step": 1}], 5),
        (
            b'{"loss": NaN, "a": 1e999, "b": [-Infinity]}\n',
            [{"loss": None, "a": None, "b": [None]}],
            0,
        ),
        (b'{"text": "\\ud800"}\n', [{"text": "\ud800"}], 0),
        (b"\xff\xfe{\n" + b"[" * 60000 + b"\n" + b'{"a":' * 10000 + b"\n", [], 3),
        (b'{"a": "' + b"x" * 300_000 + b'"}\n{"step": 2}\n', [{"step": 2}], 1),
        (b'{"a": ' + b"9" * 5000 + b"}\n", [], 1),
    ],
    ids=["empty", "unfinished", "not objects", "not numbers", "surrogate", "deep", "long", "big"],
)
def test_lines_that_say_nothing_are_skipped_and_counted(
    box: CheckedDaemon, tmp_path: Path, raw: bytes, metrics_told: list[Any], skipped: int
) -> None:
    page = metrics(box, told(box, tmp_path, raw))
    assert (page["metrics"], page["skipped"]) == (metrics_told, skipped)


def test_a_job_without_an_attempt_has_no_metrics(box: CheckedDaemon) -> None:
    page = metrics(box, box.waiting())
    assert (page["metrics"], page["attempt"], page["line"]) == ([], 0, 0)


def test_a_metrics_file_that_is_none_tells_nothing(box: CheckedDaemon) -> None:
    number = box.submit(
        'ln -sf /etc/passwd "$TRAIND_METRICS.x"; mv "$TRAIND_METRICS.x" "$TRAIND_METRICS"'
    )
    box.wait(number, outcome="succeeded")
    assert metrics(box, number)["metrics"] == []
    other = box.submit('rm "$TRAIND_METRICS"; mkfifo "$TRAIND_METRICS"')
    box.wait(other, outcome="succeeded")
    assert metrics(box, other)["metrics"] == []


def test_what_asks_wrongly_for_metrics_is_told_so(box: CheckedDaemon) -> None:
    number = box.waiting()
    assert box.ask("GET", "/v1/jobs/999999/metrics").status == 404
    assert box.ask("GET", f"/v1/jobs/{number}/metrics?attempt=2").status == 404
    for query, field in (("since=-1", "since"), ("limit=0", "limit"), ("step=1", "step")):
        refused = box.ask("GET", f"/v1/jobs/{number}/metrics?{query}")
        assert list(box.fields(refused)) == [field]
