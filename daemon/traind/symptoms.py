"""What the end of a job's log says of its death: known signs and the last exception. Pure.

A log is whatever its job wrote: to search it takes time in proportion to its length, and what is
quoted of it is one short printable line.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from traind.causes import CauseCode
from traind.shortage import Shortage, read_shortage

_QUOTED = 240
_LINE = 4096

_C = CauseCode


@dataclass(frozen=True, slots=True)
class _Sign:
    """Texts of which each gives a cause away, and the sentence for it.

    `quoted`: the line itself says more.
    """

    code: CauseCode
    sentence: str
    marks: tuple[str, ...]
    quoted: bool = False


_SIGNS = (
    _Sign(
        _C.GPU_FAULT,
        "its GPU failed",
        ("uncorrectable ECC error encountered", "GPU is lost"),
        quoted=True,
    ),
    _Sign(
        _C.CUDA_OOM_SELF,
        "CUDA out of memory",
        (
            *("CUDA out of memory", "CUDA error: out of memory", "CUDA_ERROR_OUT_OF_MEMORY"),
            *("torch.OutOfMemoryError", "torch.cuda.OutOfMemoryError", "cudaErrorMemoryAllocation"),
            *("HIP out of memory", "XPU out of memory", "CUBLAS_STATUS_ALLOC_FAILED"),
            *("CUDNN_STATUS_ALLOC_FAILED", "OOM when allocating tensor"),
            *("RESOURCE_EXHAUSTED: Out of memory while trying to allocate",),
            *("cupy.cuda.memory.OutOfMemoryError", "std::bad_alloc: out_of_memory"),
            *("is less than desired GPU memory utilization",),
            *("No available memory for the cache blocks",),
        ),
    ),
    _Sign(
        _C.SHM_FULL,
        "the shared memory (/dev/shm) was full",
        (
            *("insufficient shared memory (shm)", "unable to open shared memory object"),
            *("unable to write to file </torch_", "out of shared memory. Please", "Bus error"),
            *("No space left on device: '/dev/shm", "Error while creating shared memory segment"),
        ),
    ),
    _Sign(
        _C.HOST_OOM,
        "the host's memory ran out",
        (
            *("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough mem"),
            *("is killed by signal: Killed", "Cannot allocate memory", "std::bad_alloc"),
        ),
        quoted=True,
    ),
    _Sign(
        _C.PORT_IN_USE,
        "a port that it wanted was taken",
        (
            *("EADDRINUSE", "Address already in use", "address already in use"),
            *("The server socket has failed to listen on any local network address",),
            *("Tried to launch distributed communication on port",),
        ),
        quoted=True,
    ),
    _Sign(
        _C.DISK_FULL,
        "a disk was full",
        ("No space left on device", "Disk quota exceeded"),
        quoted=True,
    ),
    _Sign(
        _C.CUDA_DRIVER,
        "the NVIDIA driver of this machine did not work",
        (
            *("Driver/library version mismatch", "CUDA unknown error - this may be due to"),
            *("system has unsupported display driver / cuda driver combination",),
            *("system not yet initialized",),
        ),
        quoted=True,
    ),
    _Sign(
        _C.CUDA_SETUP,
        "its CUDA does not go with this machine",
        (
            *("CUDA driver version is insufficient for CUDA runtime version",),
            *("The NVIDIA driver on your system is too old", "Found no NVIDIA driver on your"),
            *("no kernel image is available for execution on the device",),
            *("No CUDA GPUs are available", "no CUDA-capable device is detected"),
            *("Torch not compiled with CUDA enabled", "libcuda.so.1: cannot open shared object"),
            *("forward compatibility was attempted on non supported HW",),
        ),
        quoted=True,
    ),
    _Sign(
        _C.CUDA_APP_BUG,
        "its own code did wrong on the GPU",
        (
            *("device-side assert triggered", "an illegal memory access was encountered"),
            *("CUDA error: misaligned address", "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ),
        quoted=True,
    ),
    _Sign(
        _C.MISSING_FILE,
        "it lacks a file",
        ("can't open file '",),
        quoted=True,
    ),
    _Sign(
        _C.NCCL_TIMEOUT,
        "its ranks waited too long for each other (NCCL)",
        ("Watchdog caught collective operation timeout", "watchdog got stuck for"),
    ),
)
"""What a log may say, the more telling sign first where one line has several."""

_EXCEPTIONS: Mapping[str, tuple[CauseCode, str]] = {
    "ModuleNotFoundError": (_C.MISSING_MODULE, "it lacks a module"),
    "FileNotFoundError": (_C.MISSING_FILE, "it lacks a file"),
    "MemoryError": (_C.HOST_OOM, "the host's memory ran out"),
    "_ArrayMemoryError": (_C.HOST_OOM, "the host's memory ran out"),
}
"""Exceptions that say more than that there was one, by the last part of their names."""

_NCCL = ("ncclSystemError", "ncclRemoteError", "ncclUnhandledCudaError", "ncclInternalError")
_FOLLOWERS = frozenset(
    {
        *("ChildFailedError", "CalledProcessError", "ProcessExitedException", "SignalException"),
        *("DistBackendError", "DistStoreError", "DistNetworkError", "ConnectionError", "EOFError"),
        *("ConnectionResetError", "BrokenPipeError", "ConnectionRefusedError"),
        *("ConnectionAbortedError", "KeyboardInterrupt"),
    }
)
"""What a program dies of because another one has died before."""

_FOLLOWING = ("Connection closed by peer", "Connection reset by peer", "NCCL")
_CHAINED = (
    "During handling of the above exception, another exception occurred",
    "The above exception was the direct cause of the following exception",
)
_COLOUR = re.compile(r"\x1b\[[0-9;]{0,20}m")
_RANK = re.compile(r"\[(?:rank|default)?[0-9]{1,4}\]: ?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,150}(?=:|$)")
_TRACE = "Traceback (most recent call last):"


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptom:
    """What a log says of the death of its job: a cause, and a sentence with no end mark.

    `shortage` is there where a GPU had no more memory.
    """

    code: CauseCode
    sentence: str
    shortage: Shortage | None = None


@dataclass(frozen=True, slots=True)
class _Thrown:
    """An exception that ended a traceback: its line, from where on, and the name of its class."""

    at: int
    line: str
    name: str

    @property
    def follows(self) -> bool:
        """Whether it tells of another program's end."""
        return self.name in _FOLLOWERS or any(mark in self.line for mark in _FOLLOWING)


