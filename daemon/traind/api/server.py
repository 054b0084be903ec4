"""The API as a whole: its routes, its doors, and how they open and close."""

import logging
import os
import socket
from pathlib import Path

from aiohttp import web

import traind
from traind.api.box_routes import BOX_ROUTES
from traind.api.context import CONTEXT, DOCUMENT, Context
from traind.api.doors import dump, errors, same_site, who_asks
from traind.api.feed import FEED, EventFeed
from traind.api.forms import LIST_BYTES
from traind.api.job_routes import JOB_ROUTES
from traind.api.listening import Door
from traind.api.routes import openapi
from traind.api.signin import FAILURES, Failures, guarded
from traind.api.streams import STREAMS, Streams
from traind.errors import StartupError

SUN_PATH_BYTES = 107
"""What a socket's address holds; source: unix(7)."""

_SHUTDOWN_S = 5.0
_ID = r"{id:(?!actions$)[^/]+}"
"""What stands for an id in a path: any text but the name of the call beside it."""

log = logging.getLogger(__name__)

ROUTES = (*JOB_ROUTES, *BOX_ROUTES)


class Server:
    """The API on its doors."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._bound: Path | None = None
        self._doors: list[Door] = []
        middlewares = [errors, same_site, who_asks]
        application = web.Application(middlewares=middlewares, client_max_size=LIST_BYTES)
        application[CONTEXT] = context
        application[FEED] = EventFeed(context.events, context.hub)
        application[STREAMS] = Streams()
        application[FAILURES] = Failures()
        application[DOCUMENT] = dump(openapi(ROUTES, traind.__version__))
        for route in ROUTES:
            path = route.path.replace("{id}", _ID)
            application.router.add_route(route.method, path, guarded(route))
        self._runner = web.AppRunner(
            application,
            access_log=None,
            auto_decompress=False,
            handler_cancellation=True,
            keepalive_timeout=context.config.api.keepalive.total_seconds(),
            shutdown_timeout=_SHUTDOWN_S,
        )

    async def open(self) -> None:
        """Serve on the Unix socket, and on TCP where asked. Raises StartupError."""
        await self._runner.setup()
        path = check_socket_path(self._context.socket)
        try:
            path.unlink(missing_ok=True)
            await self._listen(_private_socket(path))
            self._bound = path
            await self._open_tcp(self._context.config.daemon.http)
        except OSError as error:
            raise StartupError(78, f"cannot listen: {error}") from None

    async def welcome_others(self) -> None:
        """Let every account knock once jobs run as whom they are of; each call decides the rest."""
        link = self._context.link
        await link.met.wait()
        if link.others and self._bound is not None:
            self._bound.chmod(0o666)

    async def _listen(self, listener: socket.socket) -> None:
        assert self._runner.server is not None  # it is set up
        door = Door(self._runner.server, self._most, self._patience_s)
        self._doors.append(door)
        await door.open(listener)

    def _most(self) -> tuple[int, int]:
        """The connections of a door; where there are many people, each has a half at most."""
        most = self._context.config.api.connections
        return most, (most + 1) // 2 if self._context.link.others else most

    def _patience_s(self) -> float:
        """For how long a reader may take nothing."""
        return self._context.config.api.stalled.total_seconds()

    async def _open_tcp(self, address: str) -> None:
        if address == "off":
            return
        host, _, port = address.rpartition(":")
        listener = socket.create_server((host.strip("[]"), int(port)))
        await self._listen(listener)
        self._context.http = "{}:{}".format(*listener.getsockname()[:2])

    async def close(self) -> None:
        """Let the calls that wait go, and close the doors."""
        for door in self._doors:
            door.close()
        self._context.hub.close()
        await self._runner.cleanup()
        if self._bound is not None:
            self._bound.unlink(missing_ok=True)


def _private_socket(path: Path) -> socket.socket:
    """A listening socket that was never open to anybody else, not even for a moment."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(umask)
    return listener


def check_socket_path(path: Path) -> Path:
    """The path, when an address can hold it and nothing stands there but a socket left over.

    Raises StartupError: 75 where another daemon listens, 78 for what is never replaced.
    """
    length = len(os.fsencode(path))
    if length > SUN_PATH_BYTES:
        raise StartupError(
            78,
            f"the socket path {path} has {length} bytes, and an address holds {SUN_PATH_BYTES}; "
            "give a shorter one with --socket",
        )
    if os.path.lexists(path) and not path.is_socket():
        raise StartupError(78, f"{path} is no socket and is not replaced; give another --socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return path
        except BlockingIOError:  # somebody listens, and has more callers than they can take
            pass
        except OSError as error:
            raise StartupError(78, f"cannot listen on {path}: {error.strerror}") from None
    raise StartupError(75, f"another daemon already listens on {path}; give another --socket")
