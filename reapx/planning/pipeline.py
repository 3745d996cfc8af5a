"""The steps of planning, one after another: capture, groups, moments, paths, widths."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path as FilePath

from torch import nn

from ..allocation.allowed_widths import WidthRules, refusal, smallest
from ..allocation.output_errors import scored_outputs
from ..allocation.pro import Measurement, Tradeoff, measure_tradeoff
from ..allocation.uniform import uniform
from ..calibration.checkpoint import Checkpoint, fingerprint
from ..costs.latency import Latency, latency_terms
from ..errors import BudgetError
from ..inspection.inspection import Inspection, inspect
from ..inspection.validation import bounds_of
from ..selection.find_paths import find_paths
from ..selection.paths.path import Path
from ..text import show_bars
from .group_plan import plan_groups
from .plan import Plan
from .settings import PlanSettings

MEASURED_IMAGES = 300
"""Number of images on which errors at the outputs are measured; their means are accurate enough from so many."""


def make_plan(model: nn.Module, images: object, settings: PlanSettings) -> Plan:
    """Make the plan for some settings, step by step."""
    start = time.perf_counter()
    found = inspect(model, images, exclude=settings.exclude, memory=settings.memory, distributed=settings.distributed)
    processes, costs = found._images.processes, found.costs
    width_rules = _width_rules(model, found, settings)
    checkpoint = None if settings.resume is None else _checkpoint(settings.resume, found, settings.positions)
    bars = show_bars(settings.progress) and processes.rank == 0
    find = partial(
        find_paths,
        found._graph,
        found._images,
        found.groups,
        selection=settings.selection,
        damping=settings.damping,
        positions=settings.positions,
        progress=bars,
        checkpoint=checkpoint,
    )
    tradeoff = point = None
    if settings.allocation == "pro":
        paths = find(smallest(width_rules.allowed(found.groups)), refits=True)
        tradeoff = _tradeoff(found, paths, width_rules, settings, bars, checkpoint)
        point = tradeoff.at(settings.budget)
        widths = point.widths
    else:
        widths = uniform(found.groups, costs, settings.budget, width_rules)
    processes.check_rounding("widths", widths)
    if tradeoff is None or settings.swaps:
        paths = find(widths, swaps=settings.swaps)
    return Plan(
        settings=settings,
        groups=plan_groups(found.groups, paths, widths, tradeoff),
        frozen=tuple(found.frozen),
        macs=(costs.macs(), costs.macs(widths)),
        params=(costs.params(), costs.params(widths)),
        seconds=time.perf_counter() - start,
        _model=model,
        _found=found,
        _paths=paths,
        _tradeoff=tradeoff,
        _point=point,
    )


def _width_rules(model: nn.Module, found: Inspection, settings: PlanSettings) -> WidthRules:
    """The widths that groups may have; a budget is refused that even the smallest of them exceed."""
    pro, budget, costs = settings.allocation == "pro", settings.budget, found.costs
    if pro:
        scored_outputs(found._graph, settings.output_error)  # refuses outputs that cannot be compared
    limits = bounds_of(found._channels, settings.bounds)
    droppable = found.droppable if pro else frozenset()
    width_rules = WidthRules(settings.round_to, settings.prunes_streams, limits, droppable)
    if isinstance(budget, Latency):
        layers, calibration, batch = found._channels.layers, found._images, budget.batch
        measured = calibration.processes.first(lambda: latency_terms(model, found._graph, layers, calibration, batch))
        costs.use(budget, measured)
    least = smallest(width_rules.allowed(found.groups))
    if costs.of(type(budget), least) > budget.limit(costs.of(type(budget))):
        raise BudgetError(refusal(budget, costs, found.groups, width_rules))
    return width_rules


def _tradeoff(
    found: Inspection,
    paths: Sequence[Path],
    width_rules: WidthRules,
    settings: PlanSettings,
    bars: bool,
    checkpoint: Checkpoint | None,
) -> Tradeoff:
    measurement = Measurement(settings.points, settings.rounds, settings.output_error, MEASURED_IMAGES)
    return measure_tradeoff(
        found._graph,
        found._images,
        found.groups,
        paths,
        found.costs,
        settings.budget,
        width_rules,
        measurement,
        progress=bars,
        checkpoint=checkpoint,
    )


def _checkpoint(folder: str | FilePath, found: Inspection, positions: int | None) -> Checkpoint:
    """The checkpoint in a folder, for this network, these images and positions, and this number of processes.

    Each of several processes has its own folder inside.
    """
    processes = found._images.processes
    key = {
        **fingerprint(found._graph.tensors, found._images),
        "operators": found._graph.digest(),
        "positions": positions,
        "processes": processes.size,
    }
    if processes.size == 1:
        return Checkpoint(folder, key)
    with processes.together():
        if processes.rank == 0:
            Checkpoint(folder, key)  # refuses another number of processes before any folder is created
    with processes.together():
        return Checkpoint(FilePath(folder) / f"rank-{processes.rank}", key)
