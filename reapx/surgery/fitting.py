"""Fit a saved result to a model: everything is checked on a shadow of the model, which then holds the result."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..capture.exporting.shadows import shadow
from ..capture.graph import tensors_of
from ..errors import CheckpointError
from .cut import Kept, assign_all
from .emptied_layers import misplaced, shrink
from .module_numbers import bare_norms, set_widths, strange_numbers
from .saved_page import Page


def fitted(model: nn.Module, page: Page, tensors: Mapping[str, Tensor], where: str) -> nn.Module:
    """A shadow of the model, shrunk to the saved result; the model is not changed.

    Args:
        model: The original architecture, at its original widths.
        page: The saved result without its weights.
        tensors: Qualified name -> tensor of the saved network.
        where: The folder, for error messages.

    Raises:
        CheckpointError: the result does not fit the model, or holds values that no network can have.
    """
    _check_positions(model, page.kept, where)
    _refuse([*misplaced(model, page.kept, page.endings), *strange_numbers(model, page.numbers)], [], where)
    smaller = shadow(model)
    try:
        shrink(smaller, page.kept, {}, page.endings, page.numbers)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where} does not fit the model: {error}. {_SAME}") from error
    _check_widths(smaller, page.widths, where)
    set_widths(smaller, page.widths)
    own = tensors_of(smaller)
    _refuse(sorted(set(tensors) - set(own)), sorted((set(smaller.state_dict()) & set(own)) - set(tensors)), where)
    for name, value in tensors.items():
        _check_tensor(name, own[name], value, where)
    for path in {name.rpartition(".")[0] for name in page.kept}:
        reason = _contradiction(model.get_submodule(path), smaller.get_submodule(path))
        if reason is not None:
            raise CheckpointError(f"{where} does not fit the model: {path or 'the model'} {reason}. {_SAME}")
    bad = impossible_value(smaller, tensors)
    if bad is not None:
        raise CheckpointError(f"{where} is damaged: {bad}. Save the result again")
    _check_tied(own, tensors, where)
    assign_all(smaller, tensors)
    return smaller


_SAME = "Build the same architecture that was pruned, at its original widths"


def _check_positions(model: nn.Module, kept: Kept, where: str) -> None:
    own = tensors_of(model)
    _refuse(sorted(set(kept) - set(own)), [], where)
    for name, axes in kept.items():
        shape = list(own[name].shape)
        for axis, positions in axes.items():
            rising = bool((positions[1:] > positions[:-1]).all())
            if not (0 <= axis < len(shape) and rising and _inside(positions, shape[axis])):
                raise CheckpointError(
                    f"{where} does not fit the model: {name} has shape {shape}, too small for the positions "
                    f"that stay on axis {axis}. Build the model at its original widths"
                )


def _inside(positions: Tensor, size: int) -> bool:
    """Whether ascending positions lie on an axis; there are none where a layer lost all channels."""
    return len(positions) == 0 or (int(positions[0]) >= 0 and int(positions[-1]) < size)


def _check_widths(model: nn.Module, widths: Mapping[str, int], where: str) -> None:
    norms = bare_norms(model)
    strange = [path for path, width in widths.items() if path not in norms or not 0 < width <= norms[path].num_features]
    _refuse(strange, sorted(set(norms) - set(widths)) if widths else [], where)


def _check_tensor(name: str, own: Tensor, value: Tensor, where: str) -> None:
    if own.shape != value.shape:
        raise CheckpointError(
            f"{where} does not fit the model: {name} would have shape {list(own.shape)} after pruning, the file has "
            f"{list(value.shape)}. Build the model at its original widths"
        )
    if own.dtype != value.dtype:
        raise CheckpointError(
            f"{where} does not fit the model: {name} is {own.dtype}, the file has {value.dtype}. Build the model in "
            "the dtype that was pruned, for instance model.half()"
        )


def _check_tied(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse different values for names of the same tensor."""
    first: dict[int, str] = {}
    for name in tensors:
        other = first.setdefault(id(own[name]), name)
        if not torch.equal(tensors[name], tensors[other]):
            raise CheckpointError(
                f"{where} does not fit the model: {other} and {name} are one parameter, the file has two. {_SAME}"
            )


