"""How far a pruned network's outputs are from the original's on held-out images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..calibration.images import Images
from ..capture.precision import exact


class Judge:
    """The original's outputs for held-out images, which other networks are compared with.

    Attributes:
        variance: Of the original's outputs, summed over all outputs of an image.
    """

    def __init__(self, original: nn.Module, images: Images) -> None:
        """All processes call this together."""
        self._images = images
        self._wanted = [self._outputs(original, batch) for batch in images]
        like = self._wanted[0] if self._wanted else self._outputs(original, images.example(1))
        sums = [torch.zeros_like(value[0], dtype=torch.float64) for value in like]
        squares = torch.zeros((), dtype=torch.float64)
        for values in self._wanted:
            for total, value in zip(sums, values, strict=True):
                total += value.sum(0, dtype=torch.float64)
                squares += value.double().square().sum().cpu()
        images.processes.sum(*sums, squares)
        count = max(images.count, 1)
        spread = float(squares) - sum(float(total.square().sum()) for total in sums) / count
        self.variance = (spread if spread > 1e-10 * float(squares) else max(float(squares), 1e-30)) / count

    @torch.no_grad()
    @exact()
    def change(self, model: nn.Module) -> float:
        """Mean squared difference of the outputs as a share of the original's variance; NaN counts as infinite."""
        error = torch.zeros((), dtype=torch.float64)
        for batch, wanted in zip(self._images, self._wanted, strict=True):
            for ours, theirs in zip(self._outputs(model, batch), wanted, strict=True):
                error += (ours.double() - theirs.double()).square().sum().cpu()
        self._images.processes.sum(error)
        found = float(error) / max(self._images.count, 1) / self.variance
        return found if found == found else float("inf")

    @torch.no_grad()
    def _outputs(self, model: nn.Module, batch: tuple[Tensor, ...]) -> list[Tensor]:
        return floating(self._images.call(model, batch))


def floating(outputs: object) -> list[Tensor]:
    """All floating-point tensors in a nested output, in order, with their gradients."""
    leaves = torch.utils._pytree.tree_leaves(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
