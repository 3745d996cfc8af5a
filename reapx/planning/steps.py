"""The steps of planning by themselves: moments of what was inspected, and the path of one group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..calibration.progress import OnProgress, progress_of
from ..errors import InputError
from ..groups.channel_groups import Group
from ..inspection.argument_checks import check_arguments
from ..inspection.inspection import Inspection
from ..moments.moments import Moments
from ..selection import find_paths
from ..selection.methods import Selection, SelectionRule
from ..selection.paths.path import Path
from ..text import listed
from .group_plan import Units, chosen_units
from .settings import DAMPING


def measure(
    inspection: Inspection,
    groups: Sequence[Group | str] | None = None,
    *,
    positions: int | None = None,
    progress: bool | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, list[Moments]]:
    """Moments of the inputs of all layers that read some groups, from one pass over the images.

    Args:
        inspection: What ``reapx.inspect`` found, with the images that it was given.
        groups: Groups of it, or their names; all by default. Their Gram matrices, (features, features) float64 for
            each layer, are in memory together.
        positions, progress, on_progress: As for ``reapx.plan``.

    Returns:
        Name of each layer's weight -> moments of each of its conv groups. Those of ``consumer`` in ``group.consumers``
        are ``moments[consumer.layer.weight][consumer.conv_group]``.

    Raises:
        InputError: a group is not in the inspection.
        NumericalError: NaN or Inf in an activation.
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
    damping: float = DAMPING,
) -> Path:
    """The order in which one group's units leave, and the exact reconstruction error after each.

    Args:
        inspection: What ``reapx.inspect`` found.
        group: A group of it, or its name.
        moments: What :func:`measure` returned for it.
        order: Units in the order in which they have to leave, all or the first ones; found by ``selection`` without it.
        selection, damping: As for ``reapx.plan``.

    Returns:
        The path over all units, or along ``order``: ``path.order``, ``path.errors`` (what each removal adds to the
        damped error), ``path.error(count)`` and ``path.removed(count)`` after ``count`` removals.

    Raises:
        InputError: an argument cannot be used, or the moments of a layer that reads the group are missing.
        NumericalError: a Gram matrix is singular.
    """
    check_arguments(selection=selection, damping=damping)
    found = _group_of(inspection, group)
    missing = [c.layer.weight for c in found.consumers if c.layer.weight not in moments]
    if missing:
        raise InputError(f"moments: {missing[0]}, which reads {found.name}, is missing: call reapx.measure with it")
    units = None
    if order is not None:
        chosen_units("order", found, order)  # refuses what are no units
        units = torch.as_tensor(order).detach().cpu().to(torch.int64)
    return find_paths.find_path(inspection._graph, found, moments, selection, damping=damping, order=units)


def _group_of(inspection: Inspection, group: Group | str) -> Group:
    known = {own.name: own for own in inspection.groups}
    name = group if isinstance(group, str) else getattr(group, "name", None)
    if name not in known or (isinstance(group, Group) and known[name] is not group):
        raise InputError(
            f"group={group!r} is none of this inspection: give one of its groups, or a name of {listed(list(known))}"
        )
    return known[name]
