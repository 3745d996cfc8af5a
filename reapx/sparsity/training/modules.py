"""The weights of a model's convolutions and linear layers, whose rows and columns belong to nodes."""

from __future__ import annotations

from torch import Tensor, nn

from ...errors import InputError

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


def matrices_of(model: nn.Module) -> dict[str, Tensor]:
    """Path of each convolution and linear layer -> its weight as (conv groups, outputs, inputs, taps).

    Outputs and inputs are those of one conv group. Layers that share a weight appear once.

    Raises:
        InputError: the model has no convolution and no linear layer.
    """
    found: dict[str, Tensor] = {}
    # Holds the tensors themselves: a parametrised weight is a new tensor at each access, whose id could be reused.
    seen: dict[int, Tensor] = {}
    for path, module in model.named_modules():
        if isinstance(module, _LAYERS):
            weight = module.weight
            assert isinstance(weight, Tensor)
            if id(weight) not in seen:
                seen[id(weight)] = weight
                found[path] = _matrix(module, weight)
    if not found:
        raise InputError(f"{type(model).__name__} has no convolution and no linear layer")
    return found


def _matrix(module: nn.Module, weight: Tensor) -> Tensor:
    groups = int(getattr(module, "groups", 1))
    rows = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return rows.transpose(1, 2) if getattr(module, "transposed", False) else rows
