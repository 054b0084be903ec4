"""The installed service on a machine with every cgroup controller, its limits above all.

All tests share one machine, which is started anew by the last ones only.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from booted import (
    ALICE,
    DAEMON,
    LAUNCHER,
    SCOPE,
    comes_back,
    job,
    let_go,
    start_again_beside_a_job,
    stop_all_beside_a_job,
    submit,
    succeeds,
    told,
    wait,
    wait_until_active,
    waiting_job,
)
from harness import eventually
from machine import SOURCE
from vm.guest import Guest, guest_in, why_not

pytestmark = pytest.mark.timeout(0)  # how long it takes depends on the machine below
ALL_MIB, THREADS = 300, 40
SETTINGS = f"""
[gpus]
source = "simulated"
simulate = "2x24GiB"
[host]
cpus = 4
memory = "{ALL_MIB}MiB"
start_memory = "16MiB"
[jobs]
max_threads = {THREADS}
[queue]
requeue_delay = "100ms"
"""
TAKE = (
    'python3 -c \'import time; held = b"x" * ({} << 20); print("held", flush=True);'
    " time.sleep(9999)'"
)
FORK = """
import os, time
try:
    while os.fork():
        pass
except BlockingIOError:
    print('refused', flush=True)
time.sleep(9999)
"""
"""Takes all processes that it may have, says so, and keeps them."""


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    if why := why_not():
        pytest.exit(why, returncode=2)
    with guest_in(tmp_path_factory.mktemp("guest"), SETTINGS) as guest:
        guest.boot()
        wait_until_active(guest)
        yield guest


def group(guest: Guest, number: int) -> str:
    """The cgroup of a job's first attempt."""
    folder = guest.run("sh", "-c", f"echo {SCOPE}/traind-*").stdout.strip()
    return f"{folder}/{number}.1"


def reads(guest: Guest, path: str) -> str:
    return guest.run("cat", path).stdout.strip()


def said(guest: Guest, number: int, word: str) -> None:
    """Wait until a job says so in its log."""
    log = f"/var/lib/traind/runs/{number}/1/log"
    eventually(lambda: word in reads(guest, log), what=word, deadline_s=guest.patience_s)


def test_the_service_is_up_and_the_kernels_controllers_are_handed_on(guest: Guest) -> None:
    assert not guest.run("systemctl", "--failed", "--plain", "--no-legend").stdout
    said = guest.run("traind", "doctor", "--json", check=False, user="alice").stdout
    found = {finding["check"]: finding for finding in json.loads(said)["checks"]}
    assert found["cgroups"]["level"] == "ok"
    assert found["cgroups"]["sentence"].endswith("with limits")
    assert found["logind"]["level"] == "ok", found["logind"]


def test_what_a_job_asked_for_bounds_it(guest: Guest) -> None:
    number, pid = waiting_job(guest, options=("--mem", "64M", "--cpus", "2"))
    where = group(guest, number)
    assert reads(guest, f"{where}/memory.max") == str(64 << 20)
    assert reads(guest, f"{where}/memory.oom.group") == "1"
    assert reads(guest, f"{where}/cpu.max") == "200000 100000"
    assert reads(guest, f"{where}/cpu.weight") == "20"
    assert reads(guest, f"{where}/pids.max") == str(THREADS)
    assert reads(guest, f"{Path(where).parent}/memory.max") == str(ALL_MIB << 20)
    assert reads(guest, f"{Path(where).parent}/pids.max").isdecimal()
    assert pid in reads(guest, f"{where}/cgroup.procs").split()
    let_go(guest, number)


def test_a_job_has_no_more_processes_than_it_may(guest: Guest) -> None:
    bystander, pid = waiting_job(guest)
    greedy = submit(guest, f'python3 -c "{FORK}"')
    said(guest, greedy, "refused")
    assert reads(guest, f"{group(guest, greedy)}/pids.current") == str(THREADS)
    guest.run("traind", "cancel", "--now", str(greedy), user="alice")
    assert wait(guest, greedy) == 128 + 9
    assert succeeds(guest, "test", "-d", f"/proc/{pid}")
    let_go(guest, bystander)


def test_too_much_memory_ends_that_job_alone_and_the_cause_names_its_limit(guest: Guest) -> None:
    bystander, pid = waiting_job(guest, options=("--mem", "64M"))
    hungry = submit(guest, f"{TAKE.format(200)} & wait; exit 5", "--mem", "64M")
    assert wait(guest, hungry) == 128 + 9, "its shell is ended with what took the memory"
    ended = job(guest, hungry)
    assert (ended["outcome"], ended["cause"]["code"]) == ("out_of_memory", "host_oom")
    assert "64 MiB" in ended["cause"]["detail"]
    assert succeeds(guest, "test", "-d", f"/proc/{pid}")
    let_go(guest, bystander)
    assert job(guest, bystander)["attempt"] == 1


