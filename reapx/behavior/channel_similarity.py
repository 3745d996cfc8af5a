"""Similarity of a group's units, and the errors where one unit emulates another, from Gram matrices alone.

Let I_c be the columns with which a consumer reads unit c. The inner product of the behaviours of units c and d is the
sum over consumers and taps a of G[I_c[a], I_d[a]], with G about each column's mean.

Source: K. Kamma, Y. Isoda, S. Inoue and T. Wada, "Neural Behavior-Based Approach for Neural Network Pruning",
IEICE Trans. Inf. & Syst. E103-D(5), 2020.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..groups.channel_groups import Consumer
from ..moments.moments import Moments
from ..selection.nu import unify
from ..selection.paths.channel_grams import inner_products
from ..selection.paths.consumers import MeasuredConsumer

_CONSTANT = 256 * torch.finfo(torch.float32).eps
"""Variance, as a share of the mean square, below which float32 sums of 256 products cannot tell it from zero."""


def correlate(consumers: Sequence[Consumer], moments: Mapping[str, list[Moments]]) -> tuple[Tensor, Tensor]:
    """Correlations of behaviours, from inner products about each tap's mean, summed over consumers and taps.

    Args:
        consumers: All consumers of one group, at least one.
        moments: Weight name -> moments of the layer's input for each conv group, not centred.

    Returns:
        (units,) bool, whether a unit is constant; (units, units) float64 correlations. Both are on the CPU.
    """
    size = len(consumers[0].channels)
    device = moments[consumers[0].layer.weight][0].gram.device
    inner = torch.zeros(size, size, dtype=torch.float64, device=device)
    dead = torch.ones(size, dtype=torch.bool, device=device)
    for consumer in consumers:
        own, columns = moments[consumer.layer.weight][consumer.conv_group], _inside(consumer).to(device)
        inner += inner_products(own.gram, columns) - own.total[columns] @ own.total[columns].T / own.rows
        square = own.gram.diagonal()
        variance = square - own.total**2 / own.rows
        dead &= (variance <= _CONSTANT * square)[columns].all(1)
    scale = inner.diagonal().clamp(min=0).rsqrt().nan_to_num(posinf=0.0).masked_fill(dead, 0.0)
    correlation = (inner * torch.outer(scale, scale)).clamp(-1, 1)
    return dead.cpu(), correlation.fill_diagonal_(1.0).cpu()


def _inside(consumer: Consumer) -> Tensor:
    """(units, count) int64: the columns with which a consumer reads each unit.

    With padding, only the columns of the kernel's middle tap are used. The other taps also read zeros beyond the
    border, which would make all units alike.
    """
    window, columns = consumer.layer.window, consumer.columns()
    if window.padding == (0, 0):
        return columns
    middle = window.kernel[0] // 2 * window.kernel[1] + window.kernel[1] // 2
    return columns.reshape(len(columns), -1, consumer.layer.taps)[:, :, middle]


def emulation_errors(consumers: Sequence[MeasuredConsumer]) -> Tensor:
    """Errors where one unit emulates another, with the gains folded into the consumers' weights.

    Args:
        consumers: All consumers of one group, at least one, with moments.

    Returns:
        (units, units) float64 on the CPU: shares of the outputs' variance, averaged over consumers. The row's unit
        leaves, the column's unit emulates it.
    """
    size = len(consumers[0].columns)
    errors = consumers[0].weight.new_empty(size, size)
    unify(consumers, 0, table=errors)
    return errors.cpu()


def angular_order(correlation: Tensor, dead: Tensor) -> Tensor:
    """Units by their angle in the plane of the two leading eigenvectors, from the largest gap on; dead units come last.

    Args:
        correlation: (units, units) float64.
        dead: (units,) bool.

    Returns:
        (units,) int64.

    Source: M. Friendly, "Corrgrams: Exploratory Displays for Correlation Matrices", The American Statistician 56(4),
    2002.
    """
    living = (~dead).nonzero().flatten()
    if len(living) > 2:
        vectors = torch.linalg.eigh(correlation[living][:, living]).eigenvectors[:, -2:]
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        second, first = (vectors * largest.sign()).T  # the sign of an eigenvector is arbitrary
        angles, turns = torch.atan2(second, first).sort(stable=True)
        gaps = torch.cat([angles[1:], angles[:1] + 2 * math.pi]) - angles
        living = living[turns.roll(-1 - int(gaps.argmax()))]
    return torch.cat([living, dead.nonzero().flatten()])
