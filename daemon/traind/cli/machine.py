"""What `doctor` looks at in the machine itself: driver, cgroups, logind, shared memory, clock.

It only reads files: nothing here may hang where a driver or a disk does.
"""

from __future__ import annotations

import ctypes
import glob
import hashlib
import os
import re
import shutil
import stat
import time

from traind.cli.devices import devices
from traind.cli.finding import BAD, GOOD, NOTE, Finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_DESCRIPTORS = 4096
_TIME_ERROR = 5
"""adjtimex(2): the clock is not synchronised."""

_CGROUP_KILL = (5, 14)
"""The first kernel with cgroup.kill; pidfd_open and clone3 are older."""

_SCOPE = "traind.slice/traind-jobs.scope"
_LIMITING = ("cpu", "memory", "pids")
_LOGIND_FOLDERS = ("/etc", "/run", "/usr/local/lib", "/usr/lib")


def findings(status: dict[str, Any], state_dir: str) -> Iterator[Finding]:
    """Every check of the machine; `status` is what the daemon says of itself, empty without one."""
    yield _kernel()
    yield from _gpus(status)
    yield _cgroups(status, state_dir)
    yield from _logind()
    yield _shared_memory()
    yield _clock()
    yield _descriptors(status)


def _kernel() -> Finding:
    release = os.uname().release
    numbers = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    if numbers < _CGROUP_KILL:
        mend = "run Linux 5.14 or newer"
        return Finding("kernel", NOTE, f"Linux {release} cannot end a cgroup in one go", mend)
    return Finding("kernel", GOOD, f"Linux {release}")


def _gpus(status: dict[str, Any]) -> Iterator[Finding]:
    if status.get("gpus") and not status["gpu_fault"]:
        yield Finding("gpus", GOOD, f"the daemon reads {status['gpus']} GPUs")
    if status.get("gpu_fault"):
        mend = "see `nvidia-smi` and the kernel's log (`dmesg | grep -i nvrm`)"
        yield Finding("gpus", BAD, status["gpu_fault"], mend)
    driver, library = _driver_version(), _library_version()
    if driver is None:
        if not status.get("gpus"):
            mend = "install NVIDIA's driver; without it only jobs without GPUs can run"
            yield Finding("driver", NOTE, "no NVIDIA driver is loaded", mend)
        return
    if library is None:
        mend = "install the driver's user libraries (libnvidia-ml1, nvidia-utils)"
        yield Finding("driver", BAD, f"driver {driver}, but no libnvidia-ml.so.1", mend)
    elif library and library != driver:
        mend = "restart the machine: the driver was upgraded under the one that is loaded"
        sentence = f"the kernel has driver {driver}, libnvidia-ml.so.1 is of {library}"
        yield Finding("driver", BAD, sentence, mend)
    else:
        yield Finding("driver", GOOD, f"driver {driver}, and a library to go with it")
    yield from devices(status)


def _driver_version() -> str | None:
    """The version of the driver in the kernel, None without one."""
    try:
        with open("/proc/driver/nvidia/version") as file:
            found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)\s", file.readline())
    except OSError:
        return None
    return found[1] if found else "of an unknown version"


