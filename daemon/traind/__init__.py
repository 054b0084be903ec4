"""traind: a job queue for one GPU workstation."""

__version__ = "0.1.0"
