"""What each XID means: one table, as data. An XID is the driver's number for an error.

Source: NVIDIA's XID catalogue (docs.nvidia.com/deploy/xid-errors), weighed against what DCGM, gpud
and NVIDIA's device plugin for Kubernetes make of each; where they differ, a false alarm costs
more than a late one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from traind.gpu import Ailment


class JobEffect(StrEnum):
    """What an XID says of the job whose work it was, when that fails: APP, it was the job's own
    fault; GPU, it was not, and it is run again elsewhere.
    """

    NONE = "none"
    APP = "app"
    GPU = "gpu"


class Special(StrEnum):
    """What makes an XID better or worse than it is by itself."""

    CONTAINED_MEMORY = "contained_memory"
    """DEGRADED where the GPU cannot contain memory errors (XID 63)."""
    DOUBLE_BIT = "double_bit"
    """WARN when XID 94 calls it contained and the driver asks for nothing (XID 48)."""
    LINKED = "linked"
    """FATAL_RESET for a job of several GPUs (XID 74, 136)."""
    VERDICT = "verdict"
    """DEGRADED until the driver says that nothing is to be done (XID 109)."""
    SAID = "said"
    """FATAL_RESET when its text says Fatal (XID 144 to 150)."""
    ACTION = "action"
    """The driver's own verdict has changed (XID 154)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """So many of them, of so many programs, in 24 h on one GPU make it DEGRADED.

    Those of one program within `burst` of each other are one; a program that has them on several
    GPUs is the cause itself, and does not count.
    """

    times: int
    programs: int = 1
    burst: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class XidRule:
    """What an XID means for the GPU (None: nothing) and for the job whose work it was."""

    meaning: str
    ailment: Ailment | None = None
    effect: JobEffect = JobEffect.NONE
    repeat: Repeat | None = None
    special: Special | None = None
    needs_person: bool = False


@dataclass(frozen=True, slots=True)
class _Row:
    numbers: tuple[int, ...]
    meaning: str
    ailment: Ailment | None = None
    effect: JobEffect = JobEffect.NONE
    more: Repeat | Special | None = None
    needs_person: bool = False


_WARN, _DEGRADED = Ailment.WARN, Ailment.DEGRADED
_RESET, _REBOOT = Ailment.FATAL_RESET, Ailment.FATAL_REBOOT
_APP, _GPU = JobEffect.APP, JobEffect.GPU
_TWICE = Repeat(times=2)
_COPIES = Repeat(times=3, programs=2)
_R1 = Repeat(times=2, programs=2, burst=timedelta(seconds=15))
_R2 = Repeat(times=2, programs=2, burst=timedelta(minutes=3))
_TWO = Repeat(times=2, programs=2)

_ROWS = (
    _Row((8,), "it stopped answering a program", None, _APP),
    _Row((11, 25), "a program sent a bad command", None, _APP),
    _Row((13,), "a program did what it must not in a kernel", None, _APP, _R1),
    _Row((31,), "memory page fault of a program", None, _APP, _R2),
    _Row((32,), "a command was damaged on the bus", _WARN, _GPU, _TWICE),
    _Row((37, 38, 44, 66, 67, 141), "error in the driver or its firmware", _WARN),
    _Row(
        (39, 40, 41, 70, 71, 72, 75, 76, 77, 85, *range(126, 136)),
        "copy engine error",
        None,
        _APP,
        _COPIES,
    ),
    _Row((43,), "a program failed, the GPU is well", None, _APP),
    _Row((45,), "it cleaned up behind a program that ended"),
    _Row((46,), "it stopped processing", _RESET),
    _Row((48,), "uncorrectable memory error", _RESET, more=Special.DOUBLE_BIT),
    _Row((54,), "its power cable is not connected", _DEGRADED, needs_person=True),
    _Row((56,), "display engine error", _WARN),
    _Row((57, 58), "error of the link to its memory", _RESET),
    _Row((59, 61), "error of its internal controller", _RESET),
    _Row((60,), "video processor error", None, _APP),
    _Row((62,), "its internal controller halted", _RESET),
    _Row((63,), "faulty memory was set aside", _WARN, more=Special.CONTAINED_MEMORY),
    _Row((64,), "faulty memory could not be set aside", _RESET),
    _Row(
        (47, 65, 68, 73, 82, 83, 84, 86, 88, 89, *range(96, 106), 139, 142),
        "video or image engine error",
        None,
        _APP,
    ),
    _Row((69,), "a program used its graphics engine wrongly", None, _APP, _TWO),
    _Row((74,), "NVLink error", _DEGRADED, more=Special.LINKED),
    _Row((78,), "it could not start as a virtual GPU", _WARN),
    _Row((79,), "it has fallen off the bus", _REBOOT),
    _Row((80,), "damaged data reached it", _WARN, more=_TWICE),
    _Row((92,), "many corrected memory errors", _WARN),
    _Row((93,), "its InfoROM is nearly worn out", _WARN),
    _Row((94,), "memory error, contained to one program", _WARN, _GPU),
    _Row((95,), "memory error that could not be contained", _RESET),
    _Row((106, 107), "test message"),
    _Row(
        (109,),
        "a program could not be switched off it",
        _DEGRADED,
        _GPU,
        Special.VERDICT,
    ),
    _Row((110,), "security fault", _REBOOT),
    _Row((119,), "its system processor does not answer", _RESET),
    _Row((120,), "its system processor failed", _RESET),
    _Row((121,), "corrected error of the link to the CPU", _WARN),
    _Row((122, 123, 124, 125), "InfoROM or controller message failed", _WARN),
    _Row((136,), "NVLink could not be brought up", _DEGRADED, more=Special.LINKED),
    _Row((137,), "a program's access over NVLink was refused", None, _APP),
    _Row((140,), "unrecovered memory error", _RESET),
    _Row((143,), "it could not be initialised", _RESET),
    _Row(tuple(range(144, 151)), "NVLink error", _WARN, more=Special.SAID),
    _Row((151, 152, 153, 166, 170), "error of its secured part", _WARN),
    _Row((154,), "the driver changed its verdict", more=Special.ACTION),
    _Row((155,), "an NVLink was taken down", _WARN),
    _Row((156,), "a faulty part was retired", _DEGRADED),
    _Row((157,), "a faulty part could not be retired", _WARN),
    _Row((158,), "it ran into a fatal timeout", _RESET),
    _Row((159,), "error of the link to the CPU", _WARN),
    _Row((160, 161), "a memory channel was retired", _WARN),
    _Row((162, 163, 164, 165), "power smoothing message"),
    _Row((167,), "fatal timeout on the bus", _RESET),
    _Row((168,), "it runs with less memory", _DEGRADED),
    _Row((169,), "its security processor halted", _RESET),
    _Row((171, 172), "where an uncorrectable memory error was", _WARN),
    _Row((173,), "fatal error of the link to the CPU", _RESET),
)


def _rules(rows: Iterable[_Row]) -> dict[int, XidRule]:
    rules: dict[int, XidRule] = {}
    for row in rows:
        fatal = row.ailment is not None and row.ailment.fatal
        effect = _GPU if fatal else row.effect
        rule = XidRule(
            meaning=row.meaning,
            ailment=row.ailment,
            effect=effect,
            repeat=row.more if isinstance(row.more, Repeat) else None,
            special=row.more if isinstance(row.more, Special) else None,
            needs_person=row.needs_person,
        )
        rules |= dict.fromkeys(row.numbers, rule)
    return rules


XIDS: Mapping[int, XidRule] = _rules(_ROWS)
"""The rule of every XID that is known; what is not in it is `UNKNOWN`."""

UNKNOWN = XidRule(meaning="not in traind's table", ailment=Ailment.DEGRADED)


def rule_of(number: int) -> XidRule:
    """What an XID means."""
    return XIDS.get(number, UNKNOWN)
