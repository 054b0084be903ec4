"""Which of NVML's calls a GPU offers: what it does not support is asked for once, and is no error.

Source: nvml.h; drivers and cards differ in what they support, and none of that is a fault.
"""

from collections.abc import Callable
from typing import TypeVar

import pynvml

_T = TypeVar("_T")

_NEVER = frozenset(
    {
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    }
)
NOT_OFFERED = _NEVER | {
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_NOT_FOUND,
    pynvml.NVML_ERROR_NO_DATA,
}
"""What a call may fail with that says nothing of the GPU's health."""


class Offers:
    """What one GPU is known not to offer, as long as this process lives."""

    def __init__(self) -> None:
        self._missing: set[str] = set()

    def first(self, *calls: tuple[str, Callable[[], _T]]) -> _T | None:
        """The answer of the first call that is offered, by its name; None when none is.

        Errors are told by `value`: they cannot be hashed, nor compared with anything else.
        """
        for name, call in calls:
            if name in self._missing:
                continue
            try:
                return call()
            except pynvml.NVMLError as error:
                if error.value not in NOT_OFFERED:
                    raise
                self.note(name, error.value)
        return None

    def note(self, name: str, error: int) -> None:
        """Remember that a call failed so, where it always will."""
        if error in _NEVER:
            self._missing.add(name)

    def has(self, name: str) -> bool:
        """Whether it is worth asking for."""
        return name not in self._missing
