"""The client's parts that need no daemon: words, ids, environment, job files, text, HTTP."""

import _socket
import io
import json
import re
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traind.cli import environment, follow, ids, jobfile, render, terminal, views
from traind.cli.arguments import Parsed, options_text, parse
from traind.cli.client import SOCKET_PATH_BYTES, Client, refusal, socket_candidates
from traind.cli.errors import ClientError, ConnectionLost, NotAllowed, NotFound, UsageError
from traind.cli.http import exchange, target_of
from traind.cli.orders import Caller, order_of
from traind.cli.verbs import NOT_BUILT_OPTIONS, VERBS
from traind.options import OPTIONS, Kind, Option, field_values

NOW = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)


def submit_words(*words: str) -> Parsed:
    return parse(words, VERBS["submit"].options, stop_at_word=True, not_built=NOT_BUILT_OPTIONS)


def order(
    *words: str, here: str = "/here", environ: dict[str, str] | None = None, stdin: bytes = b""
) -> dict[str, Any]:
    made = order_of(submit_words(*words), Caller(environ or {}, here, io.BytesIO(stdin))).body
    if not made.get("env"):
        made.pop("env", None)
    return made


# Words


def test_the_first_word_that_is_no_option_begins_the_job() -> None:
    parsed = submit_words("--gpus", "2", "python", "x.py", "--gpus", "9", "--", "-c")
    assert parsed.values == {"gpus": 2}
    assert parsed.words == ["python", "x.py", "--gpus", "9", "--", "-c"]
    assert not parsed.literal


def test_what_comes_after_two_dashes_is_the_job_whatever_it_looks_like() -> None:
    parsed = submit_words("-G1", "--", "--version", "--", "x")
    assert parsed.literal
    assert parsed.words == ["--version", "--", "x"]


def test_options_of_other_verbs_may_stand_behind_their_words() -> None:
    parsed = parse(["42", "-f", "--tail=5", "43"], VERBS["logs"].options)
    assert parsed.words == ["42", "43"]
    assert parsed.flag("follow")
    assert parsed.number("tail") == 5


def test_short_options_may_be_joined_and_hold_their_value() -> None:
    parsed = submit_words("-WG2", "-t90", "-J", "a name", "x")
    assert parsed.values == {"wait": True, "gpus": 2, "time_limit_s": 5400.0, "name": "a name"}


def test_a_value_may_look_like_an_option() -> None:
    assert submit_words("--priority", "-5", "x").values == {"priority": -5}


def test_pairs_gather_and_other_options_take_the_last() -> None:
    parsed = submit_words("--env", "A=1", "--env=B=2=3", "--env", "A=4", "-c", "1", "-c", "2", "x")
    assert parsed.values == {"env": {"A": "4", "B": "2=3"}, "cpus": 2}


def test_no_before_a_flag_turns_it_off() -> None:
    assert submit_words("--no-requeue", "x").values == {"requeue": False}
    assert submit_words("--requeue", "--exclusive=false", "x").values == {
        "requeue": True,
        "exclusive": False,
    }


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--gpu", "1"], "did you mean --gpus"),
        (["--array", "0-9"], "not built yet"),
        (["-d", "afterok:1"], "not built yet"),
        (["--no-gpus", "x"], "there is no option"),
        (["--time"], "needs a value"),
        (["--time", "soon"], "span"),
        (["--gpus", "two"], "number of GPUs"),
        (["--cpus", "1_0"], "whole number"),
        (["--env", "A"], "NAME=VALUE"),
        (["--exclusive=perhaps"], "true nor false"),
    ],
)
def test_a_word_that_cannot_be_understood_is_named(words: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        submit_words(*words)


def test_every_option_of_the_table_is_understood_and_shown() -> None:
    shown = options_text(VERBS["submit"].options)
    assert all(flag in shown for option in OPTIONS for flag in option.flags)
    assert "--test-mode" not in options_text(VERBS["serve"].options)


# Grammars of the table


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("2", {"gpus": 2}),
        ("a100:2", {"gpus": 2, "gpu_type": "a100"}),
        ("gpu", {"gpus": 1}),
        ("gpu:2", {"gpus": 2}),
        ("gpu:a100", {"gpus": 1, "gpu_type": "a100"}),
        ("gpu:4090:2", {"gpus": 2, "gpu_type": "4090"}),
    ],
)
def test_slurms_words_for_gpus_say_how_many_and_which(text: str, values: dict[str, object]) -> None:
    assert field_values(Option(("--gres",), "gpus", Kind.GPUS), text) == values


