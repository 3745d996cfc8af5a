"""The steps of planning, one after another: capture, groups, moments, paths, widths."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path as FilePath

from torch import nn

from ..allocation.allowed_widths import WidthRules, refusal, smallest
from ..allocation.descent import TradeoffPoint
from ..allocation.output_errors import scored_outputs
from ..allocation.pro import Measurement, Tradeoff, measure_tradeoff
from ..allocation.uniform import uniform
from ..calibration.checkpoint import Checkpoint, fingerprint
from ..calibration.progress import Progress, progress_of
from ..calibration.sample import EVERY
from ..costs.budget import Budget
from ..costs.latency import Latency, latency_terms
from ..errors import BudgetError
from ..inspection.inspection import Inspection, inspect
from ..inspection.validation import bounds_of, widths_of
from ..removal.timed_networks import Limits, meet, timed_at
from ..selection.find_paths import find_paths
from ..selection.paths.path import Path
from . import saved_plan
from .group_plan import plan_groups
from .plan import Plan, met_point
from .plan_state import Stored
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
    told = progress_of(settings.progress, settings.on_progress, told=processes.rank == 0)
    find = partial(
        find_paths,
        found._graph,
        found._parts[0],
        found.groups,
        selection=settings.selection,
        damping=settings.path_damping,
        positions=settings.positions,
        progress=told,
        checkpoint=checkpoint,
    )
    tradeoff = point = None
    if settings.allocation == "pro":
        paths = find(smallest(width_rules.allowed(found.groups)), refits=True)
        tradeoff = _tradeoff(found, paths, width_rules, settings, told, checkpoint)
        point, latency = met_point(model, found, tradeoff, settings.budgets)
        widths = point.widths
    elif settings.allocation == "uniform":
        widths, latency = _uniform(model, found, settings, width_rules)
    else:
        widths, latency = _given(model, found, settings, width_rules)
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
        _timed=latency,
    )


def _uniform(
    model: nn.Module, found: Inspection, settings: PlanSettings, width_rules: WidthRules
) -> tuple[dict[str, int], tuple[float, float] | None]:
    def propose(limits: Limits) -> dict[str, int]:
        return uniform(found.groups, found.costs, limits, width_rules)

    met = meet(model, found, settings.budgets, width_rules.allowed(found.groups), propose)
    return propose(met.limits), met.latency


def load_plan(model: nn.Module, images: object, folder: str | FilePath, *, distributed: bool = False) -> Plan:
    """The plan that ``Plan.save`` wrote, for the same model; nothing is touched.

    With the same images as before, ``apply`` gives the same bits. It can be printed, reported, applied and given other
    units (``with_removed``), but stays at its budget.

    Args:
        model: The model that it was made for, with the same weights, in eval mode.
        images: As for ``reapx.plan``.
        folder: Where it was saved.
        distributed: As for ``reapx.plan``.

    Raises:
        CheckpointError: a file is missing or damaged, of another version, or the plan is of another model.
        InputError, CaptureError: as ``reapx.inspect``.
    """
    page, own = saved_plan.read_plan(folder)
    with _reading(folder):
        settings = saved_plan.settings_of(page["settings"], distributed)
    found = inspect(model, images, exclude=settings.exclude, memory=settings.memory, distributed=distributed)
    saved_plan.check_model_page(page, found._graph, found.groups, folder)
    costs = found.costs
    with _reading(folder):
        entries = saved_plan.entries_of(page["groups"], found.groups)
        widths = {entry.group.name: entry.kept for entry in entries}
        tradeoff = None
        if page["stages"] is not None and all(costs.knows(budget) for budget in settings.budgets):
            rules = _width_rules(model, found, settings)
            tradeoff = Tradeoff(costs, type(settings.budgets[0]), found.groups, rules, settings.output_error)
            saved_plan.add_stages(tradeoff, page["stages"])
        latency = None if page["latency"] is None else (float(page["latency"][0]), float(page["latency"][1]))
        return Plan(
            settings=settings,
            groups=entries,
            frozen=found.frozen,
            macs=(costs.macs(), costs.macs(widths)),
            params=(costs.params(), costs.params(widths)),
            seconds=float(page["seconds"]),
            chosen=frozenset(page["chosen"]),
            _model=model,
            _found=found,
            _paths=[Path.unmeasured(entry.removed) for entry in entries],
            _tradeoff=tradeoff,
            _point=None if page["point"] is None else TradeoffPoint(**page["point"]),
            _stored=Stored(own, latency),
        )


@contextmanager
def _reading(folder: str | FilePath) -> Iterator[None]:
    """What a page should not hold is an error of the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise saved_plan.damaged(FilePath(folder) / saved_plan.PAGE, error) from error


