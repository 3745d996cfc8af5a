"""What the tests of compaction share: dead nodes, and whether a smaller module computes the same."""

from __future__ import annotations

import copy

import torch
from graphs import lively
from torch import Tensor, nn

import reapx
from reapx.capture.widening import computing_in

ROUNDING = 1e-6


def chain(*layers: nn.Module) -> nn.Module:
    """Layers one after another, in eval mode."""
    return lively(nn.Sequential(*layers))


def weights(model: nn.Module, name: str) -> Tensor:
    """A parameter in float64."""
    return model.get_parameter(name).detach().double()


def kill(layer: nn.Module, unit: int, bias: float | None = None) -> None:
    """Make a node's incoming weights zero, and its bias what is asked for."""
    with torch.no_grad():
        axis = 1 if getattr(layer, "transposed", False) else 0
        layer.weight.index_fill_(axis, torch.tensor([unit]), 0)  # type: ignore[operator, union-attr]
        if bias is not None:
            layer.bias[unit] = bias  # type: ignore[operator, index]


def outputs(model: nn.Module, x: Tensor | dict[str, Tensor]) -> list[Tensor]:
    """All outputs in float64, whatever dtype forward() writes down, so that only the rounding of weights is seen."""
    exact = copy.deepcopy(model).double()
    with torch.no_grad(), computing_in(torch.float64):
        if isinstance(x, dict):
            value = exact(**{key: v.double() if v.is_floating_point() else v for key, v in x.items()})
        else:
            value = exact(x.double())
    return list(value) if isinstance(value, tuple) else [value]


def assert_same(model: nn.Module, smaller: nn.Module, *inputs: Tensor | dict[str, Tensor]) -> None:
    """Equal outputs, and outputs that are not all zero, for which anything would do."""
    for x in inputs:
        for ours, theirs in zip(outputs(smaller, x), outputs(model, x), strict=True):
            assert ours.shape == theirs.shape
            largest = theirs.abs().max()
            assert largest > 0
            assert (ours - theirs).abs().max() <= ROUNDING * largest


def compacted(model: nn.Module, x: Tensor, *others: tuple[int, ...], **options: object) -> reapx.Compacted:
    """Compact with some images, and hold it against the model on fresh ones, also of other shapes."""
    before = copy.deepcopy(model.state_dict())
    text = str(model)
    done = reapx.zero_nodes(model, x, **options).remove()  # type: ignore[arg-type]
    assert str(model) == text
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert done.gap <= ROUNDING
    assert_same(model, done.model, *(torch.randn(3, *shape) for shape in (x.shape[1:], *others)))
    return done


def left(done: reapx.Compacted) -> dict[str, int]:
    """How many nodes left each group that lost some."""
    return {entry.group.name: len(entry.removed) for entry in done.nodes.groups if len(entry.removed)}


def gone(done: reapx.Compacted) -> dict[str, list[int]]:
    """Which nodes left each group that lost some."""
    return {entry.group.name: entry.removed.tolist() for entry in done.nodes.groups if len(entry.removed)}


def reasons(done: reapx.Compacted) -> str:
    """Why dead nodes stay."""
    return "; ".join(reason for entry in done.nodes.groups for reason in entry.staying.values())
