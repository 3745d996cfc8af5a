"""The paths of all groups of a network, by the method that the user chose."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..errors import CalibrationWarning
from ..graph import Graph
from ..groups import Group
from ..images import Images, TensorStore
from ..layers import norm_affine, tail_of
from ..moments import Moments, measure
from ..resume import Checkpoint
from .magnitude import magnitude_path
from .path import Path, Reader
from .reap import Request, reap_paths, solve_paths
from .refits import Refits

SELECTIONS = ("reap", "magnitude")


def find_paths(
    graph: Graph,
    images: Images,
    groups: list[Group],
    widths: Mapping[str, int],
    selection: str,
    *,
    damping: float,
    swaps: int = 0,
    positions: int | None,
    progress: bool,
    refits: bool = False,
    checkpoint: Checkpoint | None = None,
) -> list[Path]:
    """One path per group, as long as its width asks for.

    Args:
        images: Measured for methods that look at data.
        widths: Group name -> units that stay.
        selection: One of ``SELECTIONS``.
        damping: λ as a fraction of the mean diagonal of each Gram matrix.
        swaps: Exchanges per group after REAP's selection.
        positions: Random positions of each feature map to measure; None for all.
        refits: Whether the paths know the consumers' weights at each cut (and their errors, whatever the method);
            then nothing is swapped.
        checkpoint: Where moments are stored as they are measured, and found again after a kill.

    Raises:
        NumericalError: NaN or Inf in an activation, or a singular Gram matrix.
        CheckpointError: what is stored is damaged, or cannot be written.
    """
    steps = {group.name: group.size - widths[group.name] for group in groups}
    if selection == "magnitude" and not refits:
        return [magnitude_path(_norms(graph, group), steps[group.name]) for group in groups]
    busy = [group for group in groups if steps[group.name] > 0]
    found: dict[str, Path] = {}
    store = TensorStore(images.memory // 2)
    for part in _chunks(busy, images.memory):
        layers = {c.layer.weight: c.layer for group in part for c in group.consumers}
        moments = measure(
            graph,
            images,
            list(layers.values()),
            graph.tensors,
            positions=positions,
            progress=progress,
            checkpoint=checkpoint,
            name=f"moments-{_digest(layers)}",
        )
        _warn_few_rows(moments, images)
        requests = [
            Request(g.name, readers_of(graph, g, moments), steps[g.name], _order(graph, g, steps[g.name], selection))
            for g in part
        ]
        if refits:
            for group, solved in zip(part, solve_paths(requests, damping), strict=True):
                given = Refits(graph, group, moments, solved.task, solved.ridges, store)
                errors = solved.errors
                found[group.name] = Path(solved.task.order, errors, float(errors.sum()), given)
        else:
            found.update(zip((group.name for group in part), reap_paths(requests, damping, swaps), strict=True))
    nothing = Path(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64), 0.0)
    return [found.get(group.name, nothing) for group in groups]


def _order(graph: Graph, group: Group, steps: int, selection: str) -> Tensor | None:
    """The order that a method sets without looking at errors; None for REAP, which finds it."""
    return magnitude_path(_norms(graph, group), steps).order if selection == "magnitude" else None


def _chunks(groups: list[Group], memory: int) -> list[list[Group]]:
    """Groups in runs whose consumers' Gram matrices, bases and factors fit into ``memory`` bytes.

    Each run is one pass over the images.
    """
    chunks: list[list[Group]] = []
    used = 0
    for group in groups:
        size = sum(24 * consumer.layer.features**2 for consumer in group.consumers)
        if not chunks or used + size > memory:
            chunks.append([])
            used = 0
        chunks[-1].append(group)
        used += size
    return chunks


def _digest(names: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(sorted(names)).encode()).hexdigest()[:16]


def _norms(graph: Graph, group: Group) -> list[Tensor]:
    norms = []
    for layer in group.producers:
        weight = graph.tensors[layer.weight].double().transpose(0, layer.out_axis).flatten(1)
        rows = torch.from_numpy(group.cuts[layer.weight, layer.out_axis])
        norms.append(weight.square().sum(1)[rows].sum(1))
    return norms


def readers_of(graph: Graph, group: Group, moments: Mapping[str, list[Moments]]) -> list[Reader]:
    """A group's consumers as selection sees them, from the moments of their layers by weight name."""
    readers = []
    for consumer in group.consumers:
        layer = consumer.layer
        weight = layer.matrix(graph.tensors[layer.weight])
        norm = tail_of(graph, layer).norm
        if norm is not None:
            scale, _ = norm_affine(graph, norm, graph.tensors)
            weight = weight * scale.reshape(weight.shape[0], weight.shape[1], 1)
        intercept = layer.bias is not None or norm is not None
        own = moments[layer.weight][consumer.part].centred(intercept)
        readers.append(Reader(weight[consumer.part], consumer.columns(), own))
    return readers


def _warn_few_rows(moments: Mapping[str, list[Moments]], images: Images) -> None:
    few, enough = [], 0
    for name, parts in moments.items():
        rows, features = parts[0].rows, len(parts[0].gram)
        if rows < features:
            few.append(f"{name.removesuffix('.weight')} ({rows} rows, {features} features)")
            enough = max(enough, -(-features * images.count // max(rows, 1)))
    if few:
        more = f" and {len(few) - 3} more" if len(few) > 3 else ""
        warnings.warn(
            f"{images.count} images give fewer rows than features at {', '.join(few[:3])}{more}: the Gram matrix is "
            f"singular and only damping carries the fit; {enough} images would do",
            CalibrationWarning,
            stacklevel=4,
        )
