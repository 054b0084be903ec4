"""What is said of a job that the kernel ended for host memory: whose limit it was.

The kernel's word is put into the record of its end, as only machines with controllers give it.
"""

import json
import os

import pytest

from harness import Daemon, eventually

OWN = "it had used up the 64 MiB of host memory that it asked for"
ALL = "all jobs together, or the machine, ran out of host memory"


@pytest.mark.parametrize(("at_limit", "whose"), [(1, OWN), (0, ALL)])
@pytest.mark.parametrize(
    ("end", "kills", "said"),
    [
        ("kill -KILL $$", 1, "it was killed because {}"),
        ("exit 4", 2, "2 processes of it were killed because {}; it exited with code 4"),
    ],
)
def test_a_job_ended_for_host_memory_is_told_whose_limit_it_was(
    daemon: Daemon, end: str, kills: int, said: str, at_limit: int, whose: str
) -> None:
    gate = daemon.home / "gate"
    number = daemon.submit(f"until test -e {gate}; do sleep 0.1; done; {end}", memory="64MiB")
    daemon.main_pid(number)
    daemon.kill()
    gate.touch()
    ended = eventually(lambda: daemon.record(number, "exit.json"), what="its end")
    ended |= {"oom_kills": kills, "oom_at_limit": at_limit}
    place = daemon.run_dir(number) / "exit.json"
    place.with_suffix(".new").write_text(json.dumps(ended))
    os.replace(place.with_suffix(".new"), place)
    daemon.start()
    cause = {"code": "host_oom", "detail": said.format(whose)}
    daemon.wait(number, outcome="out_of_memory", cause=cause)
