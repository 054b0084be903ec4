"""What the owner of a running job is told of its GPUs, and the one who is stopped for others."""

from typing import Any

from gpu_scene import read_anew, reason, running, scene, settle, using
from harness import Daemon, alive, eventually


def events(daemon: Daemon, number: int, name: str) -> list[dict[str, Any]]:
    """The events of this name in a job's history."""
    history = daemon.ask("GET", f"/v1/jobs/{number}/events").json["events"]
    return [each for each in history if each["event"] == name]


def warned(daemon: Daemon, number: int, words: str) -> str:
    """The warning of a job with these words, once there is one."""

    def told() -> str | None:
        return next((each for each in daemon.job(number)["warnings"] if words in each), None)

    return eventually(told, what=f"a warning: {words}")


def test_a_job_that_uses_more_than_it_declared_is_told_and_goes_on_while_it_harms_nobody(
    gpu_daemon: Daemon,
) -> None:
    daemon = gpu_daemon.start()
    greedy, main = running(daemon, gpu_ids=[0], gpu_memory="4GiB")
    beside, other = running(daemon, gpu_ids=[0], gpu_memory="4GiB")
    lonely, third = running(daemon, gpu_ids=[1], gpu_memory="4GiB")
    fair = {"pid": other, "memory_mib": 4096 * 105 // 100 + 256}
    scene(daemon, using(main, 12288, fair), using(third, 24400))
    assert "GPU 0 than the 4 GiB that it declared" in warned(daemon, greedy, "it used more of")
    warned(daemon, lonely, "it used more of GPU 1")
    read_anew(daemon)
    read_anew(daemon)
    (told,) = events(daemon, greedy, "overrun")
    assert told["state"] == "running"
    assert told["facts"] == {"attempt": 1, "gpu": 0, "declared_mib": 4096, "used_mib": 12288}
    assert "warning:" in daemon.cli("show", str(greedy)).out
    assert [daemon.job(each)["state"] for each in (greedy, beside, lonely)] == ["running"] * 3
    assert events(daemon, beside, "overrun") == []


def test_a_job_that_takes_the_memory_of_another_is_stopped_and_the_cause_names_both(
    gpu_daemon: Daemon,
) -> None:
    daemon = gpu_daemon.start()
    greedy, main = running(daemon, gpu_ids=[0], gpu_memory="10GiB")
    small, third = running(daemon, gpu_ids=[0], gpu_memory="2GiB")
    victim, other = running(daemon, gpu_ids=[0], gpu_memory="8GiB")
    others = ({"pid": other, "memory_mib": 2000}, {"pid": third, "memory_mib": 2600})
    scene(daemon, using(main, 19600, *others), {})
    ended = daemon.wait(greedy, outcome="out_of_memory")
    assert ended["cause"]["code"] == "gpu_memory_overrun"
    detail = ended["cause"]["detail"]
    assert "it used 19.1 GiB of GPU 0 where it had declared 10 GiB" in detail
    assert f"job {victim} of " in detail
    assert f"job {small} of " in detail
    assert ended["signal"] == "TERM"
    read_anew(daemon)
    read_anew(daemon)
    scene(daemon, {}, {})
    read_anew(daemon)
    assert [daemon.job(each)["state"] for each in (small, victim)] == ["running"] * 2
    assert alive(other)


def test_who_ignores_the_order_to_leave_a_crowded_gpu_is_killed(gpu_daemon: Daemon) -> None:
    settle(gpu_daemon, overrun_grace="100ms")
    daemon = gpu_daemon.start()
    ready = daemon.home / "ready"
    command = f"trap '' TERM; touch {ready}; while :; do sleep 0.05; done"
    greedy = daemon.submit(command, gpus=1, gpu_ids=[0], gpu_memory="10GiB", grace="30m")
    daemon.wait(greedy, "running")
    eventually(ready.exists, what="its trap")
    running(daemon, gpu_ids=[0], gpu_memory="8GiB")
    scene(daemon, using(daemon.main_pid(greedy), 24400), {})
    assert daemon.wait(greedy, outcome="out_of_memory")["signal"] == "KILL"


def test_a_stranger_that_comes_is_told_to_whose_job_runs_there_and_is_left_alone(
    gpu_daemon: Daemon, stranger: int
) -> None:
    daemon = gpu_daemon.start()
    alone, main = running(daemon, gpu_ids=[0])
    shares, other = running(daemon, gpu_ids=[1], gpu_memory="4GiB")
    elsewhere = daemon.submit("exec sleep 600")
    drawing = {"pid": 1, "memory_mib": 300, "kind": "graphics"}
    guest = {"pid": stranger, "memory_mib": 2048}
    scene(daemon, using(main, 900, guest, drawing), using(other, 900, guest))
    told = warned(daemon, alone, f"process {stranger} of ")
    assert told.endswith("(sleep 600) came to GPU 0 while it ran there")
    warned(daemon, shares, f"process {stranger} of ")
    (event,) = events(daemon, alone, "stranger")
    facts = event["facts"]
    assert (facts["gpu"], facts["pid"], facts["memory_mib"]) == (0, stranger, 2048)
    assert (facts["command"], facts["attempt"]) == ("sleep 600", 1)
    daemon.restart()
    read_anew(daemon)
    read_anew(daemon)
    for number in (alone, shares):
        assert len(events(daemon, number, "stranger")) == 1, "each is told once"
    assert events(daemon, elsewhere, "stranger") == []
    assert alive(stranger)


def test_a_job_that_starts_alone_beside_a_forgotten_program_is_told(
    gpu_daemon: Daemon, stranger: int
) -> None:
    settle(gpu_daemon, foreign_idle="0s")
    guest = {"processes": [{"pid": stranger, "memory_mib": 300}]}
    scene(gpu_daemon, guest, {})
    daemon = gpu_daemon.start()
    alone, _ = running(daemon, gpu_ids=[0])
    assert "was on GPU 0 when it started there" in warned(daemon, alone, f"process {stranger}")


def test_a_job_is_told_of_its_own_process_on_a_gpu_that_it_was_not_given(
    gpu_daemon: Daemon,
) -> None:
    daemon = gpu_daemon.start()
    number, main = running(daemon, gpu_ids=[0])
    neighbour, _ = running(daemon, gpu_ids=[1])
    on_cpu = daemon.submit("exec sleep 600")
    daemon.wait(on_cpu, "running")
    other = daemon.main_pid(on_cpu)
    own = {"pid": main, "memory_mib": 400}
    scene(daemon, using(main, 900), {"processes": [own, {"pid": other, "memory_mib": 500}]})
    for job, pid in ((number, main), (on_cpu, other)):
        told = f"its process {pid} (sleep 600) uses GPU 1, which it was not given"
        assert warned(daemon, job, "its process") == told
        (event,) = events(daemon, job, "stray")
        assert (event["facts"]["gpu"], event["facts"]["pid"]) == (1, pid)
    warned(daemon, neighbour, f"process {main} of job {number} (sleep 600) came to GPU 1")
    assert daemon.job(number)["state"] == "running"


def test_two_jobs_of_10_gib_share_a_gpu_with_a_desktop_and_the_third_starts_when_one_is_gone(
    gpu_daemon: Daemon, stranger: int
) -> None:
    desktop = {"pid": stranger, "memory_mib": 900, "kind": "graphics"}
    scene(gpu_daemon, {"processes": [desktop]})
    daemon = gpu_daemon.start()
    first, _ = running(daemon, gpu_memory="10GiB")
    second, main = running(daemon, gpu_memory="10GiB")
    third = daemon.submit("exec sleep 600", gpus=1, gpu_memory="10GiB")
    assert "holds 900 MiB" in reason(daemon, third, "resources")
    scene(daemon, using(main, 10240, desktop))
    daemon.ask("DELETE", f"/v1/jobs/{first}?now=1")
    daemon.wait(third, "running")
    assert daemon.job(second)["state"] == "running"
    assert daemon.job(third)["warnings"] == daemon.job(second)["warnings"]
