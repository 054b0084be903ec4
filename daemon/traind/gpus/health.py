"""What a reading means: whether work may start, what jobs and others hold.

Pure: readings in, verdicts out.
"""

from collections.abc import Collection

from traind.config import GpuHealthSettings
from traind.gpu import (
    Ailment,
    Condition,
    Cordon,
    GpuHealth,
    GpuProcess,
    GpuReading,
    Lasts,
    MedicalRecord,
)
from traind.gpus.conditions import worst_first
from traind.gpus.source import named

_DIVIDED = "is divided into instances (MIG), which are not given out; `nvidia-smi -mig 0` ends that"
_ENDS = {
    Lasts.UNTIL_RESET: "it is reset",
    Lasts.UNTIL_REBOOT: "the machine is rebooted",
    Lasts.UNTIL_CLEARED: "somebody has seen to it",
}


def assess(
    reading: GpuReading,
    record: MedicalRecord,
    cordon: Cordon | None,
    *,
    settings: GpuHealthSettings,
) -> GpuHealth:
    """Whether new work may start on the GPU, and the sentence that says so or why not."""
    open_ones = worst_first(record.conditions)
    closing = [each for each in open_ones if _closes(each, settings)]
    together = next((each for each in open_ones if each.together), None)
    fatal = next((each for each in closing if each.ailment.fatal and each.gone_at is None), None)
    whys = [_said(each, reading) for each in closing[:1]]
    whys += [reading.fault] if reading.fault is not None and not closing else []
    whys += [_cordoned(reading, cordon)] if cordon is not None else []
    whys += _too_warm(reading, settings)
    whys += [f"{named(reading.gpu)} {_DIVIDED}"] if reading.place.mig else []
    if whys:
        sentence = "; ".join(whys)
        fatal_said = None if fatal is None else fatal.evidence
        return GpuHealth(allocatable=False, sentence=sentence, fatal=fatal_said)
    if open_ones:
        return GpuHealth(
            allocatable=True,
            sentence=f"{open_ones[0].evidence}; it is given out last",
            suspect=True,
            apart=None if together is None else together.evidence,
        )
    return GpuHealth(allocatable=True, sentence=f"{named(reading.gpu)} is healthy")


def _closes(condition: Condition, settings: GpuHealthSettings) -> bool:
    """Whether it keeps all new work off the GPU."""
    if condition.ailment is Ailment.UNMONITORED:
        return settings.strict_monitoring
    return condition.ailment is not Ailment.WARN and not condition.together


def _said(condition: Condition, reading: GpuReading) -> str:
    """What is wrong, and what ends it."""
    if condition.gone_at is not None:
        return f"{condition.evidence}; that is over, and it is watched for a while"
    end = _ENDS.get(condition.lasts)
    if end is None:
        return condition.evidence
    clear = f"`traind gpu clear {reading.gpu.index}`"
    return f"{condition.evidence}; nothing starts there until {end}, or {clear}"


def _cordoned(reading: GpuReading, cordon: Cordon) -> str:
    why = "" if cordon.reason is None else f": {cordon.reason}"
    return f"{named(reading.gpu)} is cordoned by {cordon.by}{why}"


def _too_warm(reading: GpuReading, settings: GpuHealthSettings) -> list[str]:
    celsius, limit = reading.temperature_c, reading.vitals.slowdown_c
    if celsius is None or not limit or celsius < limit - settings.hot_margin_c:
        return []
    return [f"{named(reading.gpu)} is at {celsius} °C and slows down at {limit} °C"]


def observed(reading: GpuReading, claim_pids: Collection[int]) -> int:
    """MiB that these processes hold on the GPU: what is known, and for those of which the driver
    does not say all that nobody else explains (an upper bound).
    """
    own = [process for process in reading.processes if process.pid in claim_pids]
    known = sum(process.memory_mib or 0 for process in own)
    silent = any(process.memory_mib is None for process in own)
    return known + (reading.unlisted_mib if silent else 0)


def measured(reading: GpuReading, claim_pids: Collection[int]) -> int | None:
    """MiB that these processes hold on the GPU, None where the driver does not say it of all."""
    own = [process.memory_mib for process in reading.processes if process.pid in claim_pids]
    known = [memory_mib for memory_mib in own if memory_mib is not None]
    return sum(known) if len(known) == len(own) else None


def held_by(reading: GpuReading, process: GpuProcess) -> int:
    """MiB that a process holds; where the driver does not say, all that nobody explains."""
    return reading.unlisted_mib if process.memory_mib is None else process.memory_mib
