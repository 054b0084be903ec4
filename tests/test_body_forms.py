"""An order in any form means the same: JSON, TOML, a script, with options in the query."""

import contextlib
import json
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract import FAR, CheckedDaemon
from harness import Answer, UnixConnection
from traind.api.overrides import OPTION_PARAMETERS
from traind.jobspec import JobSpec

TOML = "application/toml"
SCRIPT = "text/x-shellscript"
MIB = 1 << 20
WAITS = {"command": "true", "begin_at": FAR}


def send(
    box: CheckedDaemon, body: str, kind: str = TOML, query: str = "", **headers: str
) -> Answer:
    """The answer to a body of this kind."""
    heads = {"Content-Type": kind, **headers}
    return box.ask("POST", f"/v1/jobs{query}", body.encode(), heads)


def spec_of(job: dict[str, Any]) -> dict[str, Any]:
    """What was ordered, without what the answer adds."""
    return {name: job[name] for name in JobSpec.model_fields if name != "checkpoint_dir"}


# TOML


def test_an_order_in_toml_is_the_same_order_as_in_json(box: CheckedDaemon) -> None:
    toml = """
        argv = ["echo", 'a\\b']   # a comment
        gpus = 1
        gpu_memory = "2GiB"
        time_limit_s = 90.5
        begin_at = 2099-01-01T01:00:00.5+01:00
        env.A = "1"
        env.B = 2.5
        [retry]
        max = 2
        on = ["failed"]
        delay = "1m"
        [labels]
        "with.dots" = "x"
    """
    order = {
        "argv": ["echo", "a\\b"],
        "gpus": 1,
        "gpu_memory": "2GiB",
        "time_limit_s": 90.5,
        "begin_at": "2099-01-01T00:00:00.5Z",
        "env": {"A": "1", "B": 2.5},
        "retry": {"max": 2, "on": ["failed"], "delay": "1m"},
        "labels": {"with.dots": "x"},
    }
    answer = send(box, toml)
    assert answer.status == 201, answer.body
    assert answer.headers["Location"] == f"/v1/jobs/{answer.json['id']}"
    assert spec_of(answer.json) == spec_of(box.ask("POST", "/v1/jobs", order).json)


def test_toml_holds_a_list_of_jobs_with_defaults(box: CheckedDaemon) -> None:
    toml = f"""
        [defaults]
        begin_at = {FAR}
        gpus = 1
        [[jobs]]
        command = "a"
        [[jobs]]
        command = "b"
        gpus = 2
    """
    answer = send(box, toml)
    assert answer.status == 201
    assert [(j["command"], j["gpus"]) for j in answer.json["jobs"]] == [("a", 1), ("b", 2)]
    wrong = send(box, toml + "[[jobs]]\ncomand = 'c'\n")
    assert box.fields(wrong).keys() == {"jobs.2.comand", "jobs.2.command"}


@pytest.mark.parametrize("instant", ["2099-01-01T00:00:00", "2099-01-01", "07:30:00"])
def test_an_instant_in_toml_has_an_offset(box: CheckedDaemon, instant: str) -> None:
    wrong = send(box, f"[[jobs]]\ncommand = 'a'\nbegin_at = {instant}")
    assert "offset" in box.fields(wrong)["jobs.0.begin_at"]


@pytest.mark.parametrize(
    "toml",
    [
        *("command", "command =", "= 'true'", "command = 'a'\ncommand = 'b'", "[[jobs]", "\0"),
        *("a = " + "[" * 50_000, "a = " + "{a = " * 50_000, "a = " + "9" * 5000, "a.b = 1\na = 2"),
        *("a." * 300_000 + "a = 1", '"\\"".' + "a . " * 9 + "a = 1", "[ a" + ".'a'" * 9 + "]"),
        *("x = {b = 1, " + "a." * 9 + "a = 1}", "\n".join(f"[t{i}]" for i in range(5001))),
        "x = " + ("{" + "a." * 6 + "a = ") * 150 + "1" + "}" * 150,
    ],
    ids=lambda text: repr(text[:20]),
)
def test_what_is_no_toml_or_would_take_all_memory_is_400_at_once(
    box: CheckedDaemon, toml: str
) -> None:
    before = box.cpu_s()
    answer = box.post(toml.encode(), TOML)
    assert (answer.status, answer.json["code"]) == (400, "malformed")
    assert len(answer.body) < 1000
    assert box.cpu_s() - before < 1


