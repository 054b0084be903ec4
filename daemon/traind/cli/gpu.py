"""`gpu`: what operators say of one GPU, by its index or UUID."""

from collections.abc import Mapping
from urllib.parse import quote

from traind.cli.arguments import Parsed
from traind.cli.client import Client
from traind.cli.errors import UsageError
from traind.cli.submit import print_json
from traind.cli.terminal import safe

_ORDERS: Mapping[str, tuple[Mapping[str, object], str]] = {
    "cordon": ({"cordoned": True}, "gets no new job"),
    "uncordon": ({"cordoned": False}, "may get jobs again"),
    "drain": ({"drain": True}, "gets no new job, and those that run there are requeued"),
    "clear": ({"clear": True}, "counts as mended"),
    "forget": ({"forget": True}, "is forgotten"),
}
_WITH_REASON = ("cordon", "drain")


def gpu(parsed: Parsed, client: Client) -> int:
    """`gpu`: cordons, uncordons, drains, clears, forgets one, or lets a process on it be."""
    match parsed.words:
        case ["ignore-pid", which, pid] if pid.isascii() and pid.isdecimal():
            order: Mapping[str, object] = {"ignore_pid": int(pid)}
            done = f"may be shared with process {int(pid)}"
        case [verb, which] if verb in _ORDERS:
            order, done = _ORDERS[verb]
        case _:
            verbs = ", ".join(_ORDERS)
            raise UsageError(f"say `traind gpu VERB GPU` ({verbs}), or `gpu ignore-pid GPU PID`")
    if "reason" in parsed.values:
        if parsed.words[0] not in _WITH_REASON:
            raise UsageError("--reason goes with cordon and drain")
        order = {**order, "reason": parsed.values["reason"]}
    reply = client.call("PATCH", f"/v1/gpus/{quote(which, safe='')}", body=order)
    if parsed.flag("json"):
        print_json(reply)
        return 0
    print(f"GPU {reply.data['index']} ({safe(reply.data['name'])}) {done}")
    if not reply.data["health"]["allocatable"] and parsed.words[0] in ("clear", "uncordon"):
        print(safe(reply.data["health"]["sentence"]))
    return 0
