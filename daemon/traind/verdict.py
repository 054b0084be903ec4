"""How an ending is judged: outcome and cause of an attempt, by its exit and the evidence. Pure."""

from dataclasses import dataclass, replace

from traind.causes import Cause, CauseCode
from traind.job import Exit, Job, Lost, NeverStarted, Outcome, StopReason

TEMPFAIL = 75
"""EX_TEMPFAIL of sysexits.h: "checkpointed, run me again"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How one attempt ended: outcome and cause, with the exit as far as it is known.

    `faulty` are the UUIDs of the GPUs that failed under it.
    """

    outcome: Outcome
    cause: Cause
    exit_code: int | None = None
    signal: str | None = None
    faulty: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuEvidence:
    """What is known against the GPUs of an attempt: `fault` says how those in `faulty` failed,
    `misuse` what the attempt itself did to them; None when there is nothing.
    """

    fault: str | None = None
    faulty: frozenset[str] = frozenset()
    misuse: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Testimony:
    """What the end of its log says that an attempt died of, weighed against what else is known.

    `faulty` are the UUIDs of GPUs that it had better not get again.
    """

    code: CauseCode
    sentence: str
    faulty: frozenset[str] = frozenset()


Ending = Exit | Lost | NeverStarted

_LAUNCH_CAUSES = {
    "identity": CauseCode.IDENTITY,
    "workdir": CauseCode.WORKDIR,
    "python_env": CauseCode.PYTHON_ENV,
}


_OUTCOMES = {
    CauseCode.CUDA_OOM_SELF: Outcome.OUT_OF_MEMORY,
    CauseCode.CUDA_OOM_NEIGHBOUR: Outcome.OUT_OF_MEMORY,
    CauseCode.HOST_OOM: Outcome.OUT_OF_MEMORY,
    CauseCode.GPU_FAULT: Outcome.GPU_FAULT,
}
"""What a log's testimony makes of a failure; any other one leaves it that."""

_UNEXPLAINED = frozenset({CauseCode.EXIT_CODE, CauseCode.SIGNAL})
_NOTHING = GpuEvidence()


def judge(
    job: Job, ending: Ending, gpus: GpuEvidence = _NOTHING, testimony: Testimony | None = None
) -> Verdict:
    """What an ending means for the attempt, given what was asked of the job meanwhile, what is
    known against its GPUs, and what its log says: the earlier outweighs the later.
    """
    match ending:
        case NeverStarted(detail=detail):
            known = Verdict(
                outcome=Outcome.LOST, cause=Cause(code=CauseCode.NEVER_STARTED, detail=detail)
            )
        case Lost(reboot=True):
            known = _lost(CauseCode.REBOOT, "the machine was restarted while it ran")
        case Lost():
            known = _lost(
                CauseCode.SHIM_LOST,
                "its supervisor was killed, so nobody knows how it ended; what was left of it "
                "was ended",
            )
        case Exit():
            known = _explained(_blamed(_judge_exit(job, ending), gpus), testimony)
    return _stopped(job, known, gpus)


def _blamed(known: Verdict, gpus: GpuEvidence) -> Verdict:
    """The verdict as its GPUs change it: a failure is theirs when they failed."""
    if known.outcome is not Outcome.FAILED or known.cause.code is CauseCode.CHECKPOINTED:
        return known
    how = known.cause.detail
    if gpus.fault is not None:
        cause = Cause(code=CauseCode.GPU_FAULT, detail=f"{gpus.fault}; {how}")
        return replace(known, outcome=Outcome.GPU_FAULT, cause=cause, faulty=gpus.faulty)
    if gpus.misuse is not None:
        cause = Cause(code=CauseCode.CUDA_APP_BUG, detail=f"{gpus.misuse}; {how}")
        return replace(known, cause=cause)
    return known


def _explained(known: Verdict, testimony: Testimony | None) -> Verdict:
    """The verdict with what the log says, where nothing better explains a failure."""
    unexplained = known.outcome is Outcome.FAILED and known.cause.code in _UNEXPLAINED
    if testimony is None or not unexplained:
        return known
    detail = f"{testimony.sentence}; {known.cause.detail}"
    return replace(
        known,
        outcome=_OUTCOMES.get(testimony.code, Outcome.FAILED),
        cause=Cause(code=testimony.code, detail=detail),
        faulty=testimony.faulty,
    )


def _lost(code: CauseCode, detail: str) -> Verdict:
    return Verdict(outcome=Outcome.LOST, cause=Cause(code=code, detail=detail))


def _exec_cause(exit_code: int | None) -> CauseCode:
    match exit_code:
        case 127:
            return CauseCode.COMMAND_NOT_FOUND
        case 126:
            return CauseCode.NOT_EXECUTABLE
        case _:
            return CauseCode.LAUNCH


