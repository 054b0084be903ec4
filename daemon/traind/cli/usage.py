"""`usage`: who used how much of the box."""

import sys
from collections.abc import Mapping
from typing import Any

from traind.cli.arguments import Parsed
from traind.cli.client import Client
from traind.cli.render import table
from traind.cli.submit import print_json
from traind.cli.terminal import width_of
from traind.cli.views import energy

_HEADS = {"user": "USER", "label": "LABEL", "gpu": "GPU"}


def usage(parsed: Parsed, client: Client) -> int:
    """`usage`: hours, GPU hours and energy by person, label or GPU."""
    asked = {name: parsed.text(name) for name in ("by", "since", "until")}
    query: dict[str, str | int] = {k: v for k, v in asked.items() if v is not None}
    reply = client.call("GET", "/v1/usage", query=query)
    if parsed.flag("json"):
        print_json(reply)
        return 0
    report = reply.data
    names = _gpu_names(client) if report["by"] == "gpu" else {}
    rows = [_row(used, names) for used in report["usage"]]
    print(f"from {report['since'][:16]}Z to {report['until'][:16]}Z")
    if not rows:
        print("nothing ran")
        return 0
    headers = (_HEADS[report["by"]], "JOBS", "ATTEMPTS", "HOURS", "GPU HOURS", "ENERGY")
    print(table(headers, rows, width=width_of(sys.stdout), colour=False))
    return 0


def _row(used: Mapping[str, Any], names: Mapping[str, str]) -> tuple[object, ...]:
    return (
        names.get(used["name"], used["name"]),
        used["jobs"],
        used["attempts"],
        f"{used['hours']:.2f}",
        f"{used['gpu_hours']:.2f}",
        energy(used["energy_wh"]),
    )


def _gpu_names(client: Client) -> dict[str, str]:
    """'0 NVIDIA RTX A6000' for the UUID of each GPU that the box has."""
    found = client.call("GET", "/v1/gpus").data["gpus"]
    return {gpu["uuid"]: f"{gpu['index']} {gpu['name']}" for gpu in found}
