"""Optimizers made before pruning: they go on training, with what they kept of the weights that stayed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from graphs import coupled, lively
from graphs.emptied import CASES, built, emptied
from torch import Tensor, nn

import reapx

Optimizer = torch.optim.Optimizer
Make = Callable[[Iterable[Any]], Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda x: torch.optim.SGD(x, 0.1, momentum=0.9),
    "nesterov": lambda x: torch.optim.SGD(x, 0.1, momentum=0.9, nesterov=True, foreach=False),
    "adam": lambda x: torch.optim.Adam(x, 1e-2),
    "amsgrad": lambda x: torch.optim.AdamW(x, 1e-2, amsgrad=True),
    "adam_l2": lambda x: reapx.adam_l2(x, 1e-2),
    "rmsprop": lambda x: torch.optim.RMSprop(x, 1e-2, momentum=0.5, centered=True),
    "adagrad": lambda x: torch.optim.Adagrad(x, 1e-2),
    "adadelta": lambda x: torch.optim.Adadelta(x),
    "nadam": lambda x: torch.optim.NAdam(x, 1e-2),
    "rprop": lambda x: torch.optim.Rprop(x, 1e-2),
    "adafactor": lambda x: torch.optim.Adafactor(x),
}


def trained(make: Make) -> tuple[nn.Module, Tensor, Optimizer]:
    """A residual network after three steps."""
    torch.manual_seed(0)
    case = coupled.CASES["residual"]
    model, images = lively(case.build()), torch.randn(60, *case.shape)
    optimizer = make(model.parameters())
    for _ in range(3):
        step(model, optimizer, images)
    return model, images, optimizer


def step(model: nn.Module, optimizer: Optimizer, images: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss = model(images).square().mean()
    loss.backward()
    optimizer.step()
    return loss


def cut(value: Tensor, axes: dict[int, Tensor], full: torch.Size) -> Tensor:
    for axis, positions in axes.items():
        if value.shape[axis] == full[axis]:
            value = value.index_select(axis, positions)
    return value


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_cut_like_its_parameter_and_training_goes_on(name: str, inplace: bool) -> None:
    model, images, optimizer = trained(OPTIMIZERS[name])
    before = {key: copy.deepcopy(optimizer.state[value]) for key, value in model.named_parameters()}
    shapes = {key: value.shape for key, value in model.named_parameters()}
    result = reapx.prune(model, images, budget=reapx.MACs(0.5), streams=True, inplace=inplace)
    carried = reapx.carry_state(optimizer, result)
    assert (carried is optimizer) == inplace and type(carried) is type(optimizer)
    checked = 0
    for key, parameter in result.model.named_parameters():
        assert before[key].keys() == carried.state[parameter].keys()
        for part, value in carried.state[parameter].items():
            if isinstance(value, Tensor) and value.dim():
                assert torch.equal(value, cut(before[key][part], result.kept.get(key, {}), shapes[key]))
                checked += value.shape != before[key][part].shape
            else:
                assert value == before[key][part]
    assert checked > 0
    start = {key: value.detach().clone() for key, value in result.model.named_parameters()}
    step(result.model, carried, images)
    assert not any(torch.equal(value, start[key]) for key, value in result.model.named_parameters())
    if not inplace:  # the given one still trains the original, and nothing is shared
        assert all(optimizer.state[value].keys() == before[key].keys() for key, value in model.named_parameters())
        step(model, optimizer, images)


def test_the_same_steps_as_of_an_optimizer_of_the_smaller_network() -> None:
    """Where pruned weights and moments are set by hand, Adam goes the same way to the bit."""
    model, images, optimizer = trained(OPTIMIZERS["adam"])
    result = reapx.prune(model, images, budget=reapx.MACs(0.5), streams=True)
    other, twin = copy.deepcopy(result.model), reapx.carry_state(optimizer, result)
    hand = torch.optim.Adam(other.parameters(), 1e-2)
    hand.load_state_dict(copy.deepcopy(twin.state_dict()))
    for _ in range(2):
        step(result.model, twin, images)
        step(other, hand, images)
    pairs = zip(result.model.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(value, wanted) for value, wanted in pairs)


def test_a_loss_that_is_still_held_does_no_harm() -> None:
    """Autograd remembers the shape that a parameter had, as long as some loss of it is alive."""
    model, images, optimizer = trained(OPTIMIZERS["sgd"])
    held = step(model, optimizer, images)
    before = {name: id(value) for name, value in model.named_parameters()}
    result = reapx.prune(model, images, budget=reapx.MACs(0.5), streams=True, inplace=True)
    assert before == {name: id(value) for name, value in model.named_parameters()}
    start = [value.detach().clone() for value in model.parameters()]
    step(model, reapx.carry_state(optimizer, result), images)
    assert held.isfinite() and not any(map(torch.equal, start, model.parameters()))


def test_stateless_optimizers_need_nothing() -> None:
    model, images, optimizer = trained(lambda x: torch.optim.SGD(x, 0.1))
    reapx.prune(model, images, budget=reapx.MACs(0.5), streams=True, inplace=True)
    start = [value.detach().clone() for value in model.parameters()]
    step(model, optimizer, images)
    assert not any(map(torch.equal, start, model.parameters()))


def test_schedules_go_on_in_place() -> None:
    model, images, optimizer = trained(OPTIMIZERS["adam"])
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    result = reapx.prune(model, images, budget=reapx.MACs(0.5), streams=True, inplace=True)
    reapx.carry_state(optimizer, result)
    step(model, optimizer, images)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(5e-3)


def test_groups_names_and_strangers_stay() -> None:
    torch.manual_seed(0)
    model, stranger = lively(coupled.CASES["residual"].build()), nn.Parameter(torch.ones(3))
    images = torch.randn(60, *coupled.CASES["residual"].shape)
    named = dict(model.named_parameters())
    weights = [(name, value) for name, value in named.items() if value.dim() > 1]
    others = [(name, value) for name, value in named.items() if value.dim() < 2]
    optimizer = torch.optim.Adam(
        [{"params": weights, "lr": 0.5}, {"params": [*others, ("stranger", stranger)], "weight_decay": 0.1}], lr=1e-3
    )
    stranger.grad = torch.ones(3)
    step(model, optimizer, images)
    result = reapx.prune(model, images, budget=reapx.MACs(0.5), streams=True)
    carried = reapx.carry_state(optimizer, result)
    assert [group["lr"] for group in carried.param_groups] == [0.5, 1e-3]
    assert [group["weight_decay"] for group in carried.param_groups] == [0, 0.1]
    small = dict(result.model.named_parameters())
    for group, given in zip(carried.param_groups, (weights, [*others, ("stranger", stranger)]), strict=True):
        assert group["param_names"] == [name for name, _ in given]
        assert all(
            value is small.get(name, stranger)
            for value, name in zip(group["params"], group["param_names"], strict=True)
        )
    assert carried.state[stranger].keys() == optimizer.state[stranger].keys()


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("name", ["basic", "biased", "bare"])
def test_what_takes_a_layers_place_is_trained(name: str, inplace: bool) -> None:
    """Weights of branches that left are gone, and the biases of the constants are there once, without state."""
    model, images = built(name)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    step(model, optimizer, images)
    plan = reapx.plan(model, images, budget=reapx.MACs(0.95), allocation="uniform")
    result = emptied(plan, CASES[name].droppable).apply(inplace=inplace)
    carried = reapx.carry_state(optimizer, result)
    held = [id(parameter) for group in carried.param_groups for parameter in group["params"]]
    own = [id(parameter) for parameter in result.model.parameters()]
    assert sorted(held) == sorted(own)
    assert {id(parameter) for parameter in carried.state} < set(own)
    start = {key: value.detach().clone() for key, value in result.model.named_parameters()}
    step(result.model, carried, images)
    assert not any(torch.equal(value, start[key]) for key, value in result.model.named_parameters() if value.numel())
    again = reapx.carry_state(carried, result)
    assert sorted(id(parameter) for group in again.param_groups for parameter in group["params"]) == sorted(own)


def test_zero_nodes_take_their_moments_along() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    optimizer = reapx.adam_l2(model.parameters())
    step(model, optimizer, torch.randn(9, 4))
    with torch.no_grad():
        model[0].weight[[1, 4]] = 0
    before = optimizer.state[model[0].weight]["exp_avg"].clone()
    result = reapx.zero_nodes(model).remove(inplace=True)
    reapx.carry_state(optimizer, result)
    assert torch.equal(optimizer.state[model[0].weight]["exp_avg"], before[[0, 2, 3, 5]])


def test_carrying_twice_changes_nothing() -> None:
    model, images, optimizer = trained(OPTIMIZERS["amsgrad"])
    result = reapx.prune(model, images, budget=reapx.MACs(0.5), streams=True, inplace=True)
    once = copy.deepcopy(reapx.carry_state(optimizer, result).state_dict()["state"])
    twice = reapx.carry_state(optimizer, result).state_dict()["state"]
    assert all(torch.equal(value, twice[key][part]) for key, own in once.items() for part, value in own.items())


def test_what_cannot_be_cut_is_refused() -> None:
    model, images, _ = trained(OPTIMIZERS["sgd"])
    newton = torch.optim.LBFGS(model.parameters(), max_iter=2)

    def closure() -> Tensor:
        newton.zero_grad()
        loss = model(images).square().mean()
        loss.backward()
        return loss

    newton.step(closure)
    state, result = newton.state, reapx.prune(model, images, budget=reapx.MACs(0.5), streams=True)
    with pytest.raises(reapx.InputError, match=r"has no entry for each weight, so it cannot be cut: make a new"):
        reapx.carry_state(newton, result)
    assert newton.state is state
    stranger = torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1)
    with pytest.raises(reapx.InputError, match="holds no parameter of the network that was pruned"):
        reapx.carry_state(stranger, result)
