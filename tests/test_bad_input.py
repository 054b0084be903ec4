"""Orders that are wrong: each field is refused by name and in words, and nothing is stored."""

import json
from typing import Any

import pytest

from contract import FAR, CheckedDaemon
from traind.jobspec import NOT_BUILT

KIB = 1 << 10
HUGE = 10**400


def refuse(box: CheckedDaemon, **fields: Any) -> dict[str, str]:
    """What is wrong with a job with these fields, by field."""
    order = {"command": "true"} | fields
    return box.fields(box.post(json.dumps(order).encode()))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "command"),
        (b'{"command": null}', "command"),
        (b'{"command": ""}', "command"),
        (b'{"argv": []}', "argv"),
        (b'{"command": "a", "argv": ["a"]}', "command"),
        (b'{"argv": ["a"], "shell": "/bin/sh"}', "shell"),
        (b'{"command": ["a"]}', "command"),
        (b'{"argv": "a b"}', "argv"),
        (b'{"argv": ["a", 1]}', "argv.1"),
        (b'{"argv": [{"a": [1, 2]}]}', "argv.0"),
    ],
)
def test_exactly_one_command_is_taken(box: CheckedDaemon, body: bytes, field: str) -> None:
    assert field in box.fields(box.post(body))


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        *(("comand", "command"), ("gpu", "gpus"), ("timelimit", "time_limit")),
        *(("gpu_mem", "gpu_memory"), ("working_dir", "workdir")),
        *(("enviroment", None), ("__proto__", None), ("x" * 5000, None)),
    ],
)
def test_an_unknown_field_is_refused_naming_the_nearest(
    box: CheckedDaemon, wrong: str, right: str | None
) -> None:
    [(field, sentence)] = refuse(box, **{wrong: 1}).items()
    assert field == wrong[:200]
    assert f"did you mean {right}" in sentence if right else "known are command" in sentence


@pytest.mark.parametrize("name", ["time_limit", "gpu_memory", "memory", "grace", "checkpoint_lead"])
def test_a_span_or_size_has_a_unit_or_the_name_with_the_unit_not_both(
    box: CheckedDaemon, name: str
) -> None:
    size = "memory" in name
    normal = name + ("_mib" if size else "_s")
    good = "1GiB" if size else "60s"
    assert list(refuse(box, **{name: good, normal: 60, "gpus": 1})) == [name]
    for bare in (60, 1.5, True, ["60s"], {}):
        sentence = refuse(box, **{name: bare, "gpus": 1})[name]
        assert normal in sentence
    for text in (
        "60",
        "",
        "-1s",
        "one hour",
        "5 parsecs",
        "1e9G",
        "9" * 400 + "h",
        "9" * 400 + "T",
    ):
        assert name in refuse(box, **{name: text, "gpus": 1}) or normal in refuse(
            box, **{name: text}
        )
    assert normal in refuse(box, **{normal: good, "gpus": 1})


INTEGERS = ("gpus", "cpus", "priority", "gpu_memory_mib", "gpu_min_memory_mib", "memory_mib")
NUMBERS = (*INTEGERS, "time_limit_s", "grace_s", "checkpoint_lead_s")


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_a_number_within_its_bounds(box: CheckedDaemon, name: str) -> None:
    wrong: list[Any] = ["1", True, False, [1], {"a": 1}, HUGE, -HUGE, -(10**30), 10**30, 1e300]
    wrong += [1.5, 1.0] if name in INTEGERS else []
    wrong += [] if name == "priority" else [-1, -0.5]
    for value in wrong:
        assert name in refuse(box, **{name: value}), value
    for text in ("1e999", "-1e999", "1" * 5000, "0." + "1" * 5000 + "e9999"):
        body = b'{"command": "true", "%s": %s}' % (name.encode(), text.encode())
        assert box.post(body).status in (400, 422), text


def test_a_boolean_is_a_boolean(box: CheckedDaemon) -> None:
    for name in ("exclusive", "requeue"):
        for value in (0, 1, "true", "yes", None, [], {}):
            assert list(refuse(box, **{name: value})) == [name]


@pytest.mark.parametrize(
    "fields",
    [
        {"command": "a\0b"},
        {"command": None, "argv": ["a", "b\0"]},
        {"shell": "/bin/sh\0"},
        {"name": "a\0"},
        {"workdir": "/tmp\0/x"},
        {"env": {"A": "\0"}},
        {"env": {"A\0": "b"}},
        {"gpus": 1, "gpu_type": "A\0"},
        {"gpus": 1, "gpu_ids": ["\0"]},
        {"gpus": 1, "gpu_exclude": ["0\0"]},
        {"checkpoint_dir": "/a\0"},
        {"checkpoint_signal": "USR1\0"},
        {"labels": {"a": "\0"}},
        {"labels": {"\0": "a"}},
        {"begin_at": "2030-01-01T00:00:00Z\0"},
        {"kind": "batch\0"},
        {"time_limit": "1h\0"},
        {"gpu_memory": "1G\0", "gpus": 1},
        {"retry": {"max": 1, "delay": "1s\0"}},
        {"retry": {"max": 1, "on": ["failed\0"]}},
    ],
    ids=str,
)
def test_no_text_holds_a_nul(box: CheckedDaemon, fields: dict[str, Any]) -> None:
    [refused] = refuse(box, **fields)
    wrong = [name for name, value in fields.items() if "\\x00" in repr(value)]
    assert refused.partition(".")[0].removesuffix("_mib") == wrong[0]


