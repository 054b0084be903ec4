"""Backups over HTTP, and what the night removes, now."""

from datetime import UTC, datetime

from aiohttp import web

from traind.api.context import CONTEXT
from traind.api.doors import json_response
from traind.api.routes import NoQuery, read_query
from traind.boxwire import BackupList, BackupView, NewBackup
from traind.store.backups import Backup


async def make_backup(request: web.Request) -> web.StreamResponse:
    """A new backup, once it is proved to be whole."""
    read_query(request, NoQuery)
    backup, took_s = await request.app[CONTEXT].backups.make(now=datetime.now(UTC))
    view = NewBackup(**_view(backup).model_dump(), took_s=round(took_s, 6), verified=True)
    return json_response(view, status=201)


async def list_backups(request: web.Request) -> web.StreamResponse:
    """The backups, the newest first."""
    read_query(request, NoQuery)
    found = await request.app[CONTEXT].backups.all()
    return json_response(BackupList(backups=[_view(backup) for backup in found]))


async def sweep(request: web.Request) -> web.StreamResponse:
    """Remove now what the night would remove."""
    read_query(request, NoQuery)
    return json_response(await request.app[CONTEXT].sweep(datetime.now(UTC)))


def _view(backup: Backup) -> BackupView:
    return BackupView(path=str(backup.path), made_at=backup.made_at, bytes=backup.bytes)
