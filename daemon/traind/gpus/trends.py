"""What counts over time: errors in a row, errors that grow, heat and slowdown that stay.

Pure: what is remembered and a reading in; what is to be remembered and findings out.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta

from traind.config import GpuHealthSettings
from traind.gpu import Ailment, FaultKind, GpuReading, GpuVitals, Lasts
from traind.gpus.signals import HW_POWER_BRAKE, HW_THERMAL, SW_THERMAL, Finding
from traind.gpus.source import named

_DAY, _WEEK = timedelta(days=1), timedelta(days=7)
_UNSTEADY = ("slowdown_c", "xids_told")
"""Figures whose loss says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """What is remembered of a GPU between readings. `last` are the vitals of the last good one.

    `errors` failed in a row; `slowed` are the times and bits of the readings within the window,
    and one before it; `corrected` and `double_bit` are counts with when they were taken.
    """

    last: GpuVitals | None = None
    errors: int = 0
    unknown_at: tuple[datetime, ...] = ()
    slowed: tuple[tuple[datetime, int], ...] = ()
    hot_since: datetime | None = None
    too_hot: bool = False
    corrected: tuple[datetime, int] | None = None
    double_bit: tuple[datetime, int] | None = None


def watched(
    trend: Trend, reading: GpuReading, *, now: datetime, settings: GpuHealthSettings
) -> tuple[Trend, list[Finding]]:
    """The trend with this reading, and what it says."""
    if reading.fault is not None:
        return _failed(trend, reading, now=now, settings=settings)
    after = replace(trend, errors=0, unknown_at=())
    after = _heated(_slowed(after, reading, now, settings), reading, now, settings)
    after = _counted(after, reading.vitals, now)
    findings = [
        *_growth(trend, after, reading, settings),
        *_throttling(after, reading, now, settings),
        *_silence(trend, reading),
    ]
    if after.too_hot:
        evidence = f"{named(reading.gpu)} has been as hot as it may be ({reading.temperature_c} °C)"
        findings.append(Finding(code="hot", ailment=Ailment.DEGRADED, evidence=evidence))
    return replace(after, last=reading.vitals), findings


def reset_seen(last: GpuVitals | None, now: GpuVitals) -> bool:
    """Whether the GPU was reset, or its driver loaded anew, between two readings of it."""
    if last is None:
        return False
    pairs = (
        (last.ecc_uncorrected, now.ecc_uncorrected),
        (last.ecc_corrected, now.ecc_corrected),
        (last.energy_mj, now.energy_mj),
    )
    backwards = any(b is not None and a is not None and a < b for b, a in pairs)
    return backwards or verdict_lifted(last, now)


def verdict_lifted(last: GpuVitals | None, now: GpuVitals) -> bool:
    """Whether the driver asked for something, and no longer does."""
    return last is not None and bool(last.recovery_action) and now.recovery_action == 0


def _failed(
    trend: Trend, reading: GpuReading, *, now: datetime, settings: GpuHealthSettings
) -> tuple[Trend, list[Finding]]:
    if reading.fault_kind not in (FaultKind.UNKNOWN, FaultKind.ERROR, None):
        return trend, []
    unknown = tuple(at for at in trend.unknown_at if at >= now - settings.unknown_within)
    if reading.fault_kind is FaultKind.UNKNOWN:
        unknown += (now,)
    after = replace(trend, errors=trend.errors + 1, unknown_at=unknown)
    findings = []
    if after.errors >= settings.errors:
        evidence = f"{named(reading.gpu)} has failed {after.errors} readings in a row"
        findings.append(Finding(code="errors", ailment=Ailment.DEGRADED, evidence=evidence))
    if len(unknown) >= settings.unknown_errors:
        evidence = f"{named(reading.gpu)} keeps failing in a way that the driver does not know"
        findings.append(
            Finding(
                code="unknown_errors",
                ailment=Ailment.FATAL_REBOOT,
                evidence=evidence,
                lasts=Lasts.UNTIL_REBOOT,
            )
        )
    return after, findings


def _slowed(trend: Trend, reading: GpuReading, now: datetime, settings: GpuHealthSettings) -> Trend:
    if reading.vitals.slowdown is None:
        return trend
    seen = (*trend.slowed, (now, reading.vitals.slowdown))
    begins = now - settings.throttle_window
    inside = [each for each in seen if each[0] > begins]
    before = [each for each in seen if each[0] <= begins]
    return replace(trend, slowed=(*before[-1:], *inside))