@pytest.mark.parametrize("text", ["", "a100", "-1", "gpu:a:b:c", "gpu:1,shard:2", "x:", "1.5"])
def test_what_is_no_number_of_gpus_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="number of GPUs"):
        field_values(Option(("--gres",), "gpus", Kind.GPUS), text)


def test_bare_numbers_are_minutes_for_the_time_and_mebibytes_for_sizes() -> None:
    values = submit_words("--time", "90", "--mem", "2000", "--gpu-mem", "11G", "x").values
    assert values == {"time_limit_s": 5400.0, "memory_mib": 2000, "gpu_memory_mib": 11264}


def test_other_spans_need_their_unit() -> None:
    assert submit_words("--grace", "30s", "x").values == {"grace_s": 30.0}
    with pytest.raises(UsageError, match="units"):
        submit_words("--grace", "30", "x")


def test_an_instant_without_an_offset_is_this_machines_time() -> None:
    given_instant = str(submit_words("--begin", "2030-01-31T18:00", "x").values["begin_at"])
    assert datetime.fromisoformat(given_instant) == datetime(2030, 1, 31, 18).astimezone()
    with pytest.raises(UsageError, match="instant"):
        submit_words("--begin", "soon", "x")


# Orders


def test_several_words_are_argv_and_one_with_shell_characters_is_a_command() -> None:
    assert order("nvidia-smi") == {"argv": ["nvidia-smi"], "workdir": "/here"}
    assert order("echo", "a b", "&&")["argv"] == ["echo", "a b", "&&"]
    assert order("sleep 1 && echo $HOME") == {
        "command": "sleep 1 && echo $HOME",
        "workdir": "/here",
    }
    assert order("--wrap", "ls") == {"command": "ls", "workdir": "/here"}


def test_paths_are_from_where_the_caller_stands() -> None:
    made = order("-D", "sub", "--checkpoint-dir", "../ckpt", "x")
    assert made == {"argv": ["x"], "workdir": "/here/sub", "checkpoint_dir": "/ckpt"}


