"""Logs: as long as a week of progress bars, and still within their cap."""

from harness import SHORT, Daemon, eventually

CAPPED = SHORT.replace("[jobs]\n", '[jobs]\nlog_head = "1MiB"\nlog_tail = "2MiB"\n')
MIB = 1 << 20


def test_a_log_that_grows_too_long_loses_its_middle_and_keeps_its_offsets(
    new_daemon: Daemon,
) -> None:
    new_daemon.config = CAPPED
    daemon = new_daemon.start()
    lines = "seq -f 'line %012.0f' 1 1000000; echo ready; read < gate; echo last"
    (daemon.home / "gate").unlink(missing_ok=True)
    number = daemon.submit(f"mkfifo gate; {lines}", workdir=str(daemon.home))
    log = daemon.run_dir(number) / "log"
    size = 18 * 1_000_000 + len("ready\n")
    eventually(lambda: log.exists() and log.stat().st_size == size, what="all lines")
    eventually(lambda: log.stat().st_blocks * 512 < 4 * MIB, what="the hole")
    (daemon.home / "gate").write_text("go\n")
    daemon.wait(number, outcome="succeeded")
    text = daemon.log_of(number)
    assert text.startswith("line 000000000001\n")
    assert text.endswith("line 000001000000\nready\nlast\n")
    assert "bytes were dropped here" in text
    assert len(text) < 4 * MIB
    part = daemon.ask("GET", f"/v1/jobs/{number}/log", headers={"Range": "bytes=-5"})
    assert (part.status, part.body) == (206, b"last\n")
    assert part.headers["Content-Range"] == f"bytes {size}-{size + 4}/{size + 5}"
