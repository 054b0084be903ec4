"""The least a server does that keeps what it is told: aiohttp, one insert, one full commit.

Run with a socket and a database: `/echo` answers only, `/keep` commits each order first.
"""

import sqlite3
import sys

from aiohttp import web


def main(socket: str, database: str) -> None:
    """Serve until ended."""
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE kept (id INTEGER PRIMARY KEY, body TEXT)")

    async def echo(request: web.Request) -> web.Response:
        return web.json_response(await request.json(), status=201)

    async def keep(request: web.Request) -> web.Response:
        body = await request.json()
        rows = [(str(order),) for order in (body if isinstance(body, list) else [body])]
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO kept (body) VALUES (?)", rows)
        connection.execute("COMMIT")
        return web.json_response(body, status=201)

    app = web.Application(client_max_size=1 << 24)
    app.router.add_post("/echo", echo)
    app.router.add_post("/keep", keep)
    web.run_app(app, path=socket, access_log=None, print=None)


if __name__ == "__main__":
    main(*sys.argv[1:])
