"""Second moments by channel, from the Gram matrices of the consumers' patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .readers import Reader


def contribution_gram(reader: Reader) -> Tensor:
    """(units, units) float64 K: inner products of what the units add to the consumer's outputs.

    With Z_c = X_c W_c, the outputs are Y = Σ_c Z_c and::

        K_cd = <Z_c, Z_d> = sum of G_cd ∘ (W_c W_dᵀ),     sum of K = ‖Y‖²
    """
    products = reader.measured.gram * (reader.weight.T @ reader.weight)
    return _by_unit(products, reader.columns)


def behaviour_gram(readers: Sequence[Reader]) -> Tensor:
    """(units, units) float64: inner products of the units' values, over all places where the consumers read them."""
    total = torch.zeros((), dtype=torch.float64)
    for reader in readers:
        gram = reader.measured.gram
        total = total + torch.stack([gram[tap][:, tap] for tap in reader.columns.T]).sum(0)
    return total


def shared_gram(readers: Sequence[Reader]) -> Tensor:
    """(units, units) float64: contributions to all consumers, each as a share of its outputs' variance, averaged."""
    return torch.stack([reader.scale() * contribution_gram(reader) for reader in readers]).mean(0)


def _by_unit(matrix: Tensor, columns: Tensor) -> Tensor:
    """(units, units) sums over each pair of units' columns."""
    units, taps = columns.shape
    flat = columns.flatten()
    return matrix[flat][:, flat].reshape(units, taps, units, taps).sum((1, 3))
