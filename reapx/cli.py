"""The command line: ``reapx prune``, ``reapx inspect``, ``reapx demo``."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from .allocation import ALLOCATIONS, OUTPUT_ERRORS, POINTS
from .budget import Budget, MACs, Params
from .errors import InputError, ReapxError
from .inspection import inspect
from .latency import Latency
from .pipeline import DAMPING, plan
from .plan import Plan
from .report import plots
from .report.html import write_report
from .selection import SELECTIONS

BUDGETS: dict[str, type[Budget]] = {"macs": MACs, "params": Params, "latency": Latency}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 1 with a message on stderr where reapx refuses."""
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


def _lines(named: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {line}" for name, line in named.items())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "reapx", description="Channel pruning with least-squares reconstruction for PyTorch."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    prune = commands.add_parser("prune", help="prune a model to a budget and save it")
    _add_model(prune)
    prune.add_argument("--budget", required=True, help="macs=0.5, params=0.4, latency=0.6, or absolute numbers")
    prune.add_argument("--batch", type=_count, help="images in a batch, for latency; by default 1")
    prune.add_argument("--out", type=Path, help="folder to write")
    prune.add_argument("--selection", default="reap", choices=SELECTIONS, help=_lines(SELECTIONS))
    _add_allocation(prune)
    prune.add_argument("--round-to", type=int, default=1, help="kept widths are multiples of this")
    prune.add_argument("--damping", type=float, default=DAMPING, help="default %(default)s")
    prune.add_argument("--swaps", type=int, default=0, help="exchange up to this many channels of a group afterwards")
    prune.add_argument("--positions", type=_count, help="random positions of each feature map that selection looks at")
    prune.add_argument("--refit", default="all", choices=("all", "consumers"))
    prune.add_argument("--no-reconstruct", action="store_true", help="do not refit")
    prune.add_argument("--resume", type=Path, metavar="FOLDER", help="keep what is measured there; go on after a kill")
    prune.add_argument("--report", type=Path, metavar="FILE.html", help="write a page with plots")
    prune.add_argument("--tradeoff", type=Path, metavar="FILE.json", help="write cost, error and widths at all budgets")
    prune.add_argument("--dry-run", action="store_true", help="show the plan and stop; nothing goes to --out")
    prune.set_defaults(run=_prune)
    look = commands.add_parser("inspect", help="show what can be pruned, what is frozen and why")
    _add_model(look)
    look.set_defaults(run=_inspect)
    demo = commands.add_parser("demo", help="train, prune and compare a small network on digits")
    demo.add_argument("--out", type=Path, default=Path("reapx-demo"), help="folder to write")
    demo.set_defaults(run=_demo)
    return parser


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
    parser.add_argument("--points", type=_count, default=POINTS, help="widths of each group that are measured (pro)")
    parser.add_argument("--rounds", type=_count, default=1, help="measure so often on the way to the budget (pro)")
    parser.add_argument("--output-error", default="squared", choices=OUTPUT_ERRORS, help="what is measured (pro)")


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("give a whole number from 1")
    return count


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="module:callable or file.py:callable that returns the nn.Module")
    parser.add_argument("--weights", type=Path, help="safetensors state dict to load into it")
    parser.add_argument(
        "--images",
        required=True,
        help=".npy, .npz or .safetensors with (images, ...) as the model wants them, optionally FILE:KEY; or "
        "module:callable that returns an iterable of batches",
    )
    parser.add_argument("--count", type=_count, help="use only the first so many images of a file")
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="LAYER", help="layer names or patterns to leave alone"
    )


def _prune(options: argparse.Namespace) -> None:
    _check_files(options)
    planned = plan(
        _model(options),
        _images(options.images, options.count),
        budget=_budget(options.budget, options.batch),
        allocation=options.allocation,
        selection=options.selection,
        streams=options.streams,
        round_to=options.round_to,
        bounds=_bounds(options.bound),
        points=options.points,
        rounds=options.rounds,
        output_error=options.output_error,
        swaps=options.swaps,
        positions=options.positions,
        exclude=options.exclude,
        damping=options.damping,
        resume=options.resume,
    )
    print(planned)
    if options.tradeoff is not None:
        _write_tradeoff(planned, options.tradeoff)
    if options.dry_run:
        if options.report is not None:
            print(f"\nreport: {write_report(planned, options.report)}")
        return
    result = planned.apply(reconstruct=not options.no_reconstruct, refit=options.refit, damping=options.damping)
    print()
    print(result)
    result.save(options.out)
    print(f"\nsaved to {options.out}: rebuild with reapx.load(fresh_model, {str(options.out)!r})")
    if options.report is not None:
        print(f"report: {write_report(result, options.report)}")


