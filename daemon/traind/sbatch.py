"""What each option of sbatch means on one box: a field of the job, a refusal, or nothing and why.

A script written for a cluster is taken unchanged; only what would run something else is refused.
**Source**: sbatch(1).
"""

import re

from traind.options import BY_FLAG, field_values

_MEANT = {
    "job-name": "--name",
    "chdir": "--workdir",
    "gpus": "--gpus",
    "gpus-per-node": "--gpus",
    "cpus-per-task": "--cpus",
    "begin": "--begin",
    "hold": "--hold",
    "requeue": "--requeue",
}
"""Options of sbatch that are one of the table."""

_NOTHING_BY_REASON = {
    "one box has no partitions": "partition",
    "one box is one node": """
        nodes nodelist exclude nodefile contiguous use-min-nodes spread-job switches no-kill
        wait-all-nodes mincpus tmp reboot batch delay-boot power""",
    "there is one box": "clusters cluster-constraint",
    "one box has no features; --gpu-type says which GPU": "constraint prefer",
    "the script runs once, with what all its tasks ask for": """
        ntasks ntasks-per-node ntasks-per-gpu ntasks-per-core ntasks-per-socket distribution
        overcommit stepmgr segment tres-per-task""",
    "which cores and sockets it runs on is the system's choice": """
        extra-node-info cores-per-socket sockets-per-node threads-per-core hint core-spec
        thread-spec mem-bind gpu-bind gres-flags gpus-per-socket tres-bind""",
    "clocks stay as the box has them": "cpu-freq gpu-freq",
    "nothing is charged here": "account qos wckey acctg-freq profile mcs-label",
    "licenses are not counted here": "licenses",
    "no mail is sent; `traind wait ID` tells the end": "mail-type mail-user",
    "there is no burst buffer": "bb bbf",
    "there is no interconnect to set up": "network",
    "there are no reservations of a cluster here": "reservation",
    "`traind logs ID` keeps the output": "output error open-mode",
    "it is for the command line, not for a script": """
        wait parsable quiet verbose help usage version ignore-pbs""",
    "--gpu-memory lets jobs share a GPU": "oversubscribe",
    "--priority of traind is -100 to 100": "priority nice",
    "the time limit is not shortened": "time-min",
    "a job is never given up for being late": "deadline",
    "give a label: --label NAME=VALUE": "comment extra",
    "give variables with --env NAME=VALUE": "export-file",
    "it gets the environment of a login anyway": "get-user-env",
    "limits are the box's": "propagate",
    "write umask into the script": "umask",
    "it depends on nothing": "kill-on-invalid-dep",
    "it runs as whoever submits it": "uid gid",
    "the script is what is run": "wrap",
}
"""The options that mean nothing here, by the reason."""

_NOTHING = {name: why for why, names in _NOTHING_BY_REASON.items() for name in names.split()}

_REFUSED = {
    "array": "arrays are not built yet; submit a job for each index",
    "dependency": "dependencies are not built yet; `traind wait ID` waits for a job",
    "input": "read the file in the script: COMMAND < FILE",
    "container": "start the container in the script",
    "container-id": "start the container in the script",
    "test-only": "leave it out, or type it: traind submit --test-only SCRIPT",
}
"""Options that cannot be left out without running something else."""

_PER = {
    "gpus-per-task": ("--gpus", "tasks"),
    "cpus-per-gpu": ("--cpus", "gpus"),
    "mem-per-cpu": ("--memory", "cpus"),
    "mem-per-gpu": ("--memory", "gpus"),
}
"""Options that ask for so much of each; the sum is one of the table."""

_FLAGS = """
    hold requeue no-requeue contiguous use-min-nodes spread-job reboot overcommit stepmgr wait quiet
    verbose help usage version ignore-pbs oversubscribe test-only
    exclusive no-kill parsable nice get-user-env propagate
"""
"""Options without a value; those of the last line may have one behind `=`."""

_SHORT_NAMES = """
    J:job-name D:chdir G:gpus c:cpus-per-task t:time b:begin H:hold p:partition N:nodes n:ntasks
    A:account q:qos C:constraint w:nodelist x:exclude F:nodefile M:clusters o:output e:error i:input
    a:array d:dependency W:wait B:extra-node-info S:core-spec m:distribution O:overcommit
    s:oversubscribe L:licenses k:no-kill Q:quiet v:verbose h:help u:usage V:version
"""
_SHORT = {pair[0]: pair[2:] for pair in _SHORT_NAMES.split()}
_OLD = {"share": "oversubscribe", "tasks": "ntasks", "tasks-per-node": "ntasks-per-node"}
_OLD |= {"workdir": "chdir", "cluster": "clusters"}
_NAMES = {*_MEANT, *_NOTHING, *_REFUSED, *_PER}
_NAMES |= {"time", "mem", "gres", "signal", "export", "exclusive", "no-requeue"}
_NO_LIMIT = ("0", "unlimited", "infinite")
_SIGNAL = re.compile(r"(?:[RB]+:)?(?:SIG)?([A-Z0-9]+)(?:@([0-9]{1,5}))?", re.IGNORECASE)
_SIGNAL_LEAD_S = 60


