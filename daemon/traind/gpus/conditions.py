"""What is wrong with a GPU, and since when: findings become conditions, which end in their time.

Pure: what is remembered, a reading and XIDs in; what is to be remembered out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from traind.config import GpuHealthSettings
from traind.gpu import (
    Ailment,
    Condition,
    GpuReading,
    GpuVitals,
    Lasts,
    MedicalRecord,
    Repair,
    XidSighting,
)
from traind.gpus.diagnoses import Around, code_of, is_contained, of_xid, verdict_told
from traind.gpus.signals import ACTION_NONE, Finding, of_fault, of_vitals
from traind.gpus.source import named
from traind.gpus.trends import Trend, reset_seen, verdict_lifted, watched
from traind.gpus.xids import Special, rule_of

_OF_MEMORY = ("xid_48", "ecc_uncorrected")
_UNTIL_THE_DRIVER_SAYS = tuple(
    code_of(number) for number in range(256) if rule_of(number).special is Special.VERDICT
)
_OUTLIVES_NO_RESET = "remap_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What is remembered of one GPU: `record` also over restarts, `trend` between readings."""

    record: MedicalRecord = field(default_factory=MedicalRecord)
    trend: Trend = field(default_factory=Trend)


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One look at a GPU: its reading, the XIDs just seen there (`xids`), those of all GPUs lately,
    whether an attempt there holds several GPUs, a process of a job that the kernel does not let go
    (`stuck_pid`), and what is to be said of memory that is of no process (`stranded`). A reading
    that is not `fresh` is the last one again: it says nothing more.
    """

    reading: GpuReading
    fresh: bool = True
    xids: Sequence[XidSighting] = ()
    lately: Sequence[XidSighting] = ()
    several: bool = False
    stuck_pid: int | None = None
    stranded: Finding | None = None
    boot_id: str
    now: datetime


def examine(chart: Chart, visit: Visit, settings: GpuHealthSettings) -> Chart:
    """The chart after a look at the GPU."""
    reading = visit.reading
    trend, findings = chart.trend, list[Finding]()
    if visit.fresh:
        trend, findings = watched(trend, reading, now=visit.now, settings=settings)
        fault = of_fault(reading) if reading.fault is not None else None
        findings += [] if fault is None else [fault]
    if visit.fresh and reading.fault is None:
        findings += of_vitals(reading, settings)
    if visit.fresh and visit.stuck_pid is not None:
        findings.append(_stuck(reading, visit.stuck_pid))
    if visit.fresh and visit.stranded is not None:
        findings.append(visit.stranded)
    last = trend.last or GpuVitals()
    around = Around(
        reading=reading,
        action=last.recovery_action,
        lately=visit.lately,
        several=visit.several,
        now=visit.now,
        settings=settings,
    )
    lifted, standing = _around_the_word(visit.xids)
    for sighting in standing:
        findings += of_xid(sighting, around)
    bedside = _Bedside(chart, visit, settings)
    known = {condition.code: condition for condition in chart.record.conditions}
    bedside.admit(known, (finding for each in lifted for finding in of_xid(each, around)))
    bedside.age(known, {finding.code for finding in findings})
    bedside.admit(known, findings)
    _weigh(known, around)
    repairs = bedside.discharge(known)
    record = MedicalRecord(conditions=tuple(known.values()), repairs=repairs)
    return Chart(record=record, trend=trend)


def _around_the_word(xids: Sequence[XidSighting]) -> tuple[list[XidSighting], list[XidSighting]]:
    """(what the log tells before the driver's word that nothing is needed any more, all others):
    a log that is read in one go has both. NVML's are of no known order, they stand.
    """
    word = max((n for n, each in enumerate(xids) if verdict_told(each) == ACTION_NONE), default=0)
    lifted = [each for each in xids[:word] if each.logged]
    return lifted, [each for n, each in enumerate(xids) if n >= word or not each.logged]


def _stuck(reading: GpuReading, pid: int) -> Finding:
    evidence = f"{named(reading.gpu)}: the kernel does not let go of process {pid} of a job"
    return Finding(code="stuck", ailment=Ailment.WARN, evidence=evidence)


class _Bedside:
    """What one look does to the conditions that are known; they are changed in place."""

    def __init__(self, chart: Chart, visit: Visit, settings: GpuHealthSettings) -> None:
        self._visit, self._settings = visit, settings
        self._repairs = chart.record.repairs
        self._readable = visit.fresh and visit.reading.fault is None
        last, now = chart.trend.last, visit.reading.vitals
        told = [verdict_told(sighting) for sighting in visit.xids]
        self._lifted = ACTION_NONE in told or (self._readable and verdict_lifted(last, now))
        self._reset = self._lifted or (self._readable and reset_seen(last, now))

    def age(self, known: dict[str, Condition], found: Iterable[str]) -> None:
        """Note of those that were not found again that their cause is gone, where it is."""
        for code, condition in known.items():
            if code not in found and condition.gone_at is None and self._is_over(condition):
                known[code] = replace(condition, gone_at=self._visit.now)

    def _is_over(self, condition: Condition) -> bool:
        """Only a GPU that can be read is seen to be well; the driver's word needs no reading."""
        rebooted = condition.boot_id != self._visit.boot_id
        lately = self._visit.now - condition.since <= self._settings.verdict_wait
        meant = condition.lasts is Lasts.UNTIL_RESET or (lately and _is_xid(condition))
        if self._lifted and meant:
            return True
        if not self._readable:
            return False
        match condition.lasts:
            case Lasts.SEEN:
                return True
            case Lasts.A_WHILE:
                return condition.until is not None and condition.until <= self._visit.now
            case Lasts.UNTIL_RESET:
                return self._reset or rebooted
            case Lasts.UNTIL_REBOOT:
                return rebooted
            case Lasts.UNTIL_CLEARED:
                return False

    def admit(self, known: dict[str, Condition], findings: Iterable[Finding]) -> None:
        """Add what was found; what was known is renewed."""
        for finding in findings:
            before = known.get(finding.code)
            known[finding.code] = self._admitted(before, finding)

    def _admitted(self, before: Condition | None, finding: Finding) -> Condition:
        now = self._visit.now
        new = Condition(
            code=finding.code,
            ailment=finding.ailment,
            lasts=finding.lasts,
            since=now,
            boot_id=self._visit.boot_id,
            evidence=finding.evidence,
            until=now + self._settings.warn_for if finding.lasts is Lasts.A_WHILE else None,
            together=finding.together,
        )
        if before is None:
            return self._relapsed(new)
        if before.lasts is Lasts.UNTIL_CLEARED:
            return replace(before, gone_at=None)
        returned = before.boot_id != new.boot_id or self._reset
        if finding.code == _OUTLIVES_NO_RESET and returned:
            return _hardware(replace(new, since=before.since), "after a reset, too")
        if finding.lasts is Lasts.SEEN:
            return replace(new, since=before.since)
        return replace(before, gone_at=None) if _outranks(before, new) else new

    def _relapsed(self, new: Condition) -> Condition:
        """As the hardware's fault where neither resets nor reboots keep it from coming back."""
        if not new.ailment.fatal or new.ailment is Ailment.HARDWARE:
            return new
        within = new.since - self._settings.relapse_within
        repairs = [r for r in self._repairs if r.code == new.code and r.at >= within]
        lately = new.since - self._settings.repeat_within
        by_reset = any(r.by_reset and r.at >= lately for r in repairs)
        again = by_reset and new.ailment is Ailment.FATAL_RESET and new.code.startswith("xid_")
        if len(repairs) < self._settings.relapses and not again:
            return new
        return _hardware(new, "again, though it was reset or rebooted for that")

    def discharge(self, known: dict[str, Condition]) -> tuple[Repair, ...]:
        """Drop what has been over for long enough; gives the repairs that are remembered."""
        now, repairs = self._visit.now, self._repairs
        for code, condition in list(known.items()):
            wait = timedelta(0) if condition.lasts is Lasts.A_WHILE else self._settings.hold_down
            if condition.gone_at is None or now < condition.gone_at + wait:
                continue
            del known[code]
            if condition.ailment.fatal:
                by_reset = condition.boot_id == self._visit.boot_id
                repairs += (Repair(code=code, at=now, by_reset=by_reset),)
        oldest = now - self._settings.relapse_within
        return tuple(repair for repair in repairs if repair.at >= oldest)


def _is_xid(condition: Condition) -> bool:
    return condition.code.startswith("xid_")


def _outranks(one: Condition, other: Condition) -> bool:
    return one.ailment.severity > other.ailment.severity


def _hardware(condition: Condition, again: str) -> Condition:
    return replace(
        condition,
        ailment=Ailment.HARDWARE,
        lasts=Lasts.UNTIL_CLEARED,
        until=None,
        evidence=f"{condition.evidence}, {again}",
    )


def _weigh(known: dict[str, Condition], around: Around) -> None:
    """What the driver says of a GPU outweighs what its XIDs say, once it has had time to."""
    uuid, settings = around.reading.gpu.uuid, around.settings
    content = around.reading.fault is None and around.action == ACTION_NONE
    for code, condition in known.items():
        contained = code in _OF_MEMORY and is_contained(uuid, condition.since, around)
        waited = around.now - condition.since >= settings.verdict_wait
        if condition.gone_at is not None or not content:
            continue
        if code in _UNTIL_THE_DRIVER_SAYS:
            known[code] = replace(condition, gone_at=around.now)
        elif (contained or waited) and _until_reset(condition):
            known[code] = replace(
                condition,
                ailment=Ailment.WARN,
                lasts=Lasts.A_WHILE,
                until=around.now + settings.warn_for,
                evidence=f"{condition.evidence}; the driver asks for nothing",
            )


def _until_reset(condition: Condition) -> bool:
    return condition.lasts is Lasts.UNTIL_RESET and condition.ailment is Ailment.FATAL_RESET


def worst_first(conditions: Iterable[Condition]) -> Sequence[Condition]:
    """Conditions, the worst one first; of equal ones the older."""
    return sorted(conditions, key=lambda each: (-each.ailment.severity, each.since, each.code))
