"""The package is laid out as ``layout.ROOMS`` says: imports run one way, rooms are small, files are short."""

from __future__ import annotations

from pathlib import Path

import layout
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "reapx"


def test_rooms_import_only_rooms_before_them() -> None:
    assert layout.imports_against_the_order(PACKAGE, layout.ROOMS) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert layout.circle(PACKAGE) == []


def test_no_room_is_crowded() -> None:
    assert layout.crowded(PACKAGE) == []


@pytest.mark.parametrize("folder", ["reapx", "csrc", "benchmarks", "tests/emulated"])
def test_files_are_short(folder: str) -> None:
    assert layout.long_files(ROOT / folder) == []


def test_the_imports_of_the_package_are_found() -> None:
    """Enough of them that the tests above look at something, and some that are known, of each kind."""
    found = layout.imports(PACKAGE)
    assert len(found) > 200
    pairs = {(one.source, one.target) for one in found}
    assert ("moments.measure", "_native") in pairs  # at the top of a file
    assert ("cli.main", "demo") in pairs  # in a function
    assert ("report.plots", "planning.plan") in pairs  # under TYPE_CHECKING


# Checks of the checker, on a small package of two rooms.


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = folder / "house" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder / "house"


HOUSE = {
    "__init__.py": "from house.upper.roof import tile\n",
    "lower/__init__.py": "",
    "lower/floor.py": "import os\n",
    "lower/stairs.py": "from house.lower import floor\n",
    "upper/__init__.py": "",
    "upper/roof.py": "from house.lower.stairs import step\n",
}
ROOMS = ("lower", "upper", "__init__")


def test_a_sound_house_passes(tmp_path: Path) -> None:
    package = write(tmp_path, HOUSE)
    assert layout.imports_against_the_order(package, ROOMS) == []
    assert layout.circle(package) == [] and layout.crowded(package) == [] and layout.long_files(package) == []


@pytest.mark.parametrize(
    "text",
    [
        "import house.upper.roof\n",
        "from house.upper import roof\n",
        "from house.upper.roof import tile\n",
        "from ..upper import roof\n",
        "from ..upper.roof import tile\n",
        "def late():\n    from house.upper import roof\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.upper.roof import tile\n",
    ],
)
def test_an_import_of_a_later_room_is_found(tmp_path: Path, text: str) -> None:
    package = write(tmp_path, {**HOUSE, "lower/floor.py": text})
    (wrong,) = layout.imports_against_the_order(package, ROOMS)
    line = text.count("\n")
    assert wrong == f"house/lower/floor.py:{line}: lower imports upper.roof, but upper comes after lower"


def test_an_import_of_the_package_itself_is_found(tmp_path: Path) -> None:
    package = write(tmp_path, {**HOUSE, "lower/floor.py": "from house import tile\n"})
    (wrong,) = layout.imports_against_the_order(package, ROOMS)
    assert "lower imports __init__" in wrong
    assert len(layout.circle(package)) == 5


@pytest.mark.parametrize("rooms", [("lower", "__init__"), ("lower", "upper", "attic", "__init__")])
def test_the_table_has_every_room_and_no_other(tmp_path: Path, rooms: tuple[str, ...]) -> None:
    (wrong,) = layout.imports_against_the_order(write(tmp_path, HOUSE), rooms)
    assert ("upper is in no place" if "upper" not in rooms else "attic of the order does not exist") in wrong


@pytest.mark.parametrize("text", ["from . import stairs\n", "def up():\n    from . import stairs\n"])
def test_a_circle_in_one_room_is_found(tmp_path: Path, text: str) -> None:
    package = write(tmp_path, {**HOUSE, "lower/floor.py": text})
    assert layout.imports_against_the_order(package, ROOMS) == []
    assert layout.circle(package) in (
        ["lower.floor", "lower.stairs", "lower.floor"],
        ["lower.stairs", "lower.floor", "lower.stairs"],
    )


def test_annotations_may_name_each_other(tmp_path: Path) -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import stairs\n"
    package = write(tmp_path, {**HOUSE, "lower/floor.py": text})
    assert [(one.target, one.typing) for one in layout.imports(package) if one.source == "lower.floor"] == [
        ("lower.stairs", True)
    ]
    assert layout.circle(package) == []


def test_crowded_rooms_and_roots_are_found(tmp_path: Path) -> None:
    full = {f"lower/m{i}.py": "" for i in range(7)} | {f"r{i}.py": "" for i in range(4)}
    package = write(tmp_path, {**HOUSE, **full})
    assert layout.crowded(package) == []  # nine modules, five files at the root
    write(tmp_path, {"lower/last.py": "", "last.py": ""})
    assert layout.crowded(package) == ["house has 6 Python files, at most 5", "house/lower has 10 modules, at most 9"]


@pytest.mark.parametrize(("name", "limit"), [("lower/floor.py", 300), ("tile.cu", 400), ("tile.h", 400)])
def test_long_files_are_found(tmp_path: Path, name: str, limit: int) -> None:
    package = write(tmp_path, {**HOUSE, name: "\n" * (limit - 1)})
    assert layout.long_files(package) == []
    write(tmp_path, {name: "\n" * limit})
    assert layout.long_files(package) == [f"house/{name} has {limit} lines, it must have fewer than {limit}"]
