"""Regularisers that are added to a loss so that whole groups of weights vanish; Adam-L2 is compared with them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...errors import InputError
from .modules import matrices_of


def group_lasso(model: nn.Module, *, filters: float = 0.0, channels: float = 0.0) -> Tensor:
    """Structured sparsity: the group lasso over filters and channels, to be added to a loss.

    R = filters · Σ_l Σ_n ‖W_l[n, :]‖ + channels · Σ_l Σ_c ‖W_l[:, c]‖, over all convolutions and linear layers l, their
    outputs n and their inputs c (of each conv group); ‖·‖ is the 2-norm over the other axes, kernel positions included.

    The norm has no gradient at zero, so training ends near zero but not at zero: give ``reapx.compact`` a threshold.

    Args:
        model: The network in training.
        filters: Strength on each output's incoming weights.
        channels: Strength on each input's outgoing weights.

    Returns:
        () tensor with a gradient.

    Raises:
        InputError: a strength is negative or not finite, or the model has no convolution and no linear layer.

    Source: W. Wen et al., "Learning Structured Sparsity in Deep Neural Networks", NIPS 2016, eq. (3).

    Examples:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 1.0)
        >>> round(group_lasso(layer, filters=1.0, channels=0.5).item(), 4)  # √2 + 0.5 · (1 + 1)
        2.4142
    """
    _check(filters=filters, channels=channels)
    total = []
    for matrix in matrices_of(model).values():
        if filters:
            total.append(filters * torch.linalg.vector_norm(matrix, dim=(2, 3)).sum())
        if channels:
            total.append(channels * torch.linalg.vector_norm(matrix, dim=(1, 3)).sum())
    return _sum(total, model)


def group_sparse(model: nn.Module, strength: float, *, lasso: bool = False) -> Tensor:
    """Group-sparse regularisation over nodes, to be added to a loss.

    R = strength · (Σ_g √|g| ‖g‖ + Σ |w|). A group g holds all outgoing weights of one input of a layer, or a single
    bias; |g| is the number of its weights. Where a linear layer reads a flattened map, each position is an input. The
    second sum runs over all these weights and is added only with ``lasso``.

    Args:
        model: The network in training.
        strength: Factor of the whole penalty.
        lasso: Whether single weights are penalised as well (the sparse group lasso).

    Returns:
        () tensor with a gradient.

    Raises:
        InputError: the strength is negative or not finite, or the model has no convolution or linear layer.

    Source: S. Scardapane et al., "Group Sparse Regularization for Deep Neural Networks", Neurocomputing 241, 2017,
    eqs. (6) and (8).

    Examples:
        >>> layer = nn.Linear(1, 4, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 1.0)
        >>> group_sparse(layer, 0.5).item()  # 0.5 · √4 · ‖(1, 1, 1, 1)‖
        2.0
    """
    _check(strength=strength)
    total = []
    for matrix in matrices_of(model).values():
        size = math.sqrt(matrix.shape[1] * matrix.shape[3])
        total.append(strength * size * torch.linalg.vector_norm(matrix, dim=(1, 3)).sum())
        if lasso:
            total.append(strength * matrix.abs().sum())
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] == "bias":
            total.append(strength * (2 if lasso else 1) * parameter.abs().sum())
    return _sum(total, model)


def _check(**strengths: float) -> None:
    for name, value in strengths.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
            raise InputError(f"{name}={value!r}: give a number from 0")


def _sum(terms: list[Tensor], model: nn.Module) -> Tensor:
    if terms:
        return torch.stack(terms).sum()
    return next(model.parameters()).new_zeros(())
