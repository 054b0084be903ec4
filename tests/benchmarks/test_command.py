"""Row 1: the whole of `traind submit`, from the start of its process to its end."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import floor_client
from benchmarks.conftest import PeerStarter, Starter
from benchmarks.measure import Sampler, in_turns, timed
from benchmarks.report import Line, Reach, Report

_CONSOLE_SCRIPT = f"""#!{sys.executable}
import sys
from traind.cli.main import main
if __name__ == '__main__':
    sys.exit(main())
"""


def test_submitting_on_the_command_line_takes_the_blink_of_an_eye(
    start: Starter, floor: Path, start_peers: PeerStarter, report: Report, tmp_path: Path
) -> None:
    daemon = start("box", cpus=1)
    daemon.wait(daemon.submit(["sleep", "600"]), "running")
    peers = start_peers(1)
    for peer in peers.present:
        peer.submit(["sleep", "600"])
    own = {"PATH": os.environ["PATH"], "HOME": str(daemon.home), "LANG": "C.UTF-8"}
    submit = [str(_program(tmp_path)), "submit", "--socket", str(daemon.socket), "--", "true"]
    least = [sys.executable, floor_client.__file__, "--socket", str(floor), "true"]
    found = in_turns(
        {
            "traind": _run(submit, own),
            "floor": _run(least, own),
            "interpreter": _run([sys.executable, "-c", "pass"], own),
            **{peer.name: _run(peer.command(["true"]), peer.env) for peer in peers.present},
        },
        rounds=40,
    )
    report.add(
        Line(
            row=1,
            measure="CLI submit p50",
            unit="ms",
            figure=found["traind"].p50,
            floor=found["floor"].p50,
            reach=Reach(figure=60, floor=47.5),
            peers=peers.each(lambda peer: found[peer.name].p50),
            raw={name: each.raw for name, each in found.items()},
            note=f"floor: a client of argparse, json and socket; the interpreter alone takes "
            f"{found['interpreter'].p50:.1f} ms. traind p95 {found['traind'].p95:.1f} ms",
        )
    )


def _program(folder: Path) -> Path:
    """`traind` as it is installed beside this Python, or its console script made anew."""
    installed = Path(sys.executable).with_name("traind")
    if installed.exists():
        return installed
    made = folder / "traind"
    made.write_text(_CONSOLE_SCRIPT)
    made.chmod(0o755)
    return made


def _run(command: Sequence[str], env: Mapping[str, str]) -> Sampler:
    def run() -> None:
        subprocess.run(command, env=env, check=True, capture_output=True, timeout=60)

    return timed(run)
