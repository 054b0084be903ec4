"""A script as an order holds it: text whose first line, its shebang, says what runs it."""

import re

SCRIPT_BYTES = 512 * 1024
SHEBANG_SENTENCE = (
    "a script's first line is a shebang, such as #!/bin/bash or #!/usr/bin/env python3"
)
PYTHON_SHEBANG = "#!/usr/bin/env python3\n"
"""What Python source without a shebang gets."""

_SHEBANG_BYTES = 4096


def interpreter_of(script: str) -> list[str]:
    """The interpreter, and behind it its one argument if the shebang gives one: as the kernel
    reads that line, which splits off the first word only.

    Raises ValueError. Source: execve(2), interpreter scripts.
    """
    line = script.partition("\n")[0]
    if not line.startswith("#!"):
        raise ValueError(f"has no shebang: {SHEBANG_SENTENCE}")
    if line.endswith("\r"):
        raise ValueError(
            "has Windows line ends (CRLF), so its interpreter would not be found; "
            "send it with Unix ones (dos2unix)"
        )
    if len(line.encode()) > _SHEBANG_BYTES:
        raise ValueError(f"has a shebang of more than {_SHEBANG_BYTES} bytes")
    words = re.split(r"[ \t]+", line[2:].strip(" \t"), maxsplit=1)
    if not words[0].startswith("/"):
        raise ValueError(
            f"has the interpreter {words[0][:80]!r}, which is no absolute path: {SHEBANG_SENTENCE}"
        )
    return words


def check_script(script: str) -> str:
    """The script as it is. Raises ValueError."""
    if len(script.encode()) >= SCRIPT_BYTES:
        raise ValueError("must be shorter than 512 KiB")
    interpreter_of(script)
    return script
