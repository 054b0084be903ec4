"""The house as house.md draws it: a room imports rooms of lower storeys, or itself."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "daemon" / "traind"

STOREYS = (
    {
        *("errors", "job", "jobspec", "gpu", "lifecycle", "options", "config", "wire", "hub"),
        *("logfmt", "access", "boxwire", "gpuwire", "publicwire", "meters", "verdict"),
        *("eventloop", "directives", "sbatch", "script", "instants", "causes", "shortage"),
        *("symptoms", "advice"),
    },
    {"scheduler", "store", "gpus", "runner", "notify", "statedir", "accounts", "flags"},
    {"dispatcher", "timers", "retention", "watchdog", "stores", "api", "cli"},
    {"app", "__main__"},
)
"""Room names from the ground up; `traind` itself (its version) belongs to all."""

LINES = 400
ROOT_LINES = 800
"""All code that ever runs as root in a system install; the number only ever goes down."""
CLIENT_MAY_IMPORT = {"options", "directives", "script", "cli"}
ROOT_ROOMS = {"__init__", "launcher", "shim", "identity", "cgroup", "rundir"}
DROPPED_ROOMS = {"main_process", "python_env", "login", "errand"}
"""What a launcher's children run once they are the submitter."""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    part = path.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py")


def storey_of(room: str) -> int:
    return next(number for number, rooms in enumerate(STOREYS) if room in rooms)


def imports(path: Path) -> list[str]:
    """Every traind module that a file imports, also inside functions and for types."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.append(node.module or "")
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in found if name.split(".")[0] == "traind" and "." in name]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_below_it(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        assert not imports(path)
        return
    for name in imports(path):
        other = name.split(".")[1]
        if other == "__version__" or other == room:
            continue
        ground = storey_of(room) == storey_of(other) == 0
        entry = room == "cli" and name.startswith("traind.app")  # `traind serve` becomes it
        assert storey_of(other) < storey_of(room) or ground or entry, f"{path} imports {name}"


def test_the_words_of_the_ground_use_each_other_without_circles() -> None:
    uses = {
        room: {name.split(".")[1] for name in imports(PACKAGE / f"{room}.py")} - {room}
        for room in STOREYS[0]
    }
    left = dict(uses)
    while left:
        free = [room for room, used in left.items() if not used & left.keys()]
        assert free, f"a circle among {sorted(left)}"
        for room in free:
            del left[room]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_grows_beyond_what_one_can_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES


def test_the_client_imports_nothing_slow() -> None:
    for path in (PACKAGE / "cli").glob("*.py"):
        rooms = {name.split(".")[1] for name in imports(path)} - {"__version__"}
        assert rooms <= CLIENT_MAY_IMPORT | {"app", "config"}, path


def test_what_may_be_root_can_be_read_in_one_sitting() -> None:
    paths = [PACKAGE / "__init__.py", *(PACKAGE / "runner" / f"{r}.py" for r in ROOT_ROOMS)]
    assert sum(len(path.read_text().splitlines()) for path in paths) < ROOT_LINES


def test_what_may_be_root_imports_the_standard_library_and_itself() -> None:
    rooms = ROOT_ROOMS | DROPPED_ROOMS
    for name in rooms:
        path = PACKAGE / "runner" / f"{name}.py"
        tree = ast.parse(path.read_text())
        named = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        plain = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
        named += [alias.name for node in plain for alias in node.names]
        for module in named:
            assert module.split(".")[0] in {"traind", *sys.stdlib_module_names}, module
        for module in imports(path):
            parts = module.split(".")
            own = parts[1] == "runner" and (len(parts) < 3 or parts[2] in rooms | {"Failpoint"})
            assert own, f"{path} imports {module}"


def test_pynvml_is_imported_in_the_rooms_of_nvml_only() -> None:
    users = {path.name for path in modules() if "import pynvml" in path.read_text()}
    assert users == {
        "nvml.py",
        "nvml_events.py",
        "nvml_offers.py",
        "nvml_place.py",
        "nvml_vitals.py",
    }


def test_sql_is_written_in_the_store_only() -> None:
    words = ("import sqlite_utils", "SELECT ", "INSERT INTO ", "UPDATE job")
    users = {room_of(p) for p in modules() if any(word in p.read_text() for word in words)}
    assert users == {"store"}


def test_jobs_import_nothing_of_traind() -> None:
    for path in (ROOT / "jobs").rglob("*.py"):
        assert not imports(path), path


def test_a_stub_of_a_room_is_not_a_room() -> None:
    for path in modules():
        doc = ast.get_docstring(ast.parse(path.read_text()))
        assert doc, f"{path} states no rule"
