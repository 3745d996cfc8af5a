"""Every micro network with nodes that died in every way: what must leave leaves, what lives stays, outputs are equal.

What a consumer really reads is observed on random images; the analysis under test looks at weights alone.
"""

from __future__ import annotations

import functools

import pytest
import torch
from compacting import assert_same
from graphs import computed, coupled, lively, plain
from torch import Tensor, nn

import reapx
from reapx.capture.execution import run
from reapx.groups.channel_groups import Consumer, Group

ALL = {**plain.CASES, **coupled.CASES, **computed.CASES}
UNSEEN = {
    "rearranged": "a mask that depends on the images hides that zero stays zero",
    "pool_counted": "so does a number of positives",
}
"""Where a constant zero is not recognised."""


def built(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return lively(ALL[name].build()), torch.randn(8, *ALL[name].shape)


@functools.cache
def groups_of(name: str) -> list[Group]:
    return reapx.inspect(*built(name)).groups


def fill(model: nn.Module, name: str, axis: int, positions: Tensor, value: float) -> None:
    own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    with torch.no_grad():
        own[name].index_fill_(axis, positions.flatten(), value)


def norms_of(model: nn.Module, group: Group) -> list[str]:
    """Paths of the batch norms along a group's channels."""
    paths = {name.rpartition(".")[0] for name, _ in group.cuts}
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    return sorted(p for p in paths if isinstance(model.get_submodule(p), kinds) and f"{p}.weight" in model.state_dict())


def rows(model: nn.Module, group: Group, producers: int | None = None) -> list[int]:
    """All producers' rows zero (or those of the first ones), with biases below, at and above zero."""
    units = list(range(min(3, group.size - 1)))
    for layer in group.producers[:producers]:
        for unit, bias in zip(units, (-0.7, 0.0, 0.6), strict=False):
            fill(model, layer.weight, layer.out_axis, positions(group, layer.weight, layer.out_axis, unit), 0.0)
            if layer.bias is not None and (layer.bias, 0) in group.cuts:
                fill(model, layer.bias, 0, positions(group, layer.bias, 0, unit), bias)
    return units


def norms(model: nn.Module, group: Group) -> list[int]:
    """All norms along the channels scale them by zero."""
    units = list(range(min(2, group.size - 1)))
    found = norms_of(model, group)
    for path in found:
        for unit, shift in zip(units, (-0.7, 0.6), strict=False):
            fill(model, f"{path}.weight", 0, positions(group, f"{path}.weight", 0, unit), 0.0)
            fill(model, f"{path}.bias", 0, positions(group, f"{path}.bias", 0, unit), shift)
    return units if found else []


def columns(model: nn.Module, group: Group) -> list[int]:
    """Nobody reads the last unit."""
    for consumer in group.consumers:
        where = torch.from_numpy(consumer.channels)[group.size - 1]
        fill(model, consumer.layer.weight, consumer.layer.in_axis, where, 0.0)
    return [group.size - 1]


def positions(group: Group, name: str, axis: int, unit: int) -> Tensor:
    return torch.from_numpy(group.cuts[name, axis])[unit]


def values_read(found: reapx.Inspection, images: Tensor) -> dict[str, Tensor]:
    """Layer -> (channels, values) of what it reads."""
    seen: dict[str, Tensor] = {}
    layers = {layer.node: layer for layer in found._channels.layers}

    def visit(node: torch.fx.Node, values: object, _: object) -> None:
        if node in layers:
            value = values[layers[node].input]  # type: ignore[index]
            seen[layers[node].name] = value.movedim(1 if layers[node].spatial else -1, 0).flatten(1)

    run(found._graph, [images], found._graph.tensors, visit)
    return seen


def reading(consumer: Consumer, seen: dict[str, Tensor], tensors: dict[str, Tensor], unit: int) -> str:
    """Whether a consumer ignores a unit, or reads zeros of it, a constant, or what varies."""
    layer = consumer.layer
    matrix = layer.matrix(tensors[layer.weight])[consumer.conv_group]
    if not bool(matrix[:, consumer.columns()[unit]].any()):
        return "ignored"
    value = seen[layer.name]
    value = value.reshape(layer.window.groups, -1, value.shape[1])[consumer.conv_group][consumer.channels[unit]]
    if not bool(value.any()):
        return "zero"
    spread = value.amax(1) - value.amin(1)
    return "varies" if bool((spread > 1e-4 * value.abs().amax(1)).any()) else "constant"


WAYS = {"rows": rows, "norms": norms, "columns": columns}


def killed(name: str, way: str) -> tuple[nn.Module, Tensor, dict[str, list[int]]]:
    model, images = built(name)
    return model, images, {group.name: WAYS[way](model, group) for group in groups_of(name)}


NORMED = "conv1d linear batch_norm depthwise transposed residual option_a pre_activation dense".split()
CASES = [(name, way) for name in ALL for way in ("rows", "columns")] + [(name, "norms") for name in NORMED]


@pytest.mark.parametrize(("name", "way"), CASES)
def test_what_is_dead_leaves_and_what_lives_stays(name: str, way: str) -> None:
    model, images, units = killed(name, way)
    assert any(units.values()), "this way kills nobody"
    nodes = reapx.zero_nodes(model, images)
    found = nodes._found
    seen = values_read(found, torch.randn(16, *ALL[name].shape))
    for entry in nodes.groups:
        removed = set(entry.removed.tolist())
        for unit in range(entry.group.size):
            ways = {reading(c, seen, found._graph.tensors, unit) for c in entry.group.consumers}
            assert "varies" not in ways or unit not in removed, (entry.group.name, unit)
            must = unit in units[entry.group.name] and ways <= {"ignored", "zero"}
            if must and (name not in UNSEEN or ways == {"ignored"}):
                assert unit in removed, (entry.group.name, unit, entry.staying)
        if way == "columns":
            assert entry.group.size - 1 in removed
    done = nodes.remove()
    assert done.gap < 1e-6
    assert_same(model, done.model, torch.randn(3, *ALL[name].shape))
    check_other_size(model, done.model, ALL[name].shape)


def check_other_size(model: nn.Module, smaller: nn.Module, shape: tuple[int, ...]) -> None:
    """Where the model takes larger images, what was folded holds for them as well."""
    if len(shape) == 3:
        other = torch.randn(2, shape[0], shape[1] + 4, shape[2] + 6)
        try:
            model(other)
        except RuntimeError:
            return
        assert_same(model, smaller, other)


@pytest.mark.parametrize("name", ["residual", "pre_activation", "option_a", "gate"])
def test_dead_in_one_of_several_producers_stays(name: str) -> None:
    model, images = built(name)
    several = [group for group in groups_of(name) if len(group.producers) > 1]
    assert several
    for group in several:
        assert rows(model, group, producers=1)
    nodes = reapx.zero_nodes(model, images)
    zero_factor = {"gate"}  # a product is dead when one factor is zero
    if name not in zero_factor:
        assert [len(e.removed) for e in nodes.groups if len(e.group.producers) > 1] == [0] * len(several)
    assert_same(model, nodes.remove().model, torch.randn(3, *ALL[name].shape))
