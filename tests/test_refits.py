"""Refits at every cut of a path, against a slow solve from the layers' own inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import coupled, lively, plain
from torch import Tensor, nn

import reapx
from reapx.capture.execution import run
from reapx.groups.channel_groups import Consumer, Group
from reapx.inspection.inspection import Inspection
from reapx.selection.find_paths import find_paths
from reapx.selection.paths.path import Path
from reapx.selection.paths.weight_changes import combined

F64 = torch.float64


@dataclass(frozen=True)
class Net:
    """A network, the shape of one image, and the norm behind each layer that has one."""

    model: nn.Module
    shape: tuple[int, ...]
    norms: Mapping[str, str]


def norms_with_signs(model: nn.Module) -> nn.Module:
    """Some scales negative, one of them nothing at all."""
    for module in lively(model).modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            with torch.no_grad():
                module.weight[::3] *= -1
    return model


def with_norm(bias: bool, groups: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding=1, groups=groups, bias=bias),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 1),
    )


def make(name: str) -> Net:
    torch.manual_seed(0)
    if name in ("norm", "norm_and_bias", "grouped_norm"):
        model = norms_with_signs(with_norm(name == "norm_and_bias", 2 if name == "grouped_norm" else 1))
        if name == "norm":
            with torch.no_grad():
                model[3].weight[1] = 0.0
        return Net(model, (3, 7, 7), {"2": "3"})
    case = {**plain.CASES, **coupled.CASES}[name]
    norms = {
        "residual": {f"{part}.0": f"{part}.1" for part in ("stem", "a1", "a2", "b1", "b2", "down")},
        "batch_norm": {"0": "1", "3": "4"},
        "transposed": {"4": "5"},
        "linear": {"0": "1"},
    }
    return Net(norms_with_signs(case.build()), case.shape, norms.get(name, {}))


# conv: no bias and no norm; batch_norm: a norm without scales; concat: consumers that read two groups;
# channels_last_flatten: units whose columns lie apart.
NETS = [
    "norm",
    "norm_and_bias",
    "grouped_norm",
    "conv",
    "batch_norm",
    "linear",
    "tokens",
    "grouped",
    "depthwise_multiplier",
    "transposed",
    "conv1d",
    "residual",
    "concat",
    "channels_last_flatten",
]


def paths_of(net: Net, damping: float, selection: str = "reap") -> tuple[Inspection, Tensor, list[Path]]:
    images = torch.randn(60, *net.shape)
    found = reapx.inspect(net.model, images)
    paths = find_paths(
        found._graph,
        found._images,
        found.groups,
        {group.name: 0 for group in found.groups},
        selection,
        damping=damping,
        positions=None,
        refits=True,
    )
    return found, images, paths


def layer_inputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    inputs: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, given, __, name=name: inputs.__setitem__(name, given[0].double()))
        for name, module in model.named_modules()
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return inputs


def design(module: Any, x: Tensor, part: int) -> Tensor:
    """(rows, features): what each weight of an output is multiplied by, from the layer run with unit weights."""
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    x = x.chunk(module.groups, 1)[part]
    kernel = module.weight.shape[2:]
    count = x.shape[1] * kernel.numel()
    unit = torch.eye(count, dtype=F64)
    if isinstance(module, nn.ConvTranspose2d):
        unit = unit.reshape(x.shape[1], *kernel, count).movedim(-1, 1)
        rows = F.conv_transpose2d(x, unit, None, module.stride, module.padding, module.output_padding)
    else:
        call = F.conv1d if isinstance(module, nn.Conv1d) else F.conv2d
        unit = unit.reshape(count, x.shape[1], *kernel)
        rows = call(x, unit, None, module.stride, module.padding, module.dilation)
    return rows.movedim(1, -1).reshape(-1, count)


def as_rows(module: Any, weight: Tensor, part: int) -> Tensor:
    """(outputs, features) of one conv group."""
    if isinstance(module, nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)
    groups = getattr(module, "groups", 1)
    return weight.double().chunk(groups, 0)[part].flatten(1)


def gone_columns(consumer: Consumer, path: Path, count: int) -> Tensor:
    taps = consumer.layer.taps
    channels = torch.as_tensor(consumer.channels[path.order[:count].numpy()]).flatten()
    return (channels[:, None] * taps + torch.arange(taps)).flatten()


def slow(x: Tensor, weight: Tensor, gone: Tensor, damping: float, intercept: bool) -> tuple[Tensor, Tensor]:
    """The damped least-squares change of weights whose ``gone`` columns become zero, and the columns' means."""
    mean = x.mean(0)
    x = x - mean if intercept else x
    gram = x.T @ x
    damped = gram + damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=F64)
    stays = torch.ones(len(gram), dtype=torch.bool)
    stays[gone] = False
    change = -weight.clone()
    change[:, stays] = torch.linalg.solve(damped[stays][:, stays], damped[stays][:, ~stays] @ weight[:, ~stays].T).T
    return change, mean