def test_toml_that_is_no_order_is_422(box: CheckedDaemon) -> None:
    assert "command" in box.fields(box.post(b"", TOML))
    for text in ("grace_s = nan", "grace_s = inf", "priority = 9223372036854775808", "jobs = 1"):
        assert box.post(f"command = 'a'\n{text}".encode(), TOML).status == 422
    assert box.post(b"command = 'a'\n[jobs]", TOML).status == 422


# The type, the charset, the size


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("text/plain", b"#!/bin/true\n", 201),
        ("text/x-shellscript; charset=utf-8", b"#!/bin/true\n", 201),
        ("Text/X-Sh;Charset=UTF-8", b"#!/bin/true\n", 201),
        ('text/plain; charset="us-ascii"', b"#!/bin/true\n", 201),
        ("text/x-python", b"pass", 201),
        ("application/x-www-form-urlencoded", b"#!/bin/true\n", 201),
        ("application/octet-stream", b"#!/bin/true\n", 201),
        (None, b"#!/bin/true\n", 201),
        (None, b" #!/bin/true\n", 400),
        ("text/plain", b"", 400),
        ("text/x-python", b"", 400),
        ("text/plain", b"#!/bin/true\n\xff", 400),
        ("text/x-python", b"\x00\xd8", 400),
        (TOML, b"command = '\xff'", 400),
        ("text/plain; charset=latin-1", b"#!/bin/true\n", 415),
        ("text/plain; charset=utf-16", b"#!/bin/true\n", 415),
        ("application/toml; charset=latin-1", b"command = 'a'", 415),
        ("application/json; charset=utf-16", b'{"command": "true"}', 415),
        ("text/plain", b"true\n", 415),
        ("text/toml", b"command = 'a'", 415),
        ("text/json", b'{"command": "true"}', 415),
        ("application/x-sh", b"#!/bin/true\n", 415),
        ("image/png", b"#!/bin/true\n", 415),
    ],
)
def test_the_form_is_told_by_the_type_or_by_the_looks(
    box: CheckedDaemon, kind: str | None, body: bytes, status: int
) -> None:
    before = box.newest()
    with contextlib.closing(UnixConnection(box.socket)) as connection:
        connection.request("POST", "/v1/jobs", body, {} if kind is None else {"Content-Type": kind})
        answer = connection.getresponse()
        told = json.loads(answer.read())
    assert answer.status == status, told
    assert (box.newest() > before) == (status == 201)
    if status == 415 and "charset" not in (kind or ""):
        assert all(word in told["detail"] for word in ("application/json", "toml", "script"))


def test_another_call_takes_json_only(box: CheckedDaemon) -> None:
    number = box.waiting()
    for kind, body in ((TOML, b"name = 'x'"), ("text/plain", b"#!/bin/sh"), ("", b"#!/bin/sh")):
        answer = box.ask("PATCH", f"/v1/jobs/{number}", body, {"Content-Type": kind})
        assert answer.status == (415 if kind else 400)
        assert "JSON" in answer.json["detail"].upper()


def test_a_large_script_or_toml_is_413(box: CheckedDaemon) -> None:
    for kind, text in ((SCRIPT, "#!/bin/sh\n"), (TOML, "command = 'a'\n")):
        assert box.post(text.encode() + b"#" * MIB, kind).status == 413
        assert box.post(text.encode() + b"#" * 16 * MIB, kind).status == 413


# Options in the query


