"""Networks that are cut more than once: each saved result is all that the first original needs."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from graphs import coupled, lively
from graphs.emptied import CASES, built, emptied, pruned
from torch import Tensor, nn

import reapx


def check_loads(fresh: nn.Module, folder: Path, wanted: nn.Module, images: Tensor) -> None:
    loaded = reapx.load(fresh, folder)
    assert [(name, value.shape) for name, value in loaded.named_parameters()] == [
        (name, value.shape) for name, value in wanted.named_parameters()
    ]
    with torch.no_grad():
        assert torch.equal(loaded(images), wanted(images))


@pytest.mark.parametrize("inplace", [True, False])
def test_the_first_original_loads_every_result(inplace: bool, tmp_path: Path) -> None:
    case = coupled.CASES["residual"]
    torch.manual_seed(0)
    model, images = lively(case.build()), torch.randn(60, *case.shape)
    for number, budget in enumerate((0.8, 0.6, 0.7)):
        result = reapx.prune(model, images, budget=reapx.MACs(budget), streams=True, inplace=inplace)
        result.save(tmp_path / str(number))
        check_loads(case.build().eval(), tmp_path / str(number), result.model, images)
        model = copy.deepcopy(result.model)
    loaded = reapx.load(case.build().eval(), tmp_path / "1")
    result = reapx.prune(loaded, images, budget=reapx.MACs(0.8), streams=True)
    result.save(tmp_path / "from a loaded one")
    check_loads(case.build().eval(), tmp_path / "from a loaded one", result.model, images)


@pytest.mark.parametrize("name", CASES)
def test_constants_lose_channels_too(name: str, tmp_path: Path) -> None:
    """A branch leaves and its constant is in a residual stream, which then loses channels."""
    _, images, first = pruned(name)
    again = reapx.prune(first.model, images, budget=reapx.MACs(0.8), streams=True)
    again.save(tmp_path)
    check_loads(CASES[name].build().eval(), tmp_path, again.model, images)


def test_a_branch_leaves_after_losing_channels(tmp_path: Path) -> None:
    model, images = built("basic")
    first = reapx.prune(model, images, budget=reapx.MACs(0.8), streams=True)
    plan = reapx.plan(first.model, images, budget=reapx.MACs(0.95), allocation="uniform")
    second = emptied(plan, {"a1.0", "b1.0"}).apply()
    second.save(tmp_path)
    check_loads(CASES["basic"].build().eval(), tmp_path, second.model, images)


def test_a_part_that_was_pruned_before_the_whole(tmp_path: Path) -> None:
    """The part remembers its cuts within the larger network, under the names there."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.head = CASES["basic"].build(), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.part(x).relu())

    torch.manual_seed(0)
    whole, images = lively(Whole()), torch.randn(70, 3, 8, 8)
    plan = reapx.plan(whole.part, images, budget=reapx.MACs(0.95), allocation="uniform")
    emptied(plan, CASES["basic"].droppable).apply(inplace=True)
    result = reapx.prune(whole, images, budget=reapx.MACs(0.8), streams=True)
    result.save(tmp_path)
    check_loads(Whole().eval(), tmp_path, result.model, images)


def test_zero_nodes_leave_a_pruned_network(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3)).eval()

    torch.manual_seed(0)
    images = torch.randn(60, 5)
    first = reapx.prune(build(), images, budget=reapx.MACs(0.7))
    with torch.no_grad():
        first.model[0].weight[[0, 3]] = 0
    second = reapx.zero_nodes(first.model, images).remove()
    assert second.model[0].out_features == first.model[0].out_features - 2
    second.save(tmp_path)
    check_loads(build(), tmp_path, second.model, images)


def test_a_layer_that_was_replaced_since_is_an_original(tmp_path: Path) -> None:
    """Nothing is told of where a new layer's channels come from, since it has all of them."""

    def build(width: int = 12) -> nn.Module:
        return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 3)).eval()

    torch.manual_seed(0)
    images = torch.randn(60, 5)
    model = reapx.prune(build(), images, budget=reapx.MACs(0.6), bounds={"2": (8, 8)}).model
    width = model[0].out_features
    assert width < 12
    model[0], model[2] = nn.Linear(5, width).eval(), nn.Linear(width, 8).eval()
    result = reapx.prune(model, images, budget=reapx.MACs(0.8))
    result.save(tmp_path)
    check_loads(build(width), tmp_path, result.model, images)


def test_pickles_of_results_need_no_reapx(tmp_path: Path) -> None:
    """What a module remembers of its cuts is plain data: a deployed network loads where reapx is not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    result = reapx.prune(model, torch.randn(60, 5), budget=reapx.MACs(0.6))
    torch.save(result.model, tmp_path / "whole.pt")
    assert b"reapx." not in (tmp_path / "whole.pt").read_bytes()