def _library_version() -> str | None:
    """The version in the name of the library's file; empty when it has none, None without one."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
        with open("/proc/self/maps") as file:
            paths = [line.split(maxsplit=5)[-1].strip() for line in file if "nvidia-ml" in line]
    except OSError:
        return None
    found = re.search(r"\.so\.(\d+\.[\d.]+)$", os.path.realpath(paths[0])) if paths else None
    return found[1] if found else ""


def _cgroups(status: dict[str, Any], state_dir: str) -> Finding:
    """Of the launcher, as that makes the cgroups; of this process where no daemon answers."""
    mend = "run traind as a systemd service (`make install`), on a machine with cgroup v2"
    try:
        own = _own_cgroup(status.get("launcher_pid") or "self")
    except OSError as failure:
        return Finding("cgroups", NOTE, f"cannot be looked at: {failure.strerror}", mend)
    if own is None:
        return Finding("cgroups", NOTE, "no cgroup v2: ended jobs are found by /proc alone", mend)
    scope = own
    while scope and not os.path.isdir(f"{scope}/{_SCOPE}"):
        scope = os.path.dirname(scope).rstrip("/")
    name = "traind-" + hashlib.sha256(os.path.realpath(state_dir).encode()).hexdigest()[:12]
    for parent in (f"{scope}/{_SCOPE}", own) if scope else (own,):
        if os.path.isdir(f"{parent}/{name}"):
            return _limits(f"{parent}/{name}")
    if status.get("launcher_pid") or not os.access(own, os.W_OK):
        return Finding("cgroups", NOTE, f"{own} cannot be written: no cgroup per attempt", mend)
    return Finding("cgroups", GOOD, f"a cgroup per attempt can be made in {own}")


def _own_cgroup(pid: object) -> str | None:
    with open(f"/proc/{pid}/cgroup") as file:
        own = next((line[3:].strip() for line in file if line.startswith("0::")), None)
    with open("/proc/self/mountinfo") as file:
        mounts = [line.split()[4] for line in file if " - cgroup2 " in line]
    return None if own is None or not mounts else (mounts[-1] + own).rstrip("/")


def _limits(path: str) -> Finding:
    try:
        with open(f"{path}/cgroup.subtree_control") as file:
            handed_on = file.read().split()
    except OSError:
        handed_on = []
    lacking = [name for name in _LIMITING if name not in handed_on]
    if not lacking:
        return Finding("cgroups", GOOD, f"a cgroup per attempt in {path}, with limits")
    mend = "boot with cgroup v2 alone (systemd.unified_cgroup_hierarchy=1), and use the units"
    sentence = f"a cgroup per attempt in {path}, without limits of {', '.join(lacking)}"
    return Finding("cgroups", NOTE, sentence, mend)


def _logind() -> Iterator[Finding]:
    """Source: logind.conf(5), RemoveIPC=; systemd.conf(5) for which file has the last word."""
    if not os.path.isdir("/run/systemd/system"):
        return
    places = [f"{folder}/systemd/logind.conf.d" for folder in reversed(_LOGIND_FOLDERS)]
    drop_ins = {os.path.basename(f): f for folder in places for f in glob.glob(f"{folder}/*.conf")}
    removes = "yes"
    for path in ("/etc/systemd/logind.conf", *(drop_ins[name] for name in sorted(drop_ins))):
        try:
            with open(path) as file:
                said = re.findall(r"^\s*RemoveIPC\s*=\s*(\w+)", file.read(), re.MULTILINE)
        except OSError:
            continue
        removes = said[-1] if said else removes
    if removes.lower() in ("no", "false", "off", "0"):
        yield Finding("logind", GOOD, "shared memory of jobs stays when their owner logs out")
        return
    mend = (
        "put `[Login]` and `RemoveIPC=no` into /etc/systemd/logind.conf.d/traind.conf and restart"
        " systemd-logind, or `loginctl enable-linger` for everybody who submits"
    )
    sentence = "whoever logs out loses the shared memory (/dev/shm) of jobs that still run"
    yield Finding("logind", NOTE, sentence, mend)


def _shared_memory() -> Finding:
    try:
        usage = shutil.disk_usage("/dev/shm")
        open_to_all = os.stat("/dev/shm").st_mode & (stat.S_IWOTH | stat.S_ISVTX)
    except OSError as failure:
        mend = "mount a tmpfs there: data loaders and NCCL need it"
        return Finding("shm", BAD, f"/dev/shm cannot be used: {failure.strerror}", mend)
    sentence = f"{usage.free >> 20} of {usage.total >> 20} MiB of /dev/shm are free"
    if open_to_all != stat.S_IWOTH | stat.S_ISVTX:
        return Finding("shm", BAD, "/dev/shm is not open to everybody", "chmod 1777 /dev/shm")
    if usage.free * 10 < usage.total:
        mend = "see who left files there (`ls -l /dev/shm`), and remove what nobody uses"
        return Finding("shm", BAD, f"only {sentence}", mend)
    return Finding("shm", GOOD, sentence)


def _clock() -> Finding:
    """Source: adjtimex(2), asked without changing anything (modes 0)."""
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if state == _TIME_ERROR:
        mend = "run a time service: `timedatectl set-ntp true`"
        return Finding("clock", NOTE, f"it is {now}, and no time service keeps it right", mend)
    return Finding("clock", GOOD, f"it is {now}")


def _descriptors(status: dict[str, Any]) -> Finding:
    """Of the daemon; of this process where none answers, as one started here has the same."""
    own, asked = "/proc/self/limits", f"/proc/{status.get('pid')}/limits"
    with open(asked if os.path.exists(asked) else own) as file:
        line = next(line for line in file if line.startswith("Max open files"))
    hard = line.split()[4]
    if hard == "unlimited" or int(hard) >= _DESCRIPTORS:
        return Finding("open files", GOOD, f"up to {hard}")
    mend = f"LimitNOFILE=65536 in the unit, or `ulimit -n {_DESCRIPTORS}` before `traind serve`"
    return Finding("open files", BAD, f"only {hard}, and every follower takes one", mend)