def test_every_option_is_a_query_parameter_of_every_form(box: CheckedDaemon) -> None:
    options = {
        "name": "n",
        "workdir": "/tmp",
        "env": "A=b=c",
        "python-env": "base",
        "gpus": "1",
        "gpu_memory": "2G",
        "exclusive": "",
        "gpu-min-memory": "8G",
        "gpu_ids": "0,1",
        "gpu-exclude": "1",
        "cpus": "2",
        "mem": "512",
        "time": "90",
        "priority": "-5",
        "begin": FAR,
        "hold": "1",
        "grace": "5s",
        "checkpoint-signal": "USR1",
        "checkpoint_lead": "1m",
        "checkpoint-dir": "/c",
        "requeue": "false",
        "label": "k=v",
        "gpu_type": "sim",
    }
    bodies = {
        "application/json": '{"command": "true", "memory": "9G", "env": {"Z": 1}, "shell": "/x"}',
        TOML: 'command = "true"\nmemory = "9G"\nenv.Z = 1\nshell = "/x"',
        SCRIPT: "#!/bin/true\n#TRAIND --memory=9G --env=Z=1\n",
    }
    for kind, body in bodies.items():
        answer = send(box, body, kind, f"?{urlencode(options)}")
        assert answer.status == 201, answer.body
        job = answer.json
        assert (job["name"], job["workdir"], job["python_env"]) == ("n", "/tmp", "base")
        assert (job["gpus"], job["gpu_type"], job["gpu_memory_mib"]) == (1, "sim", 2048)
        assert (job["exclusive"], job["gpu_min_memory_mib"]) == (True, 8192)
        assert (job["gpu_ids"], job["gpu_exclude"]) == (["0", "1"], ["1"])
        assert (job["cpus"], job["memory_mib"], job["time_limit_s"]) == (2, 512, 5400)
        assert (job["priority"], job["begin_at"], job["state"]) == (
            -5,
            f"{FAR[:-1]}.000000Z",
            "held",
        )
        assert (job["grace_s"], job["checkpoint_signal"]) == (5, "USR1")
        assert (job["checkpoint_lead_s"], job["checkpoint_dir"]) == (60, "/c")
        assert (job["requeue"], job["labels"], job["env"]) == (
            False,
            {"k": "v"},
            {"A": "b=c", "Z": "1"},
        )


def test_the_words_of_slurm_are_taken_too(box: CheckedDaemon) -> None:
    query = "?job-name=x&gres=gpu:sim:2&mem=1G&time=1-12&cpus-per-task=2&chdir=/tmp"
    job = box.ask("POST", f"/v1/jobs{query}", WAITS).json
    assert (job["name"], job["gpus"], job["gpu_type"]) == ("x", 2, "sim")
    assert (job["memory_mib"], job["time_limit_s"], job["cpus"]) == (1024, 129600, 2)


def test_the_query_outweighs_each_job_of_a_list_and_these_its_defaults(box: CheckedDaemon) -> None:
    body = {
        "defaults": {**WAITS, "name": "default", "cpus": 1, "time_limit": "1h"},
        "jobs": [{}, {"name": "own", "cpus": 2, "time_limit": "2h"}],
    }
    jobs = box.ask("POST", "/v1/jobs?cpus=3&time-limit=3h", body).json["jobs"]
    assert [job["name"] for job in jobs] == ["default", "own"]
    assert [(job["cpus"], job["time_limit_s"]) for job in jobs] == [(3, 10800)] * 2
    refused = box.ask("POST", "/v1/jobs?gpus=9", body)
    assert box.fields(refused).keys() == {"jobs.0.gpus", "jobs.1.gpus"}


