"""What is measured on networks whose training left zero nodes: compaction, REAP behind it, means over seeds."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import models
import torch
from sparse_training import Recipe, Run, trained
from timing import write
from torch import Tensor, nn

import reapx

Labelled = tuple[Tensor, Tensor]
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Of what compaction left, that REAP is asked for, one after another."""
EQUAL = 0.001
"""Held-out accuracy that REAP may cost."""
DENSE = 0.02
"""Share of the parameters that a dense network may lose to compaction."""
KEYS = ("method", "strength")
THRESHOLDS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""Shares of a layer's largest node that could count as zero."""

RELATIVE = 1e-4
"""Of the largest input, up to which one counts as zero: the default of ``reapx.zero_nodes``."""


@dataclass(frozen=True)
class Data:
    """What networks are measured on, all on one device.

    Attributes:
        calibration: Images that REAP refits on; from training.
        held: Training images held out, on which everything is chosen.
        test: Test images, only counted.
    """

    calibration: Tensor
    held: Labelled
    test: Labelled

    def to(self, device: torch.device) -> Data:
        """The same on a device."""
        held, test = (tuple(tensor.to(device) for tensor in part) for part in (self.held, self.test))
        return Data(self.calibration.to(device), held, test)


def report(
    options: argparse.Namespace,
    stem: str,
    runs: Sequence[Run],
    build: Callable[[], nn.Module],
    data: Data,
    recipe: Recipe,
    loss: float,
) -> None:
    """Measure every run, print means over the seeds, and write both.

    Args:
        loss: Held-out accuracy that a strength may cost, against the dense networks, to be chosen.
    """
    rows: list[dict[str, Any]] = []
    target = options.target
    data = data.to(target.device)
    for run in runs:
        row = measure(trained(run, options.folder, build).to(target.device), data)
        rows.append({"method": run.method, "strength": run.strength, "seed": run.seed, **row})
        print(f"{run.name}: removed {100 * rows[-1]['removed']:.2f} %, gap {rows[-1]['gap']:.0e}", flush=True)
    means = summary(rows)
    best = {method: chosen(means, method, loss) for method in dict.fromkeys(run.method for run in runs)}
    if not options.quick or options.json:
        width = {"width": options.width} if "width" in options else {}
        write(stem, rows, options.json, target, means=means, chosen=best, recipe=asdict(recipe), **width)
    show(means)
    show_thresholds(rows)
    for method, line in best.items():
        if line is not None:
            print(f"{method}: {line['strength']:.0e}, the most removed at a held-out loss of at most {loss:.2%}")


def show_thresholds(rows: Sequence[dict[str, Any]]) -> None:
    """What other thresholds would remove, and how far outputs would move."""
    for method in dict.fromkeys(row["method"] for row in rows):
        for index, relative in enumerate(THRESHOLDS):
            own = [row["thresholds"][index] for row in rows if row["method"] == method]
            removed = statistics.mean(value["removed"] for value in own)
            gap = max(value["gap"] for value in own)
            print(f"{method:13s} zero up to {relative:.0e}: {removed:.2%} removed, outputs differ by {gap:.0e} at most")


def measure(model: nn.Module, data: Data) -> dict[str, Any]:
    """A trained network before and after compaction, and after REAP."""
    nodes = reapx.zero_nodes(model, data.calibration[:8])
    result = nodes.remove()
    before, after = nodes.params
    row: dict[str, Any] = {
        "accuracy": models.accuracy(model, *data.test),
        "held_accuracy": models.accuracy(model, *data.held),
        "compact_accuracy": models.accuracy(result.model, *data.test),
        "gap": result.gap,
        "params": before,
        "compact_params": after,
        "removed": 1 - after / before,
        "removed_with_inputs": 1 - (after - _unread_inputs(result.model)) / before,
        "macs_removed": 1 - nodes.macs[1] / nodes.macs[0],
        "nodes": {entry.group.name: [entry.group.size, len(entry.removed)] for entry in nodes.groups},
    }
    row["thresholds"] = [_at(model, data, relative) for relative in THRESHOLDS]
    return {**row, **beyond(result.model, data, before)}


