"""What XIDs mean for the GPU they were seen on: the table, and what makes one better or worse.

Pure: sightings and what the driver says beside them in, findings out.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from traind.config import GpuHealthSettings
from traind.gpu import Ailment, GpuReading, Lasts, XidSighting
from traind.gpus.signals import ACTION_NONE, Finding, action_finding, contains_errors
from traind.gpus.source import named
from traind.gpus.xids import UNKNOWN, Repeat, Special, XidRule, rule_of

_VERDICT = re.compile(
    r"recovery action changed from 0x[0-9a-f]+ \([^)]*\) to 0x([0-9a-f]+)", re.IGNORECASE
)
_FATAL = re.compile(r"\bFatal\b")
_LASTS = {
    Ailment.WARN: Lasts.A_WHILE,
    Ailment.FATAL_REBOOT: Lasts.UNTIL_REBOOT,
}
CONTAINED, UNCORRECTED = 94, 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What an XID is judged by: the GPU's reading, the driver's verdict (None: it has none), the
    XIDs of all GPUs lately, and whether an attempt there holds several GPUs (`several`).
    """

    reading: GpuReading
    action: int | None
    lately: Sequence[XidSighting]
    several: bool
    now: datetime
    settings: GpuHealthSettings


def code_of(number: int) -> str:
    """The code of the condition that an XID makes."""
    return f"xid_{number}"


def verdict_told(sighting: XidSighting) -> int | None:
    """The recovery action that an XID 154 tells of, None where it is none or does not say."""
    if rule_of(sighting.xid.number).special is not Special.ACTION:
        return None
    found = _VERDICT.search(sighting.xid.detail)
    return None if found is None else int(found[1], 16)


def of_xid(sighting: XidSighting, around: Around) -> Iterator[Finding]:
    """What one XID, just seen, means for its GPU."""
    number, who = sighting.xid.number, named(around.reading.gpu)
    rule = rule_of(number)
    if rule.special is Special.ACTION:
        told = verdict_told(sighting)
        finding = None if told is None else action_finding(who, told)
        if finding is not None and around.action is None:
            lasts = _LASTS.get(finding.ailment, Lasts.UNTIL_RESET)
            yield Finding(
                code=code_of(number),
                ailment=finding.ailment,
                evidence=finding.evidence,
                lasts=lasts,
                together=finding.together,
            )
        return
    ailment = _ailment(sighting, rule, around)
    evidence = f"{who} had XID {number}: {rule.meaning}"
    if rule.repeat is not None and _repeats(sighting, rule, rule.repeat, around):
        evidence += f", and that not only once, nor by one program, within {_hours(around)}"
        if rule.repeat.programs == 1:
            evidence = f"{who} had XID {number} again: {rule.meaning}"
        ailment = Ailment.DEGRADED
    if ailment is not None:
        lasts = _LASTS.get(ailment, Lasts.UNTIL_RESET)
        lasts = Lasts.UNTIL_CLEARED if rule.needs_person else lasts
        yield Finding(code=code_of(number), ailment=ailment, evidence=evidence, lasts=lasts)


def _hours(around: Around) -> str:
    return f"{around.settings.repeat_within.total_seconds() / 3600:g} h"


def _ailment(sighting: XidSighting, rule: XidRule, around: Around) -> Ailment | None:
    """How bad it is, with what makes it better or worse."""
    if rule is UNKNOWN:
        return _unknown(around)
    match rule.special:
        case Special.CONTAINED_MEMORY if not contains_errors(around.reading.gpu.name):
            return Ailment.DEGRADED
        case Special.LINKED if around.several:
            return Ailment.FATAL_RESET
        case Special.SAID if _FATAL.search(sighting.xid.detail):
            return Ailment.FATAL_RESET
        case Special.DOUBLE_BIT if is_contained(sighting.gpu_uuid, sighting.at, around):
            return Ailment.WARN
        case _:
            return rule.ailment


def _unknown(around: Around) -> Ailment | None:
    match around.settings.unknown_xid:
        case "ignore":
            return None
        case "warn":
            return Ailment.WARN
        case "auto" if around.action == ACTION_NONE:
            return Ailment.WARN
        case _:
            return Ailment.DEGRADED


def is_contained(gpu_uuid: str, at: datetime, around: Around) -> bool:
    """Whether an uncorrectable memory error of this moment is called contained: by XID 94 near to
    it, and by a driver that asks for nothing.
    """
    return around.action == ACTION_NONE and any(
        each.gpu_uuid == gpu_uuid
        and each.xid.number == CONTAINED
        and abs(each.at - at) <= around.settings.contained_within
        for each in around.lately
    )


def _repeats(sighting: XidSighting, rule: XidRule, repeat: Repeat, around: Around) -> bool:
    """Whether there were so many of these XIDs lately that it cannot be the programs."""
    since = around.now - around.settings.repeat_within
    alike = [x for x in around.lately if rule_of(x.xid.number) is rule and x.at >= since]
    here = [x for x in alike if x.gpu_uuid == sighting.gpu_uuid]
    if repeat.programs > 1:
        elsewhere = {x.program for x in alike if x.gpu_uuid != sighting.gpu_uuid}
        here = [x for x in here if x.program is not None and x.program not in elsewhere]
    times = 0
    last: dict[str | None, datetime] = {}
    for each in sorted(here, key=lambda x: x.at):
        before = last.get(each.program)
        times += before is None or each.at - before > repeat.burst
        last[each.program] = each.at
    return times >= repeat.times and len(last) >= repeat.programs
