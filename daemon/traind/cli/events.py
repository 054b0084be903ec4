"""`events`: what happened to all jobs, and what happens, through restarts of the daemon."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from traind.cli.arguments import Parsed
from traind.cli.client import Client
from traind.cli.errors import Unreachable
from traind.cli.http import Answer
from traind.cli.render import instant
from traind.cli.terminal import complain, safe

SILENCE_S = 60.0
_AWAY_S = 60.0
_QUIET = frozenset({"attempt", "name", "user"})


def events(parsed: Parsed, client: Client) -> int:
    """`events`: a line an event, oldest first; with `-f` it goes on. **Blocks** then."""
    query: dict[str, str | int] = {}
    for name in ("job", "since"):
        number = parsed.number(name)
        if number is not None:
            query[name] = number
    say = _say_json if parsed.flag("json") else _say
    if parsed.flag("follow"):
        _follow(client, query, say)
        return 0
    following: object = query.get("since", 0)
    while following is not None:
        page = client.call(
            "GET", "/v1/events", query=query | {"follow": 0, "since": str(following)}
        )
        for event in page.data["events"]:
            say(event)
        following = page.data.get("next")
    return 0


def _follow(client: Client, query: dict[str, str | int], say: Any) -> None:  # noqa: ANN401 a printer
    """Go on for ever; a lost connection is taken up behind what was shown last."""
    last = str(query["since"]) if "since" in query else ""  # the daemon's greeting has the newest
    away_since: float | None = None
    while True:
        head = {"Last-Event-ID": last} if last else {}
        try:
            answer = client.request(
                "GET", "/v1/events", query=query, headers=head, timeout=SILENCE_S
            )
            away_since = None
            for message in _messages(answer):
                last = message.get("id", last)
                if message.get("event") == "reset":
                    complain("some events are no longer kept; going on with those that are")
                elif "data" in message:
                    say(json.loads(message["data"]))
        except Unreachable as failure:
            now = time.monotonic()
            if away_since is None:
                away_since = now
                complain(f"{failure.sentence}; taking the events up again")
            elif now - away_since > _AWAY_S:
                raise
        time.sleep(0.25)


def _messages(answer: Answer) -> Iterator[dict[str, str]]:
    """The messages of an event stream. Source: html.spec.whatwg.org, 9.2.6."""
    held_back = b""
    for block in answer.blocks():
        *texts, held_back = (held_back + block).split(b"\n\n")
        for text in texts:
            pairs = (line.partition(": ") for line in text.decode("utf-8", "replace").split("\n"))
            yield {name: value for name, _, value in pairs}


def _say_json(event: Mapping[str, Any]) -> None:
    print(json.dumps(event), flush=True)


def _say(event: Mapping[str, Any]) -> None:
    facts = event.get("facts") or {}
    shown = [f"{name}={value}" for name, value in facts.items() if name not in _QUIET]
    when = instant(event["at"])
    stamp = f"{when.astimezone():%Y-%m-%d %H:%M:%S}" if when else str(event["at"])
    words = (stamp, "job", event["job_id"], event["event"], "->", event["state"], *shown)
    print(safe(" ".join(str(word) for word in words)), flush=True)
    sys.stdout.flush()
