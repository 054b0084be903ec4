"""Every verb in one table: what it is called with, and what it says about itself."""

from traind.options import OPTIONS, Kind, Option

_COMMON = (
    Option(("--json",), "json", Kind.FLAG, "print the API's JSON as it is"),
    Option(("--socket",), "socket", Kind.PATH, "the daemon's socket (default: TRAIND_SOCKET)"),
    Option(("--help", "-h"), "help", Kind.FLAG, "show this"),
)
_ORDER = (
    Option(("--wrap", "--command"), "wrap", Kind.TEXT, "the job is this shell command line"),
    Option(
        ("--export",),
        "export",
        Kind.TEXT,
        "which of the caller's variables it gets: ALL (default), NONE, or NAME,NAME=VALUE",
    ),
    *OPTIONS,
    Option(("--parsable",), "parsable", Kind.FLAG, "print the job's id only"),
)


SELECTORS = ("all", "user", "label", "state")
"""The options that name jobs by what they are."""

_SELECTING = (
    Option(("--all",), "all", Kind.FLAG, "all of yours"),
    Option(("--user", "-u"), "user", Kind.TEXT, "all of this person (otherwise only yours)"),
    Option(("--label",), "label", Kind.TEXT, "all with this label: NAME or NAME=VALUE"),
    Option(("--state",), "state", Kind.TEXT, "all in these states, such as held,queued"),
    Option(("--dry-run",), "dry_run", Kind.FLAG, "only tell what would be done"),
)
_NARROW = (
    Option(("--me",), "me", Kind.FLAG, "only yours"),
    Option(("--user", "-u"), "user", Kind.TEXT, "only those of this person"),
    Option(("--label",), "label", Kind.TEXT, "only with this label: NAME or NAME=VALUE"),
    Option(("--name",), "q", Kind.TEXT, "only with this part of a name, in any case"),
    Option(("--limit",), "limit", Kind.WHOLE, "at most so many, up to 1000"),
)
_CONFIG = (Option(("--config",), "config", Kind.PATH, "the configuration file"),)
_STATE_DIR = Option(("--state-dir",), "state_dir", Kind.PATH, "where it keeps everything")


class Verb:
    """One verb: its options, whether the first word ends them, and its help.

    `takes_ids`: its words name jobs; `selects`: options may name them instead; `takes_words`: it
    takes words of another kind, the first one of `choices`, if there are any. `local`: it may do
    without a daemon, and reads its own words.
    """

    __slots__ = (
        *("choices", "local", "options", "own_words", "selects", "summary", "takes_ids"),
        *("takes_words", "usage"),
    )

    def __init__(
        self,
        usage: str,
        summary: str,
        options: tuple[Option, ...] = (),
        *,
        own_words: bool = False,
        takes_ids: bool = False,
        selects: bool = False,
        takes_words: bool = False,
        choices: tuple[str, ...] = (),
        local: bool = False,
    ) -> None:
        self.usage = usage
        self.summary = summary
        self.options = (*options, *(_SELECTING if selects else ()), *_COMMON)
        self.own_words = own_words
        self.takes_ids = takes_ids
        self.selects = selects
        self.takes_words = takes_words
        self.choices = choices
        self.local = local


GLOBAL = (*_COMMON, Option(("--version", "-V"), "version", Kind.FLAG, "show the version"))

_NOT_BUILT = """
    --array -a --dependency -d --depends-on --on-dependency-failure --output -o --error
    -e --preemptible --snapshot --notify --mail-type
    --mail-user --reservation --matrix --max-concurrent --max-failures --retry --pty --kind
"""
NOT_BUILT_OPTIONS = tuple(_NOT_BUILT.split())

