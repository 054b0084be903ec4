"""Where a job's Python environment lies, and the variables that an activation would set.

Looked for as the job's person, never as root. Standard library only.
"""

import errno
import os

_ROOTS = (
    *("~/miniconda3", "~/anaconda3", "~/miniforge3", "~/mambaforge", "~/miniconda", "~/anaconda"),
    *("~/.conda", "~/micromamba", "~/.local/share/mamba", "/opt/conda", "/opt/miniconda3"),
    *("/opt/anaconda3", "/opt/miniforge3", "/opt/mambaforge", "/opt/miniconda", "/opt/anaconda"),
)
"""Where conda, mamba and micromamba are usually installed, or keep a person's environments."""


def locate(wanted: str, home: str) -> str:
    """The prefix of an environment, given as such or by the name that conda has for it.

    Raises FileNotFoundError with the sentence for the person.
    """
    if wanted.startswith("/"):
        if _has_python(wanted):
            return wanted
        raise _missing(
            f"the Python environment {wanted!r} has no bin/python or bin/python3; "
            "give the prefix of a venv or conda environment that exists"
        )
    found = next(filter(_has_python, _places(wanted, home)), None)
    if found is None:
        raise _missing(
            f"there is no conda environment {wanted!r} in the usual places below {home} and /opt, "
            "nor in ~/.conda/environments.txt; give the absolute path of its prefix"
        )
    return found


def variables(prefix: str) -> dict[str, str]:
    """What an activation would set beside PATH."""
    if os.path.exists(f"{prefix}/pyvenv.cfg"):
        return {"VIRTUAL_ENV": prefix}
    if not os.path.isdir(f"{prefix}/conda-meta"):
        return {}
    folder, name = os.path.split(prefix.rstrip("/"))
    if os.path.isdir(f"{prefix}/condabin"):
        name = "base"
    elif os.path.basename(folder) != "envs":
        name = prefix
    return {"CONDA_PREFIX": prefix, "CONDA_DEFAULT_ENV": name}


def _places(name: str, home: str) -> list[str]:
    roots = [f"{home}{root[1:]}" if root.startswith("~") else root for root in _ROOTS]
    if name == "base":
        return roots
    noted = [prefix for prefix in _noted(home) if os.path.basename(prefix) == name]
    return [*(f"{root}/envs/{name}" for root in roots), *noted]


def _noted(home: str) -> list[str]:
    """The prefixes that conda wrote down whenever it made one."""
    try:
        with open(f"{home}/.conda/environments.txt", errors="replace") as file:
            return [line.strip().rstrip("/") for line in file]
    except OSError:
        return []


def _has_python(prefix: str) -> bool:
    return any(os.access(f"{prefix}/bin/{name}", os.X_OK) for name in ("python", "python3"))


def _missing(sentence: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, sentence)
