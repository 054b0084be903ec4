"""What a script says of itself, in the words of traind and of sbatch."""

import pytest

from traind.directives import read_directives
from traind.options import OPTIONS


def values(*lines: str, slurm: bool = True) -> dict[str, object]:
    return read_directives("\n".join(("#!/bin/bash", *lines)), slurm=slurm).values


def ignored(*lines: str) -> tuple[str, ...]:
    return read_directives("\n".join(("#!/bin/bash", *lines)), slurm=True).ignored


def test_options_of_traind_lines_are_those_of_the_command_line() -> None:
    assert values(
        "#TRAIND --gpus=2 --time 2h -J 'two words'  # why",
        "#TRAIND\t--gpu-memory 10G -c4 --no-requeue --hold",
        "#TRAIND --env A=1 --env B=2 --label team=vision",
        slurm=False,
    ) == {
        "gpus": 2,
        "time_limit_s": 7200.0,
        "name": "two words",
        "gpu_memory_mib": 10240,
        "cpus": 4,
        "requeue": False,
        "hold": True,
        "env": {"A": "1", "B": "2"},
        "labels": {"team": "vision"},
    }


def test_every_long_option_of_the_table_may_be_written_in_a_script() -> None:
    texts = {"begin_at": "2030-01-31T18:00:00Z", "gpus": "1", "env": "A=1", "labels": "A=1"}
    texts |= {"cpus": "1", "priority": "1"} | dict.fromkeys(("hold", "requeue", "exclusive"), "1")
    for option in OPTIONS:
        size = option.field.endswith("_mib")
        text = texts.get(option.field, "1G" if size else "30s")
        assert option.field in values(f"#TRAIND {option.flags[0]}={text}")


def test_directives_end_where_the_commands_begin() -> None:
    assert values(
        "", "# a comment", "   # another", "#TRAIND --gpus=1", "\t", "set -e", "#TRAIND --gpus=9"
    ) == {"gpus": 1}


@pytest.mark.parametrize("line", ["##SBATCH -c 2", " #SBATCH -c 2", "#SBATCH-c 2", "# SBATCH -c 2"])
def test_only_a_line_that_begins_with_the_word_is_a_directive(line: str) -> None:
    assert values(line) == {}


def test_slurms_lines_count_only_when_asked_for() -> None:
    assert values("#SBATCH --gpus=1", slurm=False) == {}
    assert values("#SBATCH --array=0-9", "#TRAIND -G 1", slurm=False) == {"gpus": 1}


def test_traind_lines_outweigh_slurms_and_later_lines_earlier_ones() -> None:
    assert values(
        "#TRAIND --gpus=1 --env A=mine",
        "#SBATCH --gres=gpu:a100:4 --time=1 --export=ALL,A=theirs,B=2",
        "#SBATCH --time=2",
    ) == {"gpus": 1, "time_limit_s": 120.0, "env": {"A": "mine", "B": "2"}}


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("--job-name=x", {"name": "x"}),
        ("--job x", {"name": "x"}),
        ("-D /data", {"workdir": "/data"}),
        ("--workdir=/data", {"workdir": "/data"}),
        ("-t 1-12:00:00", {"time_limit_s": 129600.0}),
        ("--time=UNLIMITED", {}),
        ("-t 0", {}),
        ("--mem=16G", {"memory_mib": 16384}),
        ("--mem 4000", {"memory_mib": 4000}),
        ("--gres=gpu:rtx4090:2", {"gpus": 2, "gpu_type": "rtx4090"}),
        ("--gres=gpu:2(S:0)", {"gpus": 2}),
        ("--gpus-per-node=a100:2", {"gpus": 2, "gpu_type": "a100"}),
        ("--gpus-per-task=1", {"gpus": 1}),
        ("-n 4 --gpus-per-task=1 -c 2", {"gpus": 4, "cpus": 8}),
        ("--ntasks-per-node=2 --mem-per-cpu=2G -c 3", {"cpus": 6, "memory_mib": 12288}),
        ("--mem-per-gpu=8G -G 2 --cpus-per-gpu=4", {"gpus": 2, "cpus": 8, "memory_mib": 16384}),
        ("--requeue", {"requeue": True}),
        ("--no-requeue", {"requeue": False}),
        ("-H --exclusive", {"hold": True, "exclusive": True}),
        ("--begin=2030-01-31T18:00:00Z", {"begin_at": "2030-01-31T18:00:00+00:00"}),
        ("--signal=B:USR1@120", {"checkpoint_signal": "USR1", "checkpoint_lead_s": 120.0}),
        ("--signal=SIGTERM", {"checkpoint_signal": "TERM", "checkpoint_lead_s": 60.0}),
        ("--signal=10@30", {"checkpoint_signal": "USR1", "checkpoint_lead_s": 30.0}),
    ],
)
def test_slurms_words_mean_the_same_on_one_box(line: str, fields: dict[str, object]) -> None:
    assert values(f"#SBATCH {line}") == fields


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--partition=gpu", "#SBATCH --partition=gpu ignored: one box has no partitions"),
        ("-p gpu", "#SBATCH -p gpu ignored: one box has no partitions"),
        ("-N2", "#SBATCH -N 2 ignored: one box is one node"),
        ("--mail-user a@b.c", "#SBATCH --mail-user=a@b.c ignored: no mail is sent"),
        ("-o out/%j.log", "#SBATCH -o out/%j.log ignored: `traind logs ID` keeps the output"),
        ("--mem=0", "#SBATCH --mem=0 ignored: without a number"),
        ("--mem-per-gpu=1G", "#SBATCH --mem-per-gpu=1G ignored: it asks for no GPU"),
        ("--gres=shard:4", "#SBATCH --gres=shard:4 ignored"),
        ("--site-thing=7", "#SBATCH --site-thing=7 ignored: neither traind nor sbatch"),
        ("--site-thing 7 -A lab", "#SBATCH --site-thing=7 ignored"),
        ("lonely", "#SBATCH lonely ignored: it is no option"),
    ],
)
def test_what_means_nothing_here_is_told_and_ignored(line: str, sentence: str) -> None:
    assert values(f"#SBATCH {line} -c 2") == {"cpus": 2}
    assert ignored(f"#SBATCH {line}")[0].startswith(sentence)


