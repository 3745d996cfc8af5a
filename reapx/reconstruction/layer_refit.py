"""One layer's refit: its moments over fitted and held-out images, the fit, and rectification."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from ..calibration.images import Images
from ..capture.graph import Graph
from ..capture.layers import Layer
from ..capture.tails import Tail, norm_affine
from ..moments.measure import Accumulator, check_finite
from .activations import Activation
from .damping import LayerProblem, fit_layer
from .rectify import Batch, rectify
from .streams import ValueStream


@dataclass(frozen=True)
class RefitCall:
    """One call of a layer to refit.

    Attributes:
        layer, tail: In the pruned graph.
        source: Its input: in the pruned graph, or in the original one where the layer is recurrent.
        target: Node of the original graph that the call, or the sum it ends in, should follow.
    """

    layer: Layer
    tail: Tail
    source: Node
    target: Node


@dataclass(frozen=True)
class RefitStep:
    """One layer to refit, on all its calls together.

    Attributes:
        calls: In execution order; most layers have one.
        residual: Whether the targets are those of the sums, less the pruned shortcuts.
        rectify: Passes after the fit that weigh values by what the activation passes on.
        activations: The activations behind the layer.
        columns: (count,) int64 features that the layer reads, whose weights alone are not zero.
        outputs: Channels of the original that the layer's outputs are, or None for all.
        recurrent: Whether a call depends on another: all then read the original network's values.
        inputs: Channels of the original that the inputs of a recurrent layer are, or None for all.
    """

    calls: tuple[RefitCall, ...]
    residual: bool
    rectify: int
    activations: frozenset[Activation]
    columns: Tensor
    outputs: Tensor | None
    recurrent: bool = False
    inputs: Tensor | None = None

    @property
    def layer(self) -> Layer:
        """The first call, which stands for the layer."""
        return self.calls[0].layer

    @property
    def norm(self) -> Node | None:
        """The batch norm behind the first call, which every call has."""
        return self.calls[0].tail.norm

    @property
    def shortcuts(self) -> list[Node]:
        """Nodes of the pruned stream that are added behind the calls."""
        return [call.tail.other for call in self.calls if self.residual and call.tail.other is not None]

    @property
    def sources(self) -> list[Node]:
        """Nodes of the pruned stream that it reads: inputs, then shortcuts."""
        return [*([] if self.recurrent else [call.source for call in self.calls]), *self.shortcuts]

    @property
    def references(self) -> list[Node]:
        """Nodes of the original stream that it reads: targets, then a recurrent layer's inputs."""
        return [*(call.target for call in self.calls), *(call.source for call in self.calls if self.recurrent)]


@dataclass(frozen=True)
class LayerRefit:
    """How well a layer was refitted, on images that its fit has not seen.

    Attributes:
        layer: Name.
        error: Squared error over the target's variance after the refit. Rectification fits what the activation passes
            on, at the expense of this error over all values.
        before: The same before it.
        damping: What was chosen, a fraction of the mean diagonal; ``inf`` where the old weights stay.
        rows: Rows that were fitted.
        features: Weights of each output.
    """

    layer: str
    error: float
    before: float
    damping: float = math.nan
    rows: int = 0
    features: int = 0