def test_a_python_file_runs_with_the_callers_python(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    for place in ("venv/bin", "bin"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "python3").touch(mode=0o755)
    environ = {"PATH": f"{tmp_path}/bin"}
    words = ("--export", "NONE", "train.py", "--lr", "1")
    made = order(*words, here=str(tmp_path), environ=environ)
    assert made["argv"] == [f"{tmp_path}/bin/python3", "train.py", "--lr", "1"]
    assert made["name"] == "train.py --lr 1"
    environ["VIRTUAL_ENV"] = f"{tmp_path}/venv"
    made = order("-J", "mine", *words, here=str(tmp_path), environ=environ)
    assert made["argv"][0] == f"{tmp_path}/venv/bin/python3"
    assert made["name"] == "mine"


def test_behind_two_dashes_nothing_is_guessed() -> None:
    assert order("--", "train.py")["argv"] == ["train.py"]
    assert order("--", "job.toml")["argv"] == ["job.toml"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "nothing to run"),
        (["--wrap", "ls", "x"], "not both"),
        (["job.sh", "1"], "there is no job.sh in /here; a program of your PATH goes behind --"),
        (["-"], "standard input holds nothing"),
        (["missing.py"], "there is no missing.py"),
        (["missing.toml"], "no job file"),
        (["echo", "\udcff"], "not UTF-8"),
    ],
)
def test_an_order_that_cannot_be_made_is_refused_with_the_way_out(
    words: list[str], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        order(*words)


# Environment

SESSION = """
    SSH_TTY DISPLAY DBUS_X XDG_RUNTIME_DIR TERM TMUX TMUX_PANE SLURM_JOB_ID HOME USER LOGNAME SHELL
    PWD OLDPWD SHLVL _ CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER NVIDIA_VISIBLE_DEVICES MASTER_ADDR
    PET_MASTER_PORT RANK WORLD_SIZE LOCAL_RANK TORCHELASTIC_RUN_ID PMI_RANK OMPI_COMM TRAIND_SOCKET
    BASH_FUNC_x%%
"""


def test_what_describes_the_work_goes_along_and_the_session_stays() -> None:
    environ = {
        "PATH": "/bin",
        "CONDA_PREFIX": "/conda",
        "TERMINFO": "x",
        "RANKING": "1",
        **dict.fromkeys(SESSION.split(), "session"),
        "LATIN": "caf\udce9",
        "HUGE": "x" * environment.VARIABLE_BYTES,
    }
    kept = environment.exported(environ, "ALL")
    assert sorted(kept) == ["CONDA_PREFIX", "PATH", "RANKING", "TERMINFO"]


def test_export_takes_none_a_list_or_all_and_more() -> None:
    environ = {"A": "1", "B": "2", "TERM": "xterm"}
    assert environment.exported(environ, "NONE") == {}
    assert environment.exported(environ, "A,TERM,C=3,UNSET") == {
        "A": "1",
        "TERM": "xterm",
        "C": "3",
    }
    assert environment.exported(environ, "A=9,ALL") == {"A": "9", "B": "2"}
    with pytest.raises(UsageError, match="cannot go along"):
        environment.exported({"A": "\udcff"}, "A")


def test_a_named_variable_outweighs_an_exported_one() -> None:
    made = order("--env", "A=2", "x", environ={"A": "1", "B": "1"})
    assert made["env"] == {"A": "2", "B": "1"}


def test_the_active_environment_of_python_goes_along_where_all_does(tmp_path: Path) -> None:
    for place in ("venv/bin", "conda/bin", "r/bin"):
        (tmp_path / place).mkdir(parents=True)
        if place != "r/bin":
            (tmp_path / place / "python").touch(mode=0o755)
    conda = {"CONDA_PREFIX": f"{tmp_path}/conda"}
    both = conda | {"VIRTUAL_ENV": f"{tmp_path}/venv"}
    assert order("x", environ=both)["python_env"] == f"{tmp_path}/venv"
    assert order("--wrap", "x", environ=conda)["python_env"] == f"{tmp_path}/conda"
    assert order("--export=X=1,ALL", "x", environ=conda)["python_env"] == f"{tmp_path}/conda"
    gone, no_python = {"VIRTUAL_ENV": f"{tmp_path}/gone"}, {"CONDA_PREFIX": f"{tmp_path}/r"}
    for environ in (gone, no_python, {}):
        assert "python_env" not in order("x", environ=environ)
    assert "python_env" not in order("--export=NONE", "x", environ=both)
    assert order("--python-env=torch", "x", environ=both)["python_env"] == "torch"


def test_an_environment_of_python_is_a_path_or_a_name(tmp_path: Path) -> None:
    (tmp_path / "here" / "bin").mkdir(parents=True)
    for typed, sent in (
        ("torch", "torch"),
        ("here", f"{tmp_path}/here"),
        ("./torch", f"{tmp_path}/torch"),
        ("/opt/venv", "/opt/venv"),
    ):
        assert order("--python-env", typed, "x", here=str(tmp_path))["python_env"] == sent


def test_another_environment_of_python_leaves_no_trace_of_the_active_one(tmp_path: Path) -> None:
    environ = {"VIRTUAL_ENV": "/venv", "CONDA_PREFIX": "/conda", "A": "1"}
    assert order("--python-env=torch", "x", environ=environ)["env"] == {"A": "1"}
    assert order("x", environ=environ)["env"] == environ
    request = b'[{"python_env": "torch", "argv": ["x"]}, {"argv": ["x"]}]'
    made = order("-", environ=environ, stdin=request)
    assert [job.get("env") for job in made["jobs"]] == [{"A": "1"}, None]
    assert made["defaults"] == {"workdir": "/here", "env": environ}


# Scripts


def test_a_script_is_sent_with_its_arguments_and_what_its_lines_ask_for(tmp_path: Path) -> None:
    text = (
        "#!/bin/bash\n#SBATCH -D data -c 2 --export=A,B=1\n"
        "#TRAIND --checkpoint-dir=../ckpt --python-env=torch\n"
    )
    (tmp_path / "x.sh").write_text(text)
    environ = {"A": "a", "Z": "z", "VIRTUAL_ENV": str(tmp_path)}
    assert order("-t", "5", "x.sh", "-t", "9", here=str(tmp_path), environ=environ) == {
        "script": text,
        "script_args": ["-t", "9"],
        "name": "x.sh -t 9",
        "workdir": f"{tmp_path}/data",
        "checkpoint_dir": f"{tmp_path.parent}/ckpt",
        "python_env": "torch",
        "cpus": 2,
        "time_limit_s": 300.0,
        "env": {"A": "a", "B": "1"},
    }


def test_a_script_from_standard_input_has_no_name_of_its_own() -> None:
    made = order("-", "one", stdin=b"#!/bin/sh\n")
    assert made == {"script": "#!/bin/sh\n", "script_args": ["one"], "workdir": "/here"}


# Job files


def write_job(folder: Path, text: str) -> Path:
    path = folder / "job.toml"
    path.write_text(text)
    return path


def test_options_override_a_job_file_on_either_side_of_its_name(tmp_path: Path) -> None:
    write_job(
        tmp_path,
        'argv = ["x"]\nworkdir = "sub"\ngpu_memory = "11G"\ntime_limit = "1h"\n'
        'begin_at = 2030-01-01T00:00:00Z\n[labels]\na = "1"\nb = "1"\n[env]\nE = 1\n',
    )
    made = order(
        *("--label", "b=2", "job.toml", "--gpu-mem", "2G", "-t", "5"),
        here=str(tmp_path),
        environ={"E": "0", "F": "0"},
    )
    assert made == {
        "argv": ["x"],
        "workdir": f"{tmp_path}/sub",
        "gpu_memory_mib": 2048,
        "time_limit_s": 300.0,
        "begin_at": "2030-01-01T00:00:00+00:00",
        "labels": {"a": "1", "b": "2"},
        "env": {"E": 1, "F": "0"},
    }


def test_wrap_replaces_what_a_job_file_runs(tmp_path: Path) -> None:
    write_job(tmp_path, 'argv = ["x"]\n')
    made = order("--wrap", "ls", "job.toml", here=str(tmp_path))
    assert made == {"command": "ls", "workdir": str(tmp_path)}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gpus = = 1", "is not TOML"),
        ("grace_s = nan", "no number"),
        ("begin_at = 2030-01-01", "a date and a time"),
    ],
)
def test_a_job_file_that_is_none_is_refused_by_name(
    tmp_path: Path, text: str, sentence: str
) -> None:
    path = write_job(tmp_path, text)
    with pytest.raises(UsageError, match=sentence) as refused:
        jobfile.read_job_file(str(path))
    assert str(path) in refused.value.sentence


