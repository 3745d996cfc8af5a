"""Short HTML tables, which Jupyter shows in the place of ``repr``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from html import escape

SHOWN = 8
"""Rows of a table that are visible before it is expanded."""


def in_notebook() -> bool:
    """Whether this code runs in the kernel of a Jupyter notebook, without importing IPython for it."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def summary_html(lines: Sequence[str], header: Sequence[str], rows: Sequence[Sequence[str]], end: str = "") -> str:
    """Lines of text above a table; rows beyond the first ``SHOWN`` and the text below are folded away.

    Args:
        lines: Plain text, the first of which is the title.
        header: Plain text above the columns.
        rows: Plain text of each row.
        end: Plain text below the table, whose line breaks stay; nothing if it is empty.
    """
    title, *rest = lines
    parts = [f"<b>{escape(title)}</b>", *(f"<div>{escape(line)}</div>" for line in rest if line)]
    if rows:
        parts.append(_table(header, rows[:SHOWN]))
    if len(rows) > SHOWN:
        parts.append(_folded(f"{len(rows) - SHOWN} more rows", _table(header, rows[SHOWN:])))
    if end.strip():
        heading, _, text = end.strip().partition("\n")
        parts.append(_folded(heading, f"<pre>{escape(text)}</pre>") if text else f"<div>{escape(heading)}</div>")
    return f"<div>{''.join(parts)}</div>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(kind: str, cells: Sequence[str]) -> str:
        sides = ["left", *["right"] * (len(cells) - 1)]
        shown = (
            f'<{kind} style="text-align:{side}">{escape(cell)}</{kind}>'
            for side, cell in zip(sides, cells, strict=True)
        )
        return f"<tr>{''.join(shown)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table><thead>{line('th', header)}</thead><tbody>{body}</tbody></table>"


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"
