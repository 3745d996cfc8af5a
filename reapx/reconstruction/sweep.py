"""Reconstruction: one sweep front to back over two streams, the original and the pruned network.

Each layer's weights are fitted by least squares from the pruned network's input to what the original network computes
there. Before a residual add the target is ``original sum - pruned shortcut``, so every block also
repairs what the blocks before it lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from .. import _native
from ..calibration.images import Images
from ..calibration.progress import SILENT, Progress
from ..capture.graph import Graph, operator_name
from ..capture.layers import MAX_FEATURES, Layer, Tail, can_refit, describe, norm_affine, tail_of
from ..errors import CaptureError, NumericalError
from ..moments.measure import Accumulator, check_finite
from ..moments.moments import Moments, damp
from ..surgery.cut import Kept
from .rectify import Batch, FittedWeights, feeds_relu, rectify
from .schedule import schedule
from .streams import ValueStream

Streams = tuple[ValueStream, ValueStream]
"""Of the original and of the pruned network."""


@dataclass(frozen=True)
class RefitStep:
    """One layer to refit: it and its tail in the pruned graph, and the node of the original that it should follow.

    ``rectify`` counts passes after the fit that leave out what a ReLU drops; ``columns`` (int64) are the features that
    the layer reads, whose weights alone are not zero.
    """

    layer: Layer
    tail: Tail
    target: Node
    residual: bool
    rectify: int
    columns: Tensor


@dataclass(frozen=True)
class LayerRefit:
    """How well a layer was refitted: squared error over the target's variance, after and before.

    Rectification fits what a ReLU passes on, at the expense of this error over all values.
    """

    layer: str
    error: float
    before: float


def reconstruct(
    original: Graph,
    pruned: Graph,
    kept: Kept,
    images: Images,
    *,
    damping: float,
    refit: str,
    rectify: int,
    progress: Progress = SILENT,
    lasting: Kept | None = None,
) -> tuple[dict[str, Tensor], list[LayerRefit]]:
    """Refit the pruned network's layers so that it follows the original.

    Args:
        original: The network as it was.
        pruned: The same network after surgery, captured afresh.
        kept: What stays of each parameter.
        images: Calibration images.
        damping: Pull towards the old weights, a fraction of the mean diagonal of the Gram matrix.
        refit: ``"all"`` layers behind the first removal, or only the ``"consumers"`` of pruned groups.
        rectify: Passes after each fit that leave out what a ReLU drops.
        progress: Who is told how many layers are done.
        lasting: Which positions of the pruned network's parameters will last, on the axes where not all do: layers
            are refitted without those that will leave.

    Returns:
        Qualified name -> new parameter of the pruned network, and each layer's error.
    """
    steps = _steps(original, pruned, kept, refit, rectify, lasting or {})
    new = dict(pruned.tensors)
    streams = (ValueStream(original, original.tensors, images), ValueStream(pruned, new, images))
    for step in steps:
        for _ in range(1 + step.rectify):
            streams[0].wanted[step.target] += 1
            streams[1].wanted.update(_sources(step))
    updates: dict[str, Tensor] = {}
    fits = []
    try:
        for step in progress.over(steps, "refitting", unit="layer"):
            found, fit = _refit(step, streams, kept, damping)
            changed = {name: images.processes.share(value) for name, value in found.items()}
            new.update(changed)
            updates.update(changed)
            fits.append(images.processes.gather(fit)[0])
    finally:
        for stream in streams:
            stream.close()
    return updates, fits


def _sources(step: RefitStep) -> list[Node]:
    """Nodes of the pruned stream that a step reads."""
    sources = [step.layer.input]
    if step.residual and step.tail.other is not None:
        sources.append(step.tail.other)
    return sources


def _steps(original: Graph, pruned: Graph, kept: Kept, refit: str, rectify: int, lasting: Kept) -> list[RefitStep]:
    ours, theirs = [[operator_name(n) for n in g.nodes] for g in (pruned, original)]
    if ours != theirs:
        raise CaptureError(
            "forward() takes another path when channels are fewer: make it free of branches on channel counts"
        )
    twin = dict(zip(pruned.nodes, original.nodes, strict=True))
    layers = []
    for node in pruned.nodes:
        layer = describe(pruned, node)
        if isinstance(layer, Layer) and can_refit(pruned, layer) and layer.features <= MAX_FEATURES:
            layers.append(layer)
    pruned_here = [x for x in layers if x.in_axis in kept.get(x.weight, {})]
    chosen = _behind(pruned, layers, pruned_here) if refit == "all" else pruned_here
    steps = []
    for layer, residual in schedule(pruned, chosen):
        axes = lasting.get(layer.weight, {})
        if layer.out_axis in axes and len(axes[layer.out_axis]) == 0:
            continue
        tail = tail_of(pruned, layer)
        total = tail.total if residual else None
        target = twin[layer.node if total is None else total]
        passes = rectify if feeds_relu(pruned, layer, tail, residual) else 0
        columns = _columns(layer, axes.get(layer.in_axis))
        steps.append(RefitStep(layer, tail, target, residual, passes, columns))
    return steps


def _columns(layer: Layer, channels: Tensor | None) -> Tensor:
    if channels is None:
        return torch.arange(layer.features)
    return (channels[:, None] * layer.taps + torch.arange(layer.taps)).flatten()


def _behind(graph: Graph, layers: list[Layer], first: list[Layer]) -> list[Layer]:
    """The layers in ``first`` and all that depend on them; a depthwise layer keeps its weights."""
    reached = {layer.node for layer in first}
    for node in graph.nodes:
        if not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
    chosen = {layer.node for layer in first}
    return [layer for layer in layers if layer.node in chosen or (layer.input in reached and not layer.depthwise)]


def _refit(step: RefitStep, streams: Streams, kept: Kept, damping: float) -> tuple[dict[str, Tensor], LayerRefit]:
    layer, tensors = step.layer, streams[1].tensors
    old = layer.matrix(tensors[layer.weight])
    columns = step.columns.to(old.device)
    old = torch.zeros_like(old).index_copy_(2, columns, old[:, :, columns])
    outs = kept.get(layer.weight, {}).get(layer.out_axis)
    norm = None
    if step.tail.norm is not None:
        norm = norm_affine(streams[1].graph, step.tail.norm, tensors)
    moments = _measure(step, streams, outs, norm, old.shape[1])
    intercept = layer.bias is not None or norm is not None
    centred = [part.centred(intercept) for part in moments]
    every = old.new_ones(old.shape[:2].numel(), dtype=torch.bool)
    usable = _usable(norm[0]) if step.residual and norm is not None else every
    weight = torch.where(usable.reshape(*old.shape[:2], 1), _fit(layer, centred, old, columns, damping), old)
    shift = torch.cat([_shift(part, own, intercept) for part, own in zip(moments, weight, strict=True)])
    bias = torch.zeros_like(shift) if layer.bias is None else tensors[layer.bias].double()
    fit = FittedWeights(weight, torch.where(usable, shift, bias))
    for _ in range(step.rectify):
        batches = _batches(step, streams, outs, norm)
        fit = rectify(
            layer,
            tensors[layer.weight],
            fit,
            old,
            centred,
            batches,
            norm,
            usable,
            columns,
            intercept=intercept,
            damping=damping,
            processes=streams[1].images.processes,
        )
    changed = {layer.weight: layer.weight_from(fit.weight, tensors[layer.weight])}
    if intercept:
        changed.update(_intercept(step, streams[1], fit.intercept))
    error = sum(part.error(w) for part, w in zip(centred, fit.weight, strict=True))
    before = sum(part.error(w) for part, w in zip(centred, old, strict=True))
    energy = max(sum(float(_some(part.target_square).sum()) for part in centred), 1e-300)
    return changed, LayerRefit(layer.name, max(error, 0.0) / energy, max(before, 0.0) / energy)


def _measure(
    step: RefitStep, streams: Streams, outs: Tensor | None, norm: tuple[Tensor, Tensor] | None, outputs: int
) -> list[Moments]:
    """The moments of a layer's input and target, (outputs) per conv group, over the images of all processes."""
    images = streams[1].images
    processes = images.processes
    accumulator = Accumulator(step.layer, outputs, device=images.device)
    with processes.together():
        for batch, (value, target, _) in enumerate(_batches(step, streams, outs, norm)):
            accumulator.add(value, tuple(target.shape), target)
            check_finite([accumulator], batch)
    accumulator.join(processes)
    return accumulator.moments()


