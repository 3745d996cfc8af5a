"""Batch norms behind the folded convolutions, for training; the function is the same at the start."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..calibration.images import Images
from .operators import ChildNames

_NORMS: dict[type[nn.Module], type[nn.BatchNorm1d] | type[nn.BatchNorm2d]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
}


@dataclass
class _OutputStatistics:
    """Statistics of a convolution's outputs over all positions so far.

    Attributes:
        count: Number of positions.
        mean: (C,) float64.
        squares: (C,) float64 sums of squared deviations from the mean.
    """

    count: int
    mean: Tensor
    squares: Tensor

    def add(self, output: Tensor) -> None:
        """Add one batch of outputs (images, C, ...)."""
        values = output.detach().double().transpose(0, 1).flatten(1)
        number, mean = values.shape[1], values.mean(1)
        deviation = mean - self.mean
        total = self.count + number
        self.squares += (values - mean[:, None]).square().sum(1) + deviation.square() * (self.count * number / total)
        self.mean += deviation * (number / total)
        self.count = total


def with_norms(model: nn.Sequential, images: Images) -> nn.Sequential:
    """A serial network with a batch norm behind every convolution, which takes over its bias.

    A norm has the mean m and the unbiased variance v of the convolution's outputs, over all images and positions, as
    its running statistics; weight = sqrt(v + eps) and bias = m + the convolution's bias. In eval mode the function is
    the same; in train mode it is nearly the same on such images. A constant channel has v = 0.

    Args:
        model: Network in eval mode, whose convolutions have biases. Its modules are reused and changed.
        images: Calibration images; one pass is made over all of them.
    """
    moments = _measure(model, images)
    names, children = ChildNames(), OrderedDict[str, nn.Module]()
    for name in dict(model.named_children()):
        names.unique(name)
    for name, module in model.named_children():
        children[name] = module
        if name in moments:
            children[names.unique(f"{name}_norm")] = _norm(module, moments[name])
    return nn.Sequential(children).eval()


def _measure(model: nn.Sequential, images: Images) -> dict[str, _OutputStatistics]:
    """Name of each convolution -> statistics of its outputs, biases included."""
    moments: dict[str, _OutputStatistics] = {}
    with torch.no_grad():
        for batch in images:
            (value,) = batch
            for name, module in model.named_children():
                value = module(value)
                if type(module) in _NORMS:
                    zero = torch.zeros(value.shape[1], dtype=torch.float64, device=value.device)
                    moments.setdefault(name, _OutputStatistics(0, zero, zero.clone())).add(value)
    return moments


def _norm(convolution: nn.Module, moments: _OutputStatistics) -> nn.Module:
    """The norm behind a convolution; the convolution loses its bias."""
    weight, bias = convolution.weight, convolution.bias
    assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
    norm = _NORMS[type(convolution)](len(bias), device=weight.device, dtype=weight.dtype)
    variance = moments.squares / max(moments.count - 1, 1)
    with torch.no_grad():
        norm.get_buffer("running_mean").copy_(moments.mean - bias.double())
        norm.get_buffer("running_var").copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(moments.mean)
    convolution.register_parameter("bias", None)
    return norm
