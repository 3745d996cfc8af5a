"""Rectification: refine weights in front of an activation after the least-squares fit.

A ReLU maps negative values to zero. Where both the original and the fitted value are negative, the outputs agree
already and the residual does not matter. Rectification sets such entries of the residual to zero, and solves the
least-squares step again with the same Gram matrix. In front of a smooth activation, each entry is weighed by the
square of the activation's slope.

Source: the nonlinear case of X. Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification and
Detection", IEEE TPAMI 38(10), 2016, which alternates between the fit and auxiliary targets in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from .. import _native
from ..calibration.processes import ALONE, Processes
from ..capture.layers import Layer
from ..capture.precision import exact
from ..moments.moments import Moments, damp
from .activations import Activation, relevance

_STEP = 1.8
"""Factor of each step (over-relaxation): targets move with the fit, so plain steps end short of the fixed point."""


class Batch(NamedTuple):
    """What one call of a layer reads and should put out, for one batch of images.

    Attributes:
        call: The call.
        input: The layer's input.
        target: What it should put out.
        beside: The shortcut that is added behind it, or None.
    """

    call: Layer
    input: Tensor
    target: Tensor
    beside: Tensor | None


@dataclass(frozen=True)
class FittedWeights:
    """A layer's weights from a least-squares fit.

    Attributes:
        weight: (groups, outputs, features) float64.
        intercept: (groups * outputs,) float64, added to the product of weights and patches.
    """

    weight: Tensor
    intercept: Tensor


def rectify(
    layer: Layer,
    like: Tensor,
    fit: FittedWeights,
    old: Tensor,
    moments: Sequence[Moments],
    batches: Iterable[Batch],
    norm: tuple[Tensor, Tensor] | None,
    usable: Tensor,
    columns: Tensor,
    *,
    activations: frozenset[Activation],
    intercept: bool,
    damping: float,
    processes: Processes = ALONE,
) -> FittedWeights:
    """One step towards the weights that reproduce the values behind the activation.

    Args:
        layer: A layer of the pruned network.
        like: The layer's weight, for its shape and dtype.
        fit: The fitted weights to start from.
        old: (groups, outputs, features) float64, weights towards which damping pulls.
        moments: Moments of the layer's input for each conv group, centred where ``intercept``.
        batches: The batches of all images of this process.
        norm: Scale and shift of the batch norm behind the layer, (outputs,) each, or None.
        usable: (groups * outputs,) bool: outputs whose weights may change.
        columns: (count,) int64: features whose weights may change.
        activations: Those that read the values.
        intercept: Whether an intercept is fitted.
        damping: The damping of the fit.
        processes: Processes that share the images.

    Returns:
        The refined weights; the given ones where the system is singular.
    """
    with processes.together():
        gradient, total = _residuals(layer, like, fit, batches, norm, activations)
    processes.sum(gradient, total)
    gradient, gone = gradient[:, :, columns], (fit.weight - old)[:, :, columns]
    moments = [own.of_columns(columns) for own in moments]
    change, kept = torch.empty_like(gradient), torch.arange(len(columns), device=columns.device)
    residual_sums = total.reshape(old.shape[:2])

    def solve(indices: list[int], ridges: list[float]) -> list[int]:
        tasks = []
        for part, ridge in zip(indices, ridges, strict=True):
            own = moments[part]
            cross = gradient[part] - ridge * gone[part]
            if intercept:
                cross = cross - torch.outer(residual_sums[part], own.total / own.rows)
            tasks.append(_native.SolveTask(own.gram.contiguous(), cross, kept, ridge, None, change[part]))
        return _native.batch_solve(tasks)

    if max(damp(moments, damping, solve), default=-1) >= 0:
        return fit
    change = torch.where(usable.reshape(*old.shape[:2], 1), change, 0.0)
    weight = fit.weight.index_add(2, columns, change, alpha=_STEP)
    if not intercept:
        return FittedWeights(weight, fit.intercept)
    shifts = [
        (sum_ - part @ own.total) / own.rows for sum_, part, own in zip(residual_sums, change, moments, strict=True)
    ]
    return FittedWeights(weight, fit.intercept + _STEP * torch.where(usable, torch.cat(shifts), 0.0))


@exact()
def _residuals(
    layer: Layer,
    like: Tensor,
    fit: FittedWeights,
    batches: Iterable[Batch],
    norm: tuple[Tensor, Tensor] | None,
    activations: frozenset[Activation],
) -> tuple[Tensor, Tensor]:
    """RᵀX (groups, outputs, features) and the column sums of R (groups * outputs,), with R the rectified residual."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    weight = layer.weight_from(fit.weight, like.to(dtype)).requires_grad_()
    gradient, total = torch.zeros_like(fit.weight), torch.zeros_like(fit.intercept)
    for batch in batches:
        value, target = batch.input.to(dtype), batch.target.to(dtype)
        beside = None if batch.beside is None else batch.beside.to(dtype)
        axis = target.dim() - 1 if layer.spatial == 0 else 1
        shape = [-1 if k == axis else 1 for k in range(target.dim())]
        with torch.enable_grad():
            product = _product(batch.call.node, value, weight.t() if layer.kind == "turned" else weight)
        fitted = product.detach() + fit.intercept.to(product.dtype).view(shape)
        residual = target - fitted
        wanted, passed = target, fitted
        if norm is not None:
            scale, shift = (each.to(product.dtype).view(shape) for each in norm)
            wanted, passed = wanted * scale + shift, passed * scale + shift
        if beside is not None:
            wanted, passed = wanted + beside, passed + beside
        residual = residual.mul_(relevance(activations, wanted, passed))
        gradient += layer.matrix(torch.autograd.grad(product, weight, residual)[0])
        total += residual.double().sum([k for k in range(residual.dim()) if k != axis])
    return gradient, total


def _product(node: Node, value: Tensor, weight: Tensor) -> Tensor:
    """The layer's operator without its bias."""
    rest = node.args[3:] if len(node.args) > 2 else ()
    result: Tensor = node.target(value, weight, None, *rest, **node.kwargs)  # type: ignore[operator]
    return result
