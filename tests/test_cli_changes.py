"""The verbs that change jobs, through the real program on a real daemon."""

import json

from contract import FAR, CheckedDaemon
from harness import Daemon, eventually


def running(box: CheckedDaemon, command: str = "sleep 600") -> int:
    number = box.submit(command)
    box.main_pid(number)
    box.wait(number, "running")
    return number


def said(box: CheckedDaemon, *words: str | int) -> str:
    """What a verb prints that does its work."""
    done = box.cli(*map(str, words))
    assert (done.code, done.err) == (0, ""), done
    return done.out.strip()


def test_a_job_is_submitted_on_hold_and_released_for_later(box: CheckedDaemon) -> None:
    number = int(said(box, "submit", "-H", "-G1", "--parsable", "true"))
    assert box.job(number)["held_by"] == "user"
    assert said(box, "release", number, "--at", FAR) == f"job {number} is queued"
    assert box.job(number)["eligible_at"] == "2099-01-01T00:00:00.000000Z"
    assert said(box, "hold", number) == f"job {number} is held"
    assert json.loads(said(box, "release", number, "--json"))["state"] == "queued"
    assert "only tell" in said(box, "hold", "--help")


def test_a_submission_can_be_tested_only(box: CheckedDaemon) -> None:
    before = box.newest()
    rehearsed = ("submit", "--test-only", "-G1", "true")
    eventually(lambda: "would start now on GPU" in said(box, *rehearsed), what="a free GPU")
    waits = said(box, "submit", "--dry-run", "--begin", FAR, "-G1", "true")
    assert waits.startswith("it would wait: it does not start before")
    refused = box.cli("submit", "--test-only", "-G9", "true")
    assert (refused.code, refused.out) == (3, "")
    assert box.newest() == before


def test_a_job_is_updated_and_its_labels_are_added_to(box: CheckedDaemon) -> None:
    number = box.waiting(labels={"a": "1"}, env={"A": "1"}, cpus=2)
    words = ("--label", "b=2", "--time", "90", "-J", "new", "--env", "A=2", "--wrap", "echo 1")
    assert said(box, "update", number, *words, "--reset", "cpus") == f"job {number} changed"
    job = box.job(number)
    assert (job["labels"], job["env"]) == ({"a": "1", "b": "2"}, {"A": "2"})
    assert (job["time_limit_s"], job["name"], job["command"]) == (5400, "new", "echo 1")
    assert job["cpus"] is None
    refused = box.cli("update", str(number), "-G9")
    assert refused.code == 3
    assert "gpus" in refused.err
    assert box.cli("update", str(number)).code == 2


def test_a_job_gets_more_time(box: CheckedDaemon) -> None:
    number = box.waiting(time_limit="1h")
    assert said(box, "extend", number, "+2h30m") == f"job {number} may run 3h30m in all"
    assert box.cli("extend", str(number), "2h").code == 2
    unlimited = box.waiting()
    refused = box.cli("extend", str(unlimited), "+2h")
    assert refused.code == 3
    assert "no time limit" in refused.err


def test_jobs_are_requeued_rerun_and_signalled(box: CheckedDaemon) -> None:
    number = running(box, "trap 'exit 7' USR1; echo up; while :; do sleep 0.05; done")
    eventually(lambda: "up" in box.log_of(number), what="the trap")
    assert said(box, "signal", number, "SIGUSR1") == f"job {number} gets SIGUSR1"
    box.wait(number, outcome="failed", exit_code=7)
    copy = int(said(box, "rerun", number).rpartition(" ")[2])
    box.wait(copy, "running")
    assert said(box, "requeue", copy, "--hold") == f"job {copy} is being stopped, then held"
    box.wait(copy, "held")
    refused = box.cli("requeue", str(copy))
    assert refused.code == 3
    assert "release" in refused.err
    assert said(box, "cancel", copy) == f"job {copy} cancelled"
    assert said(box, "requeue", copy, "-H") == f"job {copy} is held"
    assert box.cli("signal", str(copy)).code == 2
    said(box, "cancel", copy)


