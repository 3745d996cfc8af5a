"""Single steps of planning as public functions: measure moments, and find the path of one group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath

import torch
from torch import nn

from ..calibration.progress import OnProgress, progress_of
from ..costs.latency import Latency, write_table
from ..errors import InputError
from ..groups.channel_groups import Group
from ..inspection.argument_checks import check_arguments, is_whole
from ..inspection.inspection import Inspection
from ..moments.moments import Moments
from ..selection import find_paths
from ..selection.methods import Selection, SelectionRule
from ..selection.paths import consumers
from ..selection.paths.consumers import MeasuredConsumer
from ..selection.paths.path import Path
from ..text import listed
from .group_plan import Units, chosen_units
from .settings import PATH_DAMPING


def measure(
    inspection: Inspection,
    groups: Sequence[Group | str] | None = None,
    *,
    positions: int | None = None,
    progress: bool | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, list[Moments]]:
    """Measure the moments of the inputs of all consumers of some groups, in one pass over the images.

    Args:
        inspection: Result of ``reapx.inspect``; its images are used.
        groups: Groups of the inspection, or their names; all by default. The Gram matrices, (features, features)
            float64 for each layer, are in memory at the same time.
        positions, progress, on_progress: As for ``reapx.plan``.

    Returns:
        Weight name of each layer -> moments of each of its conv groups. The moments of a ``consumer`` in
        ``group.consumers`` are ``moments[consumer.layer.weight][consumer.conv_group]``.

    Raises:
        InputError: an argument is not allowed, or a group is not in the inspection.
        NumericalError: an activation is NaN or infinite.
    """
    check_arguments(positions=positions, progress=progress, on_progress=on_progress)
    chosen = inspection.groups if groups is None else [_group_of(inspection, group) for group in groups]
    graph, images = inspection._graph, inspection._images
    told = progress_of(progress, on_progress, told=images.processes.rank == 0)
    return find_paths.measure_consumers(graph, images, chosen, positions=positions, progress=told)


def find_path(
    inspection: Inspection,
    group: Group | str,
    moments: Mapping[str, list[Moments]],
    order: Units | None = None,
    *,
    selection: Selection | SelectionRule = "reap",
    damping: float | None = None,
    steps: int | None = None,
) -> Path:
    """Find the order in which one group's units leave, and the exact reconstruction error after each removal.

    Args:
        inspection: Result of ``reapx.inspect``.
        group: A group of the inspection, or its name.
        moments: Result of :func:`measure` for this group.
        order: Units in the order in which they must leave, all of them or the first ones; None to find the order by
            ``selection``.
        selection, damping: As for ``reapx.plan``.
        steps: Removals to find; all by default, or as many as ``order`` has. ``"lasso"``, ``"dpp"`` and ``"nu"`` may
            choose other units for fewer of them.

    Returns:
        The path over all units, ``steps`` of them, or along ``order``. It has ``order``, ``errors`` (increases of the
        damped error), and ``error(count)`` and ``removed(count)`` after ``count`` removals.

    Raises:
        InputError: an argument is not allowed, or the moments of one of the group's consumers are missing.
        NumericalError: a Gram matrix is singular at this damping.
    """
    check_arguments(selection=selection, damping=damping)
    found = _group_of(inspection, group)
    if steps is not None and not (is_whole(steps) and 0 <= steps <= found.size and order is None):
        raise InputError(f"steps={steps!r}: give a whole number from 0 to {found.size}, and no order with it")
    _check_measured(found, moments)
    units = None
    if order is not None:
        chosen_units("order", found, order)  # refuses values that are not units
        units = torch.as_tensor(order).detach().cpu().to(torch.int64)
    graph = inspection._graph
    return find_paths.find_path(
        graph, found, moments, selection, damping=PATH_DAMPING if damping is None else damping, order=units, steps=steps
    )


def measured_consumers(
    inspection: Inspection, group: Group | str, moments: Mapping[str, list[Moments]]
) -> list[MeasuredConsumer]:
    """The layers that read a group as selection sees them, in the order of ``group.consumers``.

    Args:
        inspection, group, moments: As for :func:`find_path`.

    Returns:
        For each: its weight (outputs, features) float64, rows scaled by the norm that follows; the columns (units,
        count) that each unit owns; the moments of its input, about the mean where an intercept is fitted; and the
        ``scale`` that makes squared errors shares of the variance of its outputs.

    Raises:
        InputError: as :func:`find_path`.
    """
    found = _group_of(inspection, group)
    _check_measured(found, moments)
    return consumers.measured_consumers(inspection._graph, found, moments)


def time_layers(inspection: Inspection, model: nn.Module, latency: Latency, path: str | FilePath) -> None:
    """Time a network and each of its layers into a JSON file for ``Latency(0.6, table=path)``.

    Entries that the file has already are not measured again, so that an interrupted call continues, and one file may
    serve several networks of one device.

    Args:
        inspection: Result of ``reapx.inspect`` for the model.
        model: The model.
        latency: How to measure: ``measure``, ``runtime``, ``threads`` and ``batch``; its amount does not matter.
        path: The file, which is written after each layer.

    Raises:
        InputError: ``latency`` is no latency, or has a table itself.
        BudgetError: the file is damaged, a package is missing, or ``measure`` returns no positive number.
    """
    if not isinstance(latency, Latency) or latency.table is not None:
        raise InputError(f"latency={latency!r}: give one that measures, such as reapx.Latency(0.5, runtime='eager')")
    channels, images = inspection._channels, inspection._images
    write_table(path, model, inspection._graph, channels.layers, images, latency)


def _check_measured(found: Group, moments: Mapping[str, list[Moments]]) -> None:
    missing = [c.layer.weight for c in found.consumers if c.layer.weight not in moments]
    if missing:
        raise InputError(f"moments: {missing[0]}, which reads {found.name}, is missing: call reapx.measure with it")


def _group_of(inspection: Inspection, group: Group | str) -> Group:
    known = {own.name: own for own in inspection.groups}
    name = group if isinstance(group, str) else getattr(group, "name", None)
    if name not in known or (isinstance(group, Group) and known[name] is not group):
        raise InputError(
            f"group={group!r} is not a group of this inspection: give one of its groups, or a name: "
            f"{listed(list(known))}"
        )
    return known[name]
