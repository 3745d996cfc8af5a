"""Self-contained HTML pages: no scripts, no links to other files, plots inline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..files.whole_files import path_of
from ..planning.apply import Result
from ..planning.plan import Plan
from ..refinement.refine import Refinement
from ..text import output_text, share, short
from . import plots, pro_figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2127; --soft: #5b6570;
  --line: #dde2e7; --before: #b9c4d0; --after: #1f6fb2; --tile: #f4f6f8;
  --depth0: #f2844b; --depth1: #e16462; --depth2: #cc4778; --depth3: #b12a90;
  --depth4: #8f0da4; --depth5: #6a00a8; --depth6: #41049d; --depth7: #0d0887; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181c; --ink: #e4e8ec; --soft: #9aa5b0;
  --line: #303840; --before: #55626f; --after: #5aa9e6; --tile: #1d2329;
  --depth0: #f7e425; --depth1: #fdc328; --depth2: #fca636; --depth3: #f58c46;
  --depth4: #e97257; --depth5: #db5c68; --depth6: #ca457a; --depth7: #b6308b; } }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 46rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p { margin: .5rem 0; }
.tiles { display: grid; gap: .75rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); }
.tile { background: var(--tile); border-radius: .5rem; padding: .75rem 1rem; }
.tile b { display: block; font-size: 1.05rem; font-weight: 600; white-space: nowrap; }
.tile span, figcaption { color: var(--soft); font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; }
th { color: var(--soft); font-weight: 500; }
td { white-space: nowrap; }
.left { text-align: left; overflow-wrap: break-word; white-space: normal; }
figure { margin: 1rem 0; }
svg { max-width: 100%; height: auto; display: block; }
svg text { font-family: inherit !important; }
"""


def page(title: str, sections: Sequence[str], lead: str = "") -> str:
    """A complete HTML document.

    Args:
        title: Plain text.
        sections: HTML of the sections, as ``section`` returns it.
        lead: Plain text below the title.
    """
    head = (
        '<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>"
    )
    body = "\n".join([f"<h1>{escape(title)}</h1>", paragraph(lead) if lead else "", *sections])
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def section(heading: str, *parts: str) -> str:
    """A section: a heading (plain text) and HTML below it."""
    return "\n".join(["<section>", f"<h2>{escape(heading)}</h2>", *parts, "</section>"])


def paragraph(text: str) -> str:
    """Plain text as a paragraph."""
    return f"<p>{escape(text)}</p>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table of plain text; the first ``left`` columns are left-aligned, the others right-aligned."""

    def line(kind: str, cells: Sequence[str]) -> str:
        shown = (
            f'<{kind} class="left">{escape(cell)}</{kind}>' if k < left
            else f"<{kind}>{escape(cell)}</{kind}>"
            for k, cell in enumerate(cells)
        )  # fmt: skip
        return f"<tr>{''.join(shown)}</tr>"

    body = "\n".join(line("td", row) for row in rows)
    head = line("th", header)
    return f'<div class="wide"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def figure(drawing: Figure, caption: str) -> str:
    """A matplotlib figure as inline SVG above its caption (plain text)."""
    return f"<figure>\n{plots.svg(drawing, caption)}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"


def tiles(entries: Sequence[tuple[str, str, str]]) -> str:
    """Key numbers in boxes; each entry is (name, value, note) in plain text."""
    boxes = "\n".join(
        f'<div class="tile"><span>{escape(what)}</span><b>{escape(value)}</b><span>{escape(note)}</span></div>'
        for what, value, note in entries
    )
    return f'<div class="tiles">\n{boxes}\n</div>'


def result_sections(result: Result | Plan) -> list[str]:
    """Sections of the page about a result or a plan: summary, allocation, widths, errors and frozen channels."""
    plan = result if isinstance(result, Plan) else result.plan
    found = [_summary(plan, None if isinstance(result, Plan) else result)]
    if plan._tradeoff is not None:
        found.append(_allocation(plan, plan._tradeoff.rounds))
    found.append(_widths(plan))
    if isinstance(result, Result):
        found.append(_errors(result))
        if result.refinement is not None:
            found.append(_refinement(result.refinement))
    return [*found, _frozen(plan)]


def write_report(result: Result | Plan, path: str | Path) -> Path:
    """Write one self-contained HTML page about a result, or about a plan that has not been applied.

    Args:
        result: What ``Plan.apply`` or ``reapx.plan`` returned.
        path: File to write; its folder is created if it does not exist.

    Returns:
        The path.

    Raises:
        InputError: ``result`` or ``path`` is something else.
        ReapxError: matplotlib is not installed; nothing is written.
    """
    if not isinstance(result, Plan | Result):
        raise InputError(f"result is of type {type(result).__name__}: give what Plan.apply or reapx.plan returned")
    title = "reapx: pruning plan" if isinstance(result, Plan) else "reapx: pruning report"
    return write_page(page(title, result_sections(result)), path)


def write_page(text: str, path: str | Path) -> Path:
    """Write a page to a file and return its path; the folder is created if it does not exist."""
    target = path_of(path, "path")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return target


