"""What a GPU is, and what was read of it at one moment."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as it stands in the box; its UUID is its identity, its index may change at a boot.

    `memory_mib` is the total, `reserved_mib` what driver and firmware keep of it; `pci` is its
    address on the bus, None where the driver does not say.
    """

    uuid: str
    index: int
    name: str
    memory_mib: int
    reserved_mib: int
    pci: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """One process on a GPU; `memory_mib` is None where the driver does not say."""

    pid: int
    memory_mib: int | None
    kind: str


class StrangerKind(StrEnum):
    """What a process that is of no job does on a GPU.

    DISPLAY: it draws. IDLE: it holds a little memory and has done nothing for long. TRAINING: all
    others; only these keep a GPU from being given to one job alone.
    """

    DISPLAY = "display"
    IDLE = "idle"
    TRAINING = "training"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stranger:
    """A process on a GPU that is of no job there, as it was seen last.

    `started` is in clock ticks since boot. `memory_mib` is what it holds at most; `since` when it
    was first seen, `gone_at` when it no longer was, None while it is there. `command` is what it
    runs, without its arguments; `container` the short id of the one it is in. `job_id` is the job
    that it is of, which holds other GPUs or none; `during_job` the one that had the GPU when it
    came. `ignored`: an operator lets it be. `readings` counts those that list it, one after the
    other. What cannot be known is None.
    """

    gpu_uuid: str
    pid: int
    started: int | None
    kind: StrangerKind
    memory_mib: int
    since: datetime
    uid: int | None = None
    user: str | None = None
    command: str | None = None
    container: str | None = None
    job_id: int | None = None
    during_job: int | None = None
    ignored: bool = False
    readings: int = 1
    gone_at: datetime | None = None

    @property
    def blocks(self) -> bool:
        """Whether it keeps the GPU from being given to one job alone."""
        return self.kind is StrangerKind.TRAINING and not self.ignored


class FaultKind(StrEnum):
    """Why a GPU could not be read. MISSING: it is not listed; NOT_ALLOWED: access is refused."""

    LOST = "lost"
    RESET_REQUIRED = "reset_required"
    POWER = "power"
    INTERRUPTS = "interrupts"
    UNKNOWN = "unknown"
    NOT_ALLOWED = "not_allowed"
    MISSING = "missing"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuVitals:
    """What the driver says of a GPU's health; None is "it does not say", which means nothing.

    `recovery_action` is its own verdict (NVML field 230). ECC counts of uncorrected errors are
    since the driver was loaded, `_ever` over the GPU's life. `slowdown` are the bits of why clocks
    are held down, `slowdown_c` is the temperature at which they are, `energy_mj` counts from the
    loading of the driver. `xids_told`: whether it tells of XIDs as they happen.
    """

    recovery_action: int | None = None
    ecc_uncorrected: int | None = None
    ecc_uncorrected_ever: int | None = None
    ecc_corrected: int | None = None
    sram_threshold_exceeded: bool | None = None
    unrepairable: bool | None = None
    remapped_uncorrectable: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    retired_pages: int | None = None
    retired_double_bit: int | None = None
    retired_pending: bool | None = None
    slowdown: int | None = None
    slowdown_c: int | None = None
    energy_mj: int | None = None
    xids_told: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Xid:
    """An error as the driver numbers it. `pid` is whose work it was, None where nobody says.

    `seq` tells simulated ones apart; `at` is None for one that has just happened.
    """

    number: int
    pid: int | None = None
    seq: int | None = None
    detail: str = ""
    at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPlace:
    """Where a GPU sits, as far as driver and kernel tell; None and () are "they do not say".

    `display`: somebody looks at what it draws. `mig`: it is divided into instances. `cpus` are the
    cores next to it, such as '0-7,16-23', on the memory node `numa_node`. `near` has (UUID, weight)
    of other GPUs, the heavier the faster the way to them.
    """

    display: bool | None = None
    mig: bool | None = None
    numa_node: int | None = None
    cpus: str | None = None
    near: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """What one GPU answered: MiB, percent, watts, degrees Celsius; None where it does not say.

    `fault` is a sentence when it is lost or answered with an error, and `fault_kind` which; its
    figures are then those of the last good reading, or nought. `xids` are those of which it told
    with this reading.
    """

    gpu: Gpu
    used_mib: int
    processes: tuple[GpuProcess, ...] = ()
    busy_pct: int | None = None
    power_w: float | None = None
    temperature_c: int | None = None
    fault: str | None = None
    fault_kind: FaultKind | None = None
    vitals: GpuVitals = GpuVitals()
    place: GpuPlace = GpuPlace()
    xids: tuple[Xid, ...] = ()

    @property
    def unlisted_mib(self) -> int:
        """MiB in use by none of the processes of which the driver tells how much they hold."""
        return max(0, self.used_mib - sum(each.memory_mib or 0 for each in self.processes))


