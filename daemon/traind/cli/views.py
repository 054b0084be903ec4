"""Jobs and GPUs of the API as text for a person. Somebody else's job lacks most fields."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from traind.cli.render import age, instant, local, pairs_text, table
from traind.options import size_text, span_text

JOB_COLUMNS = ("ID", "NAME", "USER", "STATE", "GPU", "TIME", "PROGRESS", "REASON")
GPU_COLUMNS = ("GPU", "NAME", "MEMORY", "BUSY", "TEMP", "POWER", "HEALTH", "JOBS", "FOREIGN")
_RANKS = {"running": 0, "stopping": 0, "starting": 1, "queued": 2, "held": 3, "finished": 4}

Json = Mapping[str, Any]


def jobs_text(
    jobs: Sequence[Json], *, me: str | None, now: datetime, width: int | None, colour: bool
) -> str:
    """A line a job; those of `me` are marked."""
    rows = [
        (
            f"{job['id']}{'*' if me is not None and job.get('user') == me else ''}",
            job.get("name") or "",
            job.get("user") or "",
            job.get("outcome") or job["state"],
            gpu_indices(job),
            spent(job, now),
            progress(job),
            sentence(job),
        )
        for job in jobs
    ]
    flexible = (("REASON", 24), ("NAME", 12), ("REASON", 0))
    return table(JOB_COLUMNS, rows, width=width, colour=colour, flexible=flexible)


def in_order(jobs: Iterable[Json]) -> list[Json]:
    """What runs first, then what waits, the likelier to start first."""
    return sorted(
        jobs,
        key=lambda job: (_RANKS.get(job["state"], 9), -(job.get("priority") or 0), job["id"]),
    )


def gpu_indices(job: Json) -> str:
    """The GPUs it has or had, such as '0,3'."""
    return ",".join(str(gpu.get("index")) for gpu in job.get("gpus_allotted") or ())


def spent(job: Json, now: datetime) -> str:
    """How long it runs, or ran, or has waited."""
    started, finished = instant(job.get("started_at")), instant(job.get("finished_at"))
    if job["state"] in ("held", "queued"):
        started = instant(job.get("submitted_at"))
    if started is None:
        return ""
    return age(((finished or now) - started).total_seconds())


def progress(job: Json) -> str:
    """How far it says it is, such as '45%' or 'step 300'."""
    told = job.get("progress") or {}
    step, total = told.get("step"), told.get("total")
    if step is None:
        return ""
    return f"{100 * step / total:.0f}%" if total else f"step {step:g}"


def sentence(job: Json) -> str:
    """Why it waits, or why it ended so, as the daemon says it; empty where it does not."""
    waits, over = job["state"] in ("held", "queued"), job["state"] == "finished"
    told = job.get("reason") if waits else job.get("cause") if over else None
    if isinstance(told, dict):
        return str(told.get("detail") or told.get("code") or "")
    return str(told or "")


def _last_end(job: Json) -> str:
    """Why the last attempt of a job that waits again ended; empty for any other job."""
    cause = job.get("cause") if job["state"] in ("held", "queued") else None
    return str(cause.get("detail") or "") if isinstance(cause, dict) else ""


def energy(wh: float | None) -> str:
    """The energy of its GPUs, such as 'about 1.25 kWh': power is only read now and then."""
    if wh is None:
        return ""
    return f"about {wh / 1000:.3g} kWh" if wh >= 1000 else f"about {wh:.3g} Wh"


def why_text(job: Json, answer: Json, now: datetime) -> str:
    """One sentence: why it waits, since when it runs, or how it ended."""
    detail = answer.get("detail") or sentence({**job, **answer}) or sentence(job)
    state = str(job["state"])
    if state in ("held", "queued"):
        head = f"job {job['id']} is {state}"
    elif state == "finished":
        head = f"job {job['id']} {job.get('outcome') or 'is finished'}"
    else:
        gpus = gpu_indices(job)
        where = f" on GPU {gpus}" if gpus else ""
        head = f"job {job['id']} is {state}{where} since {local(job.get('started_at'), now)}"
    return f"{head}: {detail}" if detail else head


def job_text(job: Json, attempts: Sequence[Json], now: datetime) -> str:
    """All about one job."""
    state = f"{job['state']}, {job['outcome']}" if job.get("outcome") else job["state"]
    pairs: list[tuple[str, object]] = [
        ("job", job["id"]),
        ("name", job.get("name")),
        ("user", job.get("user")),
        ("state", state),
        ("waits" if job["state"] in ("held", "queued") else "cause", sentence(job)),
        ("last attempt", _last_end(job)),
        ("held by", job.get("held_by")),
        ("exit code", job.get("exit_code")),
        ("signal", job.get("signal")),
        ("command", job.get("command")),
        ("argv", shlex.join(job["argv"]) if job.get("argv") else None),
        ("workdir", job.get("workdir")),
        ("wants", wants(job)),
        ("GPUs", ", ".join(_allotted(gpu) for gpu in job.get("gpus_allotted") or ())),
        ("progress", _progress_in_full(job)),
        ("submitted", local(job.get("submitted_at"), now)),
        ("expected start", local(job.get("eta"), now)),
        ("started", local(job.get("started_at"), now)),
        ("finished", local(job.get("finished_at"), now)),
        ("took" if job.get("finished_at") else "time", spent(job, now)),
        ("peak GPU memory", _mib(job.get("peak_gpu_memory_mib"))),
        ("GPU busy", _with_unit(job.get("mean_gpu_busy_pct"), "% on average")),
        ("CPU", _with_unit(job.get("mean_cpu_pct"), "% of one core on average")),
        ("energy", energy(job.get("energy_wh"))),
        ("peak memory", _mib(job.get("peak_memory_mib"))),
        ("log", job.get("log_path")),
        ("checkpoints", job.get("checkpoint_dir")),
        ("labels", ", ".join(f"{k}={v}" for k, v in (job.get("labels") or {}).items())),
        *(("advice", advice) for advice in job.get("advice") or ()),
        *(("warning", warning) for warning in job.get("warnings") or ()),
    ]
    text = pairs_text(pairs)
    return text + ("\n\n" + attempts_text(attempts, now) if len(attempts) > 1 else "")


def attempts_text(attempts: Sequence[Json], now: datetime) -> str:
    """A line for each try at a job."""
    rows = [
        (
            attempt.get("attempt") or attempt.get("number") or "",
            attempt.get("outcome") or "",
            local(attempt.get("started_at"), now),
            _lasted(attempt, now),
            gpu_indices(attempt),
            (attempt.get("cause") or {}).get("detail") or "",
        )
        for attempt in attempts
    ]
    headers = ("ATTEMPT", "OUTCOME", "STARTED", "TIME", "GPU", "CAUSE")
    return table(headers, rows, width=None, colour=False)


def wants(job: Json) -> str:
    """What it asks of the box, in a few words."""
    parts = [f"{job['gpus']} GPUs" if job.get("gpus") not in (None, 1) else ""]
    parts = ["1 GPU"] if job.get("gpus") == 1 else parts
    if job.get("gpu_memory_mib"):
        parts.append(f"{size_text(job['gpu_memory_mib'])} of each")
    if job.get("gpu_type"):
        parts.append(f"of type {job['gpu_type']}")
    if job.get("exclusive"):
        parts.append("to itself")
    if job.get("cpus"):
        parts.append(f"{job['cpus']} CPUs")
    if job.get("memory_mib"):
        parts.append(f"{size_text(job['memory_mib'])} memory")
    if job.get("time_limit_s"):
        parts.append(f"at most {span_text(job['time_limit_s'])}")
    if job.get("priority"):
        parts.append(f"priority {job['priority']}")
    return ", ".join(part for part in parts if part)


def gpus_text(gpus: Sequence[Json], *, width: int | None, colour: bool) -> str:
    """A line a GPU."""
    rows = [
        (
            gpu.get("index", ""),
            gpu.get("name") or "",
            _memory(gpu),
            _with_unit(gpu.get("busy_pct"), "%"),
            _with_unit(gpu.get("temperature_c"), " °C"),
            _with_unit(gpu.get("power_w"), " W"),
            health(gpu),
            ", ".join(_lease(lease) for lease in gpu.get("leases") or ()),
            ", ".join(_process(process) for process in gpu.get("foreign") or ()),
        )
        for gpu in gpus
    ]
    flexible = (("JOBS", 20), ("FOREIGN", 12), ("NAME", 10), ("HEALTH", 12))
    return table(GPU_COLUMNS, rows, width=width, colour=colour, flexible=flexible)


def health(gpu: Json) -> str:
    """'ok', or the sentence that says why it is not given out, or only last."""
    told = gpu.get("health") or {}
    if told.get("allocatable", True) and not told.get("conditions"):
        return "ok, with a display" if gpu.get("display") else "ok"
    return str(told.get("sentence") or "not given out")


def _memory(gpu: Json) -> str:
    used, total = gpu.get("used_mib"), gpu.get("memory_mib")
    if total is None:
        return ""
    return f"{size_text(used)} / {size_text(total)}" if used is not None else size_text(total)


def _lease(lease: Json) -> str:
    words = [str(lease.get("job_id", "?")), lease.get("user"), lease.get("name")]
    if not lease.get("exclusive") and lease.get("memory_mib"):
        words.append(size_text(lease["memory_mib"]))
    if lease.get("state") == "cleaning":
        words.append("(cleaning)")
    return " ".join(str(word) for word in words if word)


def _process(process: Json) -> str:
    """Such as 'bob python train.py pid 4242 20 GiB (idle)'."""
    job, memory, container = (process.get(key) for key in ("job_id", "memory_mib", "container"))
    words = [f"job {job}" if job else process.get("user"), process.get("command")]
    words += [f"pid {process.get('pid')}", None if memory is None else size_text(memory)]
    words.append(f"in container {container}" if container else None)
    if process.get("ignored"):
        words.append("(ignored)")
    elif process.get("activity") in ("display", "idle"):
        words.append(f"({process['activity']})")
    return " ".join(str(word) for word in words if word)


def _allotted(gpu: Json) -> str:
    memory = gpu.get("memory_mib")
    known = (gpu.get("name") or gpu.get("uuid"), size_text(memory) if memory else None)
    details = ", ".join(str(detail) for detail in known if detail)
    return f"{gpu.get('index')} ({details})" if details else str(gpu.get("index"))


def _progress_in_full(job: Json) -> str:
    told = job.get("progress") or {}
    if told.get("step") is None:
        return ""
    of = f" of {told['total']:g}" if told.get("total") else ""
    return f"step {told['step']:g}{of}"


def _lasted(attempt: Json, now: datetime) -> str:
    started = instant(attempt.get("started_at"))
    ended = instant(attempt.get("ended_at") or attempt.get("finished_at"))
    return age(((ended or now) - started).total_seconds()) if started else ""


def _with_unit(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.0f}{unit}"


def _mib(value: int | None) -> str:
    return "" if value is None else size_text(value)
