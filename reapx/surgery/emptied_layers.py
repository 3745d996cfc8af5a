"""Emptied layers: the modules that replace layers without input channels or without output channels.

PyTorch cannot run a convolution without input or output channels, nor a norm without channels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..capture.graph import VIEWS, Graph, operator_name
from ..capture.tails import tail_of
from ..groups.channel_groups import Group
from .cut import ORIGIN, Kept, assign_all, cut, origin_of, tensors_in_module
from .module_numbers import Numbers, set_numbers

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear)
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.PReLU)
_FORWARDS = {kind.forward for kind in _LAYERS}
_BATCH_NORMS = {kind.forward for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)}
"""A subclass with a forward() of its own does what that says, such as an activation after the norm."""


@dataclass(frozen=True)
class Ending:
    """What follows a layer without input channels.

    Attributes:
        norm: Path of the batch norm that is the only operator to read the layer, or None.
        writable: Whether forward() writes into the layer's output in place, as in ``out += x``.
    """

    norm: str | None = None
    writable: bool = False


Endings = Mapping[str, Ending]
"""Path of a layer without input channels -> what follows it."""


@dataclass(frozen=True)
class Extent:
    """How a layer changes the spatial size of its input.

    Tuples have one entry for each spatial axis, and are empty for a linear layer.

    Attributes:
        output_padding: Output padding of a transposed convolution; None for any other layer.
    """

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] | None = None

    @staticmethod
    def of(layer: nn.Module) -> Extent:
        """The extent of one of PyTorch's convolutions or linear layers."""
        if not isinstance(layer, nn.modules.conv._ConvNd):
            return Extent()
        extra = tuple(layer.output_padding) if layer.transposed else None
        padding = layer.padding if isinstance(layer.padding, str) else tuple(layer.padding)
        return Extent(tuple(layer.kernel_size), tuple(layer.stride), padding, tuple(layer.dilation), extra)

    def shape(self, value: Tensor, channels: int) -> list[int]:
        """Shape of the layer's output for an input (batch, channels, ...), or (..., features) of a linear layer."""
        if not self.kernel:
            return [*value.shape[:-1], channels]
        sizes = [self._size(axis, size) for axis, size in enumerate(value.shape[2:])]
        return [value.shape[0], channels, *sizes]

    def _size(self, axis: int, size: int) -> int:
        reach = self.dilation[axis] * (self.kernel[axis] - 1)
        if isinstance(self.padding, str):
            return size if self.padding == "same" else (size - reach - 1) // self.stride[axis] + 1
        padded = 2 * self.padding[axis]
        if self.output_padding is not None:
            return (size - 1) * self.stride[axis] - padded + reach + self.output_padding[axis] + 1
        return (size + padded - reach - 1) // self.stride[axis] + 1


class Empty(nn.Module):
    """Replaces a layer without output channels: returns a tensor without channels, of the right spatial size."""

    def __init__(self, extent: Extent) -> None:
        super().__init__()
        self.extent = extent

    def forward(self, x: Tensor) -> Tensor:
        """An empty tensor (batch, 0, ...), or (..., 0) in place of a linear layer; only the input's shape is used."""
        return torch.zeros(self.extent.shape(x, 0), dtype=x.dtype, device=x.device)


class Constant(nn.Module):
    """Replaces a layer without input channels: returns the layer's bias at every position, whatever the input.

    Attributes:
        bias: (outputs,) parameter; a batch norm that alone read the layer is folded into it.
        norm: Path of that batch norm in the model, or None.
        writable: Whether the output has its own memory, so that forward() may write into it.
        path: Path of the layer in the model.
        sources: Qualified name of each parameter that the bias was computed from -> its axis of outputs.
    """

    def __init__(self, bias: Tensor, extent: Extent, ending: Ending, *, requires_grad: bool = True) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias, requires_grad=requires_grad)
        self.extent, self.norm, self.writable = extent, ending.norm, ending.writable
        self.path, self.sources = "", dict[str, int]()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, outputs, ...) or (..., outputs): an expanded view of the bias, or a copy where it is written to."""
        shape = self.extent.shape(x, len(self.bias))
        value = self.bias.reshape(-1, *[1] * len(self.extent.kernel)).expand(shape)
        own = self.writable or self.training  # operators that run only in training may write as well
        return value.clone(memory_format=torch.contiguous_format) if own else value

    def extra_repr(self) -> str:
        """The number of outputs, and the norm that was folded in."""
        return str(len(self.bias)) + ("" if self.norm is None else f", norm={self.norm!r}")


def find_endings(graph: Graph, groups: Sequence[Group], kept: Kept) -> dict[str, Ending]:
    """What follows each layer that keeps output channels but loses all input channels, by path."""
    found: dict[str, Ending] = {}
    for layer in {c.layer.weight: c.layer for group in groups for c in group.consumers}.values():
        axes = kept.get(layer.weight, {})
        if _gone(axes, layer.in_axis) and not _gone(axes, layer.out_axis):
            norm = tail_of(graph, layer).norm
            mean = None if norm is None else graph.parameter_of(norm.args[3])
            path = None if mean is None else mean.rpartition(".")[0]
            ends = [layer.node] if norm is None else [layer.node, norm]
            found[layer.weight.rpartition(".")[0]] = Ending(path, any(_is_written(graph, node) for node in ends))
    return found


def _gone(axes: Mapping[int, Tensor], axis: int) -> bool:
    return axis in axes and len(axes[axis]) == 0


def _is_written(graph: Graph, node: torch.fx.Node) -> bool:
    """Whether an operator writes into a node's value in place, or into a view of it."""
    for user in graph.users.get(node, []):
        first = bool(user.args) and user.args[0] is node
        if first and (user.meta["in_place"] or (operator_name(user) in VIEWS and _is_written(graph, user))):
            return True
    return False


