"""A mask that knows nothing of channel groups: removed channels are NaN, and dense layers read zeros in their place.

If the removed channels of all layers reach nothing but weights that were removed too, the masked network's outputs are
numbers, and those of the smaller network.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

LAYERS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)


def masked_outputs(model: nn.Module, kept: Mapping[str, Mapping[int, Tensor]], images: Tensor) -> Tensor:
    """Outputs in float64 of a network whose layers put out NaN where a channel was removed.

    Args:
        model: The original; not touched.
        kept: Qualified name -> axis -> positions that stay, of which only those of the layers' outputs are looked at.
        images: (images, channels, height, width).
    """
    masked = copy.deepcopy(model).double()
    for name, module in masked.named_modules():
        if not isinstance(module, LAYERS) or _is_depthwise(module):
            continue  # what was removed in front of a depthwise layer comes out of it as NaN
        module.register_forward_pre_hook(_zeroed)
        axis = 1 if isinstance(module, nn.ConvTranspose2d) else 0
        stays = kept.get(f"{name}.weight", {}).get(axis)
        if stays is not None:
            gone = torch.ones(module.weight.shape[axis], dtype=torch.bool)
            gone[stays] = False
            module.register_forward_hook(_poisoned(gone, 1))
    with torch.no_grad():
        outputs = masked(images.double())
    assert isinstance(outputs, Tensor)
    return outputs


def _is_depthwise(module: nn.Module) -> bool:
    return getattr(module, "groups", 1) > 1 and module.weight.shape[1] == 1  # type: ignore[index, union-attr]


def _zeroed(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0].nan_to_num(nan=0.0),)


def _poisoned(gone: Tensor, axis: int) -> Any:
    def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
        return output.index_fill(axis, gone.nonzero().flatten(), torch.nan)

    return hook