def long_name(flag: str) -> str | None:
    """sbatch's long name of an option as it was written, also cut short; None when it has none."""
    if not flag.startswith("--"):
        return _SHORT.get(flag[1:])
    name = flag[2:]
    if name in _NAMES or name in _OLD:
        return _OLD.get(name, name)
    begun = [known for known in _NAMES if name and known.startswith(name)]
    return begun[0] if len(begun) == 1 else None


def takes_value(flag: str) -> bool | None:
    """Whether the option's value may stand behind it as a word; None when sbatch has no such."""
    name = long_name(flag)
    return None if name is None else name not in _FLAGS.split()


class Request:
    """What the `#SBATCH` lines ask for, option after option; the later one of a kind counts."""

    def __init__(self) -> None:
        self.export: str | None = None
        self._values: dict[str, object] = {}
        self._counts: dict[str, int] = {}
        self._per: dict[str, tuple[str, dict[str, object]]] = {}
        self._ignored: dict[str, None] = {}

    def take(self, flag: str, text: str) -> None:
        """One option. **Raises** ValueError with what would be accepted."""
        name = long_name(flag)
        written = f"{flag}{'=' if flag.startswith('--') else ' '}{text}" if text else flag
        if takes_value(flag) and not text:
            raise ValueError("needs a value")
        if name is None:
            self._ignore(written, "neither traind nor sbatch has such an option")
        elif name in _REFUSED:
            raise ValueError(_REFUSED[name])
        elif name in _MEANT:
            self._set(_MEANT[name], text)
        elif name in _PER:
            self._per[name] = (written, field_values(BY_FLAG[_PER[name][0]], text))
        elif name in _NOTHING:
            self._nothing(name, written, text)
        else:
            self._own(name, written, text)

    def values(self) -> dict[str, object]:
        """The fields, with what was asked for each task, CPU and GPU added up."""
        values = dict(self._values)
        tasks = self._counts.get("ntasks") or self._counts.get("ntasks-per-node") or 1
        if "cpus" in values:
            values["cpus"] = _whole(values["cpus"]) * tasks
        for name, (flag, unit) in _PER.items():
            field = BY_FLAG[flag].field
            if name not in self._per or field in values:
                continue
            written, asked = self._per[name]
            count = _whole(({"tasks": tasks, "cpus": tasks} | values).get(unit))
            if count > 0:
                values |= asked | {field: _whole(asked[field]) * count}
            else:
                self._ignore(written, "it asks for no GPU; --gpus says how many")
        return values

    def ignored(self) -> tuple[str, ...]:
        """A sentence for each option that means nothing here."""
        return tuple(self._ignored)

    def ignore_word(self, word: str) -> None:
        """A word that belongs to no option."""
        if word.lower() in ("hetjob", "packjob"):
            raise ValueError("a heterogeneous job is several; submit a script for each")
        self._ignore(word, "it is no option")

    def _own(self, name: str, written: str, text: str) -> None:
        """The options whose value is not that of an option of traind's."""
        if name == "time":
            self._values.pop("time_limit_s", None)
            if text.lower() not in _NO_LIMIT:
                self._set("--time", text)
        elif name == "mem":
            self._values.pop("memory_mib", None)
            if text == "0":
                self._ignore(written, "without a number it may use all there is")
            else:
                self._set("--mem", text)
        elif name == "gres":
            self._gres(text)
        elif name == "no-requeue":
            self._values["requeue"] = False
        elif name == "signal":
            self._values |= _signal(text)
        elif name == "exclusive":
            self._values["exclusive"] = True
            self._ignore(written, "its GPUs are its own, the rest of the box is shared")
        elif name == "export":
            self.export = text
            pairs = (part.partition("=") for part in text.split(","))
            self._values["env"] = {name: value for name, equals, value in pairs if equals}

    def _set(self, flag: str, text: str) -> None:
        self._values |= field_values(BY_FLAG[flag], text)

    def _gres(self, text: str) -> None:
        for part in text.split(","):
            what = part.strip().removeprefix("gres/").removeprefix("gres:")
            if what.split(":")[0] == "gpu":
                self._set("--gres", re.sub(r"\(.*\)$", "", what))
            elif what.lower() != "none":
                self._ignore(f"--gres={part}", "of such resources only GPUs are given out")

    def _nothing(self, name: str, written: str, text: str) -> None:
        if name in ("ntasks", "ntasks-per-node") and text.isdecimal():
            self._counts[name] = int(text[:6])
        if name in ("nodes", "ntasks", "ntasks-per-node") and text == "1":
            return
        self._ignore(written, _NOTHING[name])

    def _ignore(self, written: str, reason: str) -> None:
        self._ignored[f"#SBATCH {written[:100]} ignored: {reason}"] = None


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _signal(text: str) -> dict[str, object]:
    """'B:USR1@120': the signal, and how many seconds before the end it comes."""
    found = _SIGNAL.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is not a signal, such as 'USR1@120' or 'B:USR1@120'")
    name = found[1].upper()
    if name.isdecimal():
        import signal

        try:
            name = signal.Signals(int(name)).name.removeprefix("SIG")
        except ValueError:
            raise ValueError(f"{name} is not the number of a signal") from None
    return {"checkpoint_signal": name, "checkpoint_lead_s": float(found[2] or _SIGNAL_LEAD_S)}
