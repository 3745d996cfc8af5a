"""The state of an optimizer, cut like the parameters that it belongs to."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import InputError
from .cut import Kept, laid_out_as, narrow
from .emptied_layers import Constant


@dataclass(frozen=True)
class Original:
    """The parameters of a network before it was cut.

    Attributes:
        parameters: Qualified name -> the parameter itself, which is smaller by now if it was cut in place.
        shapes: Qualified name -> its shape before.
    """

    parameters: Mapping[str, nn.Parameter]
    shapes: Mapping[str, torch.Size]

    @staticmethod
    def of(model: nn.Module) -> Original:
        """The parameters of a network as it is."""
        own = dict(model.named_parameters(remove_duplicate=False))
        return Original(own, {name: parameter.shape for name, parameter in own.items()})


class Smaller(Protocol):
    """A network that was cut: what ``reapx.prune``, ``Plan.apply`` and ``ZeroNodes.remove`` return."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def kept(self) -> Kept: ...

    @property
    def original(self) -> Original: ...


def carry_state(optimizer: torch.optim.Optimizer, result: Smaller) -> torch.optim.Optimizer:
    """Go on training after pruning: momentum and moments are cut like the parameters they belong to.

    Everything that an optimizer keeps for each weight (momentum, Adam's moments and AMSGrad's maxima, sums of squares)
    loses the entries of the weights that left; counts of steps, learning rates and other options stay. Parameters that
    left as a whole leave the optimizer, and the bias of a constant that took a layer's place joins it without state.
    Call it once, after pruning and before the next step::

        optimizer = reapx.carry_state(optimizer, result)

    Args:
        optimizer: Made of the parameters of the network that was pruned, with or without others, which stay.
        result: What ``reapx.prune``, ``Plan.apply`` or ``ZeroNodes.remove`` returned.

    Returns:
        The optimizer of ``result.model``. After ``inplace=True`` it is the given one, changed, so that learning-rate
        schedules go on. Otherwise it is a new one of the same kind, and the given one still trains the original; make
        schedules anew.

    Raises:
        InputError: the optimizer holds none of the network's parameters, or keeps a state for a cut parameter that has
            no entry for each weight, as L-BFGS and Shampoo do. The optimizer is as it was.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
        >>> adam = torch.optim.Adam(model.parameters())
        >>> model(torch.randn(9, 4)).sum().backward()
        >>> adam.step()
        >>> result = reapx.prune(model, torch.randn(99, 4), budget=reapx.MACs(0.5), inplace=True, progress=False)
        >>> adam = reapx.carry_state(adam, result)
        >>> adam.state[model[0].weight]["exp_avg"].shape == model[0].weight.shape
        True
    """
    names = {id(parameter): name for name, parameter in result.original.parameters.items()}
    small = dict(result.model.named_parameters(remove_duplicate=False))
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not {id(parameter) for parameter in held} & (names.keys() | {id(parameter) for parameter in small.values()}):
        raise InputError(
            "the optimizer holds no parameter of the network that was pruned: give the one that trained it"
        )
    if isinstance(optimizer, torch.optim.LBFGS) and optimizer.state:  # one vector for all parameters
        raise _unknown(*next((key, names.get(id(owner), "")) for owner, own in optimizer.state.items() for key in own))
    inplace = any(small.get(name) is parameter for name, parameter in result.original.parameters.items())
    successors = _Successors(result, small)
    groups = [_group(group, names, successors) for group in optimizer.param_groups]
    state: defaultdict[Any, Any] = defaultdict(dict)
    for key, own in optimizer.state.items():
        name = names.get(id(key))
        target = key if name is None else small.get(name)
        if name is None:
            state[key] = own if inplace else copy.deepcopy(own)
        elif target is not None and name not in successors.replaced:
            state[target] = _state(own, name, result, target.shape, own_memory=not inplace)
    if not inplace:
        optimizer = copy.copy(optimizer)
        optimizer.param_groups = [dict[str, Any]() for _ in groups]
    for mine, group in zip(optimizer.param_groups, groups, strict=True):
        mine.update(group)
    optimizer.state = state
    return optimizer


class _Successors:
    """Which parameters of the smaller network follow on each of the original's.

    Attributes:
        replaced: Names of parameters that went into the biases of constants.
    """

    def __init__(self, result: Smaller, small: Mapping[str, nn.Parameter]) -> None:
        self._small = small
        self._biases: dict[str, str] = {}
        for path, module in result.model.named_modules():
            if isinstance(module, Constant) and f"{path}.weight" in result.original.parameters:
                self._biases[f"{path}.weight"] = self._biases[f"{path}.bias"] = f"{path}.bias"
        self.replaced = frozenset(self._biases)

    def of(self, name: str) -> tuple[str, nn.Parameter] | None:
        """The name and the parameter that follow; each constant's bias does so once. None where nothing follows."""
        if name in self.replaced:
            bias = self._biases.get(name)
            self._biases = {key: other for key, other in self._biases.items() if other != bias}
            return None if bias is None else (bias, self._small[bias])
        found = self._small.get(name)
        return None if found is None else (name, found)


def _group(group: Mapping[str, Any], names: Mapping[int, str], successors: _Successors) -> dict[str, Any]:
    """A parameter group of the smaller network."""
    labels = group.get("param_names")
    found: list[tuple[str | None, Tensor]] = []
    for index, parameter in enumerate(group["params"]):
        label = None if labels is None else labels[index]
        name = names.get(id(parameter))
        if name is None:
            found.append((label, parameter))
        elif (after := successors.of(name)) is not None:
            found.append((label if after[0] == name else after[0], after[1]))
    made = {key: copy.deepcopy(value) for key, value in group.items() if key not in ("params", "param_names")}
    made["params"] = [parameter for _, parameter in found]
    return made if labels is None else {**made, "param_names": [label for label, _ in found]}


def _state(
    own: Mapping[str, Any], name: str, result: Smaller, shape: torch.Size, *, own_memory: bool
) -> dict[str, Any]:
    """What an optimizer keeps for one parameter, for what is left of it."""
    axes, before = result.kept.get(name, {}), result.original.shapes[name]
    if not axes or all(isinstance(value, Tensor) and value.shape == shape != before for value in _large(own)):
        return copy.deepcopy(dict(own)) if own_memory else dict(own)  # not cut, or carried before
    found: dict[str, Any] = {}
    for key, value in own.items():
        if isinstance(value, Tensor) and value.dim():
            fits = value.dim() == len(before) and all(
                size in (1, full) for size, full in zip(value.shape, before, strict=True)
            )
            if not fits:
                raise _unknown(key, name)
            cut = {axis: positions for axis, positions in axes.items() if value.shape[axis] == before[axis]}
            found[key] = laid_out_as(narrow(value, cut), value)
        elif isinstance(value, Tensor | int | float | str | None):
            found[key] = copy.deepcopy(value) if own_memory else value
        else:
            raise _unknown(key, name)
    return found


def _large(own: Mapping[str, Any]) -> list[Any]:
    """What is not one number, at least one thing."""
    found = [value for value in own.values() if isinstance(value, Tensor) and value.dim()]
    return found or [None]


def _unknown(key: str, name: str) -> InputError:
    return InputError(
        f"the optimizer's state {key!r} of {name} has no entry for each weight, so it cannot be cut: make a new "
        "optimizer of result.model.parameters()"
    )