class StreamPair:
    """The original and the pruned network's values for one part of the images."""

    def __init__(self, original: Graph, pruned: Graph, tensors: dict[str, Tensor], images: Images, memory: int) -> None:
        """``tensors`` are the pruned network's, which change as layers are refitted."""
        self.images = images
        self.pruned = ValueStream(pruned, tensors, images, memory)
        self._original = ValueStream(original, original.tensors, images, memory)

    def want(self, step: RefitStep, times: int) -> None:
        """Announce how often a step will read its batches; fewer than were announced where ``times`` is negative."""
        for reference in step.references:
            self._original.wanted[reference] += times
        for source in step.sources:
            self.pruned.wanted[source] += times

    def batches(self, step: RefitStep, norm: tuple[Tensor, Tensor] | None) -> Iterator[Batch]:
        """Of each call for each batch: its input, what it should put out, and what is added behind it."""
        originals = self._original.advance(step.references)
        count = len(step.calls)
        for found in self.pruned.advance(step.sources):
            wanted = next(originals)
            inputs = (
                [_channels(step.layer, x, step.inputs) for x in wanted[count:]] if step.recurrent else found[:count]
            )
            beside = found[-count:] if step.residual else [None] * count
            for call, value, target, other in zip(step.calls, inputs, wanted[:count], beside, strict=True):
                yield Batch(call.layer, value, _target(step, target, other, norm), other)
        next(originals, None)  # lets the stream finish its last batch

    def measure(self, step: RefitStep, norm: tuple[Tensor, Tensor] | None, outputs: int) -> Accumulator:
        """The moments of a layer's input and target, (outputs) per conv group, over the images of all processes."""
        processes = self.images.processes
        accumulator = Accumulator(step.layer, outputs, device=self.images.device)
        with processes.together():
            for index, own in enumerate(self.batches(step, norm)):
                accumulator.add(own.input, tuple(own.target.shape), own.target, own.call)
                check_finite([accumulator], index // len(step.calls))
        accumulator.join(processes)
        return accumulator

    def close(self) -> None:
        """Free memory and temporary files."""
        self._original.close()
        self.pruned.close()


def refit_layer(
    step: RefitStep, fitted: StreamPair, judged: StreamPair | None, damping: float | None
) -> tuple[dict[str, Tensor], LayerRefit]:
    """New tensors of a layer by their names, and how good they are.

    Args:
        fitted: Values of the images that are fitted.
        judged: Values of the held-out images; None where all are fitted, and no error is known.
        damping: A fraction of the mean diagonal, infinite to keep the old weights; None to choose it.
    """
    layer, graph, tensors = step.layer, fitted.pruned.graph, fitted.pruned.tensors
    norm = None if step.norm is None else norm_affine(graph, step.norm, tensors)
    problem = _problem(step, fitted, judged, norm)
    moments = [part.centred(problem.intercept) for part in problem.fitted.moments()]
    chosen = fit_layer(problem, moments, damping)
    fit = chosen.fit
    passes = step.rectify if math.isfinite(chosen.damping) else 0
    fitted.want(step, passes - step.rectify)
    for _ in range(passes):
        fit = rectify(
            layer,
            tensors[layer.weight],
            fit,
            problem.old,
            moments,
            fitted.batches(step, norm),
            norm,
            problem.usable,
            problem.columns,
            activations=step.activations,
            intercept=problem.intercept,
            damping=chosen.damping,
            processes=fitted.images.processes,
        )
    changed = {layer.weight: layer.weight_from(fit.weight, tensors[layer.weight])}
    if problem.intercept:
        changed.update(_intercept(step, fitted.pruned, fit.intercept))
    before = problem.error(problem.with_intercept(problem.old))
    rows, features = problem.fitted.rows, len(problem.columns)
    return changed, LayerRefit(layer.name, problem.error(fit), before, chosen.damping, rows, features)


def _problem(
    step: RefitStep, fitted: StreamPair, judged: StreamPair | None, norm: tuple[Tensor, Tensor] | None
) -> LayerProblem:
    layer, tensors = step.layer, fitted.pruned.tensors
    old = layer.matrix(tensors[layer.weight])
    columns = step.columns.to(old.device)
    old = torch.zeros_like(old).index_copy_(2, columns, old[:, :, columns])
    outputs = old.shape[:2].numel()
    bias = old.new_zeros(outputs) if layer.bias is None else tensors[layer.bias].double()
    every = old.new_ones(outputs, dtype=torch.bool)
    held_out = None
    if judged is not None:
        held_out = judged.measure(step, norm, old.shape[1])
        held_out.mirror()
    return LayerProblem(
        layer.name,
        fitted.measure(step, norm, old.shape[1]),
        held_out,
        old,
        columns,
        layer.bias is not None or norm is not None,
        bias,
        _usable(norm[0]) if step.residual and norm is not None else every,
        bias.new_ones(outputs) if norm is None else norm[0].square(),
    )


def _channels(layer: Layer, value: Tensor, channels: Tensor | None) -> Tensor:
    """Some channels of a layer's input or output; all without ``channels``."""
    axis = value.dim() - 1 if layer.spatial == 0 else 1
    return value if channels is None else value.index_select(axis, channels.to(value.device))


def _target(step: RefitStep, wanted: Tensor, other: Tensor | None, norm: tuple[Tensor, Tensor] | None) -> Tensor:
    """What the layer should put out: the original's value, or original sum - pruned shortcut before the norm."""
    target = _channels(step.layer, wanted, step.outputs)
    if other is not None:
        target = target - other
        if norm is not None:
            scale, shift = norm
            axis = target.dim() - 1 if step.layer.spatial == 0 else 1
            shape = [-1 if k == axis else 1 for k in range(target.dim())]
            safe = torch.where(_usable(scale), scale, torch.ones_like(scale))
            target = (target - shift.float().view(shape)) / safe.float().view(shape)
    return target


def _usable(scale: Tensor) -> Tensor:
    """Norm scales that can be divided by; the other channels keep their weights."""
    return scale.abs() > 1e-4 * scale.abs().max()


def _intercept(step: RefitStep, stream: ValueStream, shift: Tensor) -> dict[str, Tensor]:
    """The constant goes to the bias, or into the running mean of the norm that follows."""
    layer, tensors = step.layer, stream.tensors
    if layer.bias is not None:
        return {layer.bias: shift.to(tensors[layer.bias].dtype)}
    assert step.norm is not None
    name = stream.graph.parameter_of(step.norm.args[3])
    assert name is not None
    return {name: tensors[name] - shift.to(tensors[name].dtype)}