def impossible_value(model: nn.Module, tensors: Mapping[str, Tensor]) -> str | None:
    """Description of a value that no trained network holds, or None if there is none.

    Such values are NaN, infinite parameters or statistics, and negative variances. Other buffers may be infinite, as
    masks are.

    Args:
        model: The network.
        tensors: Qualified name -> tensor that the network holds or will hold.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, value in tensors.items():
        if not (value.is_floating_point() or value.is_complex()):
            continue
        path, _, leaf = name.rpartition(".")
        statistic = isinstance(model.get_submodule(path), nn.modules.batchnorm._NormBase)
        if bool(value.isnan().any()):
            return f"{name} holds NaN"
        if (name in parameters or statistic) and bool(value.isinf().any()):
            return f"{name} holds infinite values"
        if statistic and leaf == "running_var" and bool((value < 0).any()):
            return f"{name} holds negative variances"
    return None


def _contradiction(before: nn.Module, module: nn.Module) -> str | None:
    """How a cut module's tensors contradict its attributes, so that it would not run; None if they agree."""
    shapes = {leaf: tuple(tensor.shape) for leaf, tensor in module.named_parameters(recurse=False)}
    shapes.update({leaf: tuple(tensor.shape) for leaf, tensor in module.named_buffers(recurse=False) if tensor.dim()})
    wanted: dict[str, tuple[int, ...]] = {}
    if isinstance(module, nn.modules.conv._ConvNd):
        ends = module.in_channels, module.out_channels
        if module.groups < 1 or 0 in ends or any(end % module.groups for end in ends):
            return f"would have {ends[0]} inputs, {ends[1]} outputs and {module.groups} groups"
        first, second = reversed(ends) if not module.transposed else ends
        wanted["weight"] = (first, second // module.groups, *module.kernel_size)
        wanted["bias"] = (module.out_channels,)
    elif isinstance(module, nn.MultiheadAttention):
        return _torn_heads(module, shapes)
    elif isinstance(module, nn.Linear):
        wanted = {"weight": (module.out_features, module.in_features), "bias": (module.out_features,)}
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        wanted = dict.fromkeys(shapes, (module.num_features,))
    elif isinstance(module, nn.GroupNorm) and isinstance(before, nn.GroupNorm):
        size = before.num_channels // before.num_groups
        if module.num_channels != module.num_groups * size:
            return f"would have {module.num_channels} channels, which are not in groups of {size}"
        wanted = dict.fromkeys(shapes, (module.num_channels,))
    for leaf, shape in wanted.items():
        if leaf in shapes and (shapes[leaf] != shape or 0 in shape):
            return f"would have a {leaf} of shape {shapes[leaf]} instead of {shape}"
    return None


def _torn_heads(module: nn.MultiheadAttention, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """How attention contradicts its number of heads; None if it has whole heads, or none at all and a constant."""
    read = module.out_proj.weight.shape[1] if isinstance(module.out_proj, nn.Linear) else 0
    rows = module.num_heads * module.head_dim
    for leaf, shape in {**shapes, "out_proj.weight": (read,)}.items():
        if leaf.startswith(("in_proj", "q_proj", "k_proj", "v_proj", "out_proj")):
            wanted = 3 * rows if leaf.startswith("in_proj") else rows
            if shape[0] != wanted:
                return f"would have {shape[0]} channels in {leaf} instead of {wanted} of {module.num_heads} heads"
    return None


def _refuse(strange: list[str], missing: list[str], where: str) -> None:
    if strange or missing:
        raise CheckpointError(
            f"{where} does not fit the model: it has {strange[:3] or 'nothing'} that the model lacks, and lacks "
            f"{missing[:3] or 'nothing'}. Build the same architecture that was pruned"
        )
