"""The job's main process from the identity drop to its exec: never more than the job's person.

Standard library only: it is forked from a process that is root.
"""

import errno
import functools
import json
import os
import signal
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from traind.runner import login, python_env
from traind.runner.identity import Person

Spec = Mapping[str, Any]

_NOT_FOUND = (errno.ENOENT, errno.ENOTDIR)


class LaunchError(Exception):
    """The command cannot be exec'ed: at which step, and the sentence why."""

    def __init__(self, step: str, error: OSError, detail: str) -> None:
        super().__init__(detail)
        self.step = step
        self.error = error
        self.detail = detail


def refuse(errors: int, error: Exception) -> NoReturn:
    """Report over the pipe why nothing is exec'ed, and end. `exit_code` is as a shell's."""
    cause: OSError | None = None
    match error:
        case LaunchError():
            step, cause, detail = error.step, error.error, error.detail
        case OSError():
            step, cause, detail = "launch", error, f"it could not be prepared: {error.strerror}"
        case _:
            step, detail = "identity", f"it cannot run as its submitter: {error}"
    number = cause.errno or 0 if cause is not None else 0
    code = None if step not in ("exec", "python_env") else 127 if number in _NOT_FOUND else 126
    _report(errors, step=step, errno=number, detail=detail, exit_code=code)
    os._exit(1)


def must_pass(spec: Spec, errors: int, step: str, what: str) -> None:
    """Have the process ended where the next step hangs, and leave word for that case.

    SIGALRM, as nothing catches it yet, also ends who waits for a disk that never answers.
    """
    deadline_s = spec["launch_deadline_s"]
    detail = f"{what} did not answer within {deadline_s:g} s"
    _report(errors, step=step, errno=errno.ETIMEDOUT, detail=detail, exit_code=None, hung=True)
    signal.setitimer(signal.ITIMER_REAL, deadline_s)


def _past_all(errors: int) -> None:
    """Take the last word back."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.write(errors, b"null\n")


def _report(errors: int, **record: object) -> None:
    """Tell the shim, to whom the last line counts."""
    os.write(errors, json.dumps(record).encode() + b"\n")


class Ends(NamedTuple):
    """The main process's descriptors: its log, the barrier to wait at, the pipe for errors."""

    log: int
    barrier: int
    errors: int


def run(spec: Spec, path: str, person: Person, ends: Ends, *, new: bool) -> NoReturn:
    """Prepare as the job's person, wait at the barrier, exec; `new`: the process was somebody
    else before. Never returns.
    """
    try:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        os.umask(0o022)
        if new:
            login.settle_in(person)
        pass_by = functools.partial(must_pass, spec, ends.errors)
        pass_by("python_env", f"the Python environment {spec['python_env']!r}")
        env = _environment(spec, path, person)
        folder, workdir = env["TRAIND_CHECKPOINT_DIR"], spec["workdir"] or person.home
        pass_by("checkpoint_dir", f"the checkpoint directory {folder!r}")
        _make_checkpoint_dir(folder, asked=spec["checkpoint_dir"])
        pass_by("workdir", f"the working directory {workdir!r}")
        _enter(workdir)
        env["PWD"] = os.getcwd()
        file = f"{path}/work/script"
        if spec["script"] is not None:
            _write_script(file, spec["script"])
            given = env.get("PYTHONPATH")
            env["PYTHONPATH"] = f"{env['PWD']}:{given}" if given else env["PWD"]
        argv = _argv(spec, file)
        pass_by("exec", f"the program {argv[0][:200]!r}")
        program = _program(argv[0], env["PATH"])
        _past_all(ends.errors)
        os.dup2(ends.log, 1)
        if os.read(ends.barrier, 1) == b"g":
            _exec(program, argv, env)
    except LaunchError as failed:
        refuse(ends.errors, failed)
    os._exit(1)


def _environment(spec: Spec, path: str, person: Person) -> dict[str, str]:
    """What the job finds, built from nothing: as at login, then what the daemon says, then its
    Python environment, then what it says itself. Raises LaunchError.
    """
    usual = f"{person.home}/.local/bin:/usr/local/bin:/usr/bin:/bin"
    env = {"PATH": usual, "LANG": os.environ.get("LANG", "C.UTF-8")}
    env |= {"HOME": person.home, "USER": person.name, "LOGNAME": person.name}
    env |= {"SHELL": person.shell, "TRAIND_RUN_DIR": f"{path}/work"}
    env |= {"TRAIND_METRICS": f"{path}/metrics", "TRAIND_STOP_FILE": f"{path}/stop"}
    default = f"{person.home}/traind/{spec['job']}"
    env |= {"TRAIND_CHECKPOINT_DIR": spec["checkpoint_dir"] or default, **spec["env"]}
    if spec["python_env"] is None:
        return {**env, **spec["job_env"]}
    prefix = _python_prefix(spec["python_env"], person.home)
    env |= {**python_env.variables(prefix), **spec["job_env"]}
    return {**env, "PATH": f"{prefix}/bin:{env['PATH']}"}


def _python_prefix(wanted: str, home: str) -> str:
    """Where the Python environment lies. Raises LaunchError."""
    try:
        return python_env.locate(wanted, home)
    except FileNotFoundError as error:
        raise LaunchError("python_env", error, str(error.strerror)) from None


def _make_checkpoint_dir(path: str, *, asked: str | None) -> None:
    """Make it; only one that was asked for must succeed. Raises LaunchError."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        if asked is not None:
            detail = f"the checkpoint directory {asked!r} cannot be made: {error.strerror}"
            raise LaunchError("checkpoint_dir", error, detail) from None
        os.write(2, f"traind: {path} could not be made: {error.strerror}\n".encode())


def _enter(workdir: str) -> None:
    """Go where the job runs. Raises LaunchError."""
    try:
        os.chdir(workdir)
    except OSError as error:
        detail = f"the working directory {workdir!r} cannot be entered: {error.strerror}"
        raise LaunchError("workdir", error, detail) from None


def _write_script(path: str, script: str) -> None:
    """Put the script where its interpreter reads it. Raises LaunchError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(path, flags, 0o700), "wb") as file:
            file.write(script.encode())
    except OSError as error:
        detail = f"its script could not be written to {path!r}: {error.strerror}"
        raise LaunchError("script", error, detail) from None


def _argv(spec: Spec, script: str) -> list[str]:
    if spec["script"] is not None:
        return [*spec["interpreter"], script, *spec["script_args"]]
    if spec["argv"] is not None:
        return list(spec["argv"])
    shell = spec["shell"] or ("/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh")
    return [shell, "-c", spec["command"]]


def _exec(program: str, argv: list[str], env: Mapping[str, str]) -> NoReturn:
    """Become the command. Raises LaunchError."""
    try:
        os.execve(program, argv, env)
    except OSError as error:
        detail = f"{argv[0][:200]!r} could not be started: {error.strerror}"
        raise LaunchError("exec", error, detail) from None


def _program(name: str, path: str) -> str:
    """The file to exec: as the shell would look it up. Raises LaunchError."""
    if "/" in name:
        os.access(name, os.X_OK)  # whether it may is for the exec to say; its disk answers now
        return name
    found = [f"{folder or '.'}/{name}" for folder in path.split(":")]
    found = [file for file in found if os.path.isfile(file)]
    if not found:
        missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        detail = f"the program {name[:200]!r} was not found in PATH"
        raise LaunchError("exec", missing, detail)
    return next((file for file in found if os.access(file, os.X_OK)), found[0])
