"""A machine for a test: this one's files under an overlay, in namespaces; nothing of it stays.

What it is made of: unshare(1), an overlay of /, a cgroup tree of its own, and as process 1 either
systemd or nothing much. Wants root.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import DEADLINE_S, alive, eventually

ROOT = Path(__file__).parent.parent
PYTHON = "/usr/bin/python3"
SOURCE = "/src"
"""Where the machine has traind's source."""

SHIPPED = ("daemon", "systemd", "Makefile", "pyproject.toml", "README.md", "config.toml")
_SYSTEMD = "/lib/systemd/systemd"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MAKE = r"""
set -eu
cd "$1"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" root
cd root
mount -t proc proc proc
mount --bind "$2/boot_id" proc/sys/kernel/random/boot_id
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty; do
    touch dev/$name
    mount --bind /dev/$name dev/$name
done
mkdir dev/pts dev/shm run/old
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
pivot_root . run/old
umount -l /run/old
shift 2
exec "$@"
"""


class Machine:
    """One machine, which may be started several times; what it wrote to its disk stays for that."""

    patience_s = DEADLINE_S

    def __init__(self, folder: Path, *, like: "Machine | None" = None) -> None:
        """`like` is one that does not run, whose disk it gets a copy of."""
        self.folder = folder
        self.cgroup = _cgroup_mount() / f"traind-test-{uuid.uuid4().hex[:8]}"
        self.process: subprocess.Popen[bytes] | None = None
        self.init = 0
        for name in ("work", "root", "boot"):
            (folder / name).mkdir(parents=True)
        if like is not None:
            subprocess.run(["cp", "-a", like.folder / "upper", folder], check=True)
            return
        (folder / "upper").mkdir()
        # Nothing that this machine would start by itself; and journald keeps no disk busy.
        for wanted in Path("/etc/systemd/system").glob("*.wants/*"):
            (folder / "upper" / "etc" / "systemd" / "system").mkdir(parents=True, exist_ok=True)
            (folder / "upper" / "etc" / "systemd" / "system" / wanted.name).unlink(missing_ok=True)
            os.symlink(os.devnull, folder / "upper" / "etc/systemd/system" / wanted.name)

    def place(self, source: Path, at: str) -> None:
        """Put a file or a tree onto its disk before it is started."""
        target = self.folder / "upper" / at.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            skipped = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
            shutil.copytree(source, target, ignore=skipped)
            target.chmod(0o755)
        else:
            shutil.copy2(source, target)

    def place_source(self) -> None:
        """Put traind's source where `SOURCE` says."""
        for name in SHIPPED:
            self.place(ROOT / name, f"{SOURCE}/{name}")

    def start(self, *command: str) -> "Machine":
        """Start it with this command as process 1."""
        (self.folder / "boot" / "boot_id").write_text(f"{uuid.uuid4()}\n")
        log = (self.folder / "log").open("ab")
        self.cgroup.mkdir(exist_ok=True)
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts"]
        unshare += ["--net", "--cgroup", "--propagation=private"]
        unshare += ["sh", "-c", _MAKE, "sh", str(self.folder), str(self.folder / "boot")]
        # It enters its cgroup before the namespaces are made: their root is where it then is.
        enter = ["sh", "-c", 'echo $$ > "$0"; exec "$@"', str(self.cgroup / "cgroup.procs")]
        with log:
            self.process = subprocess.Popen(
                [*enter, *unshare, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={"PATH": _PATH, "container": "traind-test"},
            )
        self.init = eventually(self._init_pid, what=f"process 1 {self._said()}")
        return self

    def boot(self) -> "Machine":
        """Start it with systemd and wait until that is done."""
        systemd = (_SYSTEMD, "--unit=multi-user.target", "--show-status=no")
        self.start(*systemd)

        def up() -> bool:
            state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
            return state in ("running", "degraded")

        eventually(up, what=f"systemd's start {self._said()}")
        return self

    def _init_pid(self) -> int:
        """Process 1 as it is seen from here, once it stands on its own root."""
        assert self.process is not None
        assert self.process.poll() is None, self._said()
        with contextlib.suppress(FileNotFoundError, ValueError):
            pid = int(
                Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
            )
            if Path(f"/proc/{pid}/comm").read_text().strip() not in ("sh", "unshare"):
                return pid
        return 0

    def _said(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-2000:]

    def run(
        self,
        *command: str,
        check: bool = True,
        timeout: float = DEADLINE_S,
        user: str | None = None,
        **env: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as root or as one of its users."""
        enter = ["nsenter", "--target", str(self.init), "--all"]
        become = ["runuser", "-u", user, "--"] if user else []
        done = subprocess.run(
            [*enter, *become, *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            env={"PATH": _PATH, "LANG": "C.UTF-8", "SYSTEMD_PAGER": "cat"} | env,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
        return done

    def shut_down(self) -> None:
        """Have systemd stop everything, as at a reboot."""
        self.run("systemctl", "poweroff", check=False)
        self._reap()

    def cut(self) -> None:
        """Take the power away."""
        if self.process is not None and alive(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.init or self.process.pid, signal.SIGKILL)
        self._reap()

    def _reap(self) -> None:
        if self.process is not None:
            self.process.wait(DEADLINE_S)
            self.process, self.init = None, 0
        if self.cgroup.exists():
            eventually(self._cgroup_gone, what="the end of the machine's cgroups")

    def _cgroup_gone(self) -> bool:
        try:
            for path, _, _ in os.walk(self.cgroup, topdown=False):
                os.rmdir(path)
        except OSError:
            return False
        return True


def _cgroup_mount() -> Path:
    unified = Path("/sys/fs/cgroup/unified")
    return unified if unified.is_dir() else Path("/sys/fs/cgroup")


@contextlib.contextmanager
def machine_in(folder: Path, *, like: Machine | None = None) -> Iterator[Machine]:
    """A machine that is not started yet."""
    machine = Machine(folder, like=like)
    try:
        yield machine
    finally:
        machine.cut()


def why_not() -> str:
    """Why no machine can be made here; empty where one can."""
    if os.getuid() != 0:
        return "a machine of its own wants root"
    if not Path(_SYSTEMD).exists():
        return "systemd is not installed here"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--cgroup", "mount", "-t", "tmpfs", "x", "/mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    return tried.stderr.strip()


def wheels_in(folder: Path, *, python: str | None = None) -> Path:
    """Everything that pip wants for an installation, for machines without a network.

    `python` is the version they have, such as 3.11; None stands for that of this machine.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    own = [PYTHON, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    version = python or subprocess.check_output(own, text=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
    pip += ["--python-version", version.strip(), "--dest", str(folder)]
    subprocess.run([*pip, *wanted], check=True, timeout=300, capture_output=True)
    return folder


needs_machine = pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can")
