"""When something is to begin: every form that sbatch takes, in this machine's time."""

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traind.instants import parse_instant

NOW = datetime.fromisoformat("2030-01-31 15:30:20").astimezone()


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("now", timedelta(0)),
        ("now+60", timedelta(seconds=60)),
        ("now+1hour", timedelta(hours=1)),
        ("NOW + 2 Hours", timedelta(hours=2)),
        ("now+90min", timedelta(minutes=90)),
        ("now+5mins", timedelta(minutes=5)),
        ("now+3s", timedelta(seconds=3)),
        ("now+1d", timedelta(days=1)),
        ("now+2weeks", timedelta(weeks=2)),
    ],
)
def test_so_and_so_long_from_now(text: str, after: timedelta) -> None:
    assert parse_instant(text, NOW) == NOW + after


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("16:00", "2030-01-31 16:00"),
        ("15:30:21", "2030-01-31 15:30:21"),
        ("15:30:20", "2030-02-01 15:30:20"),
        ("8:05", "2030-02-01 08:05"),
        ("4:00PM", "2030-01-31 16:00"),
        ("12:30 am", "2030-02-01 00:30"),
        ("12:15pm", "2030-02-01 12:15"),
        ("midnight", "2030-02-01 00:00"),
        ("noon", "2030-02-01 12:00"),
        ("elevenses", "2030-02-01 11:00"),
        ("fika", "2030-02-01 15:00"),
        ("teatime", "2030-01-31 16:00"),
        ("today", "2030-01-31 00:00"),
        ("tomorrow", "2030-02-01 00:00"),
        ("tomorrow 18:00", "2030-02-01 18:00"),
        ("6:00 pm tomorrow", "2030-02-01 18:00"),
        ("today teatime", "2030-01-31 16:00"),
        ("2030-02-03", "2030-02-03 00:00"),
        ("2030-2-3 noon", "2030-02-03 12:00"),
        ("2030-02-03T04:05", "2030-02-03 04:05"),
        ("2030-02-03T04:05:06", "2030-02-03 04:05:06"),
        ("020330", "2030-02-03 00:00"),
        ("020330-10:00", "2030-02-03 10:00"),
        ("02/03/30", "2030-02-03 00:00"),
        ("2/3/2031 8:00", "2031-02-03 08:00"),
        ("02/03", "2030-02-03 00:00"),
        ("01/31-15:31", "2030-01-31 15:31"),
        ("01/31-15:30", "2031-01-31 15:30"),
        ("01/30", "2031-01-30 00:00"),
    ],
)
def test_days_and_times_of_day_are_this_machines(text: str, moment: str) -> None:
    assert parse_instant(text, NOW) == datetime.fromisoformat(moment).astimezone()


def test_an_offset_outweighs_this_machines_time() -> None:
    assert parse_instant("2030-01-31T18:00:00Z", NOW) == datetime(2030, 1, 31, 18, tzinfo=UTC)
    found = parse_instant(" 2030-01-31 18:00:00+05:00 ", NOW)
    assert found == datetime(2030, 1, 31, 13, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        *("", "soon", "now+", "now+1fortnight", "now-1hour", "now+9999999weeks", "now1hour"),
        *(
            "25:00",
            "13:00pm",
            "0:30am",
            "12:60",
            "18",
            "06/31",
            "02/29/30",
            "13/01/30",
            "noon noon",
        ),
        *("tomorrow today", "2030-01-31T", "T18:00", "99999", "0102301", "x" * 5000, "1:1:1"),
    ],
)
def test_what_is_none_is_refused_with_what_would_be_accepted(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not an instant, such as .* or 'now\+2hours'"):
        parse_instant(text, NOW)


@given(st.text(alphabet="now+tT:/- 0123456789ampdayrh", max_size=24))
def test_whatever_is_typed_is_an_aware_instant_or_refused_in_words(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_instant(text, NOW).tzinfo is not None
