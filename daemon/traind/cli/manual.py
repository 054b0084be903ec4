"""The man page traind(1), written from the table of verbs: `python -m traind.cli.manual`.

Source: man(7) and groff_man(7) for the macros.
"""

from collections.abc import Iterable

from traind import __version__
from traind.cli.arguments import PLACEHOLDERS
from traind.cli.verbs import GLOBAL, IDS_HELP, VERBS, Verb
from traind.options import Option

_DESCRIPTION = """traind keeps a queue of jobs for the GPUs of one workstation. A submitted job
waits for GPUs that are healthy and free, runs, and outlives the daemon, which may be stopped,
killed and started again at any time.
.PP
\\fBtraind serve\\fR is the daemon; every other verb is a client."""
_FILES = (
    ("/run/traind/traind.sock", "where the service of this machine listens"),
    ("/etc/traind/config.toml", "its settings"),
    ("/var/lib/traind", "its database in daemon/, logs and run directories in runs/"),
    ("~/.config/traind/config.toml", "the settings of your own daemon, started by systemd"),
    ("~/.local/state/traind", "what your own daemon keeps, its socket included"),
    ("~/traind/ID", "a job's checkpoints, which traind never deletes"),
)
_ENVIRONMENT = (
    ("TRAIND_SOCKET", "the daemon's socket"),
    ("TRAIND_URL", "its address instead, such as http://127.0.0.1:7979"),
    ("TRAIND_TOKEN", "the token that this address asks for"),
)
_EXIT = (
    ("0", "done"),
    ("2", "the command line is wrong"),
    ("3", "refused"),
    ("4", "not allowed"),
    ("5", "not found"),
    ("69", "the daemon cannot be reached"),
)


def page() -> str:
    """The man page as troff source."""
    lines = [f'.TH TRAIND 1 "" "traind {__version__}" "User Commands"']
    lines += [".SH NAME", r"traind \- a job queue for the GPUs of one workstation"]
    lines += [".SH SYNOPSIS", r".B traind", r"\fIVERB\fR \fR[\fIoptions\fR] \fR[\fIwords\fR]"]
    lines += [".SH DESCRIPTION", _DESCRIPTION]
    lines += [".SH OPTIONS", *_options(GLOBAL), ".SH VERBS", _text(IDS_HELP)]
    for name, verb in VERBS.items():
        lines += [f".SS {name}", *_verb(verb)]
    for title, pairs in (
        ("EXIT STATUS", _EXIT),
        ("ENVIRONMENT", _ENVIRONMENT),
        ("FILES", _FILES),
    ):
        lines += [f".SH {title}"]
        lines += [f".TP\n.B {_text(left)}\n{_text(right)}" for left, right in pairs]
        if title == "EXIT STATUS":
            lines += [".PP", r"\fBwait\fR and \fBrun\fR end with the job's own exit code."]
    return "\n".join(lines) + "\n"


def _verb(verb: Verb) -> list[str]:
    usages = [f"traind {usage}" for usage in verb.usage.split("  |  ")]
    lines = [".nf", *(rf"\fB{_text(usage)}\fR" for usage in usages), ".fi", ".PP"]
    lines += [_text(f"{verb.summary[0].upper()}{verb.summary[1:]}.")]
    return lines + _options(option for option in verb.options if option not in GLOBAL)


def _options(options: Iterable[Option]) -> list[str]:
    return [
        f".TP\n.B {_text(f'{flags} {PLACEHOLDERS[option.kind]}'.rstrip())}\n{_text(option.help)}"
        for option in options
        if option.help
        for flags in [", ".join(option.flags)]
    ]


def _text(words: str) -> str:
    """Words as they are: no backslash is an escape, no hyphen a dash, no line a macro."""
    words = words.replace("\\", r"\e").replace("-", r"\-").replace("…", "...")
    return rf"\&{words}" if words[:1] in (".", "'") else words


if __name__ == "__main__":
    print(page(), end="")
