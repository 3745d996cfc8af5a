"""Width 0: residual branches that leave as a whole, and the constants that they leave behind."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import lively
from graphs.emptied import CASES, ActivatedNorm, Pooled, built, emptied, pruned
from graphs.residual import Bottleneck, ResNet
from torch import Tensor, nn

import reapx
from reapx.inspection.dry_run import _passing
from reapx.surgery.emptied_layers import Constant, Empty, Extent, find_endings
from reapx.surgery.proof import difference, masked_tensors

WORK = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d, nn.GroupNorm, nn.PReLU)


def executed_macs(model: nn.Module, images: Tensor) -> int:
    """Multiply-accumulates of the convolutions and linear layers that one image really runs."""
    total = 0

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)
        if isinstance(module, nn.Linear):
            total += weight.numel() * output[0].numel() // output.shape[-1]
        elif isinstance(module, nn.ConvTranspose2d):
            raise AssertionError("none is left")
        else:
            total += weight.numel() * output[0, 0].numel()

    found = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
    handles = [module.register_forward_hook(count) for module in found]
    with torch.no_grad():
        model(images[:1])
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize("name", CASES)
def test_branches_that_may_go(name: str) -> None:
    model, images = built(name)
    assert reapx.inspect(model, images).droppable == CASES[name].droppable


@pytest.mark.parametrize("reconstruct", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_emptied_equals_masked_and_its_layers_are_gone(name: str, reconstruct: bool) -> None:
    model, images, result = pruned(name, reconstruct=reconstruct)
    assert result.gap < 1e-8
    before = {path for path, module in model.named_modules() if isinstance(module, WORK)}
    after = {path for path, module in result.model.named_modules() if isinstance(module, WORK)}
    assert before - after == CASES[name].modules
    assert executed_macs(result.model, images) == result.plan.macs[1]
    constants = [module for module in result.model.modules() if isinstance(module, Constant)]
    counted = sum(p.numel() for p in result.model.parameters())
    assert counted <= result.plan.params[1] + sum(len(c.bias) for c in constants if name == "bare")
    assert all(isinstance(module.bias, nn.Parameter) and module.bias.requires_grad for module in constants)


@pytest.mark.parametrize("name", CASES)
def test_every_column_that_read_the_branch_is_zero_in_the_masked_network(name: str) -> None:
    """The shrunk module in float32 against a masked copy of the user's module, not of the graph."""
    model, images, result = pruned(name, reconstruct=False)
    groups = [entry.group for entry in result.plan.groups]
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for entry in result.plan.groups:
            for consumer in entry.group.consumers:
                weight = masked.get_parameter(consumer.layer.weight)
                where = torch.from_numpy(consumer.channels)[entry.removed].flatten()
                weight.index_fill_(consumer.layer.in_axis, where, 0)
        torch.testing.assert_close(result.model(images), masked(images), rtol=1e-4, atol=1e-5)
    tensors = masked_tensors(result.plan._graph, groups, result.kept, {})
    for key, value in masked.state_dict().items():
        if key in tensors:
            assert torch.equal(tensors[key], value)


@pytest.mark.parametrize("name", ["basic", "biased", "bottleneck", "perceptron", "depthwise", "concatenated"])
def test_refits_bring_the_outputs_closer(name: str) -> None:
    model, images, result = pruned(name)
    plain = pruned(name, reconstruct=False)[2]
    with torch.no_grad():
        wanted = model(images)
        errors = [(r.model(images) - wanted).square().sum() for r in (result, plain)]
    assert errors[0] < errors[1]
    assert not any(fit.error > fit.before + 1e-9 for fit in result.fits)