def _check_files(options: argparse.Namespace) -> None:
    """Refuse, before anything is measured, what could not be written afterwards."""
    if options.out is None and not options.dry_run:
        raise InputError("--out is missing: give a folder to write, or --dry-run to see the plan only")
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out {options.out} is a file: give a folder")
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


def _inspect(options: argparse.Namespace) -> None:
    print(inspect(_model(options), _images(options.images, options.count), exclude=options.exclude))


def _demo(options: argparse.Namespace) -> None:
    from .demo import run_demo

    run_demo(options.out)


def _budget(text: str, batch: int | None) -> Budget:
    kind, _, amount = text.partition("=")
    try:
        budget = BUDGETS[kind.lower()](float(amount))
    except (KeyError, ValueError) as error:
        if isinstance(error, ReapxError):
            raise
        raise InputError(f"--budget {text!r}: write macs=0.5, params=0.4 or latency=0.6") from error
    if batch is None:
        return budget
    if not isinstance(budget, Latency):
        raise InputError(f"--batch {batch}: only a latency depends on it; leave it out with --budget {text}")
    return replace(budget, batch=batch)


def _bounds(texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """``LAYER=FEWEST:MOST`` of each, as ``reapx.plan`` wants them."""
    found: dict[str, tuple[float, float]] = {}
    for text in texts:
        layer, _, ends = text.rpartition("=")
        try:
            fewest, most = (float(end) if "." in end else int(end) for end in ends.split(":"))
        except ValueError as error:
            raise InputError(
                f"--bound {text!r}: write LAYER=FEWEST:MOST, in shares such as 'layer1.*=0.25:1.0' or in channels "
                "such as stem=8:16"
            ) from error
        if not layer:
            raise InputError(f"--bound {text!r} names no layer: write LAYER=FEWEST:MOST, such as stem=8:16")
        if layer in found:
            raise InputError(f"--bound {text!r}: {layer} has a bound already; give one for each layer or pattern")
        found[layer] = (fewest, most)
    return found


def _model(options: argparse.Namespace) -> nn.Module:
    model = _call(options.model)
    if not isinstance(model, nn.Module):
        raise InputError(f"{options.model} returned a {type(model).__name__}, not an nn.Module")
    if options.weights is not None:
        try:
            model.load_state_dict(load_file(options.weights))
        except (SafetensorError, OSError, RuntimeError) as error:
            raise InputError(
                f"--weights {options.weights}: {error}. It must be a safetensors state dict: "
                "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
            ) from error
    return model.eval()


def _call(text: str) -> Any:
    """Import ``module:callable`` or ``file.py:callable`` and call it."""
    place, _, name = text.rpartition(":")
    if not place:
        raise InputError(
            f"{text!r}: write module:callable or file.py:callable (images may also be .npy, .npz, .safetensors)"
        )
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        return getattr(module, name)()
    except Exception as error:  # whatever the user's module raises
        raise InputError(f"{text!r} cannot be loaded or called without arguments: {error!r}") from error


def _images(text: str, count: int | None) -> object:
    path, _, key = text.partition(":")
    suffix = Path(path).suffix
    if suffix not in (".npy", ".npz", ".safetensors"):
        return _call(text)
    try:
        if suffix == ".safetensors":
            values = _entry(load_file(path), key, path)
        else:
            found = np.load(path, allow_pickle=False)
            values = torch.from_numpy(found if suffix == ".npy" else _entry(dict(found), key, path))
    except (OSError, ValueError, EOFError, BadZipFile, SafetensorError) as error:
        if isinstance(error, ReapxError):
            raise
        raise InputError(f"--images {path}: {error}") from error
    return values[:count] if values.dim() else values


def _entry(entries: dict[str, Any], key: str, path: str) -> Any:
    if not key and len(entries) == 1:
        return next(iter(entries.values()))
    if key not in entries:
        raise InputError(f"--images {path}: name one of its arrays, {path}:KEY; there are {', '.join(entries)}")
    return entries[key]
