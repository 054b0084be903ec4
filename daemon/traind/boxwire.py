"""The shapes of the answers about the box itself, beside those of `wire` about its jobs."""

from typing import Any, Literal

from traind.access import Scope, Token
from traind.wire import At, PauseView, View


class WhoAmI(View):
    """Who the daemon takes the caller for."""

    user: str
    uid: int
    operator: bool


class Ready(View):
    """Whether jobs can be started, check by check; null is well, else the sentence why not."""

    ready: bool
    checks: dict[str, str | None]


class Alive(View):
    """The daemon answers."""

    alive: bool


class TokenView(View):
    """A token as it is listed; `last_used_at` is null before its first use, and told by minutes."""

    id: int
    name: str
    user: str
    scopes: list[Scope]
    created_at: At
    expires_at: At
    last_used_at: At | None


class NewToken(TokenView):
    """A token just made; its secret, `token`, is told this once."""

    token: str


class Tokens(View):
    """Your tokens, the newest first; expired ones too."""

    tokens: list[TokenView]


class Unplugged(View):
    """The pause of the queue, null once it goes on, and the jobs that are being stopped."""

    paused: PauseView | None
    stopping: list[int]


class Metrics(View):
    """What a job told about itself: `line` is the number of the last line that was read, the
    `since` of the next call; `skipped` lines said nothing; `next` is null where there is no more.
    """

    metrics: list[dict[str, Any]]
    attempt: int
    line: int
    skipped: int
    next: int | None = None


class GpuSampleView(View):
    """A GPU of a job at one moment: `memory_mib` is what the job holds of it, all else is the
    GPU's; null where it did not say.
    """

    index: int
    uuid: str
    memory_mib: int | None
    busy_pct: float | None
    power_w: float | None
    temperature_c: int | None


class SampleView(View):
    """What an attempt took at one moment, or in the mean of a span that begins there.

    `cpu_pct` is of one core; `read_bytes` and `write_bytes` went from and to disks since it began.
    """

    at: At
    gpus: list[GpuSampleView]
    memory_mib: int | None
    cpu_pct: float | None
    processes: int | None
    read_bytes: int | None
    write_bytes: int | None


class Samples(View):
    """What an attempt took over time; `next` is the `since` of the next page, null on the last."""

    samples: list[SampleView]
    attempt: int
    next: At | None = None


UsageBy = Literal["user", "label", "gpu"]


class UsageView(View):
    """What one person, label (NAME=VALUE) or GPU (its UUID) accounts for, in hours of wall time;
    each GPU of an attempt counts, shared ones whole.
    """

    name: str
    jobs: int
    attempts: int
    hours: float
    gpu_hours: float
    energy_wh: float | None


class UsageReport(View):
    """Who used how much from `since` to before `until`, the most GPU time first."""

    usage: list[UsageView]
    by: UsageBy
    since: At
    until: At


class BackupView(View):
    """A backup of the database, whole; `path` is on the daemon's machine."""

    path: str
    made_at: At
    bytes: int


class NewBackup(BackupView):
    """A backup just made; `took_s` are seconds, `verified` that its copy was read and is whole."""

    took_s: float
    verified: bool


class BackupList(View):
    """The backups, the newest first."""

    backups: list[BackupView]


class Removed(View):
    """How much was old enough and is gone; `samples` gave way to minute means, `minutes` are those
    means.
    """

    run_dirs: int
    logs: int
    samples: int
    minutes: int
    jobs: int
    keys: int


def token_view(token: Token) -> TokenView:
    """The token as the API lists it."""
    return TokenView(
        id=token.id,
        name=token.name,
        user=token.user,
        scopes=list(token.scopes),
        created_at=token.created_at,
        expires_at=token.expires_at,
        last_used_at=token.last_used_at,
    )
