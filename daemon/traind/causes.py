"""Why an attempt ended as it did: every cause that is told apart."""

from dataclasses import dataclass
from enum import StrEnum


class CauseCode(StrEnum):
    """Why an attempt ended as it did."""

    EXIT_CODE = "exit_code"
    SIGNAL = "signal"
    COMMAND_NOT_FOUND = "command_not_found"
    NOT_EXECUTABLE = "not_executable"
    WORKDIR = "workdir"
    IDENTITY = "identity"
    PYTHON_ENV = "python_env"
    LAUNCH = "launch"
    CHECKPOINTED = "checkpointed"
    CRASH_LOOP = "crash_loop"
    CANCELLED_BY = "cancelled_by"
    REQUEUED_BY = "requeued_by"
    UNPLUGGED = "unplugged"
    TIME_LIMIT = "time_limit"
    PREEMPTED = "preempted"
    HOST_OOM = "host_oom"
    GPU_MEMORY_OVERRUN = "gpu_memory_overrun"
    GPU_FAULT = "gpu_fault"
    CUDA_APP_BUG = "cuda_app_bug"
    REBOOT = "reboot"
    SHIM_LOST = "shim_lost"
    NEVER_STARTED = "never_started"
    # What only the end of the log tells:
    CUDA_OOM_SELF = "cuda_oom_self"
    CUDA_OOM_NEIGHBOUR = "cuda_oom_neighbour"
    CUDA_DRIVER = "cuda_driver"
    CUDA_SETUP = "cuda_setup"
    NCCL_TIMEOUT = "nccl_timeout"
    NCCL_ERROR = "nccl_error"
    PORT_IN_USE = "port_in_use"
    SHM_FULL = "shm_full"
    DISK_FULL = "disk_full"
    MISSING_MODULE = "missing_module"
    MISSING_FILE = "missing_file"
    PYTHON_ERROR = "python_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Why an attempt ended so, with a sentence for the person."""

    code: CauseCode
    detail: str
