"""`unplug`: stops everything now; with `--resume` the queue goes on."""

from traind.cli.arguments import Parsed
from traind.cli.client import Client
from traind.cli.errors import UsageError
from traind.cli.submit import print_json
from traind.cli.terminal import complain


def unplug(parsed: Parsed, client: Client) -> int:
    """`unplug`: every job is stopped and held, nothing starts; or the queue is resumed."""
    resume = parsed.flag("resume")
    order = {
        name: parsed.values[name] for name in ("grace_s", "checkpoint") if name in parsed.values
    }
    if resume and order:
        raise UsageError("--resume takes neither --grace nor --checkpoint")
    if resume:
        reply = client.call("DELETE", "/v1/unplug")
    else:
        reply = client.call("POST", "/v1/unplug", body=order)
    if parsed.flag("json"):
        print_json(reply)
    elif resume:
        print("the queue goes on; what is held waits for `traind release`")
    else:
        stopping = reply.data["stopping"]
        jobs = "no job ran" if not stopping else f"stopping and holding {len(stopping)} jobs"
        jobs = f"stopping and holding job {stopping[0]}" if len(stopping) == 1 else jobs
        print(f"{jobs}; the queue is paused")
        complain("`traind unplug --resume` lets the queue go on")
    return 0
