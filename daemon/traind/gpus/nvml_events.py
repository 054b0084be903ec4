"""XIDs as NVML tells of them: a thread waits, and whoever reads takes what came.

Only what happens after the registration is told; the kernel's log knows what was before.
"""

import ctypes
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pynvml

from traind.gpu import Xid
from traind.gpus.nvml_offers import NOT_OFFERED

_WAIT_MS = 5000
_PAUSE_S = 5.0
_XID = pynvml.nvmlEventTypeXidCriticalError
_WANTED = (
    "nvmlEventTypeXidCriticalError",
    "nvmlEventTypeDoubleBitEccError",
    "nvmlEventTypeGpuUnavailableError",
    "nvmlEventTypeGpuRecoveryAction",
    "nvmlEventTypeDramRetirementFailure",
)
_MASK = sum(getattr(pynvml, name, 0) for name in _WANTED)


class XidWatch:
    """Waits for the errors of these GPUs, by UUID; `on_news` is called, in its thread, at each."""

    def __init__(self, handles: Mapping[str, object], on_news: Callable[[], None]) -> None:
        self._handles = handles
        self._on_news = on_news
        self._uuids = {_address(handle): uuid for uuid, handle in handles.items()}
        self._came: defaultdict[str, list[Xid]] = defaultdict(list)
        self._turn = threading.Lock()
        self._told: dict[str, bool] = {}
        events = self._register()
        threading.Thread(target=self._wait, args=(events,), daemon=True).start()

    def tells(self, uuid: str) -> bool | None:
        """Whether this GPU would tell; None where that is nothing that it offers."""
        return self._told.get(uuid)

    def take(self, uuid: str) -> tuple[Xid, ...]:
        """The XIDs of this GPU since this was last asked."""
        with self._turn:
            return tuple(self._came.pop(uuid, ()))

    def _register(self) -> object | None:
        """A set of events of all GPUs that have any; None where there is none to wait for."""
        try:
            events: object = pynvml.nvmlEventSetCreate()
        except pynvml.NVMLError:
            return None
        self._told = {
            uuid: told
            for uuid, handle in self._handles.items()
            if (told := _register(handle, events)) is not None
        }
        if any(self._told.values()):
            return events
        with suppress(pynvml.NVMLError):
            pynvml.nvmlEventSetFree(events)
        return None

    def _wait(self, events: object | None) -> None:
        while events is not None:
            try:
                self._take(pynvml.nvmlEventSetWait(events, _WAIT_MS))
            except pynvml.NVMLError as error:
                if error.value != pynvml.NVML_ERROR_TIMEOUT:
                    # It does not say which GPU is lost: those that still answer are watched anew.
                    with suppress(pynvml.NVMLError):
                        pynvml.nvmlEventSetFree(events)
                    self._on_news()
                    threading.Event().wait(_PAUSE_S)
                    events = self._register()
            except OSError:
                return  # the daemon is gone: nobody is left to tell

    def _take(self, event: Any) -> None:  # noqa: ANN401 a struct of pynvml
        uuid = self._uuids.get(_address(event.device))
        if event.eventType == _XID and uuid is not None:
            with self._turn:
                self._came[uuid].append(Xid(number=int(event.eventData)))
        self._on_news()


def _register(handle: object, events: object) -> bool | None:
    """Whether a GPU tells of its XIDs from now on; None where it does not offer that.

    One that cannot be registered, lost ones too, keeps the others from nothing.
    """
    try:
        mask = _MASK & pynvml.nvmlDeviceGetSupportedEventTypes(handle)
        if not mask & _XID:
            return None
        pynvml.nvmlDeviceRegisterEvents(handle, mask, events)
    except pynvml.NVMLError as error:
        return None if error.value in NOT_OFFERED else False
    return True


def _address(handle: object) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value  # type: ignore[arg-type]
