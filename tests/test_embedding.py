"""The page on embedding runs as it stands, and so do its examples."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "embedding.md"
EXAMPLES = sorted((ROOT / "examples").glob("embedding_*.py"))


def python_blocks(page: str) -> dict[str, str]:
    """Title of each ``##`` section -> its Python blocks as one program, at the lines that they have in the page."""
    programs: dict[str, list[str]] = {}
    title, inside = "", False
    for number, line in enumerate(page.splitlines()):
        if re.match(r"## ", line) and not inside:
            title = line[3:]
        elif line.startswith("```"):
            inside = not inside and line == "```python"
        elif inside:
            program = programs.setdefault(title, [])
            program += [""] * (number - len(program)) + [line]
    return {title: "\n".join(lines) + "\n" for title, lines in programs.items()}


def test_blocks_are_taken_by_section_and_keep_their_lines() -> None:
    lines = ["# A", "## B", "```python", "x = 1", "```", "```", "no code", "```", "```python", "y = x", "```", "## C"]
    lines += ["```python", "## z", "z = 3", "```"]
    assert python_blocks("\n".join(lines)) == {
        "B": "\n" * 3 + "x = 1" + "\n" * 6 + "y = x\n",
        "C": "\n" * 13 + "## z\nz = 3\n",
    }


@pytest.mark.parametrize("title", python_blocks(PAGE.read_text(encoding="utf-8")))
def test_each_section_runs(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # for what it writes
    program = python_blocks(PAGE.read_text(encoding="utf-8"))[title]
    exec(compile(program, str(PAGE), "exec"), {"__name__": "embedding"})


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_each_example_runs(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_the_page_shows_the_kernels() -> None:
    assert any("reapx.kernels" in title for title in python_blocks(PAGE.read_text(encoding="utf-8")))
    assert [example.stem for example in EXAMPLES].count("embedding_kernels") == 1
