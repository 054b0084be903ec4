"""Small helpers that a long training job needs to be stopped, resumed and watched.

Nothing here knows the daemon: the contract is a handful of environment variables, signals, files
and one exit code, so every job that uses these helpers also runs by hand. The modules:

* ``stop``: notices SIGTERM and the stop file, before torch is even imported.
* ``checkpoint``: writes checkpoints that a crash cannot tear, and reads the newest intact one.
* ``metrics``: appends JSON lines.
* ``ranks``: one process or several under ``torchrun``, with the same code.
"""
