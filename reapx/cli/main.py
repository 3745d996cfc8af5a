"""The command line: ``reapx prune``, ``reapx compact``, ``reapx inspect``, ``reapx demo``."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..allocation.output_errors import OUTPUT_ERRORS
from ..allocation.pro import POINTS
from ..calibration.processes import Processes, launched, process_group
from ..errors import InputError, ReapxError
from ..inspection.argument_checks import ALLOCATIONS, REFIT_LAYERS
from ..inspection.inspection import inspect
from ..planning.apply import Result
from ..planning.calls import plan
from ..planning.plan import Plan
from ..refinement.refine import STEPS
from ..report import plots
from ..report.node_figures import checked_target
from ..report.page import write_report
from ..selection.methods import SELECTIONS
from ..sparsity.compaction.compact import RELATIVE, zero_nodes
from ..sparsity.compaction.zero_nodes import TOLERANCE
from ..surgery.storage import check_target
from .arguments import BUDGETS, add_model, bounds_of, budget_of, count_of, device_of, images_of, listed_lines, model_of

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 on success, and 1 with a message on stderr for an error of reapx."""
    options = _parser().parse_args(arguments)
    sys.path.insert(0, "")  # the user's own modules, as with python -m
    warnings.showwarning = _warn  # type: ignore[assignment]
    try:
        options.run(options)
    except ReapxError as error:
        print(f"reapx: {error}", file=sys.stderr)
        return 1
    finally:
        sys.path.remove("")
    return 0


def _warn(message: Warning | str, *_: object) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "reapx", description="Channel pruning with least-squares reconstruction for PyTorch."
    )
    parser.add_argument("--version", action="version", version=f"reapx {version('reapx')}, torch {torch.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_prune(commands)
    _add_compact(commands)
    look = commands.add_parser("inspect", help="show what can be pruned, what is frozen and why")
    add_model(look)
    look.set_defaults(run=_inspect)
    demo = commands.add_parser("demo", help="train, prune and compare a small network on digits")
    demo.add_argument("--out", type=Path, default=Path("reapx-demo"), help="folder to write")
    demo.set_defaults(run=_demo)
    return parser


def _add_prune(commands: Commands) -> None:
    prune = commands.add_parser(
        "prune",
        help="prune a model to a budget and save it",
        epilog="Several processes: torchrun --nproc-per-node 2 -m reapx prune ... shares the images' batches out among "
        "them, with --device cuda each on a GPU of its own; images of a callable must be the same in each. The first "
        "prints and writes files.",
    )
    add_model(prune)
    prune.add_argument("--budget", required=True, help="macs=0.5, params=0.4, latency=0.6, or absolute numbers")
    prune.add_argument("--batch", type=count_of, help="images in a batch, for latency; by default 1")
    prune.add_argument("--out", type=Path, help="folder to write")
    prune.add_argument("--force", action="store_true", help="replace a result that --out holds")
    prune.add_argument("--selection", default="reap", choices=SELECTIONS, help=listed_lines(SELECTIONS))
    _add_allocation(prune)
    prune.add_argument("--round-to", type=int, default=1, help="kept widths are multiples of this")
    prune.add_argument("--damping", type=float, help="default: chosen for each layer by its held-out error")
    prune.add_argument("--swaps", type=int, default=0, help="exchange up to this many channels of a group afterwards")
    prune.add_argument(
        "--positions", type=count_of, help="random positions of each feature map that selection looks at"
    )
    prune.add_argument("--refit", default="all", choices=REFIT_LAYERS)
    prune.add_argument("--no-reconstruct", action="store_true", help="do not refit")
    prune.add_argument(
        "--refine", nargs="?", const=STEPS, type=count_of, metavar="STEPS",
        help="then train the network to follow the original, without labels; so many steps, or %(const)s",
    )  # fmt: skip
    prune.add_argument("--resume", type=Path, metavar="FOLDER", help="keep what is measured there; go on after a kill")
    prune.add_argument("--report", type=Path, metavar="FILE.html", help="write a page with plots")
    prune.add_argument("--tradeoff", type=Path, metavar="FILE.json", help="write cost, error and widths at all budgets")
    prune.add_argument("--dry-run", action="store_true", help="show the plan and stop; nothing goes to --out")
    prune.set_defaults(run=_prune)


def _add_compact(commands: Commands) -> None:
    compact = commands.add_parser("compact", help="remove the nodes that compute nothing any more and save the rest")
    add_model(compact, images=False)
    compact.add_argument("--out", type=Path, help="folder to write")
    compact.add_argument("--force", action="store_true", help="replace a result that --out holds")
    compact.add_argument(
        "--relative",
        type=float,
        default=RELATIVE,
        help="share of a layer's largest node that counts as zero; default %(default)s",
    )
    compact.add_argument(
        "--absolute", type=float, default=0.0, help="size that counts as zero in any layer; default %(default)s"
    )
    compact.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        help="largest change of the outputs, as a share of the largest; default %(default)s",
    )
    compact.add_argument("--plot", type=Path, metavar="FILE", help="draw the sizes of all nodes: .png, .svg or .pdf")
    compact.add_argument("--dry-run", action="store_true", help="show what can leave and stop; nothing goes to --out")
    compact.set_defaults(run=_compact)