def symptom_of(text: str) -> Symptom | None:
    """What the end of a log says; None where it says nothing that is known.

    The last sign counts, as long as no exception came behind it that has nothing to do with it:
    a program may have lived through what it complained of.
    """
    text = _COLOUR.sub("", text).replace("\r", "\n")
    thrown = list(_thrown(text))
    cause = next((each for each in reversed(thrown) if not each.follows), None)
    found = _last_sign(text)
    if found is not None:
        at, sign, line = found
        if cause is None or at >= cause.at or _is_chained(text[at : cause.at]):
            return _told(sign, line)
    if cause is not None:
        return _of_exception(cause)
    if any(mark in text for mark in _NCCL):
        return Symptom(code=_C.NCCL_ERROR, sentence="a rank lost the others (NCCL)")
    followers = [each for each in thrown if each.line.rstrip(": ") != each.line.partition(":")[0]]
    return _of_exception(followers[-1]) if followers else None


def _last_sign(text: str) -> tuple[int, _Sign, str] | None:
    """The sign that stands last, with its line and where that begins; a rank that waited for
    others is nothing beside what happened to one of them.
    """
    found: list[tuple[bool, int, int, _Sign]] = []
    for rank, sign in enumerate(_SIGNS):
        place = max(text.rfind(mark) for mark in sign.marks)
        if place >= 0:
            at = text.rfind("\n", 0, place) + 1
            found.append((sign.code is not _C.NCCL_TIMEOUT, at, -rank, sign))
    if not found:
        return None
    _, at, _, sign = max(found, key=lambda each: each[:3])
    return at, sign, text[at : at + _LINE].partition("\n")[0]


def _is_chained(between: str) -> bool:
    return any(phrase in between for phrase in _CHAINED)


def _told(sign: _Sign, line: str) -> Symptom:
    if sign.code is _C.CUDA_OOM_SELF:
        return Symptom(code=sign.code, sentence=sign.sentence, shortage=read_shortage(line))
    quoted = f": {quote(_RANK.sub('', line, count=1))}" if sign.quoted else ""
    return Symptom(code=sign.code, sentence=f"{sign.sentence}{quoted}")


def _of_exception(thrown: _Thrown) -> Symptom:
    code, sentence = _EXCEPTIONS.get(thrown.name, (_C.PYTHON_ERROR, ""))
    said = quote(thrown.line)
    return Symptom(code=code, sentence=f"{sentence}: {said}" if sentence else said)


def _thrown(text: str) -> Iterator[_Thrown]:
    """The exceptions at the ends of the tracebacks of all ranks, the first one first."""
    inside: dict[str, bool] = {}
    at = 0
    for raw in text.split("\n"):
        begin, at = at, at + len(raw) + 1
        prefix = _RANK.match(raw)
        who = prefix[0] if prefix else ""
        line = raw[len(who) :]
        if line.startswith((_TRACE, '  File "')):
            inside[who] = True
        elif inside.get(who) and line and not line.startswith((" ", "\t")):
            inside[who] = False
            name = _NAME.match(line)
            if name is not None and not name[0].isupper():  # 'INFO: …' is none
                yield _Thrown(begin, line[:_LINE], name[0].rpartition(".")[2])


def quote(line: str) -> str:
    """The line as it can be shown anywhere: printable, on one line, not too long."""
    shown = "".join(each if each.isprintable() else " " for each in line[:_LINE])
    shown = " ".join(shown.split()).rstrip(" .;")
    return shown if len(shown) <= _QUOTED else f"{shown[: _QUOTED - 1]}…"
