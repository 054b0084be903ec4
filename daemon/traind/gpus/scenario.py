"""GPUs that do not exist, as `--simulate` describes them: 2x24GiB, or a JSON file read strictly."""

import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from traind.gpu import Gpu, GpuPlace, GpuProcess, GpuVitals, Xid
from traind.gpus.source import SourceError
from traind.options import nearest, parse_size

MOST_GPUS = 64
_CPU_LIST = re.compile(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?){0,500}")
_UNIFORM = re.compile(r"(\d{1,9})x(.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedGpu:
    """One GPU as its simulation wants it. `hang_s`: how long it lets a reader wait, seconds;
    `unlisted_mib` are in use by no process that is listed.
    """

    gpu: Gpu
    processes: tuple[GpuProcess, ...] = ()
    temperature_c: int | None = 40
    busy_pct: int | None = 0
    power_w: float | None = 30.0
    vitals: GpuVitals = field(default_factory=GpuVitals)
    place: GpuPlace = field(default_factory=GpuPlace)
    xids: tuple[Xid, ...] = ()
    unlisted_mib: int = 0
    lost: bool = False
    hang_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """All simulated GPUs; `declared`: each running job uses what it declared."""

    gpus: tuple[SimulatedGpu, ...]
    declared: bool = True


@dataclass(frozen=True, slots=True)
class _Kind:
    """What the value of a key must be, in words and as a test."""

    what: str
    fits: Callable[[Any], bool]
    null: bool = False


def _whole(low: int, high: int | None = None, *, null: bool = False) -> _Kind:
    what = f"a whole number of at least {low}" if high is None else f"from {low} to {high}"
    top = float("inf") if high is None else high
    return _Kind(what, lambda value: type(value) is int and low <= value <= top, null)


def _is_cpu_list(value: object) -> bool:
    return isinstance(value, str) and _CPU_LIST.fullmatch(value) is not None


_TEXT = _Kind("a text that is not empty", lambda value: isinstance(value, str) and value != "")
_FLAG = _Kind("true or false", lambda value: isinstance(value, bool))
_LIST = _Kind("a list", lambda value: isinstance(value, list))
_SECONDS = _Kind("from 0 to 86400", lambda v: type(v) in (int, float) and 0 <= v <= 86400)
_WATTS = _Kind(_SECONDS.what, _SECONDS.fits, null=True)

_FILE_KEYS = {
    "gpus": _LIST,
    "job_memory": _Kind("'declared' or 'none'", lambda value: value in ("declared", "none")),
}
_GPU_KEYS = {
    "name": _TEXT,
    "uuid": _TEXT,
    "memory_mib": _whole(1),
    "reserved_mib": _whole(0),
    "temperature_c": _Kind("a whole number", lambda value: type(value) is int, null=True),
    "busy_pct": _whole(0, 100, null=True),
    "power_w": _WATTS,
    "processes": _LIST,
    "unlisted_mib": _whole(0),
    "lost": _FLAG,
    "hang_s": _SECONDS,
    "ecc_uncorrected": _whole(0),
    "row_remap_pending": _FLAG,
    "row_remap_failed": _FLAG,
    "recovery_action": _whole(0, 7),
    "display": _FLAG,
    "mig": _FLAG,
    "numa_node": _whole(0, null=True),
    "cpus": _Kind("a list of cores such as '0-7,16-23'", _is_cpu_list, null=True),
    "near": _LIST,
    "xids": _LIST,
}
_PROCESS_KEYS = {
    "pid": _whole(1),
    "memory_mib": _whole(0, null=True),
    "kind": _Kind("'compute' or 'graphics'", lambda value: value in ("compute", "graphics")),
}
_NEAR_KEYS = {"gpu": _whole(0, MOST_GPUS - 1), "weight": _whole(1, 10_000)}
_XID_KEYS = {"seq": _whole(0), "xid": _whole(0), "pid": _whole(0, null=True)}


def uniform(spec: str) -> Scenario | None:
    """Equal GPUs as COUNTxSIZE says, such as 2x24GiB; None when `spec` is not of that form.

    Raises SourceError when the count or the size will not do.
    """
    found = _UNIFORM.fullmatch(spec)
    if not found:
        return None
    count = int(found[1])
    try:
        memory_mib = parse_size(found[2])
    except ValueError as wrong:
        raise SourceError(f"--simulate {spec}: {wrong}") from None
    if not 1 <= count <= MOST_GPUS or memory_mib < 1:
        sentence = f"--simulate {spec}: from 1 to {MOST_GPUS} GPUs of at least 1 MiB"
        raise SourceError(sentence)
    return Scenario(gpus=tuple(_gpu({"memory_mib": memory_mib}, index) for index in range(count)))


def parse(text: str) -> Scenario:
    """The GPUs a JSON file describes. Raises SourceError naming the key that will not do."""
    try:
        raw = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as wrong:
        raise SourceError(f"it is not JSON: {wrong}") from None
    top = _checked(raw, _FILE_KEYS, "", {"gpus"})
    if len(top["gpus"]) > MOST_GPUS:
        raise SourceError(f"gpus must be at most {MOST_GPUS}, not {len(top['gpus'])}")
    gpus = tuple(_gpu(_checked_gpu(one, i), i) for i, one in enumerate(top["gpus"]))
    uuids = [one.gpu.uuid for one in gpus]
    gpus = tuple(_placed(one, raw, uuids) for one, raw in zip(gpus, top["gpus"], strict=True))
    for index, one in enumerate(uuids):
        if one in uuids[:index]:
            raise SourceError(f"gpus[{index}].uuid must be its own, not that of another GPU")
    return Scenario(gpus=gpus, declared=top.get("job_memory", "declared") == "declared")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _checked_gpu(raw: object, index: int) -> Mapping[str, Any]:
    where = f"gpus[{index}]"
    one = _checked(raw, _GPU_KEYS, where, {"memory_mib"})
    for i, process in enumerate(one.get("processes", ())):
        _checked(process, _PROCESS_KEYS, f"{where}.processes[{i}]", {"pid"})
    for i, near in enumerate(one.get("near", ())):
        _checked(near, _NEAR_KEYS, f"{where}.near[{i}]", {"gpu", "weight"})
    for i, xid in enumerate(one.get("xids", ())):
        _checked(xid, _XID_KEYS, f"{where}.xids[{i}]", {"seq", "xid"})
    return one


def _checked(
    raw: object, kinds: Mapping[str, _Kind], where: str, needed: set[str]
) -> Mapping[str, Any]:
    prefix = f"{where}." if where else ""
    if not isinstance(raw, dict):
        raise SourceError(f"{where or 'it'} must be an object, not {json.dumps(raw)[:40]}")
    for key, value in raw.items():
        if (kind := kinds.get(key)) is None:
            near = nearest(key, kinds)
            hint = f"did you mean {near}?" if near else f"it may have {', '.join(kinds)}"
            raise SourceError(f"{prefix}{key} is unknown; {hint}")
        if not (value is None and kind.null) and not kind.fits(value):
            raise SourceError(f"{prefix}{key} must be {kind.what}, not {json.dumps(value)[:40]}")
    if missing := sorted(needed - raw.keys()):
        raise SourceError(f"{prefix}{missing[0]} is missing")
    return raw


def _gpu(raw: Mapping[str, Any], index: int) -> SimulatedGpu:
    gpu = Gpu(
        uuid=raw.get("uuid", _made_up(index)),
        index=index,
        name=raw.get("name", "Simulated GPU"),
        memory_mib=raw["memory_mib"],
        reserved_mib=raw.get("reserved_mib", 0),
        pci=f"0000:{index + 1:02x}:00.0",
    )
    processes = tuple(
        GpuProcess(
            pid=one["pid"], memory_mib=one.get("memory_mib"), kind=one.get("kind", "compute")
        )
        for one in raw.get("processes", ())
    )
    xids = tuple(
        Xid(number=one["xid"], pid=one.get("pid"), seq=one["seq"]) for one in raw.get("xids", ())
    )
    figures = ("temperature_c", "busy_pct", "power_w", "lost", "hang_s", "unlisted_mib")
    return SimulatedGpu(
        gpu=gpu,
        processes=processes,
        vitals=_vitals(raw),
        xids=xids,
        **{key: raw[key] for key in figures if key in raw},
    )


def _placed(one: SimulatedGpu, raw: Mapping[str, Any], uuids: list[str]) -> SimulatedGpu:
    """The GPU where its description puts it; whom it is said to be near to that is not there is
    left out.
    """
    near = ((each["gpu"], each["weight"]) for each in raw.get("near", ()))
    known = tuple((uuids[index], weight) for index, weight in near if index < len(uuids))
    keys = ("display", "mig", "numa_node", "cpus")
    told = {key: raw[key] for key in keys if key in raw}
    return replace(one, place=GpuPlace(**told, near=known))


def _made_up(index: int) -> str:
    """A UUID that is the same after every restart."""
    return f"GPU-{uuid.uuid5(uuid.NAMESPACE_URL, f'traind:simulated-gpu:{index}')}"


def _vitals(raw: Mapping[str, Any]) -> GpuVitals:
    """What the driver would say; of what the description does not speak, it says nothing."""
    return GpuVitals(
        recovery_action=raw.get("recovery_action"),
        ecc_uncorrected=raw.get("ecc_uncorrected"),
        remap_pending=raw.get("row_remap_pending"),
        remap_failed=raw.get("row_remap_failed"),
    )
