"""A machine in qemu: a kernel of its own with every cgroup controller, and systemd as process 1.

It is reached by ssh over loopback. Its Debian is built once, below build/vm; the disk of a run is
that with the present traind installed, and is written for as long as the run lasts.
"""

import contextlib
import hashlib
import os
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from harness import eventually
from machine import ROOT, SHIPPED, wheels_in

CACHE = ROOT / "build" / "vm"
_IMAGE = Path(__file__).parent / "image.sh"
_PYTHON = "3.11"
"""Of the Debian that image.sh builds."""

_TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "ssh": "openssh-client",
    "unshare": "util-linux",
}
"""What must be installed, each with its Debian package."""

_KERNEL_LINE = (
    "root=/dev/vda rw console=ttyS0 quiet systemd.show_status=0 mitigations=off nokaslr audit=0 "
    "random.trust_cpu=1 net.ifnames=0"
)


def why_not() -> str:
    """Why no such machine can be made here; empty where one can."""
    missing = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    if missing:
        return f"`make test-vm` needs more: apt-get install {' '.join(missing)}"
    if os.getuid() != 0:
        return "`make test-vm` wants root, to build the machine's disk: sudo make test-vm"
    return ""


def _accelerator() -> str:
    """The processor's own virtualisation where it is to be had; else qemu translates, slowly."""
    capable = re.search(r"\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text())
    return "kvm" if capable and os.access("/dev/kvm", os.W_OK) else "tcg,thread=multi,tb-size=512"


class Guest:
    """One machine, which may be started several times; what it wrote to its disk stays for that."""

    patience_s = 600.0

    def __init__(self, folder: Path, settings: str) -> None:
        """`settings` are those of its traind."""
        self.folder, self.base = folder, _base()
        self.disk, self.key = folder / "disk.img", folder / "key"
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0
        make_key = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        subprocess.run(make_key, check=True, timeout=60)
        files = folder / "files"
        _lay_out(files, settings)
        arguments = ("disk", self.base, files, f"{self.key}.pub", self.disk)
        subprocess.run([_IMAGE, *arguments], check=True, timeout=600)

    def boot(self) -> "Guest":
        """Start it and wait until systemd has nothing more to do."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        boot = self.base / "boot"
        drive = f"file={self.disk},if=none,id=disk,format=raw,cache=unsafe"
        network = f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:22"
        qemu = ["qemu-system-x86_64", "-machine", "pc", "-accel", _accelerator(), "-cpu", "qemu64"]
        qemu += ["-smp", "2", "-m", "1536", "-nodefaults", "-no-user-config", "-no-reboot"]
        qemu += ["-display", "none", "-serial", f"file:{self.folder / 'console'}"]
        qemu += ["-kernel", str(next(boot.glob("vmlinuz-*")))]
        qemu += ["-initrd", str(next(boot.glob("initrd.img-*"))), "-append", _KERNEL_LINE]
        qemu += ["-drive", drive, "-device", "virtio-blk-pci,drive=disk"]
        qemu += ["-netdev", network, "-device", "virtio-net-pci,netdev=net,romfile="]
        self.process = subprocess.Popen([*qemu, "-device", "virtio-rng-pci"])
        eventually(self._answers, what="sshd on the machine", deadline_s=self.patience_s)
        self.run("systemctl", "is-system-running", "--wait", check=False)
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "console").read_text(errors="replace")
        return self._ssh("root", "true", timeout=60).returncode == 0

    def run(
        self,
        *command: str,
        check: bool = True,
        timeout: float = patience_s,
        user: str | None = None,
        **env: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as root or, without a login, as one of its users."""
        settings = [f"{name}={value}" for name, value in {"LANG": "C.UTF-8", **env}.items()]
        become = ["runuser", "-u", user, "--"] if user else []
        words = shlex.join(["env", *settings, *become, *command])
        done = self._ssh("root", words, timeout=timeout)
        assert not check or done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
        return done

    def log_in(self, user: str, command: str) -> str:
        """What a command says that somebody types who logs in for it, and out again."""
        done = self._ssh(user, command, timeout=self.patience_s)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _ssh(self, user: str, words: str, *, timeout: float) -> subprocess.CompletedProcess[str]:
        ssh = ["ssh", "-q", "-i", str(self.key), "-p", str(self.port), "-o", "ConnectTimeout=10"]
        ssh += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        if user == "root":  # one connection for all that root does
            ssh += ["-o", "ControlMaster=auto", "-o", "ControlPersist=60"]
            ssh += ["-o", f"ControlPath={self.folder / f'ssh-{self.port}'}"]
        return subprocess.run(
            [*ssh, f"{user}@127.0.0.1", "--", words],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def shut_down(self) -> None:
        """Have systemd stop everything, as at a reboot."""
        assert self.process is not None
        self.run("systemctl", "reboot", check=False)
        self.process.wait(self.patience_s)

    def cut(self) -> None:
        """Take the power away."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def _base() -> Path:
    """The Debian, built once for each version of the script that builds it."""
    recipe = hashlib.sha256(_IMAGE.read_bytes()).hexdigest()[:12]
    base = CACHE / f"debian-{recipe}"
    if not base.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        subprocess.run([_IMAGE, "base", base], check=True, timeout=1800)
    return base


def _lay_out(files: Path, settings: str) -> None:
    """What the machine's disk holds beside its Debian."""
    for name in SHIPPED:
        source, target = ROOT / name, files / "src" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, target, ignore=skipped)
        else:
            shutil.copy2(source, target)
    (files / "wheels").mkdir()
    wheels_in(files / "wheels", python=_PYTHON)
    (files / "etc" / "traind").mkdir(parents=True)
    (files / "etc" / "traind" / "config.toml").write_text(settings)


@contextlib.contextmanager
def guest_in(folder: Path, settings: str) -> Iterator[Guest]:
    """A machine that is not started yet; its disk goes with it."""
    guest = Guest(folder, settings)
    try:
        yield guest
    finally:
        guest.cut()
        guest.disk.unlink()
