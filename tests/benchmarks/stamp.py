"""A job that says when it began and ended: the smallest program that this machine can make."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_C = """
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

int main(int argc, char **argv) {
    long long began = now_ns();
    char line[64];
    int file = open(argv[1], O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (argc > 2) usleep(atoi(argv[2]) * 1000);
    int size = snprintf(line, sizeof line, "%lld %lld\\n", began, now_ns());
    return write(file, line, size) != size;
}
"""

_SHELL = """#!/bin/sh
began=$(date +%s%N)
sleep 0.0${2:-00}
echo "$began $(date +%s%N)" >>"$1"
"""


@dataclass(frozen=True, slots=True)
class Stamper:
    """The program: it writes two instants, in nanoseconds, to the file it is given."""

    program: Path

    def argv(self, stamps: Path, *, busy_ms: int = 0) -> list[str]:
        """The command that leaves its stamps in this file; it takes two digits of milliseconds."""
        return [str(self.program), str(stamps), *([f"{busy_ms:02}"] if busy_ms else [])]


def build(folder: Path) -> Stamper:
    """The program, compiled where there is a compiler and a shell script otherwise."""
    program = folder / "stamp"
    compiler = shutil.which("cc")
    if compiler is None:
        program.write_text(_SHELL)
        program.chmod(0o755)
        return Stamper(program)
    source = folder / "stamp.c"
    source.write_text(_C)
    command = [compiler, "-O1", "-o", str(program), str(source)]
    if subprocess.run([*command, "-static"], capture_output=True, check=False).returncode:
        subprocess.run(command, check=True)
    return Stamper(program)


def read(stamps: Path) -> list[tuple[int, int]]:
    """(begin, end) of each job that left stamps there, in nanoseconds, by their begin."""
    if not stamps.exists():
        return []
    lines = stamps.read_text().splitlines()
    return sorted((int(began), int(ended)) for began, ended in map(str.split, lines))
