"""The rules of health as values: the table of XIDs, repeats, throttling, and how conditions end."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from traind.config import GpuHealthSettings
from traind.gpu import Ailment, FaultKind, Gpu, GpuReading, GpuVitals, Xid, XidSighting
from traind.gpus.conditions import Chart, Visit, examine
from traind.gpus.xids import XIDS, JobEffect, rule_of

NOW = datetime(2030, 1, 1, tzinfo=UTC)
GPU = Gpu(uuid="GPU-a", index=0, name="NVIDIA RTX A6000", memory_mib=49140, reserved_mib=0)
WELL = GpuReading(gpu=GPU, used_mib=0)
RULES = GpuHealthSettings()


def seen(number: int, *, at: datetime = NOW, **facts: Any) -> XidSighting:
    detail = facts.pop("detail", "")
    return XidSighting(
        **{"gpu_uuid": "GPU-a", "at": at, "xid": Xid(number=number, detail=detail)} | facts
    )


def after(
    chart: Chart,
    *xids: XidSighting,
    reading: GpuReading = WELL,
    at: datetime = NOW,
    before: tuple[XidSighting, ...] = (),
    several: bool = False,
    boot_id: str = "this",
    rules: GpuHealthSettings = RULES,
) -> Chart:
    """The chart after a look."""
    visit = Visit(
        reading=reading,
        xids=xids,
        lately=(*before, *xids),
        several=several,
        boot_id=boot_id,
        now=at,
    )
    return examine(chart, visit, rules)


def ailments(chart: Chart) -> dict[str, Ailment]:
    return {each.code: each.ailment for each in chart.record.conditions}


def vitals(**figures: Any) -> GpuReading:
    return replace(WELL, vitals=GpuVitals(**figures))


FATAL = {46, 48, 57, 58, 59, 61, 62, 64, 79, 95, 110, 119, 120, 140, 143, 158, 167, 169, 173}
OWN_FAULT = {8, 11, 13, 25, 31, 39, 43, 60, 65, 68, 69, 85, 96, 105, 126, 137, 142}


def test_the_table_says_which_xids_are_fatal_and_which_a_programs_own_fault() -> None:
    fatal = {n for n, rule in XIDS.items() if rule.ailment is not None and rule.ailment.fatal}
    assert fatal == FATAL
    assert all(rule_of(number).effect is JobEffect.GPU for number in (*FATAL, 32, 94, 109))
    assert all(rule_of(number).effect is JobEffect.APP for number in OWN_FAULT)
    assert {n for n in XIDS if rule_of(n).ailment is Ailment.FATAL_REBOOT} == {79, 110}
    assert set(range(8, 174)) - set(XIDS) >= {9, 10, 12, 14, 26, 27}


@pytest.mark.parametrize("number", sorted(OWN_FAULT | {45, 106, 162}))
def test_what_a_program_did_says_nothing_of_the_gpu(number: int) -> None:
    assert ailments(after(Chart(), seen(number, program="a: x"))) == {}


def test_the_same_xid_of_several_programs_makes_a_gpu_suspect_and_of_one_does_not() -> None:
    hours = timedelta(hours=1)
    first = seen(31, at=NOW - hours, program="alice: python a.py")
    again = seen(31, program="alice: python a.py")
    other = seen(31, program="bob: python b.py")
    assert ailments(after(Chart(), again, before=(first,))) == {}
    assert ailments(after(Chart(), other, before=(first,))) == {"xid_31": Ailment.DEGRADED}
    everywhere = replace(other, gpu_uuid="GPU-b", at=NOW - hours)
    assert ailments(after(Chart(), other, before=(first, everywhere))) == {}
    long_ago = replace(first, at=NOW - timedelta(hours=25))
    assert ailments(after(Chart(), other, before=(long_ago,))) == {}


def test_a_bus_error_warns_once_and_closes_the_gpu_the_second_time() -> None:
    first = seen(32, at=NOW - timedelta(hours=1))
    assert ailments(after(Chart(), first)) == {"xid_32": Ailment.WARN}
    assert ailments(after(Chart(), seen(32), before=(first,))) == {"xid_32": Ailment.DEGRADED}


def test_what_the_driver_says_outweighs_a_fatal_xid_in_time() -> None:
    content = vitals(recovery_action=0)
    struck = after(Chart(), seen(95), reading=content)
    assert ailments(struck) == {"xid_95": Ailment.FATAL_RESET}
    later = after(struck, reading=content, at=NOW + timedelta(seconds=61))
    assert ailments(later) == {"xid_95": Ailment.WARN}
    silent = after(after(Chart(), seen(95)), at=NOW + timedelta(hours=1))
    assert ailments(silent) == {"xid_95": Ailment.FATAL_RESET}
    gone = after(after(Chart(), seen(79), reading=content), reading=content, at=later_by(hours=1))
    assert ailments(gone) == {"xid_79": Ailment.FATAL_REBOOT}


TO_RESET = "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)"
TO_NONE = "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)"


def test_the_drivers_word_in_the_log_lifts_an_xid_also_between_two_readings() -> None:
    struck = after(Chart(), seen(119, logged=True), seen(154, logged=True, detail=TO_RESET))
    word = seen(154, logged=True, detail=TO_NONE)
    visit = Visit(reading=WELL, fresh=False, xids=(word,), boot_id="this", now=later_by(seconds=1))
    lifted = examine(struck, visit, RULES)
    assert {each.gone_at for each in lifted.record.conditions} == {later_by(seconds=1)}
    assert ailments(after(lifted, at=later_by(seconds=62))) == {}


def test_the_drivers_word_lifts_what_a_log_read_in_one_go_tells_before_it_not_behind() -> None:
    struck, word = seen(119, logged=True), seen(154, logged=True, detail=TO_NONE)
    lifted = after(Chart(), struck, seen(154, logged=True, detail=TO_RESET), word)
    assert {each.code: each.gone_at for each in lifted.record.conditions} == {
        "xid_119": NOW,
        "xid_154": NOW,
    }
    for xids in ((word, struck), (struck, word, struck), (seen(119), word)):
        assert [each.gone_at for each in after(Chart(), *xids).record.conditions] == [None]


def later_by(**span: float) -> datetime:
    return NOW + timedelta(**span)


def test_a_memory_error_that_94_calls_contained_is_a_warning_where_the_driver_agrees() -> None:
    both = (seen(48), seen(94))
    agreed = after(Chart(), *both, reading=vitals(recovery_action=0))
    assert set(ailments(agreed).values()) == {Ailment.WARN}
    assert ailments(after(Chart(), *both))["xid_48"] is Ailment.FATAL_RESET


@pytest.mark.parametrize(
    ("number", "several", "ailment"),
    [
        (74, True, Ailment.FATAL_RESET),
        (74, False, Ailment.DEGRADED),
        (136, True, Ailment.FATAL_RESET),
    ],
)
def test_a_link_error_is_fatal_to_jobs_of_several_gpus(
    number: int, several: bool, ailment: Ailment
) -> None:
    assert ailments(after(Chart(), seen(number), several=several)) == {f"xid_{number}": ailment}


def test_the_text_says_how_bad_an_nvlink5_error_is() -> None:
    fatal = seen(149, detail="NETIR_LINK_EVT Fatal XC0 i0 Link 08")
    light = seen(149, detail="NETIR_LINK_EVT Nonfatal XC0 i0 Link 08")
    assert ailments(after(Chart(), fatal)) == {"xid_149": Ailment.FATAL_RESET}
    assert ailments(after(Chart(), light)) == {"xid_149": Ailment.WARN}


@pytest.mark.parametrize(
    ("setting", "action", "found"),
    [
        ("auto", 0, Ailment.WARN),
        ("auto", None, Ailment.DEGRADED),
        ("warn", None, Ailment.WARN),
        ("degraded", 0, Ailment.DEGRADED),
        ("ignore", None, None),
    ],
)
def test_an_unknown_xid_is_what_the_settings_say(
    setting: str, action: int | None, found: Ailment | None
) -> None:
    rules = GpuHealthSettings.model_validate({"unknown_xid": setting})
    chart = after(Chart(), seen(999), reading=vitals(recovery_action=action), rules=rules)
    assert ailments(chart).get("xid_999") is found


def test_a_reset_class_xid_that_returns_after_a_reset_is_the_hardwares() -> None:
    chart = after(Chart(), seen(62), reading=vitals(energy_mj=900))
    chart = after(chart, reading=vitals(energy_mj=5), at=later_by(minutes=1))
    assert chart.record.conditions[0].gone_at == later_by(minutes=1)
    chart = after(chart, reading=vitals(energy_mj=9), at=later_by(minutes=2))
    assert ailments(chart) == {}
    chart = after(chart, seen(62), reading=vitals(energy_mj=10), at=later_by(hours=3))
    assert ailments(chart) == {"xid_62": Ailment.HARDWARE}
    chart = after(chart, reading=vitals(energy_mj=11), boot_id="next", at=later_by(hours=9))
    assert ailments(chart) == {"xid_62": Ailment.HARDWARE}, "only a person ends that"


def test_a_gpu_that_cannot_be_read_is_not_seen_to_be_well() -> None:
    lost = replace(WELL, fault="lost", fault_kind=FaultKind.LOST)
    chart = after(Chart(), reading=lost)
    assert ailments(chart) == {"lost": Ailment.FATAL_REBOOT}
    chart = after(chart, reading=lost, boot_id="next", at=later_by(hours=1))
    assert chart.record.conditions[0].gone_at is None
    chart = after(chart, boot_id="another", at=later_by(hours=2))
    assert chart.record.conditions[0].gone_at == later_by(hours=2)


def test_a_warning_by_an_xid_ends_by_itself() -> None:
    chart = after(Chart(), seen(92))
    assert ailments(after(chart, at=later_by(hours=23))) == {"xid_92": Ailment.WARN}
    assert ailments(after(chart, at=later_by(hours=24))) == {}


def test_slowdown_for_most_of_the_window_closes_a_gpu_and_single_samples_do_not() -> None:
    chart = Chart()
    for step in range(41):
        slow = 0x40 if step % 3 else 0
        chart = after(chart, reading=vitals(slowdown=slow), at=later_by(seconds=30 * step))
        if step == 19:
            assert "throttled" not in ailments(chart), "a window is judged once it is whole"
    assert ailments(chart)["throttled"] is Ailment.DEGRADED
    for step in range(41, 101):
        chart = after(chart, reading=vitals(slowdown=0x08), at=later_by(seconds=30 * step))
    assert ailments(chart) == {}


def test_a_figure_that_is_no_longer_told_is_a_warning() -> None:
    chart = after(Chart(), reading=vitals(ecc_uncorrected=0))
    assert ailments(after(chart)) == {"silent": Ailment.WARN}


def test_three_unknown_errors_within_half_a_minute_take_a_reboot() -> None:
    failed = replace(WELL, fault="?", fault_kind=FaultKind.UNKNOWN)
    chart = Chart()
    for step in range(3):
        chart = after(chart, reading=failed, at=later_by(seconds=5 * step))
    assert ailments(chart) == {"unknown_errors": Ailment.FATAL_REBOOT}
