"""What the end of a log says: messages as programs write them, and what is made of them."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traind.causes import CauseCode
from traind.shortage import (
    Neighbour,
    Shortage,
    is_neighbours,
    read_shortage,
    shortage_sentence,
)
from traind.symptoms import Symptom, symptom_of

TRACE = 'Traceback (most recent call last):\n  File "train.py", line 3, in <module>\n    main()\n'
NEW = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total "
    "capacity of 23.64 GiB of which 158.62 MiB is free. Process 123 has 9.00 GiB memory in use. "
    "Process 77 has 512.00 MiB memory in use. Including non-PyTorch memory, this process has "
    "10.10 GiB memory in use. Of the allocated memory 9.20 GiB is allocated by PyTorch, and "
    "300.10 MiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is "
    "large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)
OLD = (
    "RuntimeError: CUDA out of memory. Tried to allocate 1.69 GiB (GPU 0; 14.56 GiB total "
    "capacity; 649.97 MiB already allocated; 1.31 GiB free; 1.01 GiB reserved in total by "
    "PyTorch) If reserved memory is >> allocated memory try setting max_split_size_mb"
)
WATCHDOG = (
    "[rank0]:[E1101 10:00:00 ProcessGroupNCCL.cpp:632] [Rank 0] Watchdog caught collective "
    "operation timeout: WorkNCCL(SeqNum=12, OpType=ALLREDUCE, Timeout(ms)=600000) ran for 600001"
)
CHILD = (
    "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n====\ntrain.py FAILED\n"
)


JAX = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes."
WORKER = "DataLoader worker (pid 812) is killed by signal:"
LISTEN = (
    "The server socket has failed to listen on any local network address. port: 29500, useIpv6: "
    "false, code: -98, name: EADDRINUSE, message: address already in use"
)


def ranked(text: str) -> str:
    """As torchrun writes what a rank does."""
    return "".join(f"[rank1]: {line}\n" for line in text.splitlines())


def told(text: str) -> Symptom:
    found = symptom_of(text)
    assert found is not None
    return found


DEATHS = (
    ("cuda_oom_self", "CUDA out of memory", TRACE + NEW),
    ("cuda_oom_self", "CUDA out of memory", TRACE + OLD),
    ("cuda_oom_self", "CUDA", TRACE + "torch.AcceleratorError: CUDA error: out of memory"),
    ("cuda_oom_self", "CUDA", f"jaxlib.xla_extension.XlaRuntimeError: {JAX}"),
    ("cuda_oom_self", "CUDA", "2 root errors\n  OOM when allocating tensor with shape[64,9]"),
    ("gpu_fault", "uncorrectable", TRACE + "X: CUDA error: uncorrectable ECC error encountered"),
    ("shm_full", "/dev/shm", f"{TRACE}RuntimeError: {WORKER} Bus error. It is possible that …"),
    ("shm_full", "/dev/shm", "X: unable to write to file </torch_12_3_0>: No space left on device"),
    ("host_oom", "(pid 812)", f"RuntimeError: {WORKER} Killed."),
    ("host_oom", "host's memory ran out: MemoryError", TRACE + "MemoryError"),
    ("host_oom", "7 TiB", TRACE + "numpy._core._exceptions._ArrayMemoryError: Unable: 7 TiB"),
    ("port_in_use", "port: 29500", f"{TRACE}torch.distributed.DistNetworkError: {LISTEN}"),
    ("port_in_use", "Errno 98", TRACE + "OSError: [Errno 98] Address already in use"),
    ("disk_full", "/data/x", TRACE + "OSError: [Errno 28] No space left on device: '/data/x'"),
    ("cuda_driver", "NVML", "Failed to initialize NVML: Driver/library version mismatch"),
    ("cuda_setup", "No CUDA GPUs", TRACE + "RuntimeError: No CUDA GPUs are available"),
    ("cuda_setup", "compiled", TRACE + "AssertionError: Torch not compiled with CUDA enabled"),
    ("cuda_app_bug", "assert", TRACE + "X: CUDA error: device-side assert triggered\nCUDA kernel"),
    ("nccl_timeout", "NCCL", f"{WATCHDOG}\n{CHILD}"),
    ("nccl_error", "NCCL", "ncclRemoteError: A call failed possibly due to a network error"),
    ("missing_module", "'torhc'", TRACE + "ModuleNotFoundError: No module named 'torhc'"),
    ("missing_file", "a.csv", TRACE + "FileNotFoundError: [Errno 2] No such file: 'a.csv'"),
    ("missing_file", "trian.py", "/usr/bin/python3: can't open file '/w/trian.py': [Errno 2]"),
    ("python_error", "KeyError: 'lr'", TRACE + "KeyError: 'lr'"),
    ("python_error", "KeyError: 'lr'", TRACE.replace("\n", "\r\n") + "KeyError: 'lr'\r\n"),
    ("python_error", "SyntaxError", '  File "train.py", line 1\n    def f(:\n  ^\nSyntaxError: no'),
    ("python_error", "ValueError: nan", ranked(TRACE + "ValueError: nan") + CHILD),
    ("python_error", "EOFError: it ended", TRACE + "EOFError: it ended"),
)


@pytest.mark.parametrize(("code", "said", "log"), DEATHS)
def test_what_programs_write_as_they_die_is_understood(code: str, said: str, log: str) -> None:
    for text in (log, "epoch 1\n" * 50 + log, log + "\n[W] Producer process has been terminated\n"):
        symptom = told(text)
        assert symptom.code == code
        assert said in symptom.sentence


@pytest.mark.parametrize(
    "log",
    [
        "",
        "epoch 3 loss=0.2",
        "triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 147456",
        "Killed",
        "/x/y.py:3: UserWarning: deprecated\n  warnings.warn('x')\n",
        '  File "a.py", line 3, in f\nINFO: that was where it stood',
        CHILD,
    ],
)
def test_what_says_nothing_of_a_death_is_no_symptom(log: str) -> None:
    assert symptom_of(log) is None


def test_what_a_program_lived_through_is_not_what_it_died_of() -> None:
    survived = "batch size 64 failed: CUDA out of memory. Trying 32\n"
    assert told(survived).code is CauseCode.CUDA_OOM_SELF
    assert told(survived + TRACE + "KeyError: 'lr'").code is CauseCode.PYTHON_ERROR


def test_what_came_of_a_failure_does_not_hide_it() -> None:
    chained = TRACE + NEW + "\n\nDuring handling of the above exception, another exception occurred"
    chained += ":\n\n" + TRACE + "RuntimeError: training failed"
    assert told(chained).code is CauseCode.CUDA_OOM_SELF
    others = TRACE + "RuntimeError: [pair.cc:534] Connection closed by peer [127.0.0.1]:4242"
    assert told(f"{TRACE}{NEW}\n{others}\n{WATCHDOG}\n{CHILD}").code is CauseCode.CUDA_OOM_SELF
    assert told(f"{TRACE}KeyError: 'lr'\n{others}\n{CHILD}").sentence == "KeyError: 'lr'"
    launcher = TRACE + "subprocess.CalledProcessError: Command '['python']' returned non-zero"
    assert told(f"{TRACE}KeyError: 'lr'\n{launcher}").sentence == "KeyError: 'lr'"


def test_what_is_quoted_is_one_short_printable_line() -> None:
    nasty = "\x1b[31mValueError: \x1b]0;owned\x07 \u202ebad\x00 " + "x" * 5000
    sentence = told(TRACE + nasty).sentence
    assert sentence.isprintable()
    assert len(sentence) <= 240
    assert sentence.startswith("ValueError: ]0;owned bad x")


WORDS = (
    *("\n", "\r", "\x1b[", "\x1b[31m", "[rank0]: ", "Traceback (most recent call last):\n", "  "),
    *(
        '  File "a"',
        "KeyError: x",
        "CUDA out of memory",
        "Tried to allocate 9",
        "GPU 0 has a total",
    ),
    *("Process 1 has 1.1.1.1 GiB memory in use", "NCCL", "Bus error", "é", "\ufffd", "9" * 40),
)


@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=20), max_size=60))
@settings(deadline=None)
def test_no_log_is_too_strange(parts: list[str]) -> None:
    symptom = symptom_of("".join(parts))
    assert symptom is None or symptom.sentence.isprintable()


@pytest.mark.parametrize("word", [*WORDS, "x", " ", "x\n", "A.a", "[0]: x: \n", "1.", "CUDA "])
def test_searching_takes_time_in_proportion_to_the_log(word: str) -> None:
    # With an expression that backtracks this would not end within the suite's patience.
    text = word * ((1 << 20) // len(word))
    symptom_of(text)
    read_shortage("Tried to allocate " + text)


def test_both_generations_of_pytorchs_message_are_read() -> None:
    assert read_shortage(NEW) == Shortage(
        wanted_mib=2048,
        device=1,
        total_mib=24208,
        free_mib=159,
        own_mib=10343,
        unused_mib=301,
        others=((123, 9216), (77, 512)),
    )
    assert read_shortage(OLD) == Shortage(
        wanted_mib=1731, device=0, total_mib=14910, free_mib=1342, own_mib=1035, unused_mib=385
    )
    assert read_shortage(NEW.replace("capacity", "capacty")).free_mib == 159
    assert read_shortage(JAX) == Shortage(wanted_mib=8192)
    assert read_shortage("CUDA error: out of memory") == Shortage()
    assert read_shortage("Tried to allocate 1.2.3 GiB") == Shortage(wanted_mib=0)


BOB = Neighbour(pid=123, user="bob", job_id=7, memory_mib=9216)


@pytest.mark.parametrize(
    ("own_mib", "share_mib", "neighbours", "guilty"),
    [
        (10343, 24208, (BOB,), True),
        (10343, 12391, (BOB,), True),
        (10343, 12390, (BOB,), False),
        (10343, 24208, (), False),
        (10343, 24208, (Neighbour(pid=1, user=None, job_id=None, memory_mib=1888),), False),
        (10343, 24208, (Neighbour(pid=1, user=None, job_id=None, memory_mib=1889),), True),
    ],
)
def test_a_neighbour_is_guilty_where_the_job_kept_to_its_share(
    own_mib: int, share_mib: int, neighbours: tuple[Neighbour, ...], guilty: bool
) -> None:
    shortage = read_shortage(NEW)
    found = is_neighbours(shortage, neighbours, own_mib=own_mib, share_mib=share_mib)
    assert found is guilty


def test_who_says_nothing_of_what_there_was_accuses_nobody() -> None:
    assert not is_neighbours(Shortage(wanted_mib=5), (BOB,), own_mib=0, share_mib=99)
    assert not is_neighbours(Shortage(free_mib=5), (BOB,), own_mib=0, share_mib=99)


def test_the_sentence_names_what_is_known() -> None:
    sentence = shortage_sentence(read_shortage(NEW), (BOB,), gpu="GPU 3", own_mib=10343)
    assert sentence == (
        "CUDA out of memory on GPU 3: it wanted 2 GiB more, 159 MiB were free, it held 10.1 GiB "
        "itself, pid 123 of bob (job 7) held 9 GiB"
    )
    assert shortage_sentence(Shortage(), (), gpu=None, own_mib=None) == "CUDA out of memory"
    many = [Neighbour(pid=n, user=None, job_id=None, memory_mib=n) for n in (1, 2, 3, 4)]
    random.Random(0).shuffle(many)
    sentence = shortage_sentence(Shortage(), many, gpu=None, own_mib=None)
    assert sentence.endswith("pid 4 held 4 MiB, pid 3 held 3 MiB, 2 more processes held 3 MiB")
    loose = Shortage(wanted_mib=100, free_mib=9, own_mib=900, unused_mib=300)
    assert "300 MiB lay unused" in shortage_sentence(loose, (), gpu=None, own_mib=900)
