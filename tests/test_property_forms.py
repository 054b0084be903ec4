"""Options in addresses, job files and scripts at random: refused by name, or stored."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract import FAR, CheckedDaemon
from harness import Answer
from test_property_orders import RELATED, VALID, anything, bare, texts
from traind.api.overrides import OPTION_PARAMETERS, option_of
from traind.options import Kind

SLOWLY = settings(max_examples=12)
WAITS = {"command": "true", "begin_at": FAR}
"""An order that waits all through a test."""


def judge(box: CheckedDaemon, before: int, answer: Answer) -> dict[str, str]:
    """What was refused, each with its sentence; what was stored is cancelled again."""
    assert answer.status in (201, 400, 413, 415, 422), answer.body
    if answer.status == 201:
        assert box.newest() > before
        jobs = answer.json.get("jobs", [answer.json])
        for job in jobs:
            assert box.ask("DELETE", f"/v1/jobs/{job['id']}").status in (200, 202)
        return {}
    assert box.newest() == before
    assert len(answer.body) < 100_000
    if answer.status != 422:
        assert answer.json["detail"]
        return {}
    fields = box.fields(answer)
    assert fields
    assert all(fields.values())
    return fields


def named(fields: Mapping[str, str]) -> set[str]:
    return {bare(field.partition(".")[0]) for field in fields}


@pytest.mark.parametrize("name", sorted(OPTION_PARAMETERS))
@given(text=texts)
@SLOWLY
def test_whatever_an_option_in_the_address_says_it_is_refused_by_name_or_taken(
    box: CheckedDaemon, name: str, text: str
) -> None:
    option = option_of(name)
    assert option is not None
    before = box.newest()
    query = urlencode({name: text})
    answer = box.ask("POST", f"/v1/jobs?{query}", WAITS)
    fields = judge(box, before, answer)
    own = {bare(option.field), name, *RELATED.get(option.field, ())}
    assert answer.status == 201 or named(fields) & own, answer.body
    if option.kind is not Kind.PAIRS:
        before = box.newest()
        twice = box.ask("POST", f"/v1/jobs?{query}&{query}", WAITS)
        assert named(judge(box, before, twice)) & own, twice.body


@given(st.dictionaries(st.text(max_size=30), st.text(max_size=30), max_size=5))
@SLOWLY
def test_whatever_stands_in_an_address_is_refused_by_name_or_taken(
    box: CheckedDaemon, query: dict[str, str]
) -> None:
    before = box.newest()
    answer = box.ask("POST", f"/v1/jobs?{urlencode(query)}", WAITS)
    fields = judge(box, before, answer)
    assert not query.keys() - OPTION_PARAMETERS.keys() or fields.keys() & query.keys()


def toml(value: Any) -> str:
    """The value as TOML; what TOML has no word for is its text."""
    match value:
        case bool():
            return json.dumps(value)
        case int() | float():
            return repr(value)
        case list():
            return f"[{', '.join(map(toml, value))}]"
        case dict():
            inner = ", ".join(f"{toml(str(name))} = {toml(each)}" for name, each in value.items())
            return f"{{{inner}}}"
        case _:
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


@pytest.mark.parametrize("name", sorted(VALID))
@given(value=anything)
@SLOWLY
def test_whatever_a_key_of_a_job_file_says_it_is_refused_by_name_or_taken(
    box: CheckedDaemon, name: str, value: Any
) -> None:
    order = VALID | {name: value}
    if name in ("begin_at", "gpus"):
        order |= {"time_limit": "99d"}
    body = "\n".join(f"{key} = {toml(each)}" for key, each in order.items())
    before = box.newest()
    kind = {"Content-Type": "application/toml"}
    answer = box.ask("POST", "/v1/jobs", body.encode(), kind)
    fields = judge(box, before, answer)
    assert not fields or named(fields) & {bare(name), *RELATED.get(name, ())}, answer.body


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda t: t.encode())))
@SLOWLY
def test_whatever_comes_as_a_job_file_is_refused_or_taken(box: CheckedDaemon, body: bytes) -> None:
    before = box.newest()
    judge(box, before, box.ask("POST", "/v1/jobs", body, {"Content-Type": "application/toml"}))


@given(
    line=st.sampled_from(["#TRAIND", "#SBATCH"]),
    words=st.lists(
        st.one_of(
            st.builds(
                lambda name, text: f"--{name}={text}", st.sampled_from([*OPTION_PARAMETERS]), texts
            ),
            st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=40),
        ),
        max_size=3,
    ),
)
@settings(SLOWLY, max_examples=60)
def test_whatever_the_directives_of_a_script_say_they_are_refused_or_taken(
    box: CheckedDaemon, line: str, words: list[str]
) -> None:
    directives = "".join(f"{line} {word}\n" for word in words)
    body = f"#!/bin/sh\n{directives}true\n".encode()
    before = box.newest()
    query = urlencode({"directives": "slurm", "begin": FAR})
    judge(box, before, box.ask("POST", f"/v1/jobs?{query}", body, {"Content-Type": "text/plain"}))


@given(st.text(max_size=200))
@SLOWLY
def test_whatever_comes_as_a_script_is_refused_or_taken(box: CheckedDaemon, text: str) -> None:
    for kind in ("text/plain", "text/x-python"):
        before = box.newest()
        body = text.encode()
        judge(box, before, box.ask("POST", f"/v1/jobs?begin={FAR}", body, {"Content-Type": kind}))