def _add_allocation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--allocation", default="pro", choices=ALLOCATIONS, help="default %(default)s")
    parser.add_argument(
        "--streams",
        action=argparse.BooleanOptionalAction,
        help="prune residual streams too; by default if the allocation is pro",
    )
    parser.add_argument(
        "--bound",
        action="append",
        default=[],
        metavar="LAYER=FEWEST:MOST",
        help="output channels of a layer or pattern that stay: shares with a dot, else whole channels; repeatable",
    )
    parser.add_argument("--points", type=count_of, default=POINTS, help="widths of each group that are measured (pro)")
    parser.add_argument("--rounds", type=count_of, default=1, help="measure so often on the way to the budget (pro)")
    parser.add_argument("--output-error", default="squared", choices=OUTPUT_ERRORS, help="what is measured (pro)")


def _prune(options: argparse.Namespace) -> None:
    with process_group(device_of(options.device)) as processes:
        if processes.rank > 0:
            warnings.showwarning = lambda *_: None  # the first process shows warnings
        _prune_with(options, processes)


def _prune_with(options: argparse.Namespace, processes: Processes) -> None:
    """Prune; with several processes all do the work, and the first prints and writes files."""
    _check_files(options)
    planned = plan(
        model_of(options),
        images_of(options, processes),
        budget=budget_of(options.budget, options.batch),
        allocation=options.allocation,
        selection=options.selection,
        streams=options.streams,
        round_to=options.round_to,
        bounds=bounds_of(options.bound),
        points=options.points,
        rounds=options.rounds,
        output_error=options.output_error,
        swaps=options.swaps,
        positions=options.positions,
        exclude=options.exclude,
        damping=options.damping,
        resume=options.resume,
        distributed=processes.size > 1,
    )
    if processes.rank == 0:
        _tell_plan(options, planned)
    if options.dry_run:
        return
    result = planned.apply(reconstruct=not options.no_reconstruct, refit=options.refit, damping=options.damping)
    if options.refine is not None:
        result = result.refine(steps=options.refine)
    if processes.rank == 0:
        _tell_result(options, result)


def _tell_plan(options: argparse.Namespace, planned: Plan) -> None:
    print(planned)
    if options.tradeoff is not None:
        _write_tradeoff(planned, options.tradeoff)
    if options.dry_run and options.report is not None:
        print(f"\nreport: {write_report(planned, options.report)}")


def _tell_result(options: argparse.Namespace, result: Result) -> None:
    print()
    print(result)
    result.save(options.out, overwrite=options.force)
    _print_saved(options.out)
    if options.report is not None:
        print(f"report: {write_report(result, options.report)}")


def _check_out(options: argparse.Namespace) -> None:
    if options.out is None and not options.dry_run:
        raise InputError("--out is missing: give a folder to write, or --dry-run to see the plan only")
    if options.out is not None and not options.dry_run:
        check_target(options.out, options.force)


def _check_files(options: argparse.Namespace) -> None:
    """Refuse output files that could not be written, before anything is measured."""
    _check_out(options)
    for name in ("report", "tradeoff"):
        path = getattr(options, name)
        if path is not None and path.is_dir():
            raise InputError(f"--{name} {path} is a folder: give a file")
    if options.report is not None:
        plots.require()
    if options.tradeoff is not None and options.allocation != "pro":
        raise InputError(f"--tradeoff {options.tradeoff}: only --allocation pro measures the trade-off")


def _write_tradeoff(planned: Plan, path: Path) -> None:
    points = [asdict(point) for point in planned.tradeoff()]
    kind = next(name for name, budget in BUDGETS.items() if type(planned.budget) is budget)
    text = json.dumps({"budget": kind, "output_error": planned.output_measure, "points": points}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    print(f"\ntrade-off: {path}")


def _alone(command: str) -> None:
    """Refuse commands that several processes cannot share."""
    if launched().size > 1:
        raise InputError(f"reapx {command} does not share its work: start it without torchrun")


def _compact(options: argparse.Namespace) -> None:
    _alone("compact")
    _check_out(options)
    if options.plot is not None:
        plots.require()
        checked_target(options.plot)
    images = None if options.images is None else images_of(options)
    nodes = zero_nodes(
        model_of(options), images, relative=options.relative, absolute=options.absolute, exclude=options.exclude
    )
    print(nodes)
    if options.plot is not None:
        nodes.plot(options.plot)
        print(f"\nsizes of all nodes: {options.plot}")
    if options.dry_run:
        return
    result = nodes.remove(tolerance=options.tolerance)
    print(f"\n{result}")
    result.save(options.out, overwrite=options.force)
    _print_saved(options.out)


def _print_saved(folder: Path) -> None:
    print(f"\nsaved to {folder}: rebuild with reapx.load(fresh_model, {str(folder)!r})")


def _inspect(options: argparse.Namespace) -> None:
    _alone("inspect")
    print(inspect(model_of(options), images_of(options), exclude=options.exclude))


def _demo(options: argparse.Namespace) -> None:
    from ..demo import run_demo

    run_demo(options.out)
