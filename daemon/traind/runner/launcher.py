"""The launcher: forks a shim per attempt, signals it, ends what outlived it; knows no job.

The only process that is root in a system install: standard library, one thread, no network. What
it is told comes as one JSON object a line; a new connection closes older ones unread.
"""

import argparse
import contextlib
import functools
import gc
import hashlib
import json
import os
import pwd
import select
import signal
import socket
import struct
import traceback
from collections.abc import Callable
from typing import Any

from traind.runner import Failpoint, cgroup, errand, identity, rundir, shim

PROTOCOL = 1
_LINE_MAX = 32 << 20
_VERBS = ("start", "abort", "announce", "signal", "delete")
_PROOFS = {"log", "lock", "shim.json", "exec.intent", "exit.json", "tombstone"}
"""How it ended: by these a daemon on an older database finds it out when the rest is gone."""

Message = dict[str, Any]


class Launcher:
    """Serves one daemon at a time over its socket; its children are shims and errands."""

    def __init__(self, args: argparse.Namespace) -> None:
        state_dir = os.path.realpath(args.state_dir)
        self.user = _lay_out(state_dir, args.user)
        self.until_idle: bool = args.until_idle
        name = "traind-" + hashlib.sha256(state_dir.encode()).hexdigest()[:12]
        cgroups = cgroup.home(name) if args.cgroups == "auto" else None
        pause, others = Failpoint(test_mode=args.test_mode), self.user != os.getuid()
        self.box = shim.Box(state_dir, cgroups, others, args.gpu_group, pause)
        self.children: dict[int, str] = {}
        self.daemon: socket.socket | None = None
        self.unread = b""
        self.listener = _listen(args.socket, self.user)
        os.umask(0)  # from here on every mode is given where a file is made
        self.wakeup, wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        shim.prctl(shim.SUBREAPER, 1)

    def serve(self) -> None:
        """Serve until nobody needs it: no daemon and no shim, where it was started so."""
        idle_s = 30.0 if self.until_idle else None
        while True:
            waited: list[Any] = [self.listener, self.wakeup, *filter(None, [self.daemon])]
            ready = select.select(waited, [], [], idle_s)[0]
            if self.wakeup in ready:
                os.read(self.wakeup, 4096)
                self._reap()
            if self.listener in ready:
                self._accept()
            elif self.daemon in ready:
                self._receive()
            elif not ready:
                break
            idle_s = None if not self.until_idle or self.daemon or self.children else 0.2
        if self.box.cgroups:
            cgroup.remove(self.box.cgroups)

    def _accept(self) -> None:
        """Let the user's newest daemon have the say; nobody else but root is heard."""
        connection = self.listener.accept()[0]
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        if struct.unpack("3i", peer)[1] not in (0, self.user):
            connection.close()
            return
        self._hang_up()
        self.daemon, self.unread = connection, b""

    def _hang_up(self) -> None:
        if self.daemon is not None:
            self.daemon.close()
            self.daemon = None

    def _receive(self) -> None:
        """Answer what stands in the buffer; after each line a newer daemon may have the say."""
        received = b""
        with contextlib.suppress(OSError):
            received = self.daemon.recv(1 << 20) if self.daemon else b""
        self.unread += received
        if not received or len(self.unread) > _LINE_MAX:
            self._hang_up()
        while b"\n" in self.unread and self.daemon is not None:
            line, _, self.unread = self.unread.partition(b"\n")
            with contextlib.suppress(OSError):
                self.daemon.sendall(json.dumps(self._answer(line)).encode() + b"\n")
            if select.select([self.listener], [], [], 0)[0]:
                self._accept()

    def _answer(self, line: bytes) -> Message:
        message: Message = {}
        try:
            message = {**json.loads(line)}
            if message.get("op") == "hello":
                return {"id": message["id"], **self._hello()}
            if message.get("op") not in _VERBS:
                raise ValueError(f"this is no order; known are hello, {', '.join(_VERBS)}")
            spec = message.get("spec", message)
            job, attempt = int(spec["job"]), int(spec["attempt"])
            path = rundir.attempt_path(self.box.state_dir, job, attempt)
            answer = getattr(self, f"_{message['op']}")(path, message)
        except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else repr(error)
            answer = {"error": why}
        return {"id": message.get("id"), **answer}

    def _hello(self) -> Message:
        box, runs = self.box, filter(str.isdecimal, os.listdir(f"{self.box.state_dir}/runs"))
        facts: Message = {"others": box.others, "cgroups": box.cgroups, "gpu_group": box.gpu_group}
        facts |= {"protocol": PROTOCOL, "pid": os.getpid()}
        return {"highest_run": max(map(int, runs), default=0), **facts}

    def _start(self, path: str, message: Message) -> Message:
        spec, label = message["spec"], ".".join(path.rsplit("/", 2)[1:])
        self.box.pause("launcher.asked", label)
        owner = identity.bare(int(spec["uid"])).uid
        laid_out = rundir.lay_out(path, json.dumps(spec).encode(), owner)
        if laid_out is None:
            return {"answer": "exists"}
        self.box.pause("launcher.laid_out", label)
        try:
            pid = cgroup.fork_aside(self.box.cgroups)
            if pid == 0:
                try:
                    shim.run(spec, self.box, *laid_out)
                except BaseException:  # noqa: BLE001 whatever it is, it must not go on in here
                    traceback.print_exc()
                finally:
                    os._exit(70)
            self.children[pid] = "shim"
        finally:
            for descriptor in laid_out:
                os.close(descriptor)
        self.box.pause("launcher.forked", label)
        return {"answer": "started", "pid": pid}

    def _abort(self, path: str, _: Message) -> Message:
        return {"answer": "tombstone" if rundir.bury(path) else "exists"}

    def _announce(self, path: str, message: Message) -> Message:
        rundir.write_record(path, "stop", message["stop"], mode=0o644)
        return {"answer": "announced"}

    def _as_submitter(self, path: str, do: Callable[[], int]) -> int:
        uid = rundir.read_record(path, "spec").get("uid", identity.NOBODY)
        return identity.fork_as(identity.bare(uid), do)

    def _signal(self, path: str, message: Message) -> Message:
        """A signal to the main process or to `all`; `seen` says how many of these there were.

        SIGKILL to all reaches by their cgroup also those who became somebody else.
        """
        number, everyone = signal.Signals["SIG" + message["signal"]], message["scope"] == "all"
        record, main = (rundir.read_record(path, name) for name in ("shim.json", "exec.intent"))
        to_all = functools.partial(errand.signal_all, path, record, main, number)
        to_main = functools.partial(errand.signal_main, main, number)
        errand_pid = self._as_submitter(path, to_all if everyone else to_main)
        seen = os.waitstatus_to_exitcode(os.waitpid(errand_pid, 0)[1])
        if seen == 255:
            raise ChildProcessError("it could not be done as the submitter")
        self._reap()
        if everyone and number == signal.SIGKILL and record.get("cgroup"):
            (cgroup.kill if seen else cgroup.remove)(record["cgroup"])
        return {"answer": "sent" if seen else "gone", "seen": seen}

    def _delete(self, path: str, message: Message) -> Message:
        """Delete an ended attempt's files; asked again until the answer is `deleted`. What its
        submitter could write is emptied as them, in a child: it may be large.
        """
        if path in self.children.values():  # what it empties is not there to be looked at
            return {"answer": "deleting"}
        if not os.path.lexists(path):
            return {"answer": "deleted"}
        if os.path.realpath(path) != path:
            raise ValueError(f"{path} is a link, or below one")
        names = set(os.listdir(path)) - (_PROOFS if message["keep_log"] else set())
        trees = [each.path for each in os.scandir(path) if each.is_dir(follow_symlinks=False)]
        full = next(filter(os.listdir, trees), None)
        if full is not None:
            empty = functools.partial(errand.empty_tree, full)
            self.children[self._as_submitter(path, empty)] = path
            return {"answer": "deleting"}
        for name in sorted(names, key=("spec", "lock").__contains__):  # they are needed till then
            (os.rmdir if f"{path}/{name}" in trees else os.unlink)(f"{path}/{name}")
        if not message["keep_log"]:
            os.rmdir(path)
            with contextlib.suppress(OSError):  # other attempts are still there
                os.rmdir(os.path.dirname(path))
        return {"answer": "deleted"}

    def _reap(self) -> None:
        """Collect ended children; any that is none of ours is an orphan without a shim: end it."""
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                self.children.pop(pid, None)
        for child in set(shim.own_children()) - self.children.keys():
            os.kill(child, signal.SIGKILL)


def _lay_out(state_dir: str, name: str | None) -> int:
    """Make what is missing of the state directory; the uid of the daemon that is served."""
    try:
        user = pwd.getpwnam(name) if name else None
    except KeyError:
        raise SystemExit(f"traind-launcher: there is no account {name!r}; make it first") from None
    others = user is not None and user.pw_uid != os.getuid()
    if others and os.getuid() != 0:
        raise SystemExit(f"traind-launcher: only root starts jobs of others for {name}")
    os.umask(0o022)
    os.makedirs(state_dir, 0o755 if others else 0o700, exist_ok=True)
    os.makedirs(f"{state_dir}/runs", 0o711, exist_ok=True)
    if user is None or not others:
        return os.getuid()
    with contextlib.suppress(FileExistsError):
        os.mkdir(f"{state_dir}/daemon", 0o700)
        os.chown(f"{state_dir}/daemon", user.pw_uid, user.pw_gid)
    for found in (os.lstat(state_dir), os.lstat(f"{state_dir}/runs")):
        if found.st_uid != 0 or found.st_mode & 0o022:
            raise SystemExit(f"traind-launcher: {state_dir} and its runs must be root's alone")
    os.setgroups([])
    os.setgid(user.pw_gid)  # by its group the daemon reads what is made from here on
    return user.pw_uid


def _listen(path: str, user: int) -> socket.socket:
    """The socket that systemd made (sd_listen_fds(3)), or one of its own that is the user's."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        os.set_inheritable(3, False)
        return socket.socket(fileno=3)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    os.umask(0o177)
    os.chdir(os.path.dirname(os.path.abspath(path)))  # an address holds 107 bytes only
    listener.bind(os.path.basename(path))
    os.chown(os.path.basename(path), user, -1)
    listener.listen(8)
    return listener


def main() -> None:
    """Run the launcher until it is ended, or idle where it was started so."""
    parser = argparse.ArgumentParser(prog="traind-launcher", allow_abbrev=False)
    parser.add_argument("--state-dir", required=True)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--for", dest="user", metavar="USER", help="whose daemon is served")
    parser.add_argument("--cgroups", choices=("auto", "off"), default="auto")
    parser.add_argument("--gpu-group", default="traind-gpu", help="what /dev/nvidia* belong to")
    parser.add_argument("--until-idle", action="store_true")
    parser.add_argument("--test-mode", action="store_true", help=argparse.SUPPRESS)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is signal.SIG_IGN and number is not signal.SIGPIPE:
            signal.signal(number, signal.SIG_DFL)
    launcher = Launcher(parser.parse_args())
    gc.freeze()  # a shim that collects garbage would copy every page of the launcher
    gc.disable()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    launcher.serve()


if __name__ == "__main__":
    main()
