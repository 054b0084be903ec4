"""XIDs as the kernel's log tells of them: also those of before the daemon, and while NVML hangs.

Sources: /dev/kmsg of the kernel's ABI documentation; the driver's lines `NVRM: Xid (PCI:…)`.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from traind.gpu import Xid

KMSG = Path("/dev/kmsg")
_RECORD_BYTES = 8192
_FALLEN = 79

_KMSG = re.compile(r"\d+,(\d+),(\d+),[^;]*;")
_DMESG = re.compile(r"\[\s*(\d+)\.(\d{6})\]")
_XID = re.compile(
    r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]+)\): (\d+)"
    r"(?:, pid=('?<unknown>'?|\d+))?(?:, name=([^,]*))?,? ?(.*)"
)
_GONE = re.compile(
    r"NVRM:\s+GPU ((?:[0-9a-fA-F]{4,8}:)?[0-9a-fA-F:.]+):?\s+GPU has fallen off the bus"
)
_NAMED = re.compile(r"NVRM: The NVIDIA GPU ([0-9a-fA-F:.]+)")
_FELL = re.compile(r"fallen off the bus and is not responding to commands")

PciAddress = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedXid:
    """An XID in the log, with the address of its GPU."""

    pci: PciAddress
    xid: Xid


def pci_address(text: str) -> PciAddress | None:
    """Domain, bus and device of an address as NVML or the driver writes it; None for no such."""
    try:
        parts = [int(part, 16) for part in text.partition(".")[0].split(":")]
    except ValueError:
        return None
    match parts:
        case [bus, device]:
            return 0, bus, device
        case [domain, bus, device]:
            return domain, bus, device
        case _:
            return None


class KernelLog:
    """The log in a file, or /dev/kmsg. `position` is up to where it was read: a record's number
    there, bytes in a file; what lies before it is not read again.

    Raises OSError when it cannot be opened.
    """

    def __init__(self, path: Path, position: int | None) -> None:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        self._descriptor = os.open(path, flags)
        self._path = path
        self._is_device = path.is_char_device()
        self.position = position
        self._falling: str | None = None

    def fileno(self) -> int | None:
        """What becomes readable with the next line; None for a file, which must be looked at."""
        return self._descriptor if self._is_device else None

    def close(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)

    def read(self, *, now: datetime) -> list[LoggedXid]:
        """The XIDs since this was last asked. Raises OSError when it can no longer be read."""
        lines = self._records() if self._is_device else self._lines()
        return [found for line in lines if (found := self._parse(line, now)) is not None]

    def _records(self) -> Iterator[str]:
        """The next records of /dev/kmsg; some may have been overwritten before."""
        while True:
            try:
                record = os.read(self._descriptor, _RECORD_BYTES)
            except BlockingIOError:
                return
            except BrokenPipeError:
                continue
            text = record.decode(errors="replace")
            number = _KMSG.match(text)
            if number is None or (self.position is not None and int(number[1]) <= self.position):
                continue
            self.position = int(number[1])
            yield text.partition("\n")[0]

    def _lines(self) -> Iterator[str]:
        """The next whole lines of the file; one that was replaced or cut short begins anew."""
        self._follow()
        offset = self.position or 0
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                self.position = offset
                yield line.decode(errors="replace").rstrip("\n")

    def _follow(self) -> None:
        known = os.fstat(self._descriptor)
        with suppress(FileNotFoundError):
            found = os.stat(self._path)
            if (found.st_dev, found.st_ino) != (known.st_dev, known.st_ino):
                new = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                os.close(self._descriptor)
                self._descriptor, self.position = new, 0
                known = found
        if known.st_size < (self.position or 0):
            self.position = 0

    def _parse(self, line: str, now: datetime) -> LoggedXid | None:
        if (found := _XID.search(line)) is not None:
            pid = int(found[3]) if found[3] and found[3].isdecimal() else None
            number, detail = int(found[2]), found[5]
            return _logged(found[1], number, line, now, pid=pid, detail=detail)
        if (gone := _GONE.search(line)) is not None:
            return _logged(gone[1], _FALLEN, line, now)
        if (named := _NAMED.search(line)) is not None:
            self._falling = named[1]
        if self._falling is not None and _FELL.search(line):
            falling, self._falling = self._falling, None
            return _logged(falling, _FALLEN, line, now)
        return None


def _logged(
    pci: str, number: int, line: str, now: datetime, *, pid: int | None = None, detail: str = ""
) -> LoggedXid | None:
    address = pci_address(pci.rstrip(":"))
    if address is None:
        return None
    xid = Xid(number=number, pid=pid, detail=detail[:500], at=_at(line, now))
    return LoggedXid(pci=address, xid=xid)


def _at(line: str, now: datetime) -> datetime:
    """When the line was written, as far as it says."""
    if (record := _KMSG.match(line)) is not None:
        since_boot_s = int(record[2]) / 1e6
    elif (stamp := _DMESG.search(line)) is not None:
        since_boot_s = int(stamp[1]) + int(stamp[2]) / 1e6
    else:
        return now
    age_s = time.clock_gettime(time.CLOCK_MONOTONIC) - since_boot_s
    return now - timedelta(seconds=max(0.0, age_s))