def _width_rules(model: nn.Module, found: Inspection, settings: PlanSettings) -> WidthRules:
    """The widths that groups may have; a budget is refused that even the smallest of them exceed."""
    pro, costs = settings.allocation == "pro", found.costs
    if pro:
        scored_outputs(found._graph, settings.output_error)  # refuses outputs that cannot be compared
    limits = bounds_of(found._channels, settings.bounds)
    droppable = frozenset() if settings.allocation == "uniform" else found.droppable
    width_rules = WidthRules(settings.round_to, settings.prunes_streams, limits, droppable)
    for own in settings.budgets:
        if isinstance(own, Latency):
            terms = partial(latency_terms, model, found._graph, found._channels.layers, found._images, own)
            costs.use(own, found._images.processes.first(terms))
            if own.table is None:
                continue  # its prediction does not decide
        if not _reached(own, found, width_rules):
            raise BudgetError(refusal(own, costs, found.groups, width_rules))
    return width_rules


def _reached(budget: Budget, found: Inspection, width_rules: WidthRules) -> bool:
    """Whether the smallest allowed widths meet a budget."""
    kind, costs = type(budget), found.costs
    return bool(costs.of(kind, smallest(width_rules.allowed(found.groups))) <= budget.limit(costs.of(kind)))


def _given(
    model: nn.Module, found: Inspection, settings: PlanSettings, width_rules: WidthRules
) -> tuple[dict[str, int], tuple[float, float] | None]:
    """The widths that the caller gave, if the budgets allow them, and milliseconds where they were timed."""
    assert not isinstance(settings.allocation, str)
    widths = widths_of(found._channels, settings.allocation, width_rules.allowed(found.groups))
    latency = None
    for budget in settings.budgets:
        kind = type(budget)
        full, cost = found.costs.of(kind), found.costs.of(kind, widths)
        if isinstance(budget, Latency) and budget.table is None:
            cost = timed_at(model, found, budget, widths)
            latency = (float(full), cost)
        if cost > budget.limit(full):
            raise BudgetError(
                f"allocation: the widths that were given cost {cost:,}{budget.unit and f' {budget.unit}'}, and budget="
                f"{kind.__name__}({budget.amount}) allows {budget.limit(full):,}: give smaller widths, or no budget"
            )
    return widths, latency


def _tradeoff(
    found: Inspection,
    paths: Sequence[Path],
    width_rules: WidthRules,
    settings: PlanSettings,
    progress: Progress,
    checkpoint: Checkpoint | None,
) -> Tradeoff:
    measurement = Measurement(settings.points, settings.rounds, settings.output_error, MEASURED_IMAGES)
    return measure_tradeoff(
        found._graph,
        found._parts[1],
        found.groups,
        paths,
        found.costs,
        settings.budgets[0],
        width_rules,
        measurement,
        progress=progress,
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
        "held out": f"one of {EVERY} images",
        "processes": processes.size,
    }
    if processes.size == 1:
        return Checkpoint(folder, key)
    with processes.together():
        if processes.rank == 0:
            Checkpoint(folder, key)  # refuses another number of processes before any folder is created
    with processes.together():
        return Checkpoint(FilePath(folder) / f"rank-{processes.rank}", key)
