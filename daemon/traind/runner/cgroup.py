"""One cgroup v2 directory per attempt, where one can be made: the sure way to end a whole tree."""

import contextlib
import ctypes
import os
import signal
from collections.abc import Mapping

_SCOPE = "traind.slice/traind-jobs.scope"
_CLONE3, _CLONE_INTO_CGROUP = 435, 0x2_0000_0000
_LIMITS = {"cpu.max", "cpu.weight", "memory.max", "memory.oom.group", "pids.max"}


def home(name: str) -> str | None:
    """A directory of ours, made now; None where none can be.

    In the scope that a unit had systemd make, which outlives the unit, else below this process's
    own cgroup. Proved by a process that enters one: a tree may be readable and yet not writable.
    """
    with open("/proc/self/mountinfo") as mounts, open("/proc/self/cgroup") as own:
        roots = [line.split()[4] for line in mounts if " - cgroup2 " in line]
        paths = [line[3:].strip() for line in own if line.startswith("0::")]
    if not roots or not paths:
        return None
    here = above = (roots[-1] + paths[0]).rstrip("/")
    while above and not os.path.isdir(f"{above}/{_SCOPE}"):
        above = os.path.dirname(above).rstrip("/")
    for parent in (f"{above}/{_SCOPE}", here) if above else (here,):
        base = f"{parent}/{name}"
        if _can_enter(f"{base}/probe-{os.getpid()}"):
            _hand_on(parent, base, emptied=parent != here)
            return base
    return None


def _can_enter(probe: str) -> bool:
    with contextlib.suppress(OSError):
        os.makedirs(probe, exist_ok=True)
        child = fork_into(probe)
        if child == 0:
            os._exit(0)
        entered = os.waitpid(child, 0)[1] == 0
        os.rmdir(probe)
        return entered
    return False


def _hand_on(parent: str, base: str, *, emptied: bool) -> None:
    """Let attempts have limits, for which no process may be in `parent` itself."""
    if emptied:
        with contextlib.suppress(OSError), open(f"{parent}/cgroup.procs") as file:
            for pid in file.read().split():
                os.makedirs(f"{parent}/keeper", exist_ok=True)
                write(f"{parent}/keeper/cgroup.procs", pid)
    for folder in (parent, base):
        for controller in ("cpu", "memory", "pids"):
            write(f"{folder}/cgroup.subtree_control", f"+{controller}")


def limit(path: str, own: Mapping[str, object], together: Mapping[str, object]) -> None:
    """Bound what an attempt takes, and all of them together, where there are controllers."""
    for folder, limits in ((os.path.dirname(path), together), (path, own)):
        for name in _LIMITS & limits.keys():
            write(f"{folder}/{name}", limits[name])


def write(path: str, value: object) -> None:
    """Tell the kernel, where it takes it."""
    with contextlib.suppress(OSError), open(path, "w") as file:
        file.write(str(value))


def fork_into(path: str) -> int:
    """Fork a child that is born in the cgroup, or ends: 0 in the child, else its pid.

    To enter one later makes the kernel wait for a grace period of RCU, which takes longer than all
    the rest of a start; only where the kernel or a container's filter has no such call.
    Source: clone3(2), struct clone_args; what os.fork does around the call.
    """
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    arguments = (ctypes.c_uint64 * 11)()
    arguments[0], arguments[4], arguments[10] = _CLONE_INTO_CGROUP, signal.SIGCHLD, folder
    libc, python = ctypes.PyDLL(None), ctypes.pythonapi
    python.PyOS_BeforeFork()
    pid: int = libc.syscall(_CLONE3, ctypes.byref(arguments), ctypes.sizeof(arguments))
    (python.PyOS_AfterFork_Child if pid == 0 else python.PyOS_AfterFork_Parent)()
    os.close(folder)
    if pid < 0 and (pid := os.fork()) == 0:
        try:
            with open(f"{path}/cgroup.procs", "w") as file:
                file.write("0")
        except OSError:
            os._exit(70)
    return pid


def fork_aside(base: str | None) -> int:
    """Fork a child that stands beside the jobs, where no order to the launcher's unit finds it."""
    keeper = f"{os.path.dirname(base)}/keeper" if base else ""
    return fork_into(keeper) if os.path.isdir(keeper) else os.fork()


def kill(path: str) -> None:
    """SIGKILL to everything in the cgroup, forks in flight included; Linux 5.14 and later."""
    write(f"{path}/cgroup.kill", 1)


def remove(path: str) -> tuple[int, int]:
    """Remove the cgroup once it is empty: kills of it for memory, how often by its own limit."""
    events: dict[str, str] = {}
    with contextlib.suppress(OSError), open(f"{path}/memory.events") as file:
        events = dict(line.split() for line in file)
    with contextlib.suppress(OSError):
        os.rmdir(path)
    return int(events.get("oom_kill", 0)), int(events.get("oom", 0))