def _batches(
    step: RefitStep, streams: Streams, outs: Tensor | None, norm: tuple[Tensor, Tensor] | None
) -> Iterator[Batch]:
    """The layer's input, what it should put out, and what is added behind it."""
    originals = streams[0].advance([step.target])
    for value, *rest in streams[1].advance(_sources(step)):
        (wanted,) = next(originals)
        target = _target(step.layer, step, wanted, rest, outs, norm)
        yield value, target, rest[0] if step.residual else None
    next(originals, None)  # lets the stream finish its last batch


def _shift(moments: Moments, weight: Tensor, intercept: bool) -> Tensor:
    """The intercept of fitted weights (outputs, features)."""
    if not intercept:
        return weight.new_zeros(len(weight))
    return (_some(moments.target_total) - weight @ moments.total) / max(moments.rows, 1)


def _target(
    layer: Layer,
    step: RefitStep,
    wanted: Tensor,
    rest: list[Tensor],
    outs: Tensor | None,
    norm: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """What the layer should put out: the original's value, or original sum - pruned shortcut before the norm."""
    axis = wanted.dim() - 1 if layer.spatial == 0 else 1
    target = wanted if outs is None else wanted.index_select(axis, outs.to(wanted.device))
    if step.residual:
        target = target - rest[0]
        if norm is not None:
            scale, shift = norm
            shape = [-1 if k == axis else 1 for k in range(target.dim())]
            safe = torch.where(_usable(scale), scale, torch.ones_like(scale))
            target = (target - shift.float().view(shape)) / safe.float().view(shape)
    return target


def _usable(scale: Tensor) -> Tensor:
    """Norm scales that can be divided by; the other channels keep their weights."""
    return scale.abs() > 1e-4 * scale.abs().max()


def _fit(layer: Layer, moments: list[Moments], old: Tensor, columns: Tensor, damping: float) -> Tensor:
    """Least-squares weights (groups, outputs, features) of all conv groups, damped towards ``old``; zero but there."""
    moments, old, full = [part.of_columns(columns) for part in moments], old[:, :, columns], torch.zeros_like(old)
    weight, kept = torch.empty_like(old), torch.arange(old.shape[2], device=old.device)

    def solve(indices: list[int], ridges: list[float]) -> list[int]:
        tasks = []
        for i, ridge in zip(indices, ridges, strict=True):
            gram, cross = moments[i].gram.contiguous(), _some(moments[i].cross).contiguous()
            tasks.append(_native.SolveTask(gram, cross, kept, ridge, old[i], weight[i]))
        return _native.batch_solve(tasks)

    pivot = max(damp(moments, damping, solve), default=-1)
    if pivot >= 0:
        raise NumericalError(
            f"{layer.name}: the least-squares system is singular at feature {pivot} at damping={damping}: "
            "raise it (default 1e-2), or give more images"
        )
    return full.index_copy_(2, columns, weight)


def _some(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def _intercept(step: RefitStep, stream: ValueStream, shift: Tensor) -> dict[str, Tensor]:
    """The constant goes to the bias, or into the running mean of the norm that follows."""
    layer, tensors = step.layer, stream.tensors
    if layer.bias is not None:
        return {layer.bias: shift.to(tensors[layer.bias].dtype)}
    assert step.tail.norm is not None
    name = stream.graph.parameter_of(step.tail.norm.args[3])
    assert name is not None
    return {name: tensors[name] - shift.to(tensors[name].dtype)}
