"""The shapes of the answers about GPUs, beside those of `wire` about jobs."""

from traind.gpu import Ailment, Condition, Cordon, GpuProcess, Stranger, StrangerKind
from traind.wire import At, View


class ConditionView(View):
    """What is wrong with a GPU. `clears_on` is what ends it: that its sign is gone (`seen`), time
    (`a_while`), a reset, a reboot, or a person's clear; `gone_at` since when its cause is gone.
    """

    code: str
    ailment: Ailment
    since: At
    evidence: str
    clears_on: str
    gone_at: At | None


class HealthView(View):
    """Whether new work may start on a GPU, and why; `ecc_uncorrected_ever` counts memory errors
    over its life and decides nothing.
    """

    allocatable: bool
    sentence: str
    conditions: list[ConditionView]
    recovery_action: int | None
    ecc_uncorrected: int | None
    ecc_uncorrected_ever: int | None


class CordonView(View):
    """Who keeps new jobs off a GPU; `drains`: those that run there have to leave, too."""

    by: str
    at: At
    reason: str | None
    drains: bool


class LeaseView(View):
    """What an attempt holds of a GPU."""

    job_id: int
    attempt: int
    user: str
    name: str
    memory_mib: int
    observed_mib: int
    exclusive: bool
    state: str


class ProcessView(View):
    """A process on a GPU that is of no job there; `memory_mib` is null where the driver is silent.

    `activity` says what it does: it draws (`display`), holds a little memory and has done nothing
    for long (`idle`), or else (`training`), which alone keeps a GPU from being given to one job. An
    `ignored` one keeps no job away. `command` is without its arguments, `container` the short id
    of the one it is in, `job_id` the job that it is of, which was not given this GPU, `during_job`
    the one that ran there when it came. What is not known, or not yet, is null.
    """

    pid: int
    memory_mib: int | None
    kind: str
    activity: StrangerKind | None
    since: At | None
    user: str | None
    command: str | None
    container: str | None
    job_id: int | None
    during_job: int | None
    ignored: bool


class GpuView(View):
    """A GPU as it was read last. `display`: somebody looks at what it draws; `mig`: it is divided
    into instances; `cpus` are the cores next to it, on the memory node `numa_node`. Null where
    nobody says.
    """

    index: int
    uuid: str
    name: str
    memory_mib: int
    reserved_mib: int
    used_mib: int
    busy_pct: int | None
    power_w: float | None
    temperature_c: int | None
    display: bool | None
    mig: bool | None
    numa_node: int | None
    cpus: str | None
    health: HealthView
    cordoned: CordonView | None
    leases: list[LeaseView]
    foreign: list[ProcessView]


class Gpus(View):
    """All GPUs that the box has; `fault` says why no reading comes, else null."""

    gpus: list[GpuView]
    read_at: At | None
    fault: str | None


def condition_view(condition: Condition) -> ConditionView:
    """The condition as the API shows it."""
    return ConditionView(
        code=condition.code,
        ailment=condition.ailment,
        since=condition.since,
        evidence=condition.evidence,
        clears_on=condition.lasts,
        gone_at=condition.gone_at,
    )


def process_view(process: GpuProcess, stranger: Stranger | None, *, ignored: bool) -> ProcessView:
    """The process as the API shows it, with what is known of it by now."""
    return ProcessView(
        pid=process.pid,
        memory_mib=process.memory_mib,
        kind=process.kind,
        activity=None if stranger is None else stranger.kind,
        since=None if stranger is None else stranger.since,
        user=None if stranger is None else stranger.user,
        command=None if stranger is None else stranger.command,
        container=None if stranger is None else stranger.container,
        job_id=None if stranger is None else stranger.job_id,
        during_job=None if stranger is None else stranger.during_job,
        ignored=ignored,
    )


def cordon_view(cordon: Cordon | None) -> CordonView | None:
    """The cordon as the API shows it."""
    if cordon is None:
        return None
    return CordonView(by=cordon.by, at=cordon.at, reason=cordon.reason, drains=cordon.drains)