@pytest.mark.parametrize(
    "text", ["a\nb", "a\tb", "\x1b[31mred", "a\x7f", "\x85", "a\u202eb", "", "x" * 201]
)
def test_a_name_is_printable_text_of_at_most_200_characters(box: CheckedDaemon, text: str) -> None:
    assert list(refuse(box, name=text)) == ["name"]
    assert "labels" in next(iter(refuse(box, labels={text: "x"})))


def test_a_name_made_of_a_command_is_printable(box: CheckedDaemon) -> None:
    for command in ("\n\n  echo \x1b[31m\tred\u202e  \nsecond", "\x01", "x" * 5000, "\ue000"):
        answer = box.ask("POST", "/v1/jobs", {"command": command, "begin_at": FAR})
        name = answer.json["name"]
        assert name.isprintable()
        assert 1 <= len(name) <= 200


@pytest.mark.parametrize("name", ["workdir", "shell", "checkpoint_dir"])
def test_a_path_is_absolute(box: CheckedDaemon, name: str) -> None:
    for path in ("relative", "./a", "~/a", "", " /a", "$HOME"):
        assert "absolute" in refuse(box, **{name: path})[name]
    assert name in refuse(box, **{name: "/" * 5000})


@pytest.mark.parametrize(
    "env",
    [
        *({name: "x"} for name in ("TRAIND_JOB_ID", "TRAIND_X", "CUDA_VISIBLE_DEVICES")),
        *({name: "x"} for name in ("CUDA_DEVICE_ORDER", "", "A=B", "1A", "A-B", "A B", "A\n", "Ä")),
        *({"A": value} for value in (None, True, [], {}, ["x"])),
        {"A": "x" * 128 * KIB},
        {f"V{n}": "x" for n in range(1001)},
    ],
    ids=lambda env: str(env)[:40],
)
def test_an_environment_has_names_and_texts_and_leaves_ours_alone(
    box: CheckedDaemon, env: dict[str, Any]
) -> None:
    assert {field.partition(".")[0] for field in refuse(box, env=env)} == {"env"}


def test_numbers_in_an_environment_are_texts(box: CheckedDaemon) -> None:
    env = {"A": 1, "B": -0.5, "C": 1e300, "D": HUGE, "E": 0}
    number = box.submit("echo $A $B $C $E; echo $D | wc -c", env=env)
    assert box.job(number)["env"] == {
        "A": "1",
        "B": "-0.5",
        "C": "1e+300",
        "D": str(HUGE),
        "E": "0",
    }
    box.wait(number, outcome="succeeded")
    assert box.log_of(number) == "1 -0.5 1e+300 0\n402\n"


@pytest.mark.parametrize(
    "labels",
    [{"a": 1}, {"a": None}, {"a": "x" * 1001}, {f"l{n}": "" for n in range(65)}, ["a"], "a"],
)
def test_labels_are_texts(box: CheckedDaemon, labels: Any) -> None:
    assert {field.partition(".")[0] for field in refuse(box, labels=labels)} == {"labels"}