# Ids


class Peer:
    """What answers on a real socket: by a function of the request line and headers.

    The function gives raw bytes to send; the connection ends after them.
    """

    def __init__(self, path: Path, answer: Callable[[str, dict[str, str]], bytes]) -> None:
        self.seen: list[tuple[str, dict[str, str]]] = []
        peer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                line = self.rfile.readline().decode()
                headers: dict[str, str] = {}
                while (header := self.rfile.readline().decode().strip()) != "":
                    name, _, value = header.partition(": ")
                    headers[name] = value
                self.rfile.read(int(headers.get("Content-Length", 0)))
                request = line.removesuffix(" HTTP/1.1\r\n")
                peer.seen.append((request, headers))
                self.wfile.write(answer(request, headers))

        self._server = socketserver.ThreadingUnixStreamServer(str(path), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.client = Client(str(path), {})

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def start(answer: Callable[[str, dict[str, str]], bytes]) -> Peer:
        peers.append(Peer(tmp_path / "s", answer))
        return peers[-1]

    yield start
    for started in peers:
        started.close()


def reply(data: object, status: str = "200 OK", headers: str = "") -> bytes:
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def jobs_of_mine(*names: str) -> Callable[[str, dict[str, str]], bytes]:
    """Answers of a daemon that knows these jobs of the caller, and hands them out by twos."""

    def answer(request: str, _headers: dict[str, str]) -> bytes:
        if request == "GET /v1/whoami":
            return reply({"user": "me"})
        found = [{"id": 90 - n, "name": name} for n, name in enumerate(names)]
        query = parse_qs(request.partition("?")[2])
        assert query["user"] == ["me"]
        start = int(query.get("cursor", ["0"])[0])
        size = min(int(query["limit"][0]), 2 if query["limit"] == ["1000"] else 99)
        following = str(start + size) if start + size < len(found) else None
        return reply({"jobs": found[start : start + size], "next": following})

    return answer


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["42"], ["42"]),
        (["1,3-5", "4", "42_3"], ["1", "3", "4", "5", "42_3"]),
        (["@"], ["90"]),
        (["@~2,7"], ["88", "7"]),
        (["train"], ["90"]),
        (["lr=1,bs=2"], ["89"]),
        (["train,eval"], ["90", "88"]),
    ],
)
def test_words_name_jobs(peer: Callable[..., Peer], words: list[str], meant: list[str]) -> None:
    daemon = peer(jobs_of_mine("train", "lr=1,bs=2", "eval"))
    assert ids.resolve(words, daemon.client) == meant


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train"], "2 of your jobs are called 'train': 90, 88"),
        (["nothing"], "none of your jobs is called"),
        (["@~7"], "you have 3 jobs"),
        (["5-3"], "from the lower id"),
        (["1-99999"], "10000 wide"),
        ([","], "at least one"),
    ],
)
def test_words_that_name_no_job_or_too_many_are_refused(
    peer: Callable[..., Peer], words: list[str], sentence: str
) -> None:
    daemon = peer(jobs_of_mine("train", "eval", "train"))
    with pytest.raises(ClientError, match=sentence):
        ids.resolve(words, daemon.client)


