"""The moments that :func:`reapx.kernels.gram_matrix` returns; moments of batches can be added."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True, eq=False)
class GramMoments:
    """Moments of the rows X (rows, D) and of a target Y (rows, M). All tensors are float64 and on X's device.

    D is the number of features: channels times kernel taps, channel-major. With several conv groups, every tensor has
    an additional leading axis of groups, D and M are those of one group, and :meth:`split` separates the groups.

    Moments of batches add up to the moments of all rows: ``moments = moments + gram_matrix(batch)``.

    Attributes:
        gram: (D, D) XᵀX, symmetric to the last bit.
        total: (D,) column sums of X.
        rows: Number of rows of X: images times output positions, or rows of a matrix.
        cross: (M, D) YᵀX, in the layout of a weight; None without a target.
        target_total: (M,) column sums of Y; None without a target.
        target_square: (M,) column sums of Y²; None without a target.
        is_centred: Whether these are moments about the mean, which cannot be added.
    """

    gram: Tensor
    total: Tensor
    rows: int
    cross: Tensor | None = None
    target_total: Tensor | None = None
    target_square: Tensor | None = None
    is_centred: bool = False

    def __add__(self, other: GramMoments) -> GramMoments:
        if not isinstance(other, GramMoments):
            return NotImplemented
        if self.is_centred or other.is_centred:
            raise InputError(
                "moments about the mean do not add up, since each batch has a mean of its own: add the moments of all "
                "batches first, then call .centred()"
            )
        return GramMoments(
            _sum("gram", self.gram, other.gram),
            _sum("total", self.total, other.total),
            self.rows + other.rows,
            _sum_of_some("cross", self.cross, other.cross),
            _sum_of_some("target_total", self.target_total, other.target_total),
            _sum_of_some("target_square", self.target_square, other.target_square),
        )

    def centred(self) -> GramMoments:
        """The moments of X and Y about their means, to fit weights with an intercept.

        The Gram matrix becomes ``gram - total totalᵀ / rows``, the other moments likewise, and both totals become zero.
        For weights W (M, D) solved from these moments, the intercept is ``(target_total - W @ total) / rows`` with the
        totals before centring. The diagonal entry of a constant column is only rounding noise: solve with damping.
        """
        if self.is_centred:
            return self
        rows = max(self.rows, 1)
        mean = self.total / rows
        gram, total = self.gram - self.total[..., :, None] * mean[..., None, :], torch.zeros_like(self.total)
        if self.cross is None or self.target_total is None or self.target_square is None:
            return GramMoments(gram, total, self.rows, is_centred=True)
        cross = self.cross - self.target_total[..., :, None] * mean[..., None, :]
        target_square = self.target_square - self.target_total**2 / rows
        return GramMoments(
            gram, total, self.rows, cross, torch.zeros_like(self.target_total), target_square, is_centred=True
        )

    def split(self) -> list[GramMoments]:
        """One :class:`GramMoments` without a groups axis for each conv group."""
        if self.gram.dim() == 2:
            return [self]

        def part(value: Tensor | None, g: int) -> Tensor | None:
            return None if value is None else value[g]

        return [
            GramMoments(
                self.gram[g],
                self.total[g],
                self.rows,
                part(self.cross, g),
                part(self.target_total, g),
                part(self.target_square, g),
                self.is_centred,
            )
            for g in range(len(self.gram))
        ]


def _sum(name: str, own: Tensor, other: Tensor) -> Tensor:
    if own.shape != other.shape or own.device != other.device:
        shown = [f"{tuple(value.shape)} on {value.device}" for value in (own, other)]
        raise InputError(
            f"moments do not add up: {name} is {shown[0]} in one and {shown[1]} in the other; all batches need the "
            "same features, outputs, groups and device"
        )
    return own + other


def _sum_of_some(name: str, own: Tensor | None, other: Tensor | None) -> Tensor | None:
    if own is None and other is None:
        return None
    if own is None or other is None:
        raise InputError(f"moments do not add up: {name} is missing in one of them; give a target with all batches")
    return _sum(name, own, other)
