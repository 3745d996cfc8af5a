"""The paths of all groups of a network, by the method that the user chose."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..calibration.checkpoint import Checkpoint
from ..calibration.images import Images
from ..calibration.progress import SILENT, Progress
from ..calibration.store import TensorStore
from ..capture.graph import Graph
from ..groups.channel_groups import Group
from ..moments.few_rows import warn_few_rows
from ..moments.measure import measure
from ..moments.moments import Moments
from .methods import BLIND, SelectedUnits, SelectionRule, choose
from .paths.consumers import measured_consumers
from .paths.path import Path
from .paths.refitted_weights import RefittedWeights
from .reap import PathRequest, reap_paths, solve_paths


def find_paths(
    graph: Graph,
    images: Images,
    groups: Sequence[Group],
    widths: Mapping[str, int],
    selection: str | SelectionRule,
    *,
    damping: float,
    swaps: int = 0,
    positions: int | None,
    progress: Progress = SILENT,
    refits: bool = False,
    checkpoint: Checkpoint | None = None,
) -> list[Path]:
    """One path per group, down to the given width.

    Args:
        graph: The captured network.
        images: Calibration images; they are measured for methods that use data, and for ``refits``.
        groups: Groups of the network.
        widths: Group name -> units that stay.
        selection: One of ``SELECTIONS``, or the caller's function.
        damping: λ as a fraction of the mean diagonal of each Gram matrix.
        swaps: Largest number of exchanges per group after REAP's selection; ignored with ``refits``.
        positions: Number of random positions of each feature map to measure; None for all.
        progress: Where the progress is shown.
        refits: Whether the paths hold the consumers' refitted weights at each cut. Their errors are then known for
            every method.
        checkpoint: Folder in which moments are stored while they are measured, and from which a later call resumes.

    Returns:
        Paths in the order of ``groups``.

    Raises:
        NumericalError: an activation is NaN or infinite, or a Gram matrix is singular at this damping.
        CheckpointError: a stored file is damaged or cannot be written.
    """
    steps = {group.name: group.size - widths[group.name] for group in groups}
    if selection in BLIND and not refits:
        return [_unmeasured(graph, group, steps[group.name], selection) for group in groups]
    busy = [group for group in groups if steps[group.name] > 0]
    found: dict[str, Path] = {}
    store = TensorStore(images.memory // 2)
    for part in chunks(busy, images.memory):
        moments = measure_consumers(graph, images, part, positions=positions, progress=progress, checkpoint=checkpoint)
        rows = [(name.removesuffix(".weight"), own[0].rows, len(own[0].gram)) for name, own in moments.items()]
        warn_few_rows(rows, images, stacklevel=4)
        consumers = [measured_consumers(graph, group, moments) for group in part]
        selected = [
            choose(selection, graph, group, own, steps[group.name]) for group, own in zip(part, consumers, strict=True)
        ]
        requests = [
            PathRequest(group.name, own, steps[group.name], leaving.order)
            for group, own, leaving in zip(part, consumers, selected, strict=True)
        ]
        if refits:
            paths = []
            for group, own, solved in zip(part, consumers, solve_paths(requests, damping), strict=True):
                given = RefittedWeights(graph, group, own, solved.task, solved.ridges, store)
                paths.append(Path(solved.order, solved.errors, float(solved.errors.sum()), given))
        else:
            paths = reap_paths(requests, damping, swaps)
        for group, path, leaving in zip(part, paths, selected, strict=True):
            found[group.name] = replace(path, own_changes=leaving.own_changes)
        del moments, consumers, selected, requests  # frees memory before the next chunk is measured
    images.processes.check_rounding("channels", [path.order.tolist() for path in found.values()])
    nothing = Path(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64), 0.0)
    return [found.get(group.name, nothing) for group in groups]


def find_path(
    graph: Graph,
    group: Group,
    moments: Mapping[str, list[Moments]],
    selection: str | SelectionRule,
    *,
    damping: float,
    order: Tensor | None = None,
    steps: int | None = None,
) -> Path:
    """The path of one group over all its units, some steps or an order, from moments that were measured before.

    Args:
        graph: The captured network.
        group: The group.
        moments: Moments of all consumers, as ``measure_consumers`` returns them.
        selection: As for :func:`find_paths`; unused with an order.
        damping: λ as a fraction of the mean diagonal of each Gram matrix.
        order: (steps,) int64, units in the order in which they leave; None to find it.
        steps: Number of removals without an order; None for all units.

    Raises:
        NumericalError: a Gram matrix is singular at this damping.
    """
    consumers = measured_consumers(graph, group, moments)
    steps = len(order) if order is not None else group.size if steps is None else steps
    selected = choose(selection, graph, group, consumers, steps) if order is None else SelectedUnits(order)
    (solved,) = solve_paths([PathRequest(group.name, consumers, steps, selected.order)], damping)
    refitted = RefittedWeights(graph, group, consumers, solved.task, solved.ridges, TensorStore(math.inf))
    total = float(solved.errors.sum())
    return Path(solved.order, solved.errors, total, refitted, selected.own_changes)


def _unmeasured(graph: Graph, group: Group, steps: int, selection: str | SelectionRule) -> Path:
    """A path by a method that uses no data."""
    order = choose(selection, graph, group, measured_consumers(graph, group, None), steps).order
    assert order is not None
    return Path.unmeasured(order)


def chunks(groups: Sequence[Group], memory: int) -> list[list[Group]]:
    """Consecutive groups, split so that the Gram matrices, bases and factors of each chunk fit into ``memory`` bytes.

    Each chunk takes one pass over the images.
    """
    found: list[list[Group]] = []
    used = 0
    for group in groups:
        size = sum(32 * consumer.layer.features**2 for consumer in group.consumers)
        if not found or used + size > memory:
            found.append([])
            used = 0
        found[-1].append(group)
        used += size
    return found


def measure_consumers(
    graph: Graph,
    images: Images,
    groups: Sequence[Group],
    *,
    positions: int | None = None,
    progress: Progress = SILENT,
    checkpoint: Checkpoint | None = None,
) -> dict[str, list[Moments]]:
    """Weight name -> moments of each conv group, for every consumer of the groups; see ``measure``."""
    layers = {consumer.layer.weight: consumer.layer for group in groups for consumer in group.consumers}
    return measure(
        graph,
        images,
        list(layers.values()),
        graph.tensors,
        positions=positions,
        progress=progress,
        checkpoint=checkpoint,
        name=f"moments-{_digest(layers)}",
    )


def _digest(names: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(sorted(names)).encode()).hexdigest()[:16]
