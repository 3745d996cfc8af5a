"""Reconstruction: one sweep front to back over two streams, the original and the pruned network.

Each layer's weights are fitted by least squares from the pruned network's input to what the original network computes
there. Before a residual add the target is ``original sum - pruned shortcut``, so every block also
repairs what the blocks before it lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.fx import Node

from ..calibration.images import Images
from ..calibration.progress import SILENT, Progress
from ..capture.graph import Graph, operator_name
from ..capture.layers import MAX_FEATURES, Layer, can_refit, describe
from ..errors import CaptureError
from ..surgery.cut import Kept
from .activations import activations_behind
from .layer_refit import LayerRefit, RefitCall, RefitStep, StreamPair, refit_layer
from .schedule import Turn, schedule


@dataclass(frozen=True)
class Sweep:
    """The two networks of a sweep, and how the layers of the second are refitted.

    Attributes:
        original: The network as it was.
        pruned: The same network after surgery, captured afresh.
        kept: What stays of each parameter.
        lasting: Which positions of the pruned network's parameters will last, on the axes where not all do: layers
            are refitted without those that will leave.
        refit: ``"all"`` layers behind the first removal, or only the ``"consumers"`` of pruned groups.
        rectify: Passes after each fit that leave out what an activation drops.
        progress: Who is told how many layers are done.
    """

    original: Graph
    pruned: Graph
    kept: Kept
    lasting: Kept
    refit: str
    rectify: int
    progress: Progress = SILENT

    @cached_property
    def _order(self) -> list[RefitStep]:
        """The layers to refit, in the order in which they are."""
        return _steps(self)

    def run(
        self, fitted: Images, judged: Images | None, damping: float | Mapping[str, float] | None
    ) -> tuple[dict[str, Tensor], list[LayerRefit]]:
        """Refit the pruned network's layers so that it follows the original.

        Args:
            fitted: The images that weights are fitted to.
            judged: The held-out ones, which damping is chosen by, and errors are of; None where all images are fitted,
                and errors are NaN.
            damping: Pull towards the old weights, a fraction of the mean diagonal of the Gram matrix: of all layers, or
                layer name -> that of each; None to choose it for each layer.

        Returns:
            Qualified name -> new parameter of the pruned network, and each layer's error.
        """
        steps = self._order
        new = dict(self.pruned.tensors)
        parts = [fitted] if judged is None else [fitted, judged]
        count = max(sum(part.count for part in parts), 1)
        pairs = [
            StreamPair(self.original, self.pruned, new, part, part.memory * part.count // count // 2) for part in parts
        ]
        ours, theirs = pairs[0], pairs[1] if judged is not None else None
        for step in steps:
            ours.want(step, 1 + step.rectify)
            if theirs is not None:
                theirs.want(step, 1)
        updates: dict[str, Tensor] = {}
        fits = []
        processes = fitted.processes
        told = "refitting" if judged is not None else "refitting on all images"
        try:
            for step in self.progress.over(steps, told, unit="layer"):
                own = damping[step.layer.name] if isinstance(damping, Mapping) else damping
                found, fit = refit_layer(step, ours, theirs, own)
                changed = {name: processes.share(value) for name, value in found.items()}
                new.update(changed)
                updates.update(changed)
                fits.append(processes.gather(fit)[0])
        finally:
            for pair in pairs:
                pair.close()
        return updates, fits


def _steps(sweep: Sweep) -> list[RefitStep]:
    original, pruned, kept = sweep.original, sweep.pruned, sweep.kept
    ours, theirs = [[operator_name(n) for n in g.nodes] for g in (pruned, original)]
    if ours != theirs:
        raise CaptureError(
            "forward() takes another path when channels are fewer: make it free of branches on channel counts"
        )
    twin = dict(zip(pruned.nodes, original.nodes, strict=True))
    layers, whole = [], dict[str, Layer]()
    for node in pruned.nodes:
        layer, before = describe(pruned, node), describe(original, twin[node])
        if isinstance(layer, Layer) and can_refit(pruned, layer) and layer.features <= MAX_FEATURES:
            assert isinstance(before, Layer)
            layers.append(layer)
            whole[layer.weight] = before  # a depthwise layer of one channel does not show that it is one
    pruned_here = [x for x in layers if whole[x.weight].in_axis in kept.get(x.weight, {})]
    chosen = _behind(pruned, layers, pruned_here) if sweep.refit == "all" else pruned_here
    weights = {layer.weight for layer in chosen}
    turns = schedule(pruned, [layer for layer in layers if layer.weight in weights])
    steps = [_step(sweep, turn, twin, whole[turn.calls[0].weight]) for turn in turns]
    return [step for step in steps if step is not None]


def _step(sweep: Sweep, turn: Turn, twin: Mapping[Node, Node], whole: Layer) -> RefitStep | None:
    """The step of one layer, which in the original is ``whole``; None where all its outputs will leave."""
    layer, residual, pruned = turn.calls[0], turn.residual, sweep.pruned
    lasting, kept = (found.get(layer.weight, {}) for found in (sweep.lasting, sweep.kept))
    if whole.out_axis in lasting and len(lasting[whole.out_axis]) == 0:
        return None
    calls, ends = [], set()
    for call, tail in zip(turn.calls, turn.tails, strict=True):
        total = tail.total if residual else None
        source = twin[call.input] if turn.recurrent else call.input
        calls.append(RefitCall(call, tail, source, twin[call.node if total is None else total]))
        ends.add(activations_behind(pruned, call, tail, residual))
    activations = ends.pop() if len(ends) == 1 else frozenset()
    return RefitStep(
        tuple(calls),
        residual,
        sweep.rectify if activations else 0,
        activations,
        _columns(layer, lasting.get(whole.in_axis)),
        kept.get(whole.out_axis),
        turn.recurrent,
        _channels_read(sweep.original, whole, kept) if turn.recurrent else None,
    )


def _channels_read(graph: Graph, whole: Layer, kept: Mapping[int, Tensor]) -> Tensor | None:
    """Channels of the original that a layer's inputs are, by what stays of its weight; None for all."""
    groups, inputs = whole.window.groups, kept.get(whole.in_axis)
    if whole.depthwise and whole.out_axis in kept:  # output c * multiplier + m reads input c
        multiplier = graph.shape(whole.node)[1] // groups
        return torch.unique(kept[whole.out_axis] // multiplier)  # type: ignore[no-any-return]
    if inputs is None or groups == 1:
        return inputs
    return (torch.arange(groups)[:, None] * (whole.features // whole.taps) + inputs).flatten()


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
