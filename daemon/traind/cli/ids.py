"""Which jobs a person means: ids, lists, ranges, '@' for the last one, names."""

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from traind.cli.client import Client
from traind.cli.errors import NotFound, UsageError

RANGE_MAX = 10_000
_PAGE = 1000
_PAGES_MAX = 20
_MEMBER = re.compile(r"[0-9]{1,18}(_[0-9]{1,18})?")
_RANGE = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")
_LAST = re.compile(r"@(?:~([0-9]{1,3}))?")


def resolve(words: Iterable[str], client: Client) -> list[str]:
    """The ids that the words mean, each once, in their order. **Raises** ClientError."""
    mine = _Mine(client)
    ids: dict[str, None] = {}
    for word in words:
        parts = [part for part in word.split(",") if part]
        if not all(_is_id(part) for part in parts) and mine.named(word):
            parts = [word]  # a name with a comma
        for part in parts:
            ids.update(dict.fromkeys(_meant(part, mine)))
    if not ids:
        raise UsageError("name at least one job")
    return list(ids)


def resolve_one(words: Iterable[str], client: Client) -> str:
    """The one id that the words mean. **Raises** ClientError."""
    ids = resolve(words, client)
    if len(ids) > 1:
        raise UsageError(f"this verb takes one job, not {len(ids)}")
    return ids[0]


def expand(text: str) -> list[str] | None:
    """The ids of '42', '42_3' or '3-5'; None when it is neither. **Raises** UsageError."""
    if _MEMBER.fullmatch(text):
        return [text]
    found = _RANGE.fullmatch(text)
    if not found:
        return None
    first, last = int(found[1]), int(found[2])
    if last < first or last - first >= RANGE_MAX:
        raise UsageError(f"{text}: a range goes from the lower id to the higher, {RANGE_MAX} wide")
    return [str(number) for number in range(first, last + 1)]


def _is_id(text: str) -> bool:
    return any(pattern.fullmatch(text) for pattern in (_MEMBER, _RANGE, _LAST))


def _meant(part: str, mine: "_Mine") -> list[str]:
    ids = expand(part)
    if ids is not None:
        return ids
    last = _LAST.fullmatch(part)
    if last:
        return [mine.last(int(last[1] or 0), part)]
    named = mine.named(part)
    if not named:
        raise NotFound(f"none of your jobs is called {part!r}; `traind ls --me -a` lists them", 404)
    if len(named) > 1:
        raise UsageError(f"{len(named)} of your jobs are called {part!r}: {_listed(named)}")
    return named


def _listed(ids: list[str]) -> str:
    shown = ", ".join(ids[:10])
    return f"{shown} and {len(ids) - 10} older; say which" if len(ids) > 10 else f"{shown}; which?"


class _Mine:
    """The caller's jobs, newest first, asked for when somebody wants to know."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._jobs: list[dict[str, Any]] | None = None

    def last(self, back: int, text: str) -> str:
        """The id of the caller's last job, or of one `back` before."""
        jobs = list(islice(self._newest(back + 1), back + 1))
        if len(jobs) <= back:
            raise NotFound(f"{text}: you have {len(jobs)} jobs", 404)
        return str(jobs[back]["id"])

    def named(self, name: str) -> list[str]:
        """The ids of the caller's jobs of exactly this name, newest first."""
        if self._jobs is None:
            self._jobs = list(self._newest(_PAGE))
        return [str(job["id"]) for job in self._jobs if job.get("name") == name]

    def _newest(self, limit: int) -> Iterator[dict[str, Any]]:
        """The caller's jobs, newest first, by pages of at most so many."""
        query: dict[str, str | int] = {"limit": limit}
        for _ in range(_PAGES_MAX):
            page = self._page(query)
            yield from page["jobs"]
            if not page.get("next"):
                return
            query["cursor"] = page["next"]

    def _page(self, query: dict[str, str | int]) -> dict[str, Any]:
        user = self._client.call("GET", "/v1/whoami").data["user"]
        page: dict[str, Any] = self._client.call(
            "GET", "/v1/jobs", query={"user": user, **query}
        ).data
        return page