# Text for a terminal


def test_names_cannot_steer_the_terminal() -> None:
    hostile = "a\x1b]0;x\x07\x9b2J\u202eb\u2066\r\nc\x7f\udcff"
    assert terminal.safe(hostile) == ("a\\x1b]0;x\\x07\\x9b2J\\u202eb\\u2066\\r\\nc\\x7f\\udcff")
    assert terminal.safe("naïve 日本 🎉") == "naïve 日本 🎉"
    assert terminal.safe_prose("a\nb\x1b") == "a\nb\\x1b"


def shown(*blocks: bytes) -> str:
    log = terminal.LogFilter()
    return "".join(log.feed(block) for block in blocks)


@pytest.mark.parametrize(
    ("log", "text"),
    [
        (b"50%\r\x1b[1;31mred\x1b[0m\ttab\n", "50%\r\x1b[1;31mred\x1b[0m\ttab\n"),
        (b"a\x1b]52;c;aGk=\x07b\x1b]0;t\x1b\\c", "abc"),
        (b"a\x1bPq#0\x1b\\b\x1b_x\x1b\\c\x1b^x\x07d", "abcd"),
        (b"a\x1b[2Jb\x1b[?1049hc\x1b[6nd\x1b[>4;2me", "abcde"),
        (b"a\x1bcb\x1b(0c\x07\x08d", "abcd"),
        (b"a\xc2\x9b2Jb", "a2Jb"),
        ("\u202eabc".encode(), "\\u202eabc"),
        (b"a\x1b]0;never ended\nnext line", "a\nnext line"),
        (b"caf\xe9!", "caf\ufffd!"),
    ],
)
def test_a_log_keeps_its_colours_and_nothing_else_that_steers(log: bytes, text: str) -> None:
    assert shown(log) == text


def test_the_end_of_a_log_gives_the_terminal_its_colours_back() -> None:
    log = terminal.LogFilter()
    log.feed(b"plain \xe2\x82")
    assert log.close() == "\ufffd"
    log.feed(b"\x1b[31mred")
    assert log.close() == "\x1b[0m"


_PIECES = st.sampled_from(
    [
        b"\x1b",
        b"[",
        b"31m",
        b"]0;",
        b"\x07",
        b"\\",
        b"P",
        b"2J",
        b"\n",
        b"abc",
        b"\xc2\x9b",
        b"\xe2",
    ]
)


@given(st.lists(_PIECES, max_size=12), st.integers(0, 40))
def test_where_a_log_is_cut_into_blocks_makes_no_difference(pieces: list[bytes], at: int) -> None:
    log = b"".join(pieces) + b"end\n"
    assert shown(log[:at], log[at:]) == shown(log)


@given(st.lists(st.one_of(_PIECES, st.binary(max_size=8)), max_size=20))
def test_no_log_gets_more_than_colours_through(blocks: list[bytes]) -> None:
    rest = re.sub(r"\x1b\[[0-9;:]*m", "", shown(*blocks))
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", rest)


# Tables


def test_ages_have_two_units() -> None:
    ages = {0: "0s", 45: "45s", 60: "1m", 150: "2m30s", 9000: "2h30m", 7200: "2h", 90000: "1d1h"}
    assert {seconds: render.age(seconds) for seconds in ages} == ages
    assert render.age(-5) == "0s"


