"""Answers without an end: how many there are at once."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from traind.config import ApiSettings
from traind.errors import ErrorCode, TraindError

_RETRY_AFTER_S = 5


class Streams:
    """The open streams, by the uid of whose they are."""

    def __init__(self) -> None:
        self._open: Counter[int] = Counter()

    @contextmanager
    def slot(self, uid: int, settings: ApiSettings) -> Iterator[None]:
        """A place for one more stream. Raises TOO_MANY."""
        if self._open[uid] >= settings.streams_per_caller:
            raise _full(f"you follow {self._open[uid]} streams already; end one of them")
        if self._open.total() >= settings.streams:
            raise _full(f"this daemon serves {settings.streams} streams already; try again later")
        self._open[uid] += 1
        try:
            yield
        finally:
            self._open[uid] -= 1
            self._open += Counter()  # forgets who has none


def _full(sentence: str) -> TraindError:
    return TraindError(ErrorCode.TOO_MANY, sentence, retry_after_s=_RETRY_AFTER_S)


STREAMS = web.AppKey("streams", Streams)
