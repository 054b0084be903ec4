"""Tokens on disk: of each secret only its SHA-256, which tells nothing of 256 random bits."""

import hashlib
import json
import secrets
import sqlite3
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from traind.access import Scope, Token
from traind.errors import ErrorCode, TraindError
from traind.store.database import Database
from traind.store.rows import from_us, to_us

TOKENS_PER_PERSON = 100

_PREFIX = "traind_"
_NOTED_EVERY = timedelta(minutes=1)


class TokenStore:
    """The tokens, kept in memory by their hashes as well: who fails to sign in asks no disk."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[bytes, Token] = {}

    async def load(self) -> None:
        """Read what is stored."""
        rows = await self._database.run(lambda c: c.execute("SELECT * FROM token").fetchall())
        self._known = {bytes(row["hash"]): _token(row) for row in rows}

    def of(self, uid: int) -> list[Token]:
        """The tokens of a person, the newest first."""
        own = (token for token in self._known.values() if token.uid == uid)
        return sorted(own, key=lambda token: -token.id)

    def find(self, secret: str, *, now: datetime) -> Token | None:
        """The token of the secret, None where there is none or its time is over."""
        token = self._known.get(_hash(secret))
        return token if token is not None and now < token.expires_at else None

    async def create(
        self,
        *,
        name: str,
        user: str,
        uid: int,
        scopes: Iterable[Scope],
        expires_at: datetime,
        now: datetime,
    ) -> tuple[Token, str]:
        """(the new token, its secret, which nobody can tell again); an expired one of the same name
        makes room. Raises CONFLICT for a name that is taken, and for too many.
        """
        secret = _PREFIX + secrets.token_urlsafe(32)
        values = {
            "hash": _hash(secret),
            "name": name,
            "user": user,
            "uid": uid,
            "scopes": json.dumps(sorted(set(scopes), key=list(Scope).index)),
            "created": to_us(now),
            "expires": to_us(expires_at),
        }
        token = await self._database.run(lambda connection: _insert(connection, values))
        expired = [key for key, each in self._known.items() if (each.uid, each.name) == (uid, name)]
        for key in expired:
            del self._known[key]
        self._known[_hash(secret)] = token
        return token, secret

    async def revoke(self, token_id: int, *, uid: int) -> Token:
        """The token, which lets nobody in any more. Raises NOT_FOUND."""
        found = [key for key, each in self._known.items() if (each.id, each.uid) == (token_id, uid)]
        if not found:
            raise TraindError(ErrorCode.NOT_FOUND, f"you have no token {token_id}")
        revoked = self._known.pop(found[0])  # at once, whatever becomes of the disk
        statement = "DELETE FROM token WHERE id = :id"
        await self._database.run(lambda c: c.execute(statement, {"id": token_id}).rowcount)
        return revoked

    async def note_use(self, token: Token, *, now: datetime) -> None:
        """Remember that the token was used; once a minute is told from never, and that is all."""
        used_at = token.last_used_at
        key = next((key for key, each in self._known.items() if each.id == token.id), None)
        if key is None or (used_at is not None and now < used_at + _NOTED_EVERY):
            return
        self._known[key] = replace(token, last_used_at=now)
        statement = "UPDATE token SET last_used_at = :at WHERE id = :id"
        values = {"at": to_us(now), "id": token.id}
        await self._database.run(lambda c: c.execute(statement, values).rowcount)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _insert(connection: sqlite3.Connection, values: dict[str, object]) -> Token:
    connection.execute(
        "DELETE FROM token WHERE uid = :uid AND name = :name AND expires_at <= :created", values
    )
    names = {
        row["name"] for row in connection.execute("SELECT name FROM token WHERE uid = :uid", values)
    }
    if values["name"] in names:
        sentence = f"you have a token called {values['name']!r}; revoke it, or take another name"
        raise TraindError(ErrorCode.CONFLICT, sentence)
    if len(names) >= TOKENS_PER_PERSON:
        sentence = f"you have {len(names)} tokens, and nobody may have more; revoke some"
        raise TraindError(ErrorCode.CONFLICT, sentence)
    row = connection.execute(
        "INSERT INTO token (hash, name, user, uid, scopes, created_at, expires_at) "
        "VALUES (:hash, :name, :user, :uid, :scopes, :created, :expires) RETURNING *",
        values,
    ).fetchone()
    return _token(row)


def _token(row: sqlite3.Row) -> Token:
    used = row["last_used_at"]
    return Token(
        id=row["id"],
        name=row["name"],
        user=row["user"],
        uid=row["uid"],
        scopes=tuple(Scope(scope) for scope in json.loads(row["scopes"])),
        created_at=from_us(row["created_at"]),
        expires_at=from_us(row["expires_at"]),
        last_used_at=None if used is None else from_us(used),
    )
