"""The daemon's own log: one logfmt line a record, on stderr."""

import json
import logging
import sys
from typing import Final

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LogfmtFormatter(logging.Formatter):
    """Formats a record as `time=… level=… event="…" key=value …`; control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        stamp = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        pairs: list[tuple[str, object]] = [
            ("time", f"{stamp}.{int(record.msecs):03d}"),
            ("level", record.levelname.lower()),
            ("event", record.getMessage()),
        ]
        pairs += [(k, v) for k, v in vars(record).items() if k not in _STANDARD]
        if record.exc_info:
            pairs.append(("error", self.formatException(record.exc_info)))
        return " ".join(f"{key}={_quoted(value)}" for key, value in pairs)


def _quoted(value: object) -> str:
    text = str(value)
    plain = text.isprintable() and text and not any(c in ' "=' for c in text)
    return text if plain else json.dumps(text)


def configure(level: str) -> None:
    """Send the log of every `traind` logger to stderr at `level` (debug info warning error)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogfmtFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("traind").setLevel(level.upper())
