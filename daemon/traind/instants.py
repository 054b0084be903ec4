"""When something is to begin, as people write it: an instant, a time of day, a day, 'now+1hour'.

**Source**: sbatch(1), --begin.
"""

import re
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta

_FROM_NOW = re.compile(r"now(?: ?\+ ?([0-9]{1,9}) ?([a-z]*))?")
_UNITS = ("seconds", "minutes", "hours", "days", "weeks")
_CLOCK = re.compile(r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?(?: ?(am|pm))?")
_HOURS = {"midnight": 0, "elevenses": 11, "noon": 12, "fika": 15, "teatime": 16}
_DAYS = {"today": 0, "tomorrow": 1}
_DATES = (
    re.compile(r"(?P<year>[0-9]{4})-(?P<month>[0-9]{1,2})-(?P<day>[0-9]{1,2})"),
    re.compile(r"(?P<month>[0-9]{1,2})/(?P<day>[0-9]{1,2})(?:/(?P<year>[0-9]{4}|[0-9]{2}))?"),
    re.compile(r"(?P<month>[0-9]{2})(?P<day>[0-9]{2})(?P<year>[0-9]{2})"),
)
_GAP = re.compile(r"[ t-]")
_LONGEST = 100


def parse_instant(text: str, now: datetime) -> datetime:
    """The instant that is meant. Without an offset it is this machine's time; a time of day, or a
    day without its year, is the next one that comes.

    Both instants are aware. **Raises** ValueError with what would be accepted.
    """
    words = " ".join(text.split())
    try:
        if 0 < len(words) <= _LONGEST:
            found = (
                _from_now(words.lower(), now) or _written_out(words) or _next(words.lower(), now)
            )
            if found is not None:
                return found
    except (ValueError, OverflowError):
        pass  # such as the 31st of June
    raise ValueError(
        f"{text[:80]!r} is not an instant, such as '2030-01-31T18:00', '2030-01-31T18:00:00Z', "
        "'18:00', 'tomorrow', '01/31/30' or 'now+2hours'"
    )


def _from_now(words: str, now: datetime) -> datetime | None:
    found = _FROM_NOW.fullmatch(words)
    if found is None:
        return None
    unit = (found[2] or "seconds").removesuffix("s")
    name = next((name for name in _UNITS if name.startswith(unit)), None)
    return None if name is None else now + timedelta(**{name: int(found[1] or 0)})


def _written_out(words: str) -> datetime | None:
    """What is written as ISO 8601 has it, with its day."""
    try:
        instant = datetime.fromisoformat(words)
    except ValueError:
        return None
    return instant if instant.tzinfo else instant.astimezone()


def _next(words: str, now: datetime) -> datetime | None:
    """The moment that a day, a time of day, or both mean on this machine."""
    here = now.astimezone().replace(tzinfo=None)
    for day, clock in _splits(words):
        at = _clock(clock) if clock else time()
        if at is None:
            continue
        if not day:
            moment = datetime.combine(here, at)
            return (moment if moment > here else moment + timedelta(days=1)).astimezone()
        if (found := _moment(day, at, here)) is not None:
            return found.astimezone()
    return None


def _splits(words: str) -> Iterator[tuple[str, str]]:
    """Every way in which the words may be a day and a time of day; either may be empty."""
    yield words, ""
    yield "", words
    for gap in _GAP.finditer(words):
        before, behind = words[: gap.start()], words[gap.end() :]
        if before and behind:
            yield before, behind
            yield behind, before


def _clock(words: str) -> time | None:
    """A time of day. **Raises** ValueError for one that no day has."""
    if words in _HOURS:
        return time(_HOURS[words])
    found = _CLOCK.fullmatch(words)
    if found is None:
        return None
    hour = int(found[1])
    if found[4] is not None:
        if not 1 <= hour <= 12:
            raise ValueError
        hour = hour % 12 + (12 if found[4] == "pm" else 0)
    return time(hour, int(found[2]), int(found[3] or 0))


def _moment(day: str, at: time, here: datetime) -> datetime | None:
    """This time of a day. **Raises** ValueError for a day that no month has."""
    if day in _DAYS:
        return datetime.combine(here, at) + timedelta(days=_DAYS[day])
    found = next(filter(None, (form.fullmatch(day) for form in _DATES)), None)
    if found is None:
        return None
    written = found["year"]
    year = here.year if written is None else int(written) + (2000 if len(written) == 2 else 0)
    moment = datetime.combine(date(year, int(found["month"]), int(found["day"])), at)
    return moment.replace(year=year + 1) if written is None and moment < here else moment
