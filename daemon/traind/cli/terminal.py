"""What may reach a person's terminal: nothing another user wrote can steer it."""

from __future__ import annotations

import os
import re
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

_BIDI = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_ESCAPES |= {code: f"\\u{code:04x}" for code in _BIDI}
_ESCAPES |= {ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r"}
_PROSE_ESCAPES = {code: text for code, text in _ESCAPES.items() if code != ord("\n")}

_SEQUENCE = re.compile(
    r"\x1b\[(?P<parameters>[0-?]*)[ -/]*(?P<final>[@-~]?)"
    r"|\x1b[\]PX^_][^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
    r"|(?P<bidi>[\u202a-\u202e\u2066-\u2069])"
)
_UNFINISHED = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b\x9c\n]*|[ -/]*)")
_COLOURING = re.compile(r"[0-9;:]*")
_HELD_BACK_MAX = 4096


def safe(text: object) -> str:
    """The text on one line, with control and direction characters as visible escapes."""
    return _without_surrogates(str(text).translate(_ESCAPES))


def safe_prose(text: object) -> str:
    """The same, its line breaks kept."""
    return _without_surrogates(str(text).translate(_PROSE_ESCAPES))


def _without_surrogates(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def complain(sentence: str) -> None:
    """Says something to the person, on stderr."""
    print(f"traind: {safe_prose(sentence)}", file=sys.stderr, flush=True)


def wants_colour(stream: TextIO) -> bool:
    """Whether to paint: a terminal, and no NO_COLOR (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def width_of(stream: TextIO) -> int | None:
    """The terminal's columns; None when it is no terminal: then nothing is cut."""
    if not stream.isatty():
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


class LogFilter:
    """A log for a terminal: text, colours, tabs and line ends pass; nothing else may steer it.

    A sequence may be split between two blocks; its beginning is held back until the rest comes.
    **Source**: ECMA-48.
    """

    def __init__(self) -> None:
        import codecs

        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held_back = ""
        self._coloured = False

    def feed(self, block: bytes) -> str:
        """What of the log so far may be shown."""
        text = self._held_back + self._decoder.decode(block)
        self._held_back = ""
        start = text.rfind("\x1b")
        if start >= 0 and len(text) - start < _HELD_BACK_MAX and _UNFINISHED.fullmatch(text, start):
            text, self._held_back = text[:start], text[start:]
        return _SEQUENCE.sub(self._judged, text)

    def close(self) -> str:
        """What ends the log: a character that was cut short, and the terminal's own colours."""
        return self._decoder.decode(b"", final=True) + ("\x1b[0m" if self._coloured else "")

    def _judged(self, found: re.Match[str]) -> str:
        if found["bidi"]:
            return f"\\u{ord(found['bidi']):04x}"
        if found["final"] == "m" and _COLOURING.fullmatch(found["parameters"]):
            self._coloured = True
            return found[0]
        return ""


class LogOutput:
    """A stream for a log: its bytes as they are, or filtered when it is a terminal."""

    def __init__(self, stream: TextIO, *, raw: bool = False) -> None:
        self._stream = stream
        self._filter = LogFilter() if stream.isatty() and not raw else None

    def write(self, block: bytes) -> None:
        """Shows a block at once."""
        if self._filter:
            self._stream.write(self._filter.feed(block))
            self._stream.flush()
        else:
            self._stream.buffer.write(block)
            self._stream.buffer.flush()

    def close(self) -> None:
        """Gives the terminal back as it was."""
        if self._filter:
            self._stream.write(self._filter.close())
            self._stream.flush()
