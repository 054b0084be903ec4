"""What one reading says of a GPU's health: findings, each with how bad it is and what ends it.

Pure, and without memory: what counts over time is in `conditions`. What the driver does not say
means nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from traind.config import GpuHealthSettings
from traind.gpu import Ailment, FaultKind, GpuReading, GpuVitals, Lasts
from traind.gpus.source import named

HW_THERMAL, HW_POWER_BRAKE, SW_THERMAL = 0x40, 0x80, 0x20
"""Bits of why clocks are held down. Source: nvml.h, nvmlClocksEventReason*."""

ACTION_NONE = 0
_ACTIONS = {
    1: (Ailment.FATAL_RESET, "to be reset"),
    2: (Ailment.FATAL_REBOOT, "the machine to be rebooted"),
    3: (Ailment.DEGRADED, "to be used without its neighbours"),
    4: (Ailment.DEGRADED, "to be drained and reset"),
    6: (Ailment.FATAL_RESET, "its bus to be reset"),
    7: (Ailment.FATAL_REBOOT, "the machine to be rebooted"),
}
"""The driver's verdicts; 5 is about machines that are linked. Source: nvml.h, field 230."""
DRAIN_P2P = 3

_CONTAINING = (
    "A100",
    "A800",
    "A30",
    "H100",
    "H200",
    "H20",
    "H800",
    "B100",
    "B200",
    "B300",
    "GH200",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One sign of illness: how bad it is, what ends it, and a sentence that names the GPU."""

    code: str
    ailment: Ailment
    evidence: str
    lasts: Lasts = Lasts.SEEN
    together: bool = False


def contains_errors(name: str) -> bool:
    """Whether a GPU of this name contains memory errors and takes memory offline as it runs.

    Source: docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt; cards with GDDR memory do not.
    """
    words = name.upper().replace("-", " ").split()
    return any(word in _CONTAINING for word in words)


def of_fault(reading: GpuReading) -> Finding | None:
    """What it means that a GPU could not be read; None for an error that may pass."""
    who, said = named(reading.gpu), reading.fault or ""
    match reading.fault_kind:
        case FaultKind.LOST:
            return Finding(
                code="lost",
                ailment=Ailment.FATAL_REBOOT,
                evidence=said,
                lasts=Lasts.UNTIL_REBOOT,
            )
        case FaultKind.MISSING:
            return Finding(
                code="missing",
                ailment=Ailment.FATAL_REBOOT,
                evidence=said,
                lasts=Lasts.UNTIL_REBOOT,
            )
        case FaultKind.RESET_REQUIRED:
            return Finding(code="reset_required", ailment=Ailment.FATAL_RESET, evidence=said)
        case FaultKind.POWER:
            evidence = f"{who} does not get the power it needs; see to its cables"
            return Finding(
                code="power",
                ailment=Ailment.HARDWARE,
                evidence=evidence,
                lasts=Lasts.UNTIL_REBOOT,
            )
        case FaultKind.INTERRUPTS:
            evidence = f"{who} has a problem with its interrupts"
            return Finding(
                code="interrupts",
                ailment=Ailment.FATAL_REBOOT,
                evidence=evidence,
                lasts=Lasts.UNTIL_REBOOT,
            )
        case _:
            return None


def of_vitals(reading: GpuReading, settings: GpuHealthSettings) -> Iterator[Finding]:
    """What the driver's figures of this moment say."""
    who, vitals = named(reading.gpu), reading.vitals
    yield from _of_action(who, vitals)
    yield from _of_remapping(reading, settings)
    if vitals.sram_threshold_exceeded:
        evidence = f"{who} has had more SRAM errors than its maker allows"
        yield Finding(code="sram", ailment=Ailment.DEGRADED, evidence=evidence)
    if vitals.unrepairable:
        evidence = f"{who} has memory that cannot be repaired"
        yield Finding(code="unrepairable", ailment=Ailment.HARDWARE, evidence=evidence)
    if vitals.retired_pending:
        evidence = f"{who} has faulty memory pages that it sets aside at its next reset"
        yield Finding(code="retired_pending", ailment=Ailment.DEGRADED, evidence=evidence)
    if (vitals.retired_pages or 0) >= settings.retired_pages:
        evidence = f"{who} has set {vitals.retired_pages} faulty memory pages aside and is worn out"
        yield Finding(code="retired_pages", ailment=Ailment.HARDWARE, evidence=evidence)
    if (vitals.slowdown or 0) & (HW_THERMAL | HW_POWER_BRAKE):
        why = "heat" if (vitals.slowdown or 0) & HW_THERMAL else "its power supply"
        evidence = f"{who} is slowed down by {why}"
        yield Finding(code="slowed", ailment=Ailment.WARN, evidence=evidence)
    if vitals.xids_told is False:
        yield Finding(
            code="unmonitored",
            ailment=Ailment.UNMONITORED,
            evidence=f"{who} does not tell of its errors as they happen",
        )


def action_finding(who: str, action: int) -> Finding | None:
    """What the driver's verdict on a GPU means; None when there is nothing to be done."""
    if (known := _ACTIONS.get(action)) is None:
        return None
    ailment, wish = known
    return Finding(
        code="recovery_action",
        ailment=ailment,
        evidence=f"{who} needs {wish} (the driver's recovery action {action})",
        together=action == DRAIN_P2P,
    )


def _of_action(who: str, vitals: GpuVitals) -> Iterator[Finding]:
    finding = action_finding(who, vitals.recovery_action or ACTION_NONE)
    if finding is not None:
        yield finding


def _of_remapping(reading: GpuReading, settings: GpuHealthSettings) -> Iterator[Finding]:
    who, vitals = named(reading.gpu), reading.vitals
    if vitals.remap_failed:
        evidence = f"{who} has faulty memory that can no longer be remapped"
        yield Finding(code="remap_failed", ailment=Ailment.FATAL_RESET, evidence=evidence)
    if vitals.remap_pending:
        # Who contains errors has taken the rows out of use already; the others still use them.
        contains = contains_errors(reading.gpu.name)
        yield Finding(
            code="remap_pending",
            ailment=Ailment.WARN if contains else Ailment.DEGRADED,
            evidence=f"{who} has faulty memory that it remaps at its next reset",
        )
    if (vitals.remapped_uncorrectable or 0) >= settings.remapped_rows:
        rows = vitals.remapped_uncorrectable
        evidence = f"{who} has remapped {rows} rows of faulty memory"
        yield Finding(code="remapped_rows", ailment=Ailment.WARN, evidence=evidence)
    if vitals.ecc_uncorrected:
        errors = vitals.ecc_uncorrected
        evidence = f"{who} has had {errors} uncorrectable memory errors since its driver was loaded"
        yield Finding(code="ecc_past", ailment=Ailment.WARN, evidence=evidence)
