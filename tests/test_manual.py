"""The man page: every verb is in it, and troff has nothing to say about it."""

import re
import shutil
import subprocess
import sys

import pytest

from traind.cli.manual import page
from traind.cli.verbs import VERBS


def test_the_man_page_tells_of_every_verb_and_option() -> None:
    written = page()
    for name, verb in VERBS.items():
        assert f".SS {name}\n" in written
        for option in verb.options:
            flag = option.flags[0].replace("-", r"\-")
            assert not option.help or flag in written, option.flags


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed here")
def test_the_man_page_is_sound_troff() -> None:
    source = subprocess.run(
        [sys.executable, "-m", "traind.cli.manual"], capture_output=True, text=True, check=True
    ).stdout
    checked = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8"], input=source, capture_output=True, text=True, check=True
    )
    assert checked.stderr == ""
    seen = re.sub(".\b", "", checked.stdout)  # bold letters come twice
    assert "traind cancel --all|--user|--label|--state [--dry-run]" in seen
    assert "\\" not in seen
