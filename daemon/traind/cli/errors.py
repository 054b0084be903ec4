"""What a verb may end with instead of its result: a sentence that names the next step, and a code.

Exit status: 0 done, 2 usage, 3 refused, 4 not allowed, 5 not found, 69 daemon not reachable.
"""


class ClientError(Exception):
    """The verb could not be done; `exit_code` is the program's."""

    exit_code = 3

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


class UsageError(ClientError):
    """The command line cannot be understood."""

    exit_code = 2


class Refused(ClientError):
    """The daemon said no; `status` is the HTTP status it said it with."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


class Busy(Refused):
    """The daemon takes no more of this for now; the same may be asked later."""


class NotAllowed(Refused):
    """The daemon knows who asks, and these may not."""

    exit_code = 4


class NotFound(Refused):
    """There is no such job."""

    exit_code = 5


class Unreachable(ClientError):
    """Nobody answers for the daemon, for now."""

    exit_code = 69


class ConnectionLost(Unreachable):
    """The daemon went away before its answer was complete: what was asked may have been done."""


class Unavailable(Unreachable):
    """The daemon answers that it cannot serve, for now."""