VERBS = {
    "submit": Verb(
        "submit [options] [--] COMMAND…  |  submit [options] TRAIN.py ARGS…  |  "
        "submit [options] SCRIPT.sh ARGS…  |  submit [options] JOBS.toml  |  submit [options] -",
        "put a job into the queue; a script is stored, - reads one, or JSON, from stdin",
        (
            *_ORDER,
            Option(
                ("--test-only", "--dry-run"),
                "test_only",
                Kind.FLAG,
                "only tell where it would start now, or why it would wait",
            ),
            Option(("--wait", "-W"), "wait", Kind.FLAG, "wait for its end, exit with its code"),
        ),
        own_words=True,
    ),
    "run": Verb(
        "run [options] [--] COMMAND…",
        "submit a job and follow its log; Ctrl-C cancels it, a second one kills it",
        (
            *_ORDER,
            Option(("--detach",), "detach", Kind.FLAG, "only submit it"),
        ),
        own_words=True,
    ),
    "ls": Verb(
        "ls [options]",
        "list the active jobs of everybody; yours are marked *",
        (
            Option(("--all", "-a"), "all", Kind.FLAG, "finished ones too"),
            Option(("--state",), "state", Kind.TEXT, "only jobs in these states, such as held"),
            *_NARROW,
        ),
    ),
    "history": Verb(
        "history [options]",
        "list the finished jobs of everybody, newest first",
        (
            Option(("--outcome",), "outcome", Kind.TEXT, "only with these ends, such as failed"),
            *_NARROW,
        ),
    ),
    "usage": Verb(
        "usage [options]",
        "tell who used how much of the box",
        (
            Option(("--by",), "by", Kind.TEXT, "user (default), label or gpu"),
            Option(("--since",), "since", Kind.INSTANT, "from then on (default: 30 days)"),
            Option(("--until",), "until", Kind.INSTANT, "only before then (default: now)"),
        ),
    ),
    "show": Verb("show IDS", "tell all about a job", takes_ids=True),
    "why": Verb("why IDS", "tell why a job waits, or why it ended", takes_ids=True),
    "logs": Verb(
        "logs ID [options]",
        "show a job's log",
        (
            Option(("--follow", "-f"), "follow", Kind.FLAG, "go on until the job ends"),
            Option(("--tail", "-n"), "tail", Kind.WHOLE, "only the last N lines"),
            Option(("--attempt",), "attempt", Kind.WHOLE, "of this attempt, not of the last"),
            Option(("--raw",), "raw", Kind.FLAG, "pass escape sequences on to the terminal"),
        ),
        takes_ids=True,
    ),
    "cancel": Verb(
        "cancel IDS [--now]  |  cancel --all|--user|--label|--state [--dry-run]",
        "stop jobs, or take them out of the queue",
        (Option(("--now",), "now", Kind.FLAG, "kill at once, without grace"),),
        takes_ids=True,
        selects=True,
    ),
    "hold": Verb("hold IDS", "keep waiting jobs from starting", takes_ids=True, selects=True),
    "release": Verb(
        "release IDS [--at INSTANT]",
        "let held jobs wait for their turn again",
        (
            Option(
                ("--at",),
                "at",
                Kind.INSTANT,
                "not to start before, such as 2030-01-31T18:00",
            ),
        ),
        takes_ids=True,
        selects=True,
    ),
    "update": Verb(
        "update IDS [options]",
        "change jobs: anything while they wait; name, label, priority, time while they run",
        (
            Option(("--wrap", "--command"), "wrap", Kind.TEXT, "run this shell command line"),
            *OPTIONS,
            Option(("--reset",), "reset", Kind.LIST, "put these fields back to their defaults"),
        ),
        takes_ids=True,
    ),
    "extend": Verb("extend IDS +SPAN", "give jobs more time, such as +2h", takes_ids=True),
    "requeue": Verb(
        "requeue IDS [--hold]",
        "stop jobs and queue them again under their ids; finished ones too",
        (Option(("--hold", "-H"), "hold", Kind.FLAG, "hold them once they have stopped"),),
        takes_ids=True,
        selects=True,
    ),
    "rerun": Verb(
        "rerun IDS [--failed]",
        "submit copies of jobs as new ones",
        (Option(("--failed",), "failed", Kind.FLAG, "only of those that failed"),),
        takes_ids=True,
        selects=True,
    ),
    "signal": Verb(
        "signal IDS SIGNAL",
        "send a signal, such as USR1, to all processes of running jobs",
        takes_ids=True,
        selects=True,
    ),
    "wait": Verb("wait IDS", "wait for jobs to end, exit with their highest code", takes_ids=True),
    "gpus": Verb("gpus", "list the GPUs and who uses them"),
    "top": Verb(
        "top [options]",
        "show what runs and what it takes, until Ctrl-C; once where the output is no terminal",
        (Option(("--interval",), "interval_s", Kind.SPAN, "how often it is drawn (default 2s)"),),
    ),
    "gpu": Verb(
        "gpu cordon|drain GPU [--reason TEXT]  |  gpu uncordon|clear|forget GPU"
        "  |  gpu ignore-pid GPU PID",
        "keep jobs off a GPU, drain it, declare it mended, let a process be, forget it",
        (Option(("--reason",), "reason", Kind.TEXT, "why, for who waits for it"),),
        takes_words=True,
    ),
    "events": Verb(
        "events [options]",
        "list what happened to all jobs",
        (
            Option(("--follow", "-f"), "follow", Kind.FLAG, "go on with what happens from now on"),
            Option(("--job",), "job", Kind.WHOLE, "only what happened to this job"),
            Option(("--since",), "since", Kind.WHOLE, "only what came behind the event of this id"),
        ),
    ),
    "unplug": Verb(
        "unplug [--grace SPAN] [--checkpoint]  |  unplug --resume",
        "stop and hold every job now, and start none until --resume",
        (
            Option(("--grace",), "grace_s", Kind.SPAN, "time between SIGTERM and SIGKILL: none"),
            Option(
                ("--checkpoint",),
                "checkpoint",
                Kind.FLAG,
                "first give those time that asked for a checkpoint signal",
            ),
            Option(("--resume",), "resume", Kind.FLAG, "let the queue go on"),
        ),
    ),
    "token": Verb(
        "token create NAME [options]  |  token ls  |  token revoke NAME",
        "make, list and revoke the tokens that the TCP door asks for",
        (
            Option(
                ("--scopes",),
                "scopes",
                Kind.LIST,
                "what it allows: read, submit (and read), operate (everything)",
            ),
            Option(("--expires",), "expires", Kind.SPAN, "how long it lets in (default: 90d)"),
        ),
        takes_words=True,
        choices=("create", "ls", "revoke"),
    ),
    "whoami": Verb("whoami", "tell who the daemon takes you for"),
    "backup": Verb("backup", "back the database up, now"),
    "restore": Verb(
        "restore FILE [options]",
        "put a backup in the place of the database, while no daemon runs",
        (*_CONFIG, _STATE_DIR),
        local=True,
    ),
    "doctor": Verb(
        "doctor [options]",
        "check this box and its daemon; what is wrong comes with how to mend it",
        (_STATE_DIR,),
        local=True,
    ),
    "clean": Verb(
        "clean [--checkpoints] [--older 30d] [--yes]",
        "list the checkpoints of your finished jobs; remove them when asked to",
        (
            Option(("--checkpoints",), "checkpoints", Kind.FLAG, "the directories ~/traind/ID"),
            Option(("--older",), "older", Kind.SPAN, "only of jobs that ended so long ago"),
            Option(("--yes",), "yes", Kind.FLAG, "with --checkpoints: remove what is listed"),
        ),
    ),
    "config": Verb(
        "config check FILE  |  config show [FILE]",
        "tell what is wrong in a config.toml, or which settings it gives",
        choices=("check", "show"),
        local=True,
    ),
    "completion": Verb(
        "completion bash|zsh|fish",
        "print what a shell needs to complete verbs, options and job ids",
        choices=("bash", "zsh", "fish"),
        local=True,
    ),
    "serve": Verb(
        "serve [options]",
        "run the daemon",
        (
            *_CONFIG,
            _STATE_DIR,
            Option(("--http",), "http", Kind.TEXT, "HOST:PORT to serve TCP too, or off"),
            Option(
                ("--simulate",),
                "simulate",
                Kind.TEXT,
                "GPUs that do not exist: 2x24GiB, or a JSON file",
            ),
            Option(("--log-level",), "log_level", Kind.TEXT, "debug, info, warning or error"),
            Option(("--launcher",), "launcher", Kind.PATH, "the socket of a launcher that runs"),
            Option(("--test-mode",), "test_mode", Kind.FLAG),
        ),
    ),
}

IDS_HELP = "IDS are ids, lists and ranges (1,3-5), names, @ (your last job), @~1 (the one before)."