def test_a_table_is_whole_when_piped_and_fits_when_not() -> None:
    rows = [("1", "n" * 40, "running", "r" * 60), ("2", "日本語" * 9, "failed", "")]
    headers = ("ID", "NAME", "STATE", "REASON")
    flexible = (("REASON", 10), ("NAME", 8), ("REASON", 0))
    whole = render.table(headers, rows, width=None, colour=False, flexible=flexible)
    assert "n" * 40 in whole
    assert "r" * 60 in whole
    assert [len(line.split()) for line in whole.splitlines()] == [4, 4, 4]
    for width in (10, 25, 40, 80):
        cut = render.table(headers, rows, width=width, colour=False, flexible=flexible)
        assert max(render.columns(line) for line in cut.splitlines()) <= width


def test_only_states_are_painted_and_only_in_colour() -> None:
    rows = [("running", "running")]
    painted = render.table(("STATE", "NAME"), rows, width=None, colour=True)
    assert painted == "STATE    NAME\n\x1b[32mrunning\x1b[0m  running"
    assert "\x1b" not in render.table(("STATE", "NAME"), rows, width=None, colour=False)


def test_a_table_shows_escapes_of_a_name_and_does_not_send_them() -> None:
    assert "\x1b" not in render.table(("NAME",), [("\x1b[31mx",)], width=None, colour=False)


# Jobs and GPUs

THEIRS = {
    "id": 7,
    "name": "theirs",
    "user": "bob",
    "state": "running",
    "outcome": None,
    "started_at": "2026-11-03T10:00:00.000000Z",
    "gpus_allotted": [{"index": 1}],
}
MINE = {
    "id": 8,
    "name": "mine",
    "user": "me",
    "state": "queued",
    "outcome": None,
    "submitted_at": "2026-11-03T11:59:15.000000Z",
    "reason": {"code": "resources", "detail": "waits for 1 GPU; job 7 of bob has it"},
    "priority": 5,
    "progress": {"step": None, "total": None},
}


def test_my_jobs_are_marked_and_others_show_what_is_known() -> None:
    lines = views.jobs_text([THEIRS, MINE], me="me", now=NOW, width=None, colour=False).splitlines()
    assert lines[1].split() == ["7", "theirs", "bob", "running", "1", "2h", "-", "-"]
    assert lines[2].split()[:7] == ["8*", "mine", "me", "queued", "-", "45s", "-"]
    assert lines[2].endswith("waits for 1 GPU; job 7 of bob has it")


def test_what_runs_comes_before_what_waits() -> None:
    waiting = {"id": 3, "state": "queued"}
    assert [job["id"] for job in views.in_order([waiting, MINE, THEIRS])] == [7, 8, 3]


def test_why_is_one_sentence_in_every_state() -> None:
    told = {"state": "queued", "reason": "resources", "detail": "waits for job 7"}
    assert views.why_text(MINE, told, NOW) == "job 8 is queued: waits for job 7"
    assert views.why_text(MINE, {}, NOW).endswith("job 7 of bob has it")
    assert views.why_text(THEIRS, {}, NOW).startswith("job 7 is running on GPU 1 since 2026-11-03")
    ended = {"id": 9, "state": "finished", "outcome": "failed", "cause": {"detail": "code 3"}}
    assert views.why_text(ended, {"detail": None}, NOW) == "job 9 failed: code 3"


def test_a_job_is_told_in_full_with_its_attempts() -> None:
    attempts: list[dict[str, Any]] = [
        {"attempt": 1, "outcome": "lost", "cause": {"detail": "the machine was restarted"}},
        {"attempt": 2, "outcome": None, "started_at": "2026-11-03T11:00:00Z"},
    ]
    text = views.job_text({**MINE, "argv": ["echo", "a b"], "gpus": 2}, attempts, NOW)
    assert "argv:      echo 'a b'" in text
    assert "wants:     2 GPUs, priority 5" in text
    assert "the machine was restarted" in text
    assert views.job_text(THEIRS, [], NOW)


def test_a_gpu_tells_who_uses_it_and_why_it_is_not_given_out() -> None:
    lost = {
        "index": 1,
        "name": "A6000",
        "memory_mib": 49140,
        "used_mib": None,
        "health": {"allocatable": False, "sentence": "it fell off the bus"},
        "leases": [
            {"job_id": 4, "user": "al", "name": "x", "memory_mib": 8192, "state": "cleaning"}
        ],
        "foreign": [
            {"pid": 42, "memory_mib": 512},
            {"pid": 43, "user": "bo", "command": "jupyter-lab", "activity": "idle"},
            {"pid": 44, "job_id": 9, "container": "3f2a1b0c9d8e", "ignored": True},
        ],
    }
    foreign = (
        "pid 42 512 MiB, bo jupyter-lab pid 43 (idle)",
        "job 9 pid 44 in container 3f2a1b0c9d8e (ignored)",
    )
    text = views.gpus_text([lost, {"index": 0}], width=None, colour=False)
    for part in ("48 GiB", "it fell off the bus", "4 al x 8 GiB (cleaning)", *foreign):
        assert part in text


