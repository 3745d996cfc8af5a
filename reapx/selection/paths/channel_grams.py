"""Second moments by channel, from the Gram matrices of the consumers' patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .consumers import MeasuredConsumer


def inner_products(gram: Tensor, columns: Tensor) -> Tensor:
    """(units, units) float64 inner products of the units' values over all patches.

    Args:
        gram: (features, features) float64.
        columns: (units, count) int64, the features of each unit.
    """
    total = gram.new_zeros(len(columns), len(columns))
    for tap in columns.T:
        total += gram[tap[:, None], tap]
    return total


def behaviour_gram(consumers: Sequence[MeasuredConsumer]) -> Tensor:
    """(units, units) float64 inner products of the units' values, summed over the patches of all consumers."""
    return torch.stack([inner_products(consumer.known_moments.gram, consumer.columns) for consumer in consumers]).sum(0)


def shared_gram(consumers: Sequence[MeasuredConsumer]) -> Tensor:
    """(units, units) float64 contributions as shares of a consumer's output variance, averaged over consumers."""
    return torch.stack([consumer.scale * consumer.contributions for consumer in consumers]).mean(0)