def _throttling(
    trend: Trend, reading: GpuReading, now: datetime, settings: GpuHealthSettings
) -> Iterator[Finding]:
    """Only a window that was watched from its beginning is judged."""
    seen = trend.slowed
    if not seen or seen[0][0] > now - settings.throttle_window:
        return
    who, window = named(reading.gpu), settings.throttle_window.total_seconds() / 60
    hard = sum(bool(bits & (HW_THERMAL | HW_POWER_BRAKE)) for _, bits in seen) / len(seen)
    soft = sum(bool(bits & SW_THERMAL) for _, bits in seen) / len(seen)
    if hard >= settings.throttle_share:
        evidence = f"{who} was slowed down by heat or its power supply for most of {window:g} min"
        yield Finding(code="throttled", ailment=Ailment.DEGRADED, evidence=evidence)
    if soft > settings.soft_throttle_share:
        evidence = f"{who} was kept from full speed by heat for most of {window:g} min"
        yield Finding(code="soft_throttled", ailment=Ailment.WARN, evidence=evidence)


def _heated(trend: Trend, reading: GpuReading, now: datetime, settings: GpuHealthSettings) -> Trend:
    celsius, limit = reading.temperature_c, reading.vitals.slowdown_c
    if celsius is None or not limit:
        return replace(trend, hot_since=None, too_hot=False)
    since = (trend.hot_since or now) if celsius >= limit else None
    cooled = celsius < limit - settings.cool_margin_c
    long = since is not None and now - since >= settings.hot_for
    return replace(trend, hot_since=since, too_hot=long or (trend.too_hot and not cooled))


def _counted(trend: Trend, vitals: GpuVitals, now: datetime) -> Trend:
    """The counts that growth is measured from, taken anew when they are old or begin anew."""
    return replace(
        trend,
        corrected=_base(trend.corrected, vitals.ecc_corrected, now, _DAY),
        double_bit=_base(trend.double_bit, vitals.retired_double_bit, now, _WEEK),
    )


def _base(
    known: tuple[datetime, int] | None, count: int | None, now: datetime, longest: timedelta
) -> tuple[datetime, int] | None:
    if count is None:
        return known
    if known is None or now - known[0] > longest or count < known[1]:
        return now, count
    return known


def _growth(
    before: Trend, after: Trend, reading: GpuReading, settings: GpuHealthSettings
) -> Iterator[Finding]:
    who, vitals = named(reading.gpu), reading.vitals
    known = before.last.ecc_uncorrected if before.last is not None else None
    if known is not None and (vitals.ecc_uncorrected or 0) > known:
        yield Finding(
            code="ecc_uncorrected",
            ailment=Ailment.FATAL_RESET,
            evidence=f"{who} had an uncorrectable memory error (ECC)",
            lasts=Lasts.UNTIL_RESET,
        )
    if after.corrected is not None and vitals.ecc_corrected is not None:
        errors = vitals.ecc_corrected - after.corrected[1]
        if errors > settings.ecc_corrected_per_day:
            evidence = f"{who} had {errors} corrected memory errors within a day"
            yield Finding(code="ecc_corrected", ailment=Ailment.WARN, evidence=evidence)
    count = vitals.retired_double_bit
    if after.double_bit is not None and count is not None and count > settings.retired_double_bit:
        new = count - after.double_bit[1]
        if new > settings.retired_per_week:
            evidence = f"{who} set {new} memory pages aside within a week, {count} in all"
            yield Finding(code="retired_double_bit", ailment=Ailment.HARDWARE, evidence=evidence)


def _silence(before: Trend, reading: GpuReading) -> Iterator[Finding]:
    if before.last is None:
        return
    known, told = asdict(before.last), asdict(reading.vitals)
    lost = [
        name
        for name, value in known.items()
        if value is not None and told[name] is None and name not in _UNSTEADY
    ]
    if lost:
        names = ", ".join(name.replace("_", " ") for name in lost)
        evidence = f"{named(reading.gpu)} no longer tells: {names}"
        yield Finding(code="silent", ailment=Ailment.WARN, evidence=evidence, lasts=Lasts.A_WHILE)