@pytest.mark.parametrize(
    ("job", "code"),
    [
        ({"outcome": "succeeded", "exit_code": 0}, 0),
        ({"outcome": "failed", "exit_code": 3}, 3),
        ({"outcome": "cancelled", "signal": "TERM", "exit_code": None}, 143),
        ({"outcome": "timed_out", "signal": "KILL"}, 137),
        ({"outcome": "failed", "signal": "34"}, 162),
        ({"outcome": "lost"}, 1),
        ({"outcome": "cancelled", "exit_code": None, "signal": None}, 1),
        ({"outcome": "succeeded"}, 0),
    ],
)
def test_the_exit_status_is_the_jobs(job: dict[str, Any], code: int) -> None:
    assert follow.exit_status(job) == code


# The daemon's door


def test_a_named_socket_is_the_only_one_and_a_long_one_is_refused_in_words() -> None:
    assert socket_candidates("/a", {"TRAIND_SOCKET": "/b"}) == ["/a"]
    assert socket_candidates(None, {"TRAIND_SOCKET": "/b"}) == ["/b"]
    assert socket_candidates("/" + "x" * (SOCKET_PATH_BYTES - 1), {})
    with pytest.raises(UsageError, match="108 bytes"):
        socket_candidates("/" + "x" * SOCKET_PATH_BYTES, {})


def test_without_a_name_roots_socket_comes_before_the_users() -> None:
    environ = {"XDG_RUNTIME_DIR": "/run/user/7", "XDG_STATE_HOME": "/home/x/state"}
    assert socket_candidates(None, environ) == [
        "/run/traind/traind.sock",
        "/run/user/7/traind/traind.sock",
        "/home/x/state/traind/traind.sock",
    ]
    assert socket_candidates(None, {})[-1].endswith("/.local/state/traind/traind.sock")


def test_a_refusal_keeps_its_sentence_its_fields_and_its_code() -> None:
    problem = {
        "detail": "gpus: at most 8",
        "errors": [
            {"field": "gpus", "message": "at most 8"},
            {"field": "cpus", "message": "at least 1"},
        ],
    }
    error = refusal(422, json.dumps(problem).encode())
    assert error.sentence == "gpus: at most 8\n  cpus: at least 1"
    assert error.exit_code == 3
    assert isinstance(refusal(403, b"{}"), NotAllowed)
    assert isinstance(refusal(404, b"not json"), NotFound)
    codes = [refusal(status, b"").exit_code for status in (400, 401, 403, 404, 409, 500, 503)]
    assert codes == [3, 4, 4, 5, 3, 3, 69]


def test_targets_are_percent_encoded() -> None:
    query: dict[str, str | int] = {"user": "a&b ü", "limit": 3}
    assert target_of("/v1/jobs", query) == "/v1/jobs?user=a%26b%20%C3%BC&limit=3"


def answered(raw: bytes, read: Callable[..., Any], *, piece: int = 7) -> Any:
    """What reading gives when the other end of a real socket sends `raw` in small pieces."""
    ours, theirs = _socket.socketpair()

    def send() -> None:
        theirs.recv(65536)
        for start in range(0, len(raw), piece):
            theirs.send(raw[start : start + piece])
        theirs.close()

    thread = threading.Thread(target=send)
    thread.start()
    try:
        return read(exchange(ours, "GET", "/", headers={}, body=None))
    finally:
        thread.join()
        ours.close()


def test_bodies_end_where_they_say() -> None:
    def read(answer: Any) -> tuple[int, bytes]:
        return answer.status, answer.read()

    sized = b"HTTP/1.1 201 Created\r\nContent-Length: 5\r\n\r\nhello"
    chunked = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3;x=y\r\nhel\r\na\r\nlo\r\nworld\n\r\n0\r\n\r\n"
    )
    until_closed = b"HTTP/1.1 200 OK\r\n\r\nhello"
    assert answered(sized, read) == (201, b"hello")
    assert answered(chunked, read) == (200, b"hello\r\nworld\n")
    assert answered(until_closed, read) == (200, b"hello")
    assert answered(b"HTTP/1.1 204 No Content\r\n\r\n", read) == (204, b"")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
)
def test_an_answer_that_breaks_off_is_a_lost_connection(raw: bytes) -> None:
    with pytest.raises(ConnectionLost):
        answered(raw, lambda answer: answer.read())