def test_one_node_and_one_task_are_what_there_is_and_need_no_word() -> None:
    assert ignored("#SBATCH --nodes=1 --ntasks=1", "#SBATCH --ntasks-per-node=1") == ()


def test_no_script_gets_more_than_fifty_sentences() -> None:
    told = ignored(*(f"#SBATCH --odd-{number}" for number in range(80)))
    assert (len(told), told[-1]) == (51, "30 more options of #SBATCH lines ignored")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("#TRAIND --gpuz=1", "line 2: #TRAIND --gpuz: .*did you mean --gpus"),
        ("#TRAIND --partition=x", "line 2: #TRAIND --partition: there is no such option"),
        ("#TRAIND --time", "line 2: #TRAIND --time: needs a value"),
        ("#TRAIND --time=soon", "line 2: #TRAIND --time: 'soon' is not a span"),
        ("#TRAIND --name two words", "line 2: #TRAIND words: is no option"),
        ("#TRAIND --name 'two", "line 2: #TRAIND .*quote is not closed"),
        ("#SBATCH --job-name", "line 2: #SBATCH --job-name: needs a value"),
        ("#SBATCH --gpus=many", "line 2: #SBATCH --gpus: 'many' is not a number of GPUs"),
        ("#SBATCH --mem-per-cpu=much", "line 2: #SBATCH --mem-per-cpu: 'much' is not a size"),
        ("#SBATCH --array=0-9", "line 2: #SBATCH --array: .*not built yet"),
        ("#SBATCH -a 0-9", "line 2: #SBATCH -a: .*not built yet"),
        ("#SBATCH -d afterok:1", "line 2: #SBATCH -d: .*not built yet"),
        ("#SBATCH --input=data", "line 2: #SBATCH --input: read the file in the script"),
        ("#SBATCH --signal=@9", "line 2: #SBATCH --signal: '@9' is not a signal"),
        ("#SBATCH --signal=999", "line 2: #SBATCH --signal: 999 is not the number of a signal"),
        ("#SBATCH hetjob", "line 2: #SBATCH hetjob: .*submit a script for each"),
    ],
)
def test_what_cannot_be_understood_or_left_out_is_refused_with_its_line(
    line: str, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        values(line)


def test_what_the_script_exports_is_kept_for_whoever_has_an_environment() -> None:
    found = read_directives("#!/bin/sh\n#SBATCH --export=NONE,X=1", slurm=True)
    assert (found.export, found.values) == ("NONE,X=1", {"env": {"X": "1"}})
    assert read_directives("#!/bin/sh\n", slurm=True).export is None