class Ailment(StrEnum):
    """How bad a condition is, the worse the later.

    WARN: still given out, last. UNMONITORED: nobody would tell of its errors. DEGRADED: no new
    job, running ones end well. FATAL_RESET, FATAL_REBOOT: of no use before that. HARDWARE: of no
    use until somebody has seen to it.
    """

    WARN = "warn"
    UNMONITORED = "unmonitored"
    DEGRADED = "degraded"
    FATAL_RESET = "fatal_reset"
    FATAL_REBOOT = "fatal_reboot"
    HARDWARE = "hardware"

    @property
    def severity(self) -> int:
        """The higher number is worse."""
        return list(Ailment).index(self)

    @property
    def fatal(self) -> bool:
        """Whether what runs there is lost."""
        return self.severity >= Ailment.FATAL_RESET.severity


class Lasts(StrEnum):
    """What ends a condition. SEEN: that its sign is gone; a person's clear ends each of them."""

    SEEN = "seen"
    A_WHILE = "a_while"
    UNTIL_RESET = "until_reset"
    UNTIL_REBOOT = "until_reboot"
    UNTIL_CLEARED = "until_cleared"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Something that is wrong with a GPU, in the words of `evidence`, since when and how badly.

    `until` is when one that lasts A_WHILE ends; `gone_at` since when its cause is gone, None while
    it is not; `boot_id` is the boot in which it was seen first. `together`: it matters to jobs of
    several GPUs only.
    """

    code: str
    ailment: Ailment
    lasts: Lasts
    since: datetime
    boot_id: str
    evidence: str
    until: datetime | None = None
    gone_at: datetime | None = None
    together: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """That a reset, or a reboot, ended a fatal condition: one that returns is not mended so."""

    code: str
    at: datetime
    by_reset: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MedicalRecord:
    """What is remembered of a GPU's health, also over restarts."""

    conditions: tuple[Condition, ...] = ()
    repairs: tuple[Repair, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class XidSighting:
    """An XID with where and when it was seen, and the attempt whose work it was, if any.

    `program` is who ran what, such as 'alice: python train.py'; `logged`: the kernel's log told.
    """

    gpu_uuid: str
    at: datetime
    xid: Xid
    logged: bool = False
    job_id: int | None = None
    attempt: int | None = None
    program: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cordon:
    """That somebody keeps new jobs off a GPU; `drains`: those that run there must leave, too."""

    by: str
    at: datetime
    reason: str | None
    drains: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuHealth:
    """Whether new work may start on a GPU, and the sentence that says why, or why not.

    `suspect`: it may, but better elsewhere; `apart`: why jobs of several GPUs may not have it.
    `fatal` says why what runs there is lost, None when it is not.
    """

    allocatable: bool
    sentence: str
    suspect: bool = False
    apart: str | None = None
    fatal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSnapshot:
    """All readings of one moment. `fault` says since when and why no reading comes, else None.

    `read_at` is None before the first answer; `asked_at` is when that was asked for.
    """

    read_at: datetime | None
    asked_at: datetime | None = None
    readings: tuple[GpuReading, ...] = ()
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseClaim:
    """What one attempt holds of one GPU, as the reading of that GPU needs to know it.

    `pids` are the processes of the attempt that live now. `memory_mib` is what it declared,
    or all of the GPU's memory when it has the GPU to itself.
    """

    gpu_uuid: str
    memory_mib: int
    pids: tuple[int, ...]
