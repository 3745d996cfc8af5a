"""Surgery: put smaller parameters into the user's own modules, by qualified name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..capture.exporting.plain_attention import become_plain
from ..groups.channel_groups import Group, ParameterAxis

Kept = dict[str, dict[int, Tensor]]
"""Qualified name -> axis -> sorted positions that stay; always on the CPU."""

ORIGIN = "_reapx_kept"
"""Attribute of a module that was cut: tensor -> axis -> positions that stayed, counted in the original network.

It is plain data on the module itself, so copies, pickles and larger networks that hold the module keep it, and a
network that is cut twice still records where its channels come from.
"""


def kept_positions(groups: Sequence[Group], removed: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Kept:
    """The positions that stay in every parameter when each group loses its removed units.

    Args:
        groups: Channel groups.
        removed: Group name -> (count,) int64 units that leave.
        tensors: Qualified name -> parameter, for its shape.

    Returns:
        Entries for the axes that become shorter, and for no others.
    """
    stays: dict[ParameterAxis, Tensor] = {}
    for group in groups:
        units = removed.get(group.name)
        if units is None or len(units) == 0:
            continue
        for key, where in group.cuts.items():
            name, axis = key
            mask = stays.setdefault(key, torch.ones(tensors[name].shape[axis], dtype=torch.bool))
            mask[torch.from_numpy(where)[units].reshape(-1)] = False
    kept: Kept = {}
    for (name, axis), mask in stays.items():
        kept.setdefault(name, {})[axis] = mask.nonzero().flatten()
    return kept


def within(kept: Kept, larger: Kept) -> Kept:
    """Positions of ``kept`` counted within ``larger``, for the axes on which the two differ.

    Example: of 6 channels, ``larger`` keeps 0, 2, 3, 5 and ``kept`` keeps 2, 5. Within the larger network these are the
    positions 1 and 3.
    """
    found: Kept = {}
    for name, axes in larger.items():
        for axis, positions in axes.items():
            inside = torch.isin(positions, kept[name][axis])
            if not bool(inside.all()):
                found.setdefault(name, {})[axis] = inside.nonzero().flatten()
    return found


def narrow(tensor: Tensor, axes: Mapping[int, Tensor]) -> Tensor:
    """A copy of a tensor with the positions that stay; ``axes`` is an entry of :data:`Kept`."""
    for axis, positions in axes.items():
        tensor = tensor.index_select(axis, positions.to(tensor.device))
    return tensor


def cut(model: nn.Module, kept: Kept) -> None:
    """Shrink parameters and buffers of ``model`` in place, and attributes such as ``out_channels`` that count them."""
    owners: dict[nn.Module, dict[str, str]] = {}  # of a module with several paths, one of them counts
    for name in kept:
        path, _, leaf = name.rpartition(".")
        owners.setdefault(model.get_submodule(path), {}).setdefault(leaf, name)
    before = {module: {leaf: own.shape for leaf, own in tensors_in_module(module).items()} for module in owners}
    narrowed = {name: narrow(getattr(module, leaf).detach(), kept[name])
                for module, leaves in owners.items() for leaf, name in leaves.items()}  # fmt: skip
    assign_all(model, narrowed)
    for module, leaves in owners.items():
        for leaf, name in leaves.items():
            _remember(module, leaf, kept[name], before[module][leaf])
        _update_attributes(module, before[module])


def tensors_in_module(module: nn.Module) -> dict[str, Tensor]:
    """Name in the module -> its own parameter or buffer, without those of submodules."""
    own = {**module._parameters, **module._buffers}
    return {leaf: tensor for leaf, tensor in own.items() if tensor is not None}


def _remember(module: nn.Module, leaf: str, axes: Mapping[int, Tensor], before: torch.Size) -> None:
    """Record, on the module, the positions in the original network that a tensor still holds."""
    origin = {name: dict(given) for name, given in origin_of(module).items()}
    own = origin.setdefault(leaf, {})
    for axis, positions in axes.items():
        earlier = own.get(axis)
        # A tensor that was replaced since the cut counts as an original.
        own[axis] = positions if earlier is None or len(earlier) != before[axis] else earlier[positions]
    module.__dict__[ORIGIN] = origin


def origin_of(module: nn.Module) -> Kept:
    """Name in the module -> axis -> positions of the original network's tensor that the module's tensor holds."""
    found: Kept = module.__dict__.get(ORIGIN, {})
    return found


def assign_all(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Replace parameters and buffers by tensors, which take their device, dtype and ``requires_grad``.

    Parameters that are one object under several names remain one object; where several of these names are given, they
    must have equal values.
    """
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for leaf, own in tensors_in_module(module).items():
            holders.setdefault(id(own), []).append((module, leaf))
    made: set[int] = set()
    for name, value in values.items():
        path, _, leaf = name.rpartition(".")
        old = getattr(model.get_submodule(path), leaf)
        if id(old) in made:
            continue
        value = laid_out_as(value.detach().to(device=old.device, dtype=old.dtype), old)
        new = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
        made.add(id(new))
        for module, leaf in holders[id(old)]:
            entries: dict[str, Any] = module._parameters if leaf in module._parameters else module._buffers
            entries[leaf] = new
            if isinstance(module, nn.RNNBase):
                setattr(module, leaf, new)  # it holds its weights in a list as well


def laid_out_as(value: Tensor, model: Tensor) -> Tensor:
    """The same values in the memory format of another tensor, such as channels-last."""
    strides = model.stride()
    order = sorted(range(value.dim()), key=lambda axis: -strides[axis])
    if order == list(range(value.dim())):
        return value.contiguous()
    return value.permute(order).contiguous().permute([order.index(axis) for axis in range(value.dim())])


def _update_attributes(module: nn.Module, before: Mapping[str, torch.Size]) -> None:
    """``before`` has the earlier shapes of all of the module's tensors."""
    if isinstance(module, nn.modules.conv._ConvNd):
        _update_convolution(module, before)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = len(next(t for t in (module.weight, module.running_mean) if t is not None))
    elif isinstance(module, nn.GroupNorm):
        size = before["weight"][0]
        module.num_channels = len(module.weight)
        module.num_groups = module.num_groups * module.num_channels // size
    elif isinstance(module, nn.MultiheadAttention):
        become_plain(module)
        rows = module.in_proj_weight.shape[0] // 3 if module.in_proj_weight is not None else len(module.q_proj_weight)
        module.num_heads = rows // module.head_dim
    elif isinstance(module, nn.RNNBase):
        module.input_size = module.get_parameter("weight_ih_l0").shape[1]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()
    elif "weight" in before and list(before["weight"][1:]) == [module.__dict__.get("nf")]:
        module.__dict__["nf"] = module.get_parameter("weight").shape[1]  # Conv1D of transformers, a linear layer


def _update_convolution(module: nn.modules.conv._ConvNd, before: Mapping[str, torch.Size]) -> None:
    shape = module.weight.shape
    depthwise = module.groups > 1 and module.groups == module.in_channels
    if depthwise:
        module.groups = module.groups * shape[0] // before["weight"][0]
        module.in_channels, module.out_channels = module.groups, shape[0] * (shape[1] if module.transposed else 1)
    elif module.transposed:
        module.in_channels, module.out_channels = shape[0], shape[1] * module.groups
    else:
        module.in_channels, module.out_channels = shape[1] * module.groups, shape[0]