def _judge_exit(job: Job, ending: Exit) -> Verdict:
    if ending.launch_error is not None:
        error = ending.launch_error
        known = _LAUNCH_CAUSES.get(error.step)
        cause = Cause(code=known or _exec_cause(ending.exit_code), detail=error.detail)
        return Verdict(outcome=Outcome.LAUNCH_FAILED, cause=cause, exit_code=ending.exit_code)
    if ending.signal is not None:
        if ending.oom_kills and ending.signal == "KILL":
            return _out_of_host_memory(ending, f"it was killed because {_whose_limit(job, ending)}")
        cause = Cause(code=CauseCode.SIGNAL, detail=_signal_sentence(ending.signal))
        return Verdict(outcome=Outcome.FAILED, cause=cause, signal=ending.signal)
    code = ending.exit_code or 0
    if ending.oom_kills and code not in (0, TEMPFAIL):
        killed = "process of it was" if ending.oom_kills == 1 else "processes of it were"
        return _out_of_host_memory(
            ending,
            f"{ending.oom_kills} {killed} killed because {_whose_limit(job, ending)}; "
            f"it exited with code {code}",
        )
    if code == 0:
        cause = Cause(code=CauseCode.EXIT_CODE, detail="it exited with code 0")
        return Verdict(outcome=Outcome.SUCCEEDED, cause=cause, exit_code=0)
    if code == TEMPFAIL:
        detail = "it exited with code 75: checkpointed, run me again"
        cause = Cause(code=CauseCode.CHECKPOINTED, detail=detail)
    elif code == 127 and job.spec.command is not None:
        cause = Cause(
            code=CauseCode.COMMAND_NOT_FOUND,
            detail="the shell found no such command (exit code 127); see its log",
        )
    elif code == 127 and job.spec.script is not None:
        cause = Cause(
            code=CauseCode.COMMAND_NOT_FOUND,
            detail="its script found no such command (exit code 127); see its log",
        )
    else:
        cause = Cause(code=CauseCode.EXIT_CODE, detail=f"it exited with code {code}")
    return Verdict(outcome=Outcome.FAILED, cause=cause, exit_code=code)


def _whose_limit(job: Job, ending: Exit) -> str:
    if ending.oom_at_limit:
        return f"it had used up the {job.spec.memory_mib} MiB of host memory that it asked for"
    return "all jobs together, or the machine, ran out of host memory"


def _out_of_host_memory(ending: Exit, detail: str) -> Verdict:
    return Verdict(
        outcome=Outcome.OUT_OF_MEMORY,
        cause=Cause(code=CauseCode.HOST_OOM, detail=detail),
        exit_code=ending.exit_code,
        signal=ending.signal,
    )


_SIGNAL_HINTS = {
    "KILL": "which somebody sent, or the kernel for want of host memory",
    "BUS": "as programs are that find the shared memory (/dev/shm) full",
}


def _signal_sentence(signal: str) -> str:
    hint = _SIGNAL_HINTS.get(signal)
    return f"it was ended by SIG{signal}" + (f", {hint}" if hint else "")


def _stopped(job: Job, known: Verdict, gpus: GpuEvidence) -> Verdict:
    """The verdict as the order to stop changes it: who asked for the end gets the end."""
    if job.stop is None:
        return known
    by = f" by {job.stop.by}" if job.stop.by else ""
    comes_back = known.exit_code == TEMPFAIL or known.cause.code is CauseCode.REBOOT
    match job.stop.reason:
        case StopReason.REQUEUE:
            cause = Cause(code=CauseCode.REQUEUED_BY, detail=f"it was requeued{by}")
            return replace(known, outcome=Outcome.CANCELLED, cause=cause)
        case StopReason.CANCEL:
            cause = Cause(code=CauseCode.CANCELLED_BY, detail=f"it was cancelled{by}")
            return replace(known, outcome=Outcome.CANCELLED, cause=cause)
        case StopReason.UNPLUG:
            cause = Cause(code=CauseCode.UNPLUGGED, detail="the box was unplugged")
            return replace(known, outcome=Outcome.CANCELLED, cause=cause)
        case StopReason.TIME_LIMIT if not comes_back:
            cause = Cause(code=CauseCode.TIME_LIMIT, detail="it reached its time limit")
            return replace(known, outcome=Outcome.TIMED_OUT, cause=cause)
        case StopReason.GPU_FAULT if not comes_back:
            detail = job.stop.detail or gpus.fault or "its GPU failed"
            cause = Cause(code=CauseCode.GPU_FAULT, detail=detail)
            return replace(known, outcome=Outcome.GPU_FAULT, cause=cause, faulty=gpus.faulty)
        case StopReason.OVERRUN if not comes_back:
            detail = job.stop.detail or "it used more GPU memory than it had declared"
            cause = Cause(code=CauseCode.GPU_MEMORY_OVERRUN, detail=detail)
            return replace(known, outcome=Outcome.OUT_OF_MEMORY, cause=cause)
        case StopReason.PREEMPTION if not comes_back:
            cause = Cause(code=CauseCode.PREEMPTED, detail="it made room for another job")
            return replace(known, outcome=Outcome.CANCELLED, cause=cause)
        case _:
            return known
