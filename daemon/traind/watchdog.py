"""What systemd is told: ready, stopping, and alive for as long as the database answers.

Source: sd_notify(3); nothing is told where NOTIFY_SOCKET is not set.
"""

import asyncio
import os
import socket

from traind.job import JobState
from traind.store.jobs import JobStore


def notify(message: str) -> None:
    """Tell the service manager, if there is one; a manager that went away is not waited for."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as door:
        door.setblocking(False)
        try:
            door.sendto(message.encode(), address.replace("@", "\0", 1))
        except OSError:
            return


def interval_s() -> float | None:
    """Seconds between two signs of life, None where nobody waits for them."""
    own = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    asked = os.environ.get("WATCHDOG_USEC", "")
    return int(asked) / 2e6 if own and asked.isdecimal() and int(asked) else None


class Watchdog:
    """Gives signs of life, each after a round trip to the database."""

    def __init__(self, store: JobStore) -> None:
        self._store = store

    async def ready(self) -> None:
        """The doors are open."""
        notify(f"READY=1\nSTATUS={await self._sentence()}")

    async def run(self) -> None:
        """Give signs of life for as long as somebody waits for them. Never returns."""
        pause_s = interval_s()
        while pause_s is not None:
            sentence = await self._sentence()
            notify(f"WATCHDOG=1\nSTATUS={sentence}")
            await asyncio.sleep(pause_s)
        await asyncio.Event().wait()

    def stopping(self) -> None:
        """The doors are about to close."""
        notify("STOPPING=1\nSTATUS=stopping; jobs go on")

    async def _sentence(self) -> str:
        counts = await self._store.counts()
        running = sum(counts[state] for state in (JobState.STARTING, JobState.RUNNING))
        return f"{running} jobs running, {counts[JobState.QUEUED]} queued"
