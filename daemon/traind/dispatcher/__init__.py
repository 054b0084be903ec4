"""The loop that acts: settle what ended, look, think, start and stop. Alone touches processes."""

from traind.dispatcher.diagnosis import Diagnosis
from traind.dispatcher.leaseholders import Leaseholders
from traind.dispatcher.loop import Dispatcher
from traind.dispatcher.sampling import Sampler
from traind.dispatcher.strangers import Strangers
from traind.dispatcher.xid_log import XidLog

__all__ = ["Diagnosis", "Dispatcher", "Leaseholders", "Sampler", "Strangers", "XidLog"]