def test_without_other_removals_the_constant_is_the_mean_of_the_branch() -> None:
    model, images = built("biased")
    plan = emptied(reapx.plan(model, images, budget=reapx.MACs(0.9), allocation="uniform"), {"one"}, others=0)
    with torch.no_grad():
        x = F.relu(model.stem(images))
        branch = model.two(model.act(model.one(x)) * model.scale)
    torch.testing.assert_close(plan.apply(rectify=0).model.two.bias, branch.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_trains_and_can_be_copied(name: str) -> None:
    _, images, result = pruned(name)
    model = pickle.loads(pickle.dumps(copy.deepcopy(result.model))).train()
    model(images[:4]).square().sum().backward()
    missing = [key for key, value in model.named_parameters() if value.grad is None and value.numel()]
    # The norm in front of an emptied layer stays: nothing but its shape is read.
    assert missing == (["norm.weight", "norm.bias"] if name == "perceptron" else [])
    biases = [module.bias for module in model.modules() if isinstance(module, Constant)]
    assert all(bias.grad is not None and bool(bias.grad.abs().sum() > 0) for bias in biases)


@pytest.mark.parametrize("name", CASES)
def test_exports_and_can_be_pruned_again(name: str) -> None:
    _, images, result = pruned(name)
    again = reapx.prune(result.model, images, budget=reapx.MACs(0.8), streams=True)
    assert again.gap < 1e-8
    assert again.plan.macs[0] == result.plan.macs[1]


@pytest.mark.parametrize("name", ["basic", "biased", "perceptron"])
def test_in_place(name: str) -> None:
    _, _images, copied = pruned(name)
    model, _, result = pruned(name, inplace=True)
    assert result.model is model
    assert str(model) == str(copied.model)
    for mine, other in zip(model.state_dict().values(), copied.model.state_dict().values(), strict=True):
        assert torch.equal(mine, other)


def test_original_is_untouched() -> None:
    model, _images, _ = pruned("basic")
    again, _ = built("basic")
    assert str(model) == str(again)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_forward_that_cannot_stand_it_keeps_its_branch() -> None:
    torch.manual_seed(0)
    model, images = lively(Pooled()), torch.randn(60, 3, 6, 6)
    found = reapx.inspect(model, images)
    assert found.droppable == {"three.0"}
    assert {"one.0", "three.0"} <= {group.name for group in found.groups}


@pytest.mark.parametrize("names", [{"one.0"}, {"two.0"}])
def test_half_a_bottleneck(names: set[str]) -> None:
    """The layers behind an emptied group see a constant; those before it work for nothing."""
    _, _, result = pruned("bottleneck", names)
    assert result.gap < 1e-8
    kind = {"one.0": (Empty, Constant, nn.Conv2d), "two.0": (nn.Conv2d, Empty, Constant)}[min(names)]
    layers = (result.model.one[0], result.model.two[0], result.model.three[0])
    assert tuple(type(layer) for layer in layers) == kind


def test_a_network_with_a_max_pool_and_projections_is_tried_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one unit fewer in every group, without all branches, and without what stands first in each of them."""
    trials = []

    def counted(*args: Any) -> Any:
        trials.append(args)
        return difference(*args)

    monkeypatch.setattr("reapx.inspection.dry_run.difference", counted)
    torch.manual_seed(0)
    model = lively(ResNet(Bottleneck, (2, 2, 1), 4))
    found = reapx.inspect(model, torch.randn(4, 3, 32, 32))
    assert len(found.droppable) == 10 and len(trials) == 3


@pytest.mark.parametrize("reconstruct", [True, False])
def test_a_norm_that_does_more_is_kept(reconstruct: bool, tmp_path: Path) -> None:
    """Its activation would be lost if it went into the constant in front of it."""
    _, images, result = pruned("activated", {"one"}, reconstruct=reconstruct)
    assert result.gap < 1e-8
    assert isinstance(result.model.two, Constant) and isinstance(result.model.second, ActivatedNorm)
    result.save(tmp_path)
    with torch.no_grad():
        assert torch.equal(reapx.load(CASES["activated"].build().eval(), tmp_path)(images), result.model(images))


def test_outputs_depend_on_the_images_at_every_budget() -> None:
    model, images = built("projected")
    least = reapx.plan(model, images, budget=reapx.MACs(0.99)).tradeoff()[-1]
    result = reapx.plan(model, images, budget=reapx.MACs(int(least.cost) + 1)).apply()
    with torch.no_grad():
        assert result.model(images).std(0).max() > 1e-4


@pytest.mark.parametrize("bad", [set(), {3}, {0, 9}, {2, 3, 11}, set(range(12))])
def test_trials_are_few(bad: set[int]) -> None:
    groups = [SimpleNamespace(name=str(index)) for index in range(12)]
    trials = 0

    def failure(tried: list[Any]) -> str | None:
        nonlocal trials
        trials += 1
        return "no" if any(int(group.name) in bad for group in tried) else None

    passing, failures = _passing(groups, failure)  # type: ignore[arg-type]
    assert {int(group.name) for group in passing} == set(range(12)) - bad
    assert {int(name) for name in failures} == bad
    assert trials <= 1 + 2 * len(bad) * 4 and trials <= 23


@pytest.mark.parametrize("name", ["basic", "biased", "bottleneck", "depthwise", "concatenated"])
def test_streams_shrink_at_the_same_time(name: str, tmp_path: Path) -> None:
    model, images = built(name)
    plan = reapx.plan(model, images, budget=reapx.MACs(0.95), allocation="uniform", streams=True)
    result = emptied(plan, CASES[name].droppable, streams=2).apply(damping=0.0)
    assert result.gap < 1e-8
    result.save(tmp_path)
    with torch.no_grad():
        assert torch.equal(reapx.load(CASES[name].build().eval(), tmp_path)(images), result.model(images))


def test_one_of_two_that_a_layer_reads() -> None:
    _model, _images, result = pruned("concatenated", {"left.0"})
    assert result.gap < 1e-8
    assert isinstance(result.model.left[0], Empty) and isinstance(result.model.mix[0], nn.Conv2d)
    assert result.model.mix[0].in_channels == 6


def test_only_sums_written_in_place_get_memory_of_their_own() -> None:
    _model, _images, result = pruned("basic")
    assert not result.model.a2[0].writable and result.model.b2[0].writable
    value = result.model.a2[0](torch.zeros(4, 0, 8, 8))
    assert value.shape == (4, 8, 8, 8) and value.stride() == (0, 1, 0, 0)
    assert repr(result.model.a2[0]) == "Constant(8, norm='a2.1')"
    groups = [entry.group for entry in result.plan.groups]
    assert set(find_endings(result.plan._graph, groups, result.kept)) == {"a2.0", "b2.0"}


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 3, (3, 5), (2, 1), (1, 0), (1, 2)),
        nn.Conv2d(2, 3, 5, padding="same"),
        nn.Conv2d(2, 3, 3, padding="valid"),
        nn.Conv1d(2, 3, 5, 3, 1),
        nn.ConvTranspose1d(2, 3, 3, 2, 1, 1),
        nn.ConvTranspose2d(2, 3, (3, 2), (3, 2), (1, 0), (2, 1), dilation=(2, 1)),
        nn.Linear(2, 3),
    ],
)
def test_sizes_are_those_of_the_layer(layer: nn.Module) -> None:
    axes = 0 if isinstance(layer, nn.Linear) else len(layer.kernel_size)  # type: ignore[arg-type]
    value = torch.randn(4, *(2, 13, 14)[: axes + 1])
    with torch.no_grad():
        wanted = layer(value).shape
    assert tuple(Extent.of(layer).shape(value, 3)) == tuple(wanted)
    empty = Empty(Extent.of(layer))(value)
    assert empty.numel() == 0 and empty.dim() == len(wanted)


def test_a_small_budget_drops_branches_by_itself() -> None:
    model, images = built("basic")
    least = reapx.plan(model, images, budget=reapx.MACs(0.99)).tradeoff()[-1]
    assert least.widths["a1.0"] == least.widths["b1.0"] == 0
    result = reapx.plan(model, images, budget=reapx.MACs(int(least.cost) + 1)).apply()
    assert result.gap < 1e-8
    assert isinstance(result.model.a2[0], Constant) and isinstance(result.model.a1[0], Empty)


def test_bounds_keep_a_branch() -> None:
    model, images = built("basic")
    plan = reapx.plan(model, images, budget=reapx.MACs(0.99), bounds={"a1.0": (1, 6)})
    assert plan.tradeoff()[-1].widths["a1.0"] == 1
    assert plan.tradeoff()[-1].widths["b1.0"] == 0


def test_pro_leaves_no_layer_that_computes_for_nothing() -> None:
    """Once one layer of a bottleneck is empty, the layers before and behind it go as well, at every budget."""
    model, images = built("bottleneck")
    plan = reapx.plan(model, images, budget=reapx.MACs(0.9))
    empty = 0
    for share in torch.linspace(0.9, 0.1, 41).tolist():
        try:
            kept = {entry.group.name: entry.kept for entry in plan.at(reapx.MACs(share)).groups}
        except reapx.BudgetError:
            break
        assert (kept["one.0"] == 0) == (kept["two.0"] == 0)
        empty += kept["one.0"] == 0
    assert empty > 0