def replaced(model: nn.Module, kept: Kept) -> dict[str, type[nn.Module]]:
    """Path of each module that loses all input or output channels -> the type of module that replaces it."""
    found: dict[str, type[nn.Module]] = {}
    for name, axes in kept.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if not any(len(positions) == 0 for positions in axes.values()):
            continue
        if isinstance(module, _NORMS):
            found[path] = nn.Identity
        elif leaf == "weight" and isinstance(module, _LAYERS) and type(module).forward in _FORWARDS:
            found[path] = Empty if _gone(axes, _out_axis(module)) else Constant
    return found


def _out_axis(layer: nn.Module) -> int:
    depthwise = getattr(layer, "groups", 1) > 1 and layer.groups == layer.in_channels
    return 1 if getattr(layer, "transposed", False) and not depthwise else 0


def can_fold(model: nn.Module, path: str) -> bool:
    """Whether the module at a path is a batch norm with running statistics, and nothing else."""
    try:
        norm = model.get_submodule(path)
    except AttributeError:
        return False
    plain = isinstance(norm, nn.modules.batchnorm._BatchNorm) and type(norm).forward in _BATCH_NORMS
    return plain and norm.running_mean is not None


def shrink(model: nn.Module, kept: Kept, updates: Mapping[str, Tensor], endings: Endings, numbers: Numbers) -> None:
    """Shrink a model in place: cut its parameters, set new weights, and replace layers without channels.

    Args:
        model: The original architecture.
        kept: Positions of each parameter that stay.
        updates: Qualified name -> refitted parameter, of the smaller size.
        endings: What follows the layers without input channels; their batch norms are folded into their constants.
        numbers: Numbers of modules that count what leaves.
    """
    cut(model, kept)
    set_numbers(model, numbers)
    assign_all(model, updates)
    for path, kind in replaced(model, kept).items():
        layer = model.get_submodule(path)
        if kind is Empty:
            _replace(model, path, Empty(Extent.of(layer)))
        elif kind is nn.Identity:
            _replace(model, path, nn.Identity())
        else:
            _replace(model, path, _constant(model, path, layer, endings.get(path, Ending())))


def misplaced(model: nn.Module, kept: Kept, endings: Endings) -> list[str]:
    """Paths in ``endings`` that do not fit the cut model, and paths of layers without inputs that have no ending.

    Args:
        model: The original architecture; it is not changed.
        kept: Positions of each parameter that stay.
        endings: What follows each layer without input channels.
    """

    def size(name: str, axis: int, tensor: Tensor) -> int:
        return len(kept[name][axis]) if axis in kept.get(name, {}) else tensor.shape[axis]

    constants = {path for path, kind in replaced(model, kept).items() if kind is Constant}
    found = sorted(set(endings) ^ constants)
    for path in constants & set(endings):
        norm, layer = endings[path].norm, model.get_submodule(path)
        if norm is None:
            continue
        outputs = size(f"{path}.weight", _out_axis(layer), layer.weight)  # type: ignore[arg-type]
        if not can_fold(model, norm) or any(
            size(name, 0, tensor) != outputs for name, tensor in _per_channel(model, norm).items()
        ):
            found.append(norm)
    return found


def _per_channel(model: nn.Module, path: str) -> dict[str, Tensor]:
    """Qualified name -> tensor of a module with one value per channel."""
    own = tensors_in_module(model.get_submodule(path))
    return {f"{path}.{leaf}": tensor for leaf, tensor in own.items() if tensor.dim() == 1}


def shrunk_exactly(
    model: nn.Module, kept: Kept, updates: Mapping[str, Tensor], endings: Endings, numbers: Numbers
) -> nn.Module:
    """A shrunk copy of the model in float64, whose constants are not rounded; the model is not changed."""
    exact = copy.deepcopy(model).double()
    shrink(exact, kept, updates, endings, numbers)
    return exact


def _constant(model: nn.Module, path: str, layer: nn.Module, ending: Ending) -> Constant:
    weight, bias, axis = layer.weight, layer.bias, _out_axis(layer)
    assert isinstance(weight, Tensor)
    outputs = weight.shape[axis]
    value = torch.zeros(outputs, dtype=torch.float64, device=weight.device)
    sources = {f"{path}.weight": axis}
    if isinstance(bias, Tensor):
        value += bias.detach().double()
        sources[f"{path}.bias"] = 0
    if ending.norm is not None and can_fold(model, ending.norm):
        value = _normalised(model.get_submodule(ending.norm), value)
        sources.update(dict.fromkeys(_per_channel(model, ending.norm), 0))
        _replace(model, ending.norm, nn.Identity())
    else:
        ending = Ending(None, ending.writable)
    made = Constant(value.to(weight.dtype), Extent.of(layer), ending, requires_grad=weight.requires_grad)
    made.path, made.sources = path, sources
    layer.__dict__[ORIGIN] = {"bias": {0: origin_of(layer).get("weight", {}).get(axis, torch.arange(outputs))}}
    return made


def _normalised(norm: nn.Module, value: Tensor) -> Tensor:
    """The output of a batch norm in eval mode for one value per channel."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_mean is not None and norm.running_var is not None
    value = (value - norm.running_mean.double()) * (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        value = value * norm.weight.detach().double()
    return value if norm.bias is None else value + norm.bias.detach().double()


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    before = model.get_submodule(path)
    module.train(before.training)
    module.__dict__[ORIGIN] = origin_of(before)
    model.get_submodule(parent)._modules[leaf] = module
