"""What should start now, and why everything else waits. Pure: values in, a plan out."""

from traind.scheduler.matching import gpu_means, safety_mib
from traind.scheduler.order import delay_reason, joins, plan
from traind.scheduler.refusal import refusals
from traind.scheduler.world import (
    Grant,
    Holding,
    Host,
    Owner,
    Plan,
    SharingPolicy,
    Start,
    World,
)

__all__ = [
    "Grant",
    "Holding",
    "Host",
    "Owner",
    "Plan",
    "SharingPolicy",
    "Start",
    "World",
    "delay_reason",
    "gpu_means",
    "joins",
    "plan",
    "refusals",
    "safety_mib",
]
