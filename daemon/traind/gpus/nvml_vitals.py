"""What NVML says of a GPU's health: most of it by one call for many fields."""

import ctypes
from typing import Any

import pynvml

from traind.gpu import GpuVitals
from traind.gpus.nvml_offers import NOT_OFFERED, Offers

_FIELDS = {
    "recovery_action": pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION,
    "ecc_uncorrected": pynvml.NVML_FI_DEV_ECC_DBE_VOL_TOTAL,
    "ecc_uncorrected_ever": pynvml.NVML_FI_DEV_ECC_DBE_AGG_TOTAL,
    "ecc_corrected": pynvml.NVML_FI_DEV_ECC_SBE_VOL_TOTAL,
    "retired_single_bit": pynvml.NVML_FI_DEV_RETIRED_SBE,
    "retired_double_bit": pynvml.NVML_FI_DEV_RETIRED_DBE,
    "retired_pending": pynvml.NVML_FI_DEV_RETIRED_PENDING,
    "remapped_uncorrectable": pynvml.NVML_FI_DEV_REMAPPED_UNC,
    "remap_pending": pynvml.NVML_FI_DEV_REMAPPED_PENDING,
    "remap_failed": pynvml.NVML_FI_DEV_REMAPPED_FAILURE,
}
_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
"""The member of a field's value by its `valueType`. Source: nvml.h, nvmlValueType_t."""


def read_vitals(handle: object, offers: Offers) -> GpuVitals:
    """The health that this GPU and its driver tell of. Raises NVMLError for what is no answer."""
    told = _fields(handle, offers)
    single, double = told.get("retired_single_bit"), told.get("retired_double_bit")
    slow = pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
    energy = offers.first(("energy", lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)))
    return GpuVitals(
        recovery_action=told.get("recovery_action"),
        ecc_uncorrected=told.get("ecc_uncorrected"),
        ecc_uncorrected_ever=told.get("ecc_uncorrected_ever"),
        ecc_corrected=told.get("ecc_corrected"),
        sram_threshold_exceeded=offers.first(("sram", lambda: _sram_exceeded(handle))),
        unrepairable=offers.first(("unrepairable", lambda: _unrepairable(handle))),
        remapped_uncorrectable=told.get("remapped_uncorrectable"),
        remap_pending=_flag(told.get("remap_pending")),
        remap_failed=_flag(told.get("remap_failed")),
        retired_pages=None if single is None or double is None else single + double,
        retired_double_bit=double,
        retired_pending=_flag(told.get("retired_pending")),
        slowdown=offers.first(
            ("event_reasons", lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)),
            ("throttle_reasons", lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        ),
        slowdown_c=offers.first(
            ("slowdown_c", lambda: pynvml.nvmlDeviceGetTemperatureThreshold(handle, slow))
        ),
        energy_mj=energy,
    )


def _fields(handle: object, offers: Offers) -> dict[str, int]:
    """The fields that are offered, each by its own return code."""
    wanted = [(name, number) for name, number in _FIELDS.items() if offers.has(name)]
    if not wanted:
        return {}
    numbers = [number for _, number in wanted]
    values: Any = offers.first(("fields", lambda: pynvml.nvmlDeviceGetFieldValues(handle, numbers)))
    told: dict[str, int] = {}
    for (name, _), value in zip(wanted, values or (), strict=False):
        if value.nvmlReturn == pynvml.NVML_SUCCESS:
            told[name] = int(getattr(value.value, _MEMBERS[value.valueType]))
        elif value.nvmlReturn in NOT_OFFERED:
            offers.note(name, value.nvmlReturn)
        else:
            raise pynvml.NVMLError(value.nvmlReturn)
    return told


def _flag(value: int | None) -> bool | None:
    return None if value is None else bool(value)


def _sram_exceeded(handle: object) -> bool:
    status = pynvml.c_nvmlEccSramErrorStatus_v1_t()
    pynvml.nvmlDeviceGetSramEccErrorStatus(handle, ctypes.byref(status))
    return bool(status.bThresholdExceeded)


def _unrepairable(handle: object) -> bool:
    return bool(pynvml.nvmlDeviceGetUnrepairableMemoryFlag_v1(handle))
