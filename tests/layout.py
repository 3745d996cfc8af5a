"""What the folders promise, read from the sources without importing them.

``ROOMS`` lists the rooms of reapx/ so that a room may import only from rooms before it. Every import that is written
down counts for that order, wherever it stands: one inside a function or under ``TYPE_CHECKING`` costs nothing when the
package is loaded, but a reader has to follow it all the same. Only for circles of modules, imports under
``TYPE_CHECKING`` do not count: a method may return what names its own class, as ``Plan.apply`` returns a ``Result``.
Modules named in strings (``importlib``) are not seen.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOMS = (
    "errors",
    "_native",
    "files",
    "notebook",
    "calibration",
    "capture.exporting",
    "capture",
    "groups.rules",
    "groups",
    "moments",
    "kernels",
    "costs",
    "text",
    "selection.paths",
    "selection",
    "allocation",
    "surgery",
    "reconstruction",
    "inspection",
    "removal",
    "refinement",
    "planning",
    "report",
    "behavior",
    "serial",
    "sparsity.training",
    "sparsity.compaction",
    "sparsity",
    "demo",
    "cli",
    "__init__",
    "__main__",
)
"""The rooms in the order of imports; a file at the root of the package is a room of its own."""

ROOT_FILES = 5
MODULES = 9
PYTHON_LINES = 300
CPP_LINES = 400


@dataclass(frozen=True)
class Import:
    """``source`` imports ``target``, both named below the package ("groups.propagation"), in one line of a file.

    ``typing`` says that only type checkers see it.
    """

    source: str
    target: str
    place: str
    typing: bool = False


def modules(package: Path) -> dict[str, Path]:
    """Every module of the package and its file; a folder goes by its ``__init__``, the package by "__init__".

    A compiled module has no ``.py``, but a stub of its name.
    """
    found = {}
    for file in sorted(package.rglob("*.py*")):
        if file.suffix not in (".py", ".pyi"):
            continue
        parts = file.relative_to(package).with_suffix("").parts
        inner = parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts
        found[".".join(inner)] = file
    return found


def room(module: str, files: dict[str, Path]) -> str:
    """The room of a module: its folder, or itself at the root of the package."""
    folder, _, _ = module.rpartition(".")
    return module if files[module].name == "__init__.py" or not folder else folder


def imports(package: Path) -> list[Import]:
    """Every import of one module of the package by another; of a name in a module, that of the module."""
    files = modules(package)
    found = []
    for source, file in files.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        typing = {id(node) for block in ast.walk(tree) if _for_typing(block) for node in ast.walk(block)}
        for node in ast.walk(tree):
            place = f"{file.relative_to(package.parent)}:{getattr(node, 'lineno', 0)}"
            for name in _imported(node, file.relative_to(package.parent).parent.parts):
                target = _module(name, package.name, files)
                if target is not None:
                    found.append(Import(source, target, place, id(node) in typing))
    return found


def _for_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _imported(node: ast.AST, folder: tuple[str, ...]) -> Iterator[str]:
    """Full dotted names that one statement imports, of ``from a import b`` a.b."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = list(folder[: len(folder) - node.level + 1]) if node.level else []
        base += [node.module] if node.module else []
        yield from (".".join([*base, alias.name]) for alias in node.names)


def _module(name: str, package: str, files: dict[str, Path]) -> str | None:
    """The module of the package in which a dotted name lies: the longest beginning that is one."""
    first, *parts = name.split(".")
    if first != package:
        return None
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in files:
            return ".".join(parts[:length])
    return "__init__"


def imports_against_the_order(package: Path, rooms: tuple[str, ...]) -> list[str]:
    """Imports of a room that comes later, and rooms that the table lacks or has for nothing."""
    files = modules(package)
    present = {room(module, files) for module in files}
    wrong = [f"room {name} is in no place of the order" for name in sorted(present - set(rooms))]
    wrong += [f"room {name} of the order does not exist" for name in rooms if name not in present]
    place = {name: index for index, name in enumerate(rooms)}
    for found in imports(package):
        own, other = room(found.source, files), room(found.target, files)
        if own in place and other in place and place[other] > place[own]:
            wrong.append(f"{found.place}: {own} imports {found.target}, but {other} comes after {own}")
    return wrong


def circle(package: Path) -> list[str]:
    """Modules that import each other in a circle, the first one again at the end; nothing where there is none."""
    targets: dict[str, list[str]] = {}
    for found in imports(package):
        if not found.typing:
            targets.setdefault(found.source, []).append(found.target)
    finished: set[str] = set()

    def walk(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in finished:
            return []
        for target in targets.get(module, []):
            if closed := walk(target, [*trail, module]):
                return closed
        finished.add(module)
        return []

    return next((closed for module in targets if (closed := walk(module, []))), [])


def crowded(package: Path) -> list[str]:
    """A root with too many Python files, and rooms with too many modules besides ``__init__``."""
    count = len(list(package.glob("*.py")))
    wrong = [f"{package.name} has {count} Python files, at most {ROOT_FILES}"] if count > ROOT_FILES else []
    for folder in sorted({file.parent for file in package.rglob("*.py")} - {package}):
        count = len([file for file in folder.glob("*.py") if file.name != "__init__.py"])
        if count > MODULES:
            wrong.append(f"{folder.relative_to(package.parent)} has {count} modules, at most {MODULES}")
    return wrong


def long_files(folder: Path) -> list[str]:
    """Python and C++ files that are not shorter than they must be."""
    limits = {".py": PYTHON_LINES, ".h": CPP_LINES, ".cpp": CPP_LINES, ".cu": CPP_LINES}
    wrong = []
    for file in sorted(folder.rglob("*")):
        limit = limits.get(file.suffix)
        if limit is not None and (count := len(file.read_text(encoding="utf-8").splitlines())) >= limit:
            wrong.append(f"{file.relative_to(folder.parent)} has {count} lines, it must have fewer than {limit}")
    return wrong
