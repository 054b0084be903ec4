"""The shim of one attempt: starts it, waits, ends what is left of it, writes down how it ended.

It has no opinions: no limits, no retries. It outlives daemon and launcher.
"""

import contextlib
import ctypes
import json
import os
import signal
import time
from typing import NamedTuple, NoReturn

from traind.runner import Failpoint, cgroup, errand, identity, main_process, rundir

SUBREAPER, _DUMPABLE, _NAME = 36, 4, 15
_BLOCKED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


class Box(NamedTuple):
    """What a launcher's shims share; `others`: jobs run as their submitters, not as this uid."""

    state_dir: str
    cgroups: str | None
    others: bool
    gpu_group: str
    pause: Failpoint


def prctl(option: int, value: int | bytes) -> None:
    """prctl(2) with one argument. Raises OSError."""
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def own_children() -> list[int]:
    """The children of this process, which has one thread; zombies are among them."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]


def run(spec: main_process.Spec, box: Box, lock: int, log: int) -> NoReturn:
    """Be the shim of one attempt, in a process just forked for it. Never returns."""
    label, pause = f"{spec['job']}.{spec['attempt']}", box.pause
    path = rundir.attempt_path(box.state_dir, spec["job"], spec["attempt"])
    group = f"{box.cgroups}/{label}" if box.cgroups else None
    _settle_in(f"traind-shim {label} {box.state_dir}", lock, log)
    if group:
        os.makedirs(group, exist_ok=True)
        cgroup.limit(group, **spec["limits"])
    rundir.write_record(path, "shim.json", {**_born(os.getpid()), "cgroup": group, "protocol": 1})
    pause("shim.recorded", label)
    barrier, go = os.pipe2(os.O_CLOEXEC)
    failure, errors = os.pipe2(os.O_CLOEXEC)
    main = cgroup.fork_into(group) if group else os.fork()
    if main == 0:
        os.close(go)
        _be_the_job(spec, path, box, main_process.Ends(log, barrier, errors))
    os.close(barrier)
    os.close(errors)
    rundir.write_record(path, "exec.intent", _born(main))
    pause("shim.intended", label)
    began = time.clock_gettime(time.CLOCK_BOOTTIME)
    with contextlib.suppress(BrokenPipeError):  # it failed or was ended before its exec
        os.write(go, b"g")
    os.close(go)
    pause("shim.opened", label)
    for folder in (os.path.dirname(path), f"{box.state_dir}/runs"):
        rundir.sync_directory(folder)
    with open(failure, "rb") as pipe:
        failed = pipe.read()
    pid = 0
    while pid != main:
        pid, status, usage = os.wait4(-1, 0)
    pause("shim.ended", label)
    ending = {"status": status, "launch_error": json.loads((failed or b"null").splitlines()[-1])}
    ending |= {"ended_at": time.time(), "peak_memory_kib": usage.ru_maxrss}
    _end_left_overs(spec, group)
    ending["run_s"] = time.clock_gettime(time.CLOCK_BOOTTIME) - began
    ending["oom_kills"], ending["oom_at_limit"] = cgroup.remove(group) if group else (0, 0)
    if status and os.path.exists(f"{box.state_dir}/runs/going-down"):
        os._exit(0)  # it ended with the machine: without a record it comes back with it
    rundir.write_record(path, "exit.json", ending)
    pause("shim.wrote", label)
    os._exit(0)


def _born(pid: int) -> dict[str, int]:
    """Which process it is, and no later one with its pid: that started at another tick."""
    return {"pid": pid, "start_time": int(rundir.stat_fields(pid)[19])}


def _settle_in(title: str, lock: int, log: int) -> None:
    """Cut every tie to the launcher: session, signals, descriptors, name."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)  # the launcher did so with all others
    # Blocked, not ignored: an order to stop that comes before the exec stays pending.
    signal.pthread_sigmask(signal.SIG_SETMASK, _BLOCKED)
    os.setsid()
    os.umask(0o027)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(log if standard == 2 else null, standard)
    low, high = sorted((lock, log))
    for first, behind in ((3, low), (low + 1, high), (high + 1, os.sysconf("SC_OPEN_MAX"))):
        os.closerange(first, behind)
    fields = rundir.stat_fields(os.getpid())
    first, last = int(fields[45]), int(fields[46])  # where the command line stands in memory
    room = last - first
    ctypes.memmove(first, title.encode()[: room - 1].ljust(room, b"\0"), room)
    prctl(_NAME, b"traind-shim")
    prctl(SUBREAPER, 1)
    if os.getuid() == 0:
        prctl(_DUMPABLE, 0)
    cgroup.write("/proc/self/oom_score_adj", -999)


def _be_the_job(spec: main_process.Spec, path: str, box: Box, ends: main_process.Ends) -> NoReturn:
    """Drop to the job's person, then go on as its main process; why not goes to the shim."""
    try:
        cgroup.write("/proc/self/oom_score_adj", 0)
        os.setsid()
        main_process.must_pass(spec, ends.errors, "identity", "the name service")
        group = box.gpu_group if spec["fenced"] else None
        person = identity.look_up(spec["uid"], others=box.others, group=group)
        main_process.run(spec, path, person, ends, new=identity.become(person))
    except (identity.IdentityError, KeyError, OSError) as error:
        main_process.refuse(ends.errors, error)


def _end_left_overs(spec: main_process.Spec, group: str | None) -> None:
    """End what the main process left behind: SIGTERM, grace, SIGKILL, until nothing is left.

    As root only children are killed: whoever loses its parent becomes one.
    """
    shim, deadline = os.getpid(), time.monotonic() + spec["leftover_grace_s"]
    person = identity.bare(spec["uid"])
    if _any_left():
        identity.fork_as(person, lambda: errand.end_below(shim))
    while _any_left():
        rest = deadline - time.monotonic()
        if rest <= 0:
            if group:
                cgroup.kill(group)
            os.waitpid(identity.fork_as(person, lambda: errand.kill_below(shim)), 0)
            for child in own_children():
                os.kill(child, signal.SIGKILL)
        signal.sigtimedwait({signal.SIGCHLD}, max(rest, 0.05))


def _any_left() -> bool:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
        return True
    return False