def test_all_jobs_together_are_bounded_and_the_rest_of_the_machine_lives(guest: Guest) -> None:
    daemon = told(guest, DAEMON, "MainPID")
    first = submit(guest, TAKE.format(200))
    said(guest, first, "held")
    second = submit(guest, TAKE.format(200))
    ended = eventually(
        lambda: [
            found
            for number in (first, second)
            if (found := job(guest, number))["state"] == "finished"
        ],
        what="the end of one of them",
        deadline_s=guest.patience_s,
    )
    assert [found["cause"]["code"] for found in ended] == ["host_oom"]
    assert "all jobs together" in ended[0]["cause"]["detail"]
    survivor = second if ended[0]["id"] == first else first
    said(guest, survivor, "held")
    assert job(guest, survivor)["state"] == "running"
    assert told(guest, DAEMON, "MainPID") == daemon
    guest.run("traind", "cancel", "--now", str(survivor), user="alice")
    assert wait(guest, survivor) == 128 + 9


@pytest.mark.parametrize("unit", [DAEMON, LAUNCHER])
@pytest.mark.parametrize("how", ["systemctl restart {unit}", "kill -KILL {pid}"])
def test_a_unit_that_is_started_again_leaves_jobs_alone(guest: Guest, unit: str, how: str) -> None:
    start_again_beside_a_job(guest, unit, how)


def test_everything_stopped_and_started_finds_its_job_again(guest: Guest) -> None:
    stop_all_beside_a_job(guest)


def test_a_logout_leaves_the_shared_memory_of_a_job_alone(guest: Guest) -> None:
    until = "touch /dev/shm/of-a-job; until test -e /tmp/go; do sleep 0.1; done"
    guest.run("rm", "-f", "/tmp/go")
    number = submit(guest, f"{until}; cat /dev/shm/of-a-job && rm /dev/shm/of-a-job")
    eventually(
        lambda: succeeds(guest, "test", "-e", "/dev/shm/of-a-job"), deadline_s=guest.patience_s
    )
    guest.log_in("alice", "true")
    eventually(
        lambda: not succeeds(guest, "loginctl", "show-user", "alice"),
        what="the end of all that her login left",
        deadline_s=guest.patience_s,
    )
    let_go(guest, number, code=0)


def test_an_account_has_a_daemon_of_its_own_with_limits(guest: Guest) -> None:
    guest.run("loginctl", "enable-linger", "alice")
    own = {"HOME": "/home/alice", "XDG_RUNTIME_DIR": f"/run/user/{ALICE}"}

    def as_alice(line: str, *words: str) -> str:
        done = guest.run("sh", "-euc", line, *words, check=False, user="alice", **own)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    eventually(
        lambda: succeeds(guest, "test", "-S", f"/run/user/{ALICE}/bus"),
        what="a systemd of her own",
        deadline_s=guest.patience_s,
    )
    as_alice('mkdir -p ~/.config/traind; printf "$0" > ~/.config/traind/config.toml', SETTINGS)
    as_alice(
        f"mkdir -p ~/.config/systemd/user; cd ~/.config/systemd/user;"
        f" cp {SOURCE}/systemd/traind-user.service traind.service;"
        " systemctl --user daemon-reload; systemctl --user start traind"
    )
    socket = f"/run/user/{ALICE}/traind/traind.sock"
    ask = f"traind --socket {socket}"
    number = as_alice(
        f'{ask} submit --parsable --workdir / --mem 64M --wrap "$0"', TAKE.format(200)
    )
    as_alice(f"{ask} wait {number} || test $? = 137")
    ended = json.loads(as_alice(f"{ask} show {number} --json"))
    assert ended["cause"]["code"] == "host_oom", ended["cause"]
    as_alice("systemctl --user stop traind")
    guest.run("loginctl", "disable-linger", "alice")


def test_an_upgrade_while_jobs_run_leaves_them_alone(guest: Guest) -> None:
    number, pid = waiting_job(guest, options=("--mem", "64M"))
    upgrade = ("make", "-sC", SOURCE, "upgrade")
    guest.run(*upgrade, timeout=3600, PIP_NO_INDEX="1", PIP_FIND_LINKS="/wheels")
    assert succeeds(guest, "test", "-d", f"/proc/{pid}")
    let_go(guest, number)
    assert job(guest, number)["attempt"] == 1


def test_a_running_job_comes_back_after_a_reboot(guest: Guest) -> None:
    number, _ = waiting_job(guest, options=("--mem", "64M"))
    guest.shut_down()
    guest.boot()
    comes_back(guest, number)


def test_a_running_job_comes_back_after_the_power_failed(guest: Guest) -> None:
    number, _ = waiting_job(guest, options=("--mem", "64M"))
    guest.cut()
    guest.boot()
    comes_back(guest, number)
