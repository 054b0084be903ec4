"""Orders at random: refused by name or taken in a normal form that is taken again as it is."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract import FAR, CheckedDaemon
from traind.errors import ErrorCode, TraindError
from traind.jobspec import NOT_BUILT, SHORT_NAMES, JobSpec, read_spec

VALID: dict[str, Any] = {
    "command": "true",
    "shell": "/bin/sh",
    "name": "n",
    "workdir": "/tmp",
    "env": {"A": "1", "B": 2.5},
    "python_env": "/opt/venv",
    "gpus": 1,
    "gpu_memory": "8GiB",
    "exclusive": True,
    "gpu_type": "sim",
    "gpu_min_memory_mib": 1000,
    "gpu_ids": [0, "1"],
    "gpu_exclude": [],
    "cpus": 2,
    "memory": "512MiB",
    "time_limit": "1h30m",
    "priority": -5,
    "begin_at": FAR,
    "grace": "90s",
    "checkpoint_signal": "USR1",
    "checkpoint_lead_s": 2.5,
    "checkpoint_dir": "/tmp/c",
    "requeue": False,
    "retry": {"max": 2, "on": ["failed", "lost"], "delay": "1m", "backoff": 1.5},
    "labels": {"a": "b"},
    "kind": "batch",
}
FIELDS = sorted({*JobSpec.model_fields, *SHORT_NAMES, *NOT_BUILT, "retry", "comand", ""})

numbers = st.one_of(
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, -1, 1, 64, 100, 2**31, 2**63, 2**64, 1e308, -0.0, 1e-320]),
)
texts = st.one_of(
    st.text(),
    st.sampled_from(
        [
            "",
            "true",
            "\0",
            "a\0b",
            "#!/bin/sh\n",
            "#!sh",
            "\x1b[0m",
            "/",
            "/tmp",
            "1h",
            "8G",
            "USR1",
            "batch",
        ]
    ),
    st.sampled_from(["999999999999w", "1" * 400 + "T", "2030-01-01T00:00:00Z", "0", "GPU-0"]),
)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)
orders = st.one_of(
    st.builds(
        lambda changes: VALID | changes,
        st.dictionaries(st.sampled_from(FIELDS), anything, max_size=2),
    ),
    st.dictionaries(st.sampled_from([*FIELDS, "command"]), anything, max_size=4),
)


def normal(spec: JobSpec) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(spec.model_dump_json())
    return found


def taken(order: dict[str, Any]) -> JobSpec | None:
    """The order as it was taken, or None when it was refused as it should be."""
    try:
        return read_spec(order)
    except TraindError as error:
        refused = error
    assert refused.code is ErrorCode.INVALID
    assert refused.fields
    assert all(len(f.field) <= 300 and 0 < len(f.message) < 2000 for f in refused.fields)
    asked = {bare(name)[:200] for name in (*order, "command", "body")}
    assert {bare(f.field.partition(".")[0]) for f in refused.fields} <= asked
    return None


def bare(name: str) -> str:
    return name.removesuffix("_s").removesuffix("_mib")


@given(orders)
@settings(max_examples=600)
def test_an_order_is_refused_by_name_or_has_a_normal_form(order: dict[str, Any]) -> None:
    spec = taken(order)
    if spec is None:
        return
    again = read_spec(normal(spec))
    assert again == spec
    assert normal(again) == normal(spec)
    stored = JobSpec.model_validate_json(spec.model_dump_json(exclude_defaults=True))
    assert stored == spec


@pytest.mark.parametrize("name", sorted(VALID))
@given(value=anything)
@settings(max_examples=15)
def test_whatever_stands_in_a_field_the_daemon_refuses_or_stores_it(
    box: CheckedDaemon, name: str, value: Any
) -> None:
    order = VALID | {name: value}
    if name in ("begin_at", "gpus"):
        order = order | {"time_limit": "99d"}  # never to be started, whatever the value
    before = box.newest()
    answer = box.ask("POST", "/v1/jobs", json.dumps(order).encode())
    assert answer.status in (201, 400, 422), answer.body
    if answer.status != 201:
        assert box.newest() == before
        if answer.status == 422:
            names = {e["field"].partition(".")[0] for e in answer.json["errors"]}
            assert names & {name, f"{name}_s", f"{name}_mib", *RELATED.get(name, ())}, answer.body
        return
    job = answer.json
    spec = {field: job[field] for field in JobSpec.model_fields}
    again = box.ask("POST", "/v1/jobs", spec)
    assert again.status == 201, (order, again.body)
    assert {field: again.json[field] for field in JobSpec.model_fields} == spec
    for number in (job["id"], again.json["id"]):
        assert box.ask("DELETE", f"/v1/jobs/{number}").status == 200


RELATED = {
    "begin_at": ("time_limit",),
    "gpus": ("time_limit",),
    "gpu_ids": ("gpus",),
    "gpu_exclude": ("gpus",),
    "gpu_type": ("gpus",),
}