@pytest.mark.parametrize(
    ("query", "field", "told"),
    [
        ("gpu=1", "gpu", "did you mean gpus?"),
        ("timelimit=5", "timelimit", "did you mean time-limit?"),
        ("dryrun=1", "dryrun", "did you mean dry_run?"),
        ("J=x", "J", "known are dry_run, directives, name"),
        ("command=false", "command", "in the body"),
        ("script-args=x", "script-args", "in the body"),
        ("gpus=1&gpus=2", "gpus", "more than once"),
        ("gpus=1&gres=gpu", "gres", "more than once"),
        ("time=5&time_limit=5", "time_limit", "more than once"),
        ("dry_run=1&dry_run=1", "dry_run", "more than once"),
        ("gpus=-1", "gpus", "not a number of GPUs"),
        ("time=5parsecs", "time", "not a span"),
        ("mem=much", "mem", "not a size"),
        ("cpus=2.5", "cpus", "not a whole number"),
        ("hold=perhaps", "hold", "neither true nor false"),
        ("env=A", "env", "not NAME=VALUE"),
        ("env=CUDA_VISIBLE_DEVICES=1", "env", "set by traind"),
        ("begin=soon", "begin", "not an instant"),
        ("name=%00", "name", "NUL"),
        ("name=%FF%0A", "name", "printable"),
        ("workdir=here", "workdir", "absolute"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(
    box: CheckedDaemon, query: str, field: str, told: str
) -> None:
    before = box.newest()
    assert told in box.fields(box.ask("POST", f"/v1/jobs?{query}", WAITS))[field]
    assert box.newest() == before


def test_the_document_tells_of_all_parameters_and_forms(box: CheckedDaemon) -> None:
    call = box.ask("GET", "/openapi.json").json["paths"]["/v1/jobs"]["post"]
    names = {p["name"] for p in call["parameters"] if p["in"] == "query"}
    assert names == {"dry_run", "directives", *OPTION_PARAMETERS}
    kinds = {"application/json", "application/toml", "text/*", "text/x-python"}
    assert call["requestBody"]["content"].keys() == kinds


# Idempotency


def test_a_key_stands_for_body_form_and_options(box: CheckedDaemon) -> None:
    script = f"#!/bin/sh\n#TRAIND --begin={FAR}\n#SBATCH --mem=1G\n"
    key = {"Idempotency-Key": "k"}
    first = send(box, script, SCRIPT, "?name=x&cpus=1", **key)
    assert first.status == 201
    for again in ("?name=x&cpus=1", "?cpus=1&job_name=x"):
        answer = send(box, script, SCRIPT, again, **key)
        assert (answer.status, answer.json["id"]) == (200, first.json["id"])
    for other in ("?name=x", "?name=y&cpus=1", "?name=x&cpus=1&directives=slurm"):
        assert send(box, script, SCRIPT, other, **key).status == 422
    assert send(box, script + "#\n", SCRIPT, "?name=x&cpus=1", **key).status == 422
    assert send(box, script, "text/x-python", "?name=x&cpus=1", **key).status == 422
    assert send(box, script, SCRIPT, "?name=x&cpus=1&dry_run=1", **key).status == 200
    assert box.newest() == first.json["id"]


def test_a_key_stands_for_so_and_so_long_from_now_whenever_it_comes(box: CheckedDaemon) -> None:
    key = {"Idempotency-Key": "later"}
    first = send(box, "#!/bin/sh\n", SCRIPT, "?begin=now%2B3days", **key)
    again = send(box, "#!/bin/sh\n", SCRIPT, "?begin=now%2B3days", **key)
    assert (first.status, again.status) == (201, 200), again.body
    assert again.json["id"] == first.json["id"]
    assert send(box, "#!/bin/sh\n", SCRIPT, "?begin=now%2B4days", **key).status == 422


# Whatever comes

lines = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        [
            *("#!/bin/sh", "#!", "#!/", "\r", "\x00", "\ufeff", "#TRAIND", "#SBATCH", "#TRAIND --"),
            *("#TRAIND --gpus=1", "#TRAIND --env=A=1", "#TRAIND --label '", "#TRAIND -J x --hold"),
            *("#SBATCH --gres=gpu:2", "#SBATCH -t 5 -p x", "#SBATCH --mem=0", "#SBATCH --time=1-0"),
            *(
                "#SBATCH --signal=B:USR1@9",
                "#SBATCH --export=NONE,A=",
                "#SBATCH hetjob",
                "[[jobs]]",
            ),
            *(
                "command = 'a'",
                "[defaults]",
                "env.A = 1",
                "begin_at = 2099-01-01T00:00:00Z",
                "a = {",
            ),
            *("begin_at = 07:00:00", "a = [1, 2,", 'x = """', "retry.max = 1", "grace_s = -inf"),
        ]
    ),
)
bodies = st.one_of(
    st.binary(max_size=60),
    st.lists(lines, max_size=6).map(lambda found: "\n".join(found).encode("utf-8", "replace")),
)
kinds = st.sampled_from(
    [
        *("text/plain", "text/x-python", TOML, SCRIPT, "text/", "text", "application/json", ""),
        *("text/plain; charset", "text/plain; charset=", "text/x; charset=\x80", "TEXT/*;;;=;"),
    ]
)
queries = st.lists(
    st.tuples(
        st.sampled_from([*OPTION_PARAMETERS, "directives", "dry_run", "gpu_ids", "", "x"]),
        st.one_of(st.text(max_size=12), st.sampled_from(["1", "slurm", "A=1", "5s", "0", FAR])),
    ),
    max_size=3,
)


@given(body=bodies, kind=kinds, query=queries)
@settings(max_examples=150)
def test_whatever_comes_is_stored_or_refused_in_words(
    box: CheckedDaemon, body: bytes, kind: str, query: list[tuple[str, str]]
) -> None:
    given = "&".join(f"{quote(name)}={quote(value)}" for name, value in query)
    before = box.newest()
    answer = box.ask("POST", f"/v1/jobs?{given}&priority=-99", body, {"Content-Type": kind})
    assert answer.status in (200, 201, 400, 415, 422), answer.body
    assert (box.newest() > before) == (answer.status == 201)
    if answer.status == 201:
        found = answer.json.get("jobs") or [answer.json]
        for job in found:
            assert spec_of(box.job(job["id"])) == spec_of(job)
            assert box.ask("DELETE", f"/v1/jobs/{job['id']}?now=1").status in (200, 202)
