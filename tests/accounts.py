"""Real accounts, and a daemon that serves them: its launcher as root, itself as an account apart.

Only root can make accounts; elsewhere these tests are skipped.
"""

import contextlib
import importlib.metadata
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from contract import CheckedDaemon
from harness import DEADLINE_S, SHORT, Answer, alive, eventually

SOURCE = Path(__file__).parent.parent / "daemon" / "traind"
MARKS = [
    pytest.mark.root,
    pytest.mark.skipif(os.getuid() != 0, reason="only root can make accounts"),
    pytest.mark.skipif(shutil.which("useradd") is None, reason="useradd is not installed here"),
]


@dataclass(frozen=True)
class Person:
    """An account of the box."""

    name: str
    uid: int
    gid: int
    home: Path

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Meanwhile this process is the person to the kernel: to files, and to whom it calls."""
        os.setgroups(os.getgrouplist(self.name, self.gid) if self.uid else [0])
        os.setegid(self.gid)
        os.seteuid(self.uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups([0])

    def popen(self, command: list[str], **settings: Any) -> subprocess.Popen[str]:
        """A program that the person runs."""
        groups = os.getgrouplist(self.name, self.gid)
        return subprocess.Popen(
            command,
            user=self.uid,
            group=self.gid,
            extra_groups=groups,
            cwd="/",
            text=True,
            **settings,
        )


@dataclass(frozen=True)
class Village:
    """Who lives on the box: two who submit, one who operates, the daemon's account, and root; and
    three groups: of the operators, one that alice is in, one that nobody is in.
    """

    alice: Person
    bob: Person
    carol: Person
    daemon: Person
    root: Person
    operators: str
    extra: str
    gpus: str
    folder: Path
    python: str
    tree: Path


@dataclass
class SharedDaemon(CheckedDaemon):
    """A daemon that serves every account, as a system install runs it."""

    village: Village | None = None
    launcher: subprocess.Popen[str] | None = None
    launcher_flags: tuple[str, ...] = ()
    children: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def people(self) -> Village:
        """The accounts of the box."""
        assert self.village is not None
        return self.village

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.people.folder / "run" / f"{self.home.parent.name}.sock"

    @property
    def launcher_socket(self) -> Path:
        """Where its launcher listens."""
        return self.home / "launcher.sock"

    def _python(self, module: str) -> list[str]:
        return [self.people.python, "-m", module]

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(self.people.tree),
            "PYTHONDONTWRITEBYTECODE": "1",
            **self.env,
        }

    def start_launcher(self) -> None:
        """Start the half that is root."""
        command = [*self._python("traind.runner.launcher"), "--state-dir", str(self.state_dir)]
        command += ["--socket", str(self.launcher_socket), "--for", self.people.daemon.name]
        with self.log.open("a") as log:
            self.launcher = subprocess.Popen(
                [*command, *self.launcher_flags], stderr=log, cwd="/", env=self._environment()
            )
        self.children.append(self.launcher)
        eventually(self._launcher_listens, what="the launcher's socket")

    def _launcher_listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(self.launcher_socket))
            return True
        return False

    def start(self, **env: str) -> "SharedDaemon":
        """Start both halves, as far as they do not run, and wait until it serves."""
        self._begin(env)
        self.await_ready()
        return self

    def refuses_to_start(self) -> int:
        """The exit code of a daemon that will not run."""
        process = self._begin({})
        return process.wait(DEADLINE_S)

    def _begin(self, env: dict[str, str]) -> subprocess.Popen[str]:
        if self.launcher is None or self.launcher.poll() is not None:
            self.start_launcher()
        config = self.home / "config.toml"
        access = f'\n[access]\noperators = "{self.people.operators}"\n'
        config.write_text(self.config + ("" if "[access]" in self.config else access))
        command = [*self._python("traind"), "serve", "--config", str(config)]
        command += ["--state-dir", str(self.state_dir), "--socket", str(self.socket)]
        command += ["--launcher", str(self.launcher_socket), "--simulate", "2x24GiB", *self.flags]
        with self.log.open("a") as log:
            self.process = self.people.daemon.popen(
                command, stdout=subprocess.PIPE, stderr=log, env=self._environment() | env
            )
        self.children.append(self.process)
        return self.process

    def asked_by(
        self, who: Person, method: str, path: str, body: Any = None, **more: Any
    ) -> Answer:
        """One call of the API by this person."""
        with who.acting():
            return self.ask(method, path, body, **more)

    def ordered(self, who: Person, command: str | list[str], **fields: Any) -> int:
        """The id of a job that this person submits."""
        with who.acting():
            return self.submit(command, **fields)

    def result(self, who: Person, command: str, **fields: Any) -> str:
        """What a job of this person's wrote to its log, once it succeeded."""
        number = self.ordered(who, command, **fields)
        self.wait(number, outcome="succeeded")
        return self.log_of(number)

    def cli_of(self, who: Person, *args: str) -> subprocess.CompletedProcess[str]:
        """The real command line, run by this person."""
        process = who.popen(
            [*self._python("traind"), *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment() | {"TRAIND_SOCKET": str(self.socket), "HOME": str(who.home)},
        )
        out, err = process.communicate(timeout=DEADLINE_S)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def clean_up(self) -> None:
        """End every process of this state directory."""
        for child in self.children:
            if alive(child.pid):
                child.kill()
        super().clean_up()
        for child in self.children:
            child.wait(DEADLINE_S)
            if child.stdout is not None:
                child.stdout.close()


@pytest.fixture(scope="session")
def village() -> Iterator[Village]:
    """Four new accounts with homes, and a tree of Python that all of them can read."""
    folder = Path(tempfile.mkdtemp(prefix="traind-village-"))
    folder.chmod(0o755)
    mark = re.sub(r"[^a-z0-9]", "", folder.name.rpartition("-")[2].lower())
    names: list[str] = []
    operators, extra, gpus = (f"td{kind}{mark}" for kind in ("ops", "lab", "gpu"))
    try:
        for group in (operators, extra, gpus):
            _administer("groupadd", group)
        people = {}
        for who, groups in (("alice", extra), ("bob", ""), ("carol", operators), ("daemon", "")):
            name = f"td{who}{mark}"
            home = folder / "home" / who
            flags = ["--system"] if who == "daemon" else []
            flags += ["--groups", groups] if groups else []
            _administer(
                *("useradd", "--no-create-home", "--user-group", "--shell", "/bin/bash"),
                *("--home-dir", str(home), *flags, name),
            )
            names.append(name)
            people[who] = _person(name, home)
            home.mkdir(parents=True)
            os.chown(home, people[who].uid, people[who].gid)
        run = folder / "run"
        run.mkdir()
        os.chown(run, people["daemon"].uid, -1)
        yield Village(
            **people,
            root=Person("root", 0, 0, Path("/root")),
            operators=operators,
            extra=extra,
            gpus=gpus,
            folder=folder,
            tree=_tree(folder / "tree"),
            python=_python_for(people["bob"]),
        )
    finally:
        for name in names:
            _administer("userdel", name)
        for group in (operators, extra, gpus):
            _administer("groupdel", group)
        shutil.rmtree(folder)


def _administer(*command: str) -> None:
    """Change the accounts, once nobody else does: their files have one lock. Who still has a
    process that was not reaped yet cannot be removed either.
    """

    def done() -> bool:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        # 1, 10: somebody else changes them; 8: a process of the account is just ending.
        assert found.returncode in (0, 1, 8, 10), found.stderr
        return found.returncode == 0

    eventually(done, what=" ".join(command))


def _person(name: str, home: Path) -> Person:
    ids = [int(subprocess.check_output(["id", flag, name])) for flag in ("-u", "-g")]
    return Person(name, ids[0], ids[1], home)


def _python_for(person: Person) -> str:
    """An interpreter of this version that the person can execute."""
    for python in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            told = person.popen(
                [python, "-c", "import sys; print(*sys.version_info[:2])"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            ).communicate(timeout=DEADLINE_S)[0]
            if told.split() == [str(part) for part in sys.version_info[:2]]:
                return python
    pytest.skip("no Python of this version can be executed by other accounts")


def _tree(folder: Path) -> Path:
    """A copy of traind and of all that it imports."""
    shutil.copytree(SOURCE, folder / "traind", ignore=shutil.ignore_patterns("__pycache__"))
    left, seen = ["traind"], set[str]()
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found = importlib.metadata.distribution(name)
            needs = [need for need in found.requires or () if "extra ==" not in need]
            left += [re.split(r"[^A-Za-z0-9_.-]", need)[0] for need in needs]
            for file in (found.files or ()) if name != "traind" else ():
                if ".." not in file.parts and file.suffix != ".pyc":
                    target = folder / file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(found.locate_file(file), target)
    return folder


def shared_daemon(village: Village, name: str) -> SharedDaemon:
    """A shared daemon that is not started yet, with folders that all may enter."""
    folder = village.folder / name
    home = folder / "etc"
    home.mkdir(parents=True)
    return SharedDaemon(
        state_dir=folder / "state", home=home, village=village, config=SHORT, simulate=None
    )
