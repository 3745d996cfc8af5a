"""Reconstruction: one sweep front to back over two streams, the original and the pruned network.

Each layer's weights are fitted by least squares from the pruned network's input to what the original network computes
there. Before a residual add the target is ``original sum - pruned shortcut``, so every block also
repairs what the blocks before it lost.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..calibration.progress import SILENT, Progress
from ..calibration.sample import ImagePart
from ..capture.graph import Graph, operator_name
from ..capture.layers import MAX_FEATURES, Layer, can_refit, describe, tail_of
from ..errors import CaptureError
from ..surgery.cut import Kept
from .layer_refit import LayerRefit, RefitStep, StreamPair, refit_layer
from .rectify import constant_beyond
from .schedule import schedule


def reconstruct(
    original: Graph,
    pruned: Graph,
    kept: Kept,
    fitted: ImagePart,
    judged: ImagePart,
    *,
    damping: float | None,
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
        fitted: The images that weights are fitted to.
        judged: The held-out ones, which damping is chosen by, and errors are of.
        damping: Pull towards the old weights, a fraction of the mean diagonal of the Gram matrix; None to choose it
            for each layer.
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
    shares = [part.count / max(fitted.count + judged.count, 1) for part in (fitted, judged)]
    ours, theirs = (
        StreamPair(original, pruned, new, part, int(part.memory * share) // 2)
        for part, share in zip((fitted, judged), shares, strict=True)
    )
    for step in steps:
        ours.want(step, 1 + step.rectify)
        theirs.want(step, 1)
    updates: dict[str, Tensor] = {}
    fits = []
    processes = fitted.processes
    try:
        for step in progress.over(steps, "refitting", unit="layer"):
            found, fit = refit_layer(step, ours, theirs, damping)
            changed = {name: processes.share(value) for name, value in found.items()}
            new.update(changed)
            updates.update(changed)
            fits.append(processes.gather(fit)[0])
    finally:
        for pair in (ours, theirs):
            pair.close()
    return updates, fits


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
        limits = constant_beyond(pruned, layer, tail, residual)
        columns = _columns(layer, axes.get(layer.in_axis))
        outputs = kept.get(layer.weight, {}).get(layer.out_axis)
        passes = 0 if limits is None else rectify
        steps.append(RefitStep(layer, tail, target, residual, passes, limits or (0.0, 0.0), columns, outputs))
    return steps


def _columns(layer: Layer, channels: Tensor | None) -> Tensor:
    if channels is None:
        return torch.arange(layer.features)
    return (channels[:, None] * layer.taps + torch.arange(layer.taps)).flatten()


def _behind(graph: Graph, layers: list[Layer], first: list[Layer]) -> list[Layer]:
    """The layers in ``first`` and all that depend on them."""
    reached = {layer.node for layer in first}
    for node in graph.nodes:
        if not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
    chosen = {layer.node for layer in first}
    return [layer for layer in layers if layer.node in chosen or layer.input in reached]
