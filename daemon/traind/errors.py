"""What goes wrong, in one class: a code for the machine and a sentence for the person."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class ErrorCode(StrEnum):
    """Every kind of refusal; the API maps each to one HTTP status."""

    MALFORMED = "malformed"
    INVALID = "invalid"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    PRECONDITION = "precondition_failed"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    TOO_LARGE = "too_large"
    WRONG_METHOD = "wrong_method"
    WRONG_TYPE = "wrong_type"
    WRONG_RANGE = "wrong_range"
    UNAVAILABLE = "unavailable"
    TOO_MANY = "too_many"


@dataclass(frozen=True, slots=True)
class FieldError:
    """One field that was refused, by the name its sender gave it, and why."""

    field: str
    message: str


class TraindError(Exception):
    """A refusal: what was refused and what would be accepted, in `sentence`.

    `retry_after_s` says when to ask again, None where that would change nothing.
    """

    def __init__(
        self,
        code: ErrorCode,
        sentence: str,
        fields: Sequence[FieldError] = (),
        *,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence
        self.fields = tuple(fields)
        self.retry_after_s = retry_after_s


class StartupError(Exception):
    """The daemon will not start: `exit_code` is 75 (somebody else runs) or 78 (configuration)."""

    def __init__(self, exit_code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code
        self.sentence = sentence