def test_a_submit_that_got_lost_is_sent_again_under_the_same_key(
    peer: Callable[..., Peer],
) -> None:
    answers = [b"", reply({"detail": "busy"}, "503 Service Unavailable"), reply({"id": 7}, "201 X")]
    daemon = peer(lambda _request, _headers: answers.pop(0))
    assert daemon.client.submit({"argv": ["x"]}).data == {"id": 7}
    keys = {headers["Idempotency-Key"] for _, headers in daemon.seen}
    assert len(daemon.seen) == 3
    assert len(keys) == 1
    assert UUID(keys.pop()).version == 4


def test_a_refused_submit_is_sent_once(peer: Callable[..., Peer]) -> None:
    daemon = peer(lambda _request, _headers: reply({"detail": "no"}, "422 X"))
    with pytest.raises(ClientError, match="no"):
        daemon.client.submit({"argv": ["x"]})
    assert len(daemon.seen) == 1


LOG = b"one\ntwo\nthree\nfour\n"


@pytest.mark.parametrize(("tail", "offset"), [(None, ""), (3, "X-Log-Offset: 4\r\n")])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_followed_log_goes_on_where_the_connection_was_lost(
    peer: Callable[..., Peer], *, tail: int | None, offset: str, ranges: bool
) -> None:
    """The first answer breaks off in the middle; the job ends before the second."""
    states = ["running", "running", "finished"]

    def answer(request: str, headers: dict[str, str]) -> bytes:
        if "/log" not in request:
            state = states.pop(0) if len(states) > 1 else states[0]
            return reply({"id": 7, "state": state, "attempt": 1})
        if "Range" not in headers:
            assert request.startswith("GET /v1/jobs/7/log?follow=1&attempt=1")
            part = LOG[4:] if tail else LOG
            return reply(part, headers=offset)[: -len(part) + 6]
        start = int(headers["Range"].removeprefix("bytes=").removesuffix("-"))
        return reply(LOG[start:], "206 Partial Content") if ranges else reply(LOG)

    daemon = peer(answer)
    written = bytearray()
    follow.follow(daemon.client, 7, written.extend, tail=tail)
    assert bytes(written) == (LOG[4:] if tail else LOG)


def test_following_goes_on_with_the_next_attempt(peer: Callable[..., Peer]) -> None:
    jobs = [("running", 1), ("running", 1), ("queued", 1), ("running", 2), ("finished", 2)]

    def answer(request: str, headers: dict[str, str]) -> bytes:
        if "/log" not in request:
            state, attempt = jobs.pop(0) if len(jobs) > 1 else jobs[0]
            return reply({"id": 7, "state": state, "attempt": attempt})
        log = b"first\n" if "attempt=1" in request else b"second\n"
        start = int(headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        return reply(log[start:], "206 Partial Content" if start else "200 OK")

    daemon = peer(answer)
    written = bytearray()
    follow.follow(daemon.client, 7, written.extend)
    assert bytes(written) == b"first\nsecond\n"


def test_a_job_cancelled_before_its_start_has_no_log_and_that_is_no_error(
    peer: Callable[..., Peer],
) -> None:
    states = ["queued", "queued", "finished"]

    def answer(request: str, _headers: dict[str, str]) -> bytes:
        if "/log" in request:
            return reply({"detail": "it never started"}, "409 Conflict")
        return reply({"id": 7, "state": states.pop(0) if len(states) > 1 else states[0]})

    written = bytearray()
    follow.follow(peer(answer).client, 7, written.extend)
    assert not written


def test_a_submit_imports_nothing_that_is_slow() -> None:
    program = (
        "import sys\nfrom traind.cli.main import main\n"
        "assert main(['--socket', '/nonexistent/socket', 'submit', '--gpus', '1', 'x']) == 69\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    slow = "argparse http.client socket ssl dataclasses inspect tomllib difflib asyncio sqlite3"
    slow += (
        " pydantic aiohttp uuid urllib.parse traind.jobspec traind.config traind.cli.commands shlex"
    )
    assert not set(slow.split()) & set(done.stdout.split())