def _at(model: nn.Module, data: Data, relative: float) -> dict[str, float]:
    """What one threshold removes, and how far the outputs move."""
    nodes = reapx.zero_nodes(model, data.calibration[:8], relative=relative)
    gap = nodes.remove(tolerance=math.inf).gap
    return {"relative": relative, "removed": 1 - nodes.params[1] / nodes.params[0], "gap": gap}


def _unread_inputs(model: nn.Module) -> int:
    """Weights of inputs that nothing reads, which Wen et al. count as removed; compaction leaves them in."""
    first = next(module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d))
    size = first.weight.detach().abs()
    idle = size.transpose(0, 1).flatten(1).amax(1) <= RELATIVE * size.max()
    return int(idle.sum()) * first.weight[:, 0].numel()


def beyond(model: nn.Module, data: Data, params: int) -> dict[str, Any]:
    """How much more REAP takes from a network before its held-out accuracy falls by more than ``EQUAL``.

    Args:
        params: Of the network that was trained.
    """
    wanted = models.accuracy(model, *data.held) - EQUAL
    plan = reapx.plan(model, data.calibration, budget=reapx.MACs(SHARES[0]), progress=False)
    best, share = model, 1.0
    for tried in SHARES:
        try:
            pruned = plan.at(reapx.MACs(tried)).apply(progress=False).model
        except reapx.BudgetError:
            break
        if models.accuracy(pruned, *data.held) < wanted:
            break
        best, share = pruned, tried
    left = sum(parameter.numel() for parameter in best.parameters())
    return {
        "reap_share": share,
        "reap_removed": 1 - left / params,
        "reap_accuracy": models.accuracy(best, *data.test),
    }


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds of each method and strength."""
    found: list[dict[str, Any]] = []
    for key in dict.fromkeys(tuple(row[name] for name in KEYS) for row in rows):
        own = [row for row in rows if tuple(row[name] for name in KEYS) == key]
        line: dict[str, Any] = {**dict(zip(KEYS, key, strict=True)), "seeds": len(own)}
        for name, value in own[0].items():
            if isinstance(value, float) and name not in KEYS:
                values = [float(row[name]) for row in own]
                line[name] = statistics.mean(values)
                line[f"{name}_spread"] = statistics.stdev(values) if len(values) > 1 else 0.0
        found.append(line)
    return found


def show(lines: Sequence[dict[str, Any]]) -> None:
    """Print the means as a table."""
    columns = {
        "held_accuracy": "held out", "accuracy": "test", "removed": "params removed",
        "removed_with_inputs": "and inputs",
        "macs_removed": "MACs removed", "compact_accuracy": "test, compact", "reap_removed": "REAP: params",
        "reap_accuracy": "REAP: test",
    }  # fmt: skip
    print(f"{'method':13s}{'strength':>9s}" + "".join(f"{title:>18s}" for title in columns.values()))
    for line in lines:
        cells = [f"{100 * line[name]:.2f} ± {100 * line[f'{name}_spread']:.2f}" for name in columns]
        print(f"{line['method']!s:13s}{line['strength']:9.0e}" + "".join(f"{cell:>18s}" for cell in cells))


def chosen(lines: Sequence[dict[str, Any]], method: str, loss: float) -> dict[str, Any] | None:
    """Of a method's strengths the one that removes most, of those with nearly the held-out accuracy of dense networks.

    Dense are all lines that lost no nodes to speak of, whatever trained them; the best of them counts.

    Args:
        loss: Held-out accuracy that may be lost.
    """
    dense = max((line["held_accuracy"] for line in lines if line["removed"] < DENSE), default=1.0)
    fit = [line for line in lines if line["method"] == method and line["held_accuracy"] >= dense - loss]
    return max(fit, key=lambda line: float(line["removed"]), default=None)
