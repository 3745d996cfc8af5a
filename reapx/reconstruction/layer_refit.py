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
from .damping import LayerProblem, fit_layer
from .rectify import Batch, rectify
from .streams import ValueStream


@dataclass(frozen=True)
class RefitStep:
    """One layer to refit.

    Attributes:
        layer, tail: In the pruned graph.
        target: Node of the original graph that the layer, or the sum it ends in, should follow.
        residual: Whether the target is that of the sum, less the pruned shortcut.
        rectify: Passes after the fit that leave out what the activation drops.
        limits: Below the first and above the second, the activation behind the layer is constant.
        columns: (count,) int64 features that the layer reads, whose weights alone are not zero.
        outputs: Channels of the original that the layer's outputs are, or None for all.
    """

    layer: Layer
    tail: Tail
    target: Node
    residual: bool
    rectify: int
    limits: tuple[float, float]
    columns: Tensor
    outputs: Tensor | None

    @property
    def sources(self) -> list[Node]:
        """Nodes of the pruned stream that it reads."""
        sources = [self.layer.input]
        if self.residual and self.tail.other is not None:
            sources.append(self.tail.other)
        return sources


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
        self._original.wanted[step.target] += times
        for source in step.sources:
            self.pruned.wanted[source] += times

    def batches(self, step: RefitStep, norm: tuple[Tensor, Tensor] | None) -> Iterator[Batch]:
        """The layer's input, what it should put out, and what is added behind it."""
        originals = self._original.advance([step.target])
        for value, *rest in self.pruned.advance(step.sources):
            (wanted,) = next(originals)
            yield value, _target(step, wanted, rest, norm), rest[0] if step.residual else None
        next(originals, None)  # lets the stream finish its last batch

    def measure(self, step: RefitStep, norm: tuple[Tensor, Tensor] | None, outputs: int) -> Accumulator:
        """The moments of a layer's input and target, (outputs) per conv group, over the images of all processes."""
        processes = self.images.processes
        accumulator = Accumulator(step.layer, outputs, device=self.images.device)
        with processes.together():
            for batch, (value, target, _) in enumerate(self.batches(step, norm)):
                accumulator.add(value, tuple(target.shape), target)
                check_finite([accumulator], batch)
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
    norm = None if step.tail.norm is None else norm_affine(graph, step.tail.norm, tensors)
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
            limits=step.limits,
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


def _target(step: RefitStep, wanted: Tensor, rest: list[Tensor], norm: tuple[Tensor, Tensor] | None) -> Tensor:
    """What the layer should put out: the original's value, or original sum - pruned shortcut before the norm."""
    axis = wanted.dim() - 1 if step.layer.spatial == 0 else 1
    target = wanted if step.outputs is None else wanted.index_select(axis, step.outputs.to(wanted.device))
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


def _intercept(step: RefitStep, stream: ValueStream, shift: Tensor) -> dict[str, Tensor]:
    """The constant goes to the bias, or into the running mean of the norm that follows."""
    layer, tensors = step.layer, stream.tensors
    if layer.bias is not None:
        return {layer.bias: shift.to(tensors[layer.bias].dtype)}
    assert step.tail.norm is not None
    name = stream.graph.parameter_of(step.tail.norm.args[3])
    assert name is not None
    return {name: tensors[name] - shift.to(tensors[name].dtype)}
