"""Which units of a group behave alike, and what it costs to let one emulate another, from Gram matrices alone.

With I_c the columns that a consumer reads unit c with, the inner product of two units' behaviours is the sum over
consumers and taps a of G[I_c[a], I_d[a]], about each column's mean.

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
"""Variance, as a share of the mean square, that float32 sums of 256 products cannot tell from none."""


def correlate(consumers: Sequence[Consumer], moments: Mapping[str, list[Moments]]) -> tuple[Tensor, Tensor]:
    """Correlations of behaviours, from inner products about each tap's mean, summed over consumers and taps.

    Args:
        consumers: At least one; all of one group.
        moments: Weight name -> moments of each conv group of that layer's input, not centred.

    Returns:
        (units,) bool, the units that never change; (units, units) float64 correlations; on the CPU.
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
    """(units, count) int64: columns that a consumer reads units with. Of a padded one, those of its kernel's middle
    tap, since the others read zeros beyond the borders too, which would make all units alike.
    """
    window, columns = consumer.layer.window, consumer.columns()
    if window.padding == (0, 0):
        return columns
    middle = window.kernel[0] // 2 * window.kernel[1] + window.kernel[1] // 2
    return columns.reshape(len(columns), -1, consumer.layer.taps)[:, :, middle]


def emulation_errors(consumers: Sequence[MeasuredConsumer]) -> Tensor:
    """What it costs to let one unit emulate another, all gains folded into the readers' weights.

    Args:
        consumers: At least one; all of one group, with moments.

    Returns:
        (units, units) float64, shares of the readers' outputs, averaged over readers; row leaves, column stays; on the
        CPU.
    """
    size = len(consumers[0].columns)
    errors = consumers[0].weight.new_empty(size, size)
    unify(consumers, 0, table=errors)
    return errors.cpu()


def angular_order(correlation: Tensor, dead: Tensor) -> Tensor:
    """Units by their angle in the plane of the two leading eigenvectors, cut open at the largest gap; dead ones last.

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
        second, first = (vectors * largest.sign()).T  # eigenvectors have no sign of their own
        angles, turns = torch.atan2(second, first).sort(stable=True)
        gaps = torch.cat([angles[1:], angles[:1] + 2 * math.pi]) - angles
        living = living[turns.roll(-1 - int(gaps.argmax()))]
    return torch.cat([living, dead.nonzero().flatten()])