def test_jobs_are_cancelled_by_what_they_are(box: CheckedDaemon) -> None:
    labels = {"labels": {"sweep": "cli"}}
    one, two = box.waiting(name="one", **labels), box.waiting(name="two", hold=True, **labels)
    would = said(box, "cancel", "--label", "sweep=cli", "--dry-run").splitlines()
    assert would == [f"job {two} (two) would be cancelled", f"job {one} (one) would be cancelled"]
    assert said(box, "cancel", "--dry-run", one) == f"job {one} (one) would be cancelled"
    assert said(box, "hold", "--label", "sweep") == f"job {one} (one) held"
    assert said(box, "cancel", "--label", "sweep", "--state", "held").count("cancelled") == 2
    nobody = box.cli("cancel", "--label", "sweep", "--user", "nobody-at-all")
    assert (nobody.code, nobody.out) == (0, "")
    assert "no such jobs" in nobody.err
    assert box.cli("cancel", "--dry-run").code == 2
    assert box.cli("cancel").code == 2
    gone = box.cli("cancel", "--dry-run", "999999999")
    assert (gone.code, gone.out) == (5, "")
    assert "cancelled" in said(box, "history", "--label", "sweep")


def test_only_failed_jobs_run_again(box: CheckedDaemon) -> None:
    labels = {"labels": {"retry": "cli"}}
    bad, good = box.submit("false", **labels), box.submit("true", **labels)
    for number in (bad, good):
        box.wait(number)
    again = said(box, "rerun", "--failed", "--label", "retry")
    assert again.startswith(f"job {bad} (false) runs again as job ")
    assert len(again.splitlines()) == 1
    box.wait(int(again.rpartition(" ")[2]), outcome="failed")
    assert said(box, "rerun", "--failed", "--dry-run", f"{bad},{good}") == (
        f"job {bad} (false) would be run again"
    )


def test_history_lists_finished_jobs_and_is_narrowed(box: CheckedDaemon) -> None:
    ended, waits = box.submit("true", name="history-1"), box.waiting(name="history-2")
    box.wait(ended)
    listed = said(box, "history", "--name", "HISTORY")
    assert "history-1" in listed
    assert "history-2" not in listed
    assert str(waits) in said(box, "ls", "--name", "history", "--me")
    jobs = json.loads(said(box, "history", "--outcome", "succeeded", "--limit", "1", "--json"))
    assert [job["outcome"] for job in jobs["jobs"]] == ["succeeded"]


def test_a_list_is_whole_though_the_orders_of_a_page_are_long(box: CheckedDaemon) -> None:
    script = "#!/bin/sh\n" + "# all of it\n" * 43_000
    for _ in range(2):
        defaults = {"script": script, "begin_at": FAR, "name": "bulk"}
        answer = box.ask("POST", "/v1/jobs", {"defaults": defaults, "jobs": [{}] * 20})
        assert answer.status == 201, answer.body[:300]
    page = box.ask("GET", "/v1/jobs?q=bulk&limit=40").json
    assert len(page["jobs"]) < 40, "the page was cut"
    whole = box.cli("ls", "--name", "bulk", "--limit", "40")
    assert (whole.out.count("bulk"), whole.err) == (40, "")
    part = box.cli("ls", "--name", "bulk", "--limit", "39")
    assert part.out.count("bulk") == 39
    assert "these are the newest 39; --limit, at most 1000, shows more" in part.err


def test_a_list_of_the_most_that_there_may_be_says_how_to_narrow_it(daemon: Daemon) -> None:
    for count in (1000, 1):
        body = {"defaults": {"command": "true", "begin_at": FAR}, "jobs": [{}] * count}
        assert daemon.ask("POST", "/v1/jobs", body).status == 201
    assert "--name narrow them down" in daemon.cli("ls").err
