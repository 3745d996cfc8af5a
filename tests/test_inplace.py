"""In place: the network becomes the smaller one as a whole, or stays what it was, whatever interrupts it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from itertools import count

import pytest
import torch
from graphs import coupled, lively
from graphs.emptied import CASES, built, emptied
from interrupts import at_line
from torch import Tensor, nn

import reapx
from reapx.removal.remove import remove


def interrupt() -> None:
    raise KeyboardInterrupt


def snapshot(model: nn.Module) -> tuple[str, dict[str, Tensor], dict[str, int], dict[str, Tensor | None]]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {name: value.detach().clone() for name, value in tensors.items()}
    gradients = {name: value.grad for name, value in model.named_parameters()}
    return str(model), values, {name: id(value) for name, value in tensors.items()}, gradients


def check_as_it_was(model: nn.Module, before: tuple[str, dict[str, Tensor], dict[str, int], object]) -> None:
    text, values, identities, gradients = snapshot(model)
    assert text == before[0] and identities == before[2] and gradients == before[3]
    assert all(torch.equal(value, before[1][name]) for name, value in values.items())
    assert not any("_reapx_kept" in module.__dict__ for module in model.modules())


def interrupted(model: nn.Module, images: Tensor, change: Callable[[], object], file: str, every: int) -> int:
    """Interrupt a change of a model at every so many lines of a file in turn; how many times that was."""
    with torch.no_grad():
        wanted = model(images)
    before = snapshot(model)
    for number in count(1):
        lines = 1 + every * (number - 1)
        with at_line(lines, interrupt, file) as ran, suppress(KeyboardInterrupt):
            change()
        if ran[0] < lines:
            return number - 1
        check_as_it_was(model, before)
        with torch.no_grad():
            assert torch.equal(model(images), wanted)
    raise AssertionError


@pytest.mark.parametrize("name", ["basic", "depthwise"])
def test_apply_is_undone_wherever_it_is_interrupted(name: str) -> None:
    """All over the transplant, after which it can still be done."""
    model, images = built(name)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    plan = emptied(reapx.plan(model, images, budget=reapx.MACs(0.95), allocation="uniform"), CASES[name].droppable)
    removed = {x.group.name: x.removed for x in plan.groups}
    options = {"refit": None, "damping": 0.0, "rectify": 0, "progress": False, "changed": {}}
    found = remove(model, plan.inspection, removed, **options)  # type: ignore[arg-type]
    assert interrupted(model, images, lambda: found.repeat(model), "transplant.py", 23) > 20
    with torch.no_grad():
        assert torch.equal(model(images), found.model(images)) and str(model) == str(found.model)
    assert all(parameter.grad is None or parameter.grad.shape == parameter.shape for parameter in model.parameters())


def test_load_is_undone_wherever_it_is_interrupted(tmp_path: object) -> None:
    torch.manual_seed(0)
    images = torch.randn(60, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    fresh = copy.deepcopy(net)
    result = reapx.prune(net, images, budget=reapx.MACs(0.5), allocation="uniform")
    result.save(f"{tmp_path}/half")
    assert interrupted(fresh, images, lambda: reapx.load(fresh, f"{tmp_path}/half"), "transplant.py", 7) > 20
    with torch.no_grad():
        assert torch.equal(fresh(images), result.model(images))


def test_channels_last_stays(tmp_path: object) -> None:
    def build() -> nn.Module:
        layers = nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 3)
        return nn.Sequential(*layers).eval().to(memory_format=torch.channels_last)

    def weights(model: nn.Module) -> list[bool]:
        found = [value for value in model.parameters() if value.dim() == 4]
        return [value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous() for value in found]

    torch.manual_seed(0)
    images, net = torch.randn(60, 16, 10, 10), build()
    result = reapx.prune(net, images, budget=reapx.MACs(0.5))
    assert weights(result.model) == [True] * 3
    result.save(f"{tmp_path}/half")
    loaded = reapx.load(build(), f"{tmp_path}/half")
    assert weights(loaded) == [True] * 3
    with torch.no_grad():
        assert torch.equal(loaded(images), result.model(images))
    assert weights(reapx.prune(net, images, budget=reapx.MACs(0.5), inplace=True).model) == [True] * 3


@pytest.mark.parametrize("inplace", [True, False])
def test_norms_without_tensors_say_their_new_width(inplace: bool, tmp_path: object) -> None:
    """With the old one, every forward() would warn, which tests take for an error."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 16, 3), nn.InstanceNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1)).eval()

    torch.manual_seed(0)
    images = torch.randn(64, 3, 8, 8)
    result = reapx.prune(build(), images, budget=reapx.MACs(0.5), inplace=inplace)
    assert result.model[1].num_features == result.model[0].out_channels < 16
    result.save(f"{tmp_path}/half")
    loaded = reapx.load(build(), f"{tmp_path}/half")
    assert str(loaded) == str(result.model)
    with torch.no_grad():
        assert torch.equal(loaded(images), result.model(images))


def test_parameters_that_are_held_elsewhere_follow() -> None:
    case = coupled.CASES["residual"]
    torch.manual_seed(0)
    model, images = lively(case.build()), torch.randn(60, *case.shape)
    held = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    reapx.prune(model, images, budget=reapx.MACs(0.5), streams=True, inplace=True)
    assert all(value is held[name] for name, value in model.named_parameters())
    assert all(value is buffers[name] for name, value in model.named_buffers())