@pytest.mark.parametrize(
    "begin_at",
    [
        *(
            "tomorrow",
            "",
            "2030-01-01",
            "2030-01-01T00:00:00",
            "2030-01-01T00:00Z",
            "20300101T000000Z",
        ),
        *("2030-13-01T00:00:00Z", "2030-02-30T00:00:00Z", "2030-01-01T25:00:00Z", "2030-W01-1"),
        *("9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "10000-01-01T00:00:00Z"),
        *("2030-01-01T00:00:00+99:00", "2030-01-01T00:00:00Z\n", 1900000000, True, [], {}),
    ],
)
def test_an_instant_has_an_offset(box: CheckedDaemon, begin_at: Any) -> None:
    assert list(refuse(box, begin_at=begin_at)) == ["begin_at"]


@pytest.mark.parametrize("name", sorted(NOT_BUILT))
def test_a_field_that_is_not_built_says_so(box: CheckedDaemon, name: str) -> None:
    for value in (None, "x", 1, [], {}):
        assert refuse(box, **{name: value}) == {name: f"{name} is not built yet; leave it out"}


def test_a_kind_that_is_not_built_is_refused(box: CheckedDaemon) -> None:
    for kind in ("interactive", "service", "Batch", "", None, 1):
        assert list(refuse(box, kind=kind)) == ["kind"]


@pytest.mark.parametrize(
    ("retry", "field"),
    [
        ({}, "retry.max"),
        ({"max": 0}, "retry.max"),
        ({"max": 1001}, "retry.max"),
        ({"max": 1, "on": []}, "retry.on"),
        ({"max": 1, "on": ["succeeded"]}, "retry.on.0"),
        ({"max": 1, "delay": 5}, "retry.delay"),
        ({"max": 1, "delay": "5s", "delay_s": 5}, "retry.delay"),
        ({"max": 1, "backoff": 0.5}, "retry.backoff"),
        ({"max": 1, "backof": 2}, "retry.backof"),
        ("twice", "retry"),
        (3, "retry"),
    ],
)
def test_a_retry_is_checked_field_by_field(box: CheckedDaemon, retry: Any, field: str) -> None:
    assert list(refuse(box, retry=retry)) == [field]


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"gpus": 3}, "gpus", "this box has 2"),
        ({"gpus": 65}, "gpus", "64"),
        ({"gpus": 1, "gpu_memory": "26GiB"}, "gpu_memory_mib", "24"),
        ({"gpus": 1, "gpu_min_memory": "48GiB"}, "gpu_min_memory_mib", "24"),
        ({"gpus": 1, "gpu_type": "H100"}, "gpu_type", "H100"),
        ({"gpus": 1, "gpu_ids": [2]}, "gpu_ids", "'2'"),
        ({"gpus": 1, "gpu_ids": ["GPU-none"]}, "gpu_ids", "GPU-none"),
        ({"gpus": 2, "gpu_exclude": [0]}, "gpus", "GPU 1"),
        ({"gpus": 2, "gpu_ids": [0]}, "gpus", "GPU 0"),
        ({"gpus": 1, "gpu_ids": [0.5]}, "gpu_ids.0", "string"),
        ({"gpus": 1, "gpu_ids": [True]}, "gpu_ids.0", "string"),
        ({"cpus": 5}, "cpus", "4"),
        ({"memory": "4000T"}, "memory_mib", "gives its jobs"),
        ({"time_limit": "8d"}, "time_limit", "at most"),
        ({"priority": 101}, "priority", "100"),
    ],
    ids=str,
)
def test_more_than_the_box_has_is_refused_with_what_it_has(
    box: CheckedDaemon, fields: dict[str, Any], field: str, words: str
) -> None:
    refused = refuse(box, **fields)
    assert list(refused) == [field]
    assert words in refused[field]


def test_all_that_is_wrong_is_told_at_once(box: CheckedDaemon) -> None:
    wrong = {"gpus": -1, "cwd": "/", "time_limit": 5, "array": "0-3", "env": {"1": "x"}}
    assert refuse(box, **wrong).keys() == wrong.keys()


def test_an_argument_may_be_as_long_as_linux_takes_it(box: CheckedDaemon) -> None:
    longest = "x" * (128 * KIB - 1)
    for order in ({"argv": ["/bin/echo", longest]}, {"command": f"echo {longest[5:]}"}):
        answer = box.ask("POST", "/v1/jobs", order)
        assert box.wait(answer.json["id"], outcome="succeeded")["exit_code"] == 0
    assert "128 KiB" in refuse(box, command="x" * 128 * KIB)["command"]
    refused = refuse(box, command=None, argv=["echo", longest + "x"])
    assert "128 KiB" in refused["argv.1"]
    assert "128 KiB" in refused["argv.1"]
    assert "argv.1" in refuse(box, command=None, argv=["echo", "ä" * 64 * KIB])


def test_arguments_that_are_too_long_together_are_a_failed_launch(box: CheckedDaemon) -> None:
    many = ["/bin/true", *["x" * (120 * KIB)] * 60]
    answer = box.ask("POST", "/v1/jobs", [{"argv": many}])
    assert answer.status == 201
    job = box.wait(answer.json["jobs"][0]["id"], outcome="launch_failed", exit_code=126)
    assert "Argument list too long" in job["cause"]["detail"]


@pytest.mark.parametrize(
    "order",
    [
        {f"gpu_memori{n}": 1 for n in range(40_000)},
        {"env": {str(n): "x" for n in range(50_000)}},
        {"env": {f"A{n}": None for n in range(50_000)}},
        {"argv": [1] * 300_000},
        {"argv": [1] * 50_000},
        {"labels": {str(n): n for n in range(50_000)}},
        {"retry": {"max": 1, "on": ["x"] * 200_000}},
        {"gpu_ids": ["x"] * 200_000},
        {"time_limit": "1h" * 400_000},
        {"gpu_memory": "1" * 900_000},
        {"name": "x" * 900_000},
    ],
    ids=lambda order: str(order)[:30],
)
def test_however_much_is_wrong_the_answer_is_short_and_quick(
    box: CheckedDaemon, order: dict[str, Any]
) -> None:
    for body in (order, [order] * 5):
        began = box.cpu_s()
        refused = box.post(json.dumps(body).encode())
        assert len(box.fields(refused)) <= 100
        assert len(refused.body) < 100_000
        assert box.cpu_s() - began < 2
