"""`token`: what the TCP door asks for, made here, shown once, and revoked by name."""

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from traind.cli.arguments import Parsed
from traind.cli.client import Client
from traind.cli.errors import NotFound, UsageError
from traind.cli.render import local, table
from traind.cli.submit import print_json
from traind.cli.terminal import complain, safe, wants_colour, width_of

_COLUMNS = ("ID", "NAME", "SCOPES", "EXPIRES", "LAST USED")


def token(parsed: Parsed, client: Client) -> int:
    """`token`: makes one, lists them, revokes one."""
    match parsed.words:
        case ["create", name]:
            return _create(parsed, client, name)
        case ["ls"]:
            return _list(parsed, client)
        case ["revoke", name]:
            return _revoke(parsed, client, name)
    raise UsageError("say `traind token create NAME`, `token ls` or `token revoke NAME`")


def _create(parsed: Parsed, client: Client, name: str) -> int:
    order: dict[str, object] = {"name": name}
    if "scopes" in parsed.values:
        order["scopes"] = parsed.values["scopes"]
    if "expires" in parsed.values:
        order["expires_s"] = parsed.values["expires"]
    reply = client.call("POST", "/v1/tokens", body=order)
    if parsed.flag("json"):
        print_json(reply)
        return 0
    print(safe(reply.data["token"]))
    until = local(reply.data["expires_at"], datetime.now(UTC))
    complain(f"it is shown only now; give it as TRAIND_TOKEN beside TRAIND_URL, until {until}")
    return 0


def _list(parsed: Parsed, client: Client) -> int:
    reply = client.call("GET", "/v1/tokens")
    if parsed.flag("json"):
        print_json(reply)
        return 0
    tokens = reply.data["tokens"]
    if not tokens:
        complain("you have no tokens")
        return 0
    now = datetime.now(UTC)
    rows = [_row(each, now) for each in tokens]
    print(table(_COLUMNS, rows, width=width_of(sys.stdout), colour=wants_colour(sys.stdout)))
    return 0


def _row(each: Mapping[str, Any], now: datetime) -> tuple[object, ...]:
    used = local(each.get("last_used_at"), now) or "never"
    return each["id"], each["name"], ",".join(each["scopes"]), local(each["expires_at"], now), used


def _revoke(parsed: Parsed, client: Client, name: str) -> int:
    tokens = client.call("GET", "/v1/tokens").data["tokens"]
    found = [each for each in tokens if name in (each["name"], str(each["id"]))]
    if not found:
        raise NotFound(f"you have no token {name!r}; `traind token ls` lists them", 404)
    reply = client.call("DELETE", f"/v1/tokens/{found[0]['id']}")
    if parsed.flag("json"):
        print_json(reply)
    else:
        print(f"token {safe(reply.data['name'])} is revoked")
    return 0
