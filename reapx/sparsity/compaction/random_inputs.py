"""Random images of a shape on which a model runs, for users who give none."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...inspection.model_checks import copy_of
from ...surgery.proof import tensors_in

SIZES = (32, 28, 64, 96, 128, 224, 256, 299, 384, 512)
"""Heights and widths in the order in which they are tried."""
COUNT = 32


def example_of(model: nn.Module) -> Tensor:
    """Random images (32, ...) of the first shape on which a model runs; its first layer suggests the shapes.

    Raises:
        InputError: the model has no convolution and no linear layer, or runs on no shape that was tried.
    """
    first = next((m for m in model.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)), None)
    if first is None:
        raise InputError(f"{type(model).__name__} has no convolution and no linear layer")
    weight = first.weight
    assert isinstance(weight, Tensor)
    if isinstance(first, nn.Linear):
        side = round(first.in_features**0.5)
        shapes: list[tuple[int, ...]] = [(first.in_features,)]
        shapes += [(1, side, side)] if side * side == first.in_features else []
        shapes += [(3, size, size) for size in SIZES if 3 * size * size == first.in_features]
    else:
        axes = weight.dim() - 2
        shapes = [(first.in_channels, *[size] * axes) for size in SIZES]
    tried_on = copy_of(model)  # forward() may change buffers
    generator = torch.Generator().manual_seed(0)
    for shape in shapes:
        images = torch.randn(COUNT, *shape, generator=generator).to(weight.device, weight.dtype)
        if _runs(tried_on, images):
            return images
    tried = ", ".join(str(tuple(shape)) for shape in shapes[:4])
    raise InputError(
        f"{type(model).__name__} does not run on random images of shape {tried}{', ...' if len(shapes) > 4 else ''}: "
        "give images=..., a few of any that it takes"
    )


def _runs(model: nn.Module, images: Tensor) -> bool:
    try:
        with torch.no_grad():
            return bool(tensors_in(model(images)))
    except Exception:  # forward() may raise anything on a wrong shape
        return False