def cuts_of(group: Group) -> list[int]:
    return [1, group.size // 2, group.size]


@pytest.mark.parametrize("name", NETS)
def test_weights_at_every_cut_are_those_of_a_slow_solve(name: str) -> None:
    net = make(name)
    damping = 3e-2
    found, images, paths = paths_of(net, damping)
    inputs, modules = layer_inputs(net.model, images), dict(net.model.named_modules())
    for group, path in zip(found.groups, paths, strict=True):
        assert path.refitted is not None
        for count, changed in zip(cuts_of(group), path.refitted.changes(cuts_of(group)), strict=True):
            expected_names = set()
            for consumer in group.consumers:
                layer, module = consumer.layer.name, modules[consumer.layer.name]
                norm = net.norms.get(layer)
                bias = getattr(module, "bias", None)
                weight = as_rows(module, module.weight.detach(), consumer.conv_group)
                x = design(module, inputs[layer], consumer.conv_group)
                gone = gone_columns(consumer, path, count)
                change, mean = slow(x, weight, gone, damping, bias is not None or norm is not None)
                rows = slice(consumer.conv_group * len(weight), (consumer.conv_group + 1) * len(weight))
                if norm is not None and modules[norm].weight is not None:
                    nothing = modules[norm].weight[rows] == 0
                    keeps = torch.zeros_like(change)
                    keeps[:, gone] = -weight[:, gone]
                    change = torch.where(nothing[:, None], keeps, change)
                got = as_rows(module, changed[f"{layer}.weight"], consumer.conv_group)
                assert bool((weight + got)[:, gone].abs().max() < 1e-12)
                torch.testing.assert_close(got, change, rtol=1e-3, atol=1e-4 * float(weight.abs().max()))
                expected_names.add(f"{layer}.weight")
                if bias is not None:
                    place, shift = f"{layer}.bias", -change @ mean
                elif norm is not None:
                    place, shift = f"{norm}.running_mean", change @ mean
                else:
                    continue
                expected_names.add(place)
                scale = float(weight.abs().max() * mean.abs().sum()) + 1e-3
                torch.testing.assert_close(changed[place][rows], shift, rtol=1e-3, atol=1e-4 * scale)
            assert set(changed) == expected_names


@pytest.mark.parametrize("selection", ["reap", "magnitude"])
@pytest.mark.parametrize("name", NETS)
def test_the_original_with_changed_tensors_has_the_predicted_error_at_the_consumers(name: str, selection: str) -> None:
    """One consumer at a time: in a stream, what one of them puts out comes to the next."""
    net = make(name)
    found, images, paths = paths_of(net, 1e-2, selection)
    graph = found._graph
    for group, path in zip(found.groups, paths, strict=True):
        assert path.refitted is not None
        for count, changed in zip(cuts_of(group), path.refitted.changes(cuts_of(group)), strict=True):
            shares = []
            for consumer in group.consumers:
                norm = net.norms.get(consumer.layer.name)
                node = consumer.layer.node if norm is None else norm_node(found, norm)
                own_names = {f"{consumer.layer.name}.weight", f"{consumer.layer.name}.bias", f"{norm}.running_mean"}
                change = {name: value for name, value in changed.items() if name in own_names}
                centred = consumer.layer.bias is not None or norm is not None
                axis, parts = -1 if consumer.layer.spatial == 0 else 1, consumer.layer.window.groups
                before, after = (
                    value_at(found, node, images, tensors)
                    .movedim(axis, -1)
                    .flatten(0, -2)
                    .chunk(parts, 1)[consumer.conv_group]
                    for tensors in (graph.tensors, {**graph.tensors, **combined(graph.tensors, [change])})
                )
                signal = before - before.mean(0) if centred else before
                shares.append(float((before - after).square().sum() / signal.square().sum()))
            assert sum(shares) / len(shares) == pytest.approx(path.error(count), rel=1e-3, abs=1e-5)
            assert path.error(count) <= float(path.errors[:count].sum())


def value_at(found: Inspection, node: Any, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """A node's value in float64."""
    seen: list[Tensor] = []

    def visit(now: Any, _: object, value: Any) -> None:
        if now is node:
            seen.append(value[0] if isinstance(value, tuple) else value)

    run(found._graph, [images.double()], {name: value.double() for name, value in tensors.items()}, visit)
    return seen[0]


def norm_node(found: Inspection, name: str) -> Any:
    mean = f"{name}.running_mean"
    placeholder = next(node for node, held in found._graph.parameters.items() if held == mean)
    return found._graph.users[placeholder][0]


def test_changes_of_groups_that_one_layer_reads_add_up() -> None:
    net = make("concat")
    found, _, paths = paths_of(net, 1e-2)
    small, large = (
        next(p for g, p in zip(found.groups, paths, strict=True) if g.name == n) for n in ("small", "large")
    )
    assert small.refitted is not None and large.refitted is not None
    changes = [small.refitted.changes([2])[0], large.refitted.changes([3])[0]]
    together = combined(found._graph.tensors, changes)
    assert set(together) == {"mix.weight", "mix.bias"}
    for name, value in together.items():
        before = found._graph.tensors[name]
        assert value.dtype == before.dtype
        torch.testing.assert_close(value.double(), before.double() + changes[0][name] + changes[1][name])


def test_no_cut_changes_nothing() -> None:
    net = make("residual")
    found, _, paths = paths_of(net, 1e-2)
    for group, path in zip(found.groups, paths, strict=True):
        assert path.refitted is not None
        assert path.refitted.changes([]) == []
        for value in path.refitted.changes([0, group.size])[0].values():
            assert not bool(value.any())
