"""A claim that the tables refuse: told once, tried again with patience, in nobody else's way."""

import re
import sqlite3
from datetime import UTC, datetime, timedelta

from harness import Daemon, eventually
from traind.dispatcher.claiming import Refusals

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def commits(daemon: Daemon) -> int:
    """How many transactions the daemon has committed."""
    text = daemon.ask("GET", "/metrics").body.decode()
    found = re.search(r"^traind_db_commit_seconds_count (\d+)", text, re.MULTILINE)
    assert found is not None, text
    return int(found[1])


def test_a_claim_that_is_refused_is_told_once_and_not_tried_over_and_over(
    new_daemon: Daemon,
) -> None:
    daemon = new_daemon.start()
    number = daemon.submit("true", hold=True)
    daemon.stop()
    database = sqlite3.connect(daemon.state_dir / "daemon" / "traind.db")
    with database:
        database.execute(
            "INSERT INTO attempt (job_id, number, supervision, boot_id, claimed_at, ended_at, "
            "outcome, log_path) VALUES (?, 1, 'shim', 'b', 1, 2, 'lost', '/nowhere')",
            (number,),
        )
    database.close()
    daemon.start()
    daemon.ask("PATCH", f"/v1/jobs/{number}", {"hold": False})
    eventually(lambda: "claim refused" in daemon.log.read_text(), what="the refusal told")
    before = commits(daemon)
    other = daemon.submit("sleep 2")
    # Each look costs a transaction, so it is not asked over and over either.
    ends = f"/v1/jobs/{other}?wait=60"
    eventually(lambda: daemon.ask("GET", ends).json["outcome"] == "succeeded", what="its end")
    assert daemon.job(number)["state"] == "queued"
    assert daemon.log.read_text().count("claim refused") == 1
    assert commits(daemon) - before < 100
    daemon.stop()
    database = sqlite3.connect(daemon.state_dir / "daemon" / "traind.db")
    with database:
        database.execute("DELETE FROM attempt WHERE job_id = ?", (number,))
    database.close()
    daemon.start().wait(number, outcome="succeeded")


def test_the_patience_with_a_refused_claim_grows_up_to_half_a_minute() -> None:
    refusals, now = Refusals(), NOW
    spans = []
    for _ in range(7):
        assert refusals.allow(1, now=now)
        refusals.note(1, "the GPU is held", now=now)
        assert not refusals.allow(1, now=now)
        next_at = refusals.next_at(now=now)
        assert next_at is not None
        spans.append((next_at - now) / timedelta(seconds=1))
        now = next_at
    assert spans == [1, 2, 4, 8, 16, 30, 30]
    refusals.forget(1)
    assert refusals.next_at(now=now) is None


def test_a_refusal_is_news_when_it_is_the_first_or_another_one() -> None:
    refusals = Refusals()
    told = [refusals.note(1, why, now=NOW) for why in ("held", "held", "no port", "no port")]
    assert told == [True, False, True, False]
    assert refusals.note(2, "held", now=NOW)
    assert refusals.allow(3, now=NOW)