def _summary(plan: Plan, result: Result | None) -> str:
    shown = [
        (name, f"{short(before)} → {short(after)}", f"×{after / max(before, 1):.3f}")
        for name, (before, after) in (("MACs per image", plan.macs), ("parameters", plan.params))
    ]
    milliseconds = plan.latency if result is None else result.latency
    if milliseconds is not None:
        shown.append(_milliseconds_tile(plan, milliseconds))
    text = f"{plan.method[:1].upper()}{plan.method[1:]}."
    if result is None:
        if not math.isnan(plan.output_error):
            error = output_text(plan.output_error, plan.output_measure)
            shown.append(("predicted error at the outputs", error, "before the refit of all layers"))
        shown.append(("time", f"{plan.seconds:.1f} s", "planning"))
        return section("Summary", tiles(shown), paragraph(f"{text} Nothing has been removed yet."))
    shown += [
        ("outputs moved by", share(result.change), "of their variance"),
        ("proof gap", f"{result.gap:.0e}", "of the largest output"),
        ("time", f"{plan.seconds:.1f} + {result.seconds:.1f} s", "planning + applying"),
    ]
    proof = (
        "The proof gap is the largest difference between the pruned network and the original with the same channels "
        "masked and the same refitted weights, on calibration images."
    )
    return section("Summary", tiles(shown), paragraph(f"{text} {proof}"))


def _milliseconds_tile(plan: Plan, milliseconds: Sequence[float]) -> tuple[str, str, str]:
    """The box of the milliseconds before and after; after is measured for a result, predicted for a plan."""
    before, predicted, *measured = milliseconds
    after = measured[0] if measured else predicted
    what = f"ms for a batch of {getattr(plan.settings.latency, 'batch', 1)}"
    times = f"{before:.2f} → {after:.2f}"
    note = f"×{after / before:.3f} measured, {predicted:.2f} planned" if measured else f"×{after / before:.3f} planned"
    return what, times, note


def _allocation(plan: Plan, rounds: int) -> str:
    measured = (
        "Each group alone was pruned to a few widths (hollow dots), the layers that read it refitted, and the rest of "
        "the network run. In between, a curve follows the reconstruction errors of the group's own path."
    )
    hulls = (
        "What counts is the error for each unit of cost saved. Widths go up the lower convex hulls (strong lines; the "
        "curves themselves are faint), always in the group whose hull is least steep, so that the chosen points end "
        "where the hulls are about equally steep."
    )
    total = (
        "The sum of the groups' errors at every budget, from the same measurements: plan.at(budget) goes anywhere on "
        "it. Predicted errors do not yet know what the refit of all layers wins back."
    )
    cost = pro_figures.cost_name(plan.budget)
    several = "" if rounds == 1 else " Curves are those of the first round, from the full network."
    return section(
        "Allocation",
        paragraph(f"How much leaves each group was decided by the error at the network's outputs. {measured}{several}"),
        figure(
            pro_figures.removal_figure(plan),
            "Error at the outputs when one group alone loses channels; logarithmic axis. From the front of the network "
            "(light) to its end (dark); the widths of the plan are filled. Point at a line for its name.",
        ),
        paragraph(hulls),
        figure(
            pro_figures.saving_figure(plan), f"The same errors against the {cost} saved; linear axes, cut off above."
        ),
        paragraph(total),
        figure(pro_figures.tradeoff_figure(plan), f"Predicted error at the outputs against the {cost} that stay."),
    )


def _widths(plan: Plan) -> str:
    pro = plan.settings.allocation == "pro"
    rows = []
    for entry in plan.groups:
        before, after = entry.channels
        errors = [share(entry.error), *([output_text(entry.output_error, plan.output_measure)] if pro else [])]
        if before == after:
            errors[0] = "stays whole"
        shown = [error or "–" for error in errors]
        rows.append(
            [entry.group.name, entry.group.kind, _several(entry.group.consumer_names), f"{before} → {after}", *shown]
        )
    header = ["group", "kind", "read by", "channels", "predicted error", *(["at the outputs"] if pro else [])]
    return section(
        "Channels",
        paragraph(
            "The channels of a group are made and read by the same layers; a stream is a sum of several "
            "layers, so its channels leave all of them. The predicted error is what the layers that "
            "read a group lose after a refit, as a share of their outputs' variance."
        ),
        figure(plots.widths_figure(plan), "Channels of each group, before and after."),
        table(header, rows, left=3),
    )


def _errors(result: Result) -> str:
    if not result.fits:
        return section("Refitted layers", paragraph("No layer was refitted."))
    rows = [[fit.layer, share(fit.before), share(fit.error)] for fit in result.fits]
    caption = "Error of each layer before and after its refit; logarithmic axis."
    return section(
        "Refitted layers",
        paragraph(
            "In the order of the network. Each error compares what the layer computes in the pruned "
            "network with what it should compute there, on calibration images. Before its own refit "
            "means that the layers in front of it are refitted already."
        ),
        figure(plots.errors_figure(result.fits), caption),
        table(["layer", "before its refit", "after"], rows),
    )


def _refinement(refinement: Refinement) -> str:
    points = [(0, refinement.before), *refinement.points]
    drawing = plots.lines_figure(
        [("held-out images", points)], "step", "change of the outputs", level=("before", refinement.before)
    )
    caption = "How far the outputs are from the original's on held-out images, as a share of their variance."
    return section("Refinement", paragraph(f"{refinement}."), figure(drawing, caption))


def _frozen(plan: Plan) -> str:
    if not plan.frozen:
        return section("Frozen channels", paragraph("None: every channel could have been removed."))
    rows = [[entry.layer, str(entry.channels), entry.reason] for entry in plan.frozen]
    return section(
        "Frozen channels",
        paragraph("Output channels that no plan may remove, and why."),
        table(["layer", "channels", "reason"], rows, left=3),
    )


def _several(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest
