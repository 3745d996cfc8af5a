"""Auxiliary heads, which only training uses: they are cut with what they read, or keep it."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from graphs import lively
from torch import Tensor, nn

import reapx


class Auxiliary(nn.Module):
    """A head on an inner feature map in train mode.

    Args:
        way: What it does there: read the map, return it as it is, add another one to it, or look at its values.
    """

    def __init__(self, way: str = "read") -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.three, self.last, self.drop, self.way = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1), nn.Dropout2d(), way
        self.aux = nn.Sequential(nn.Conv2d(8, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1))
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        y = F.relu(self.norm(self.one(x)))
        z = F.relu(self.two(y))
        out = self.last(self.drop(F.relu(self.three(z))))
        if not self.training:
            return out
        if self.way == "return":
            return out, self.aux(y * self.scale), y
        if self.way == "add":
            return out, self.aux((y + z) * self.scale)
        if self.way == "look" and y.sum().item() > 1e9:
            return (out,)
        return out, self.aux(y * self.scale)


def pruned(way: str, budget: float = 0.85) -> tuple[nn.Module, Tensor, reapx.Result]:
    torch.manual_seed(0)
    model, images = lively(Auxiliary(way)), torch.randn(60, 3, 8, 8)
    before = copy.deepcopy(model.state_dict())
    result = reapx.prune(model, images, budget=reapx.MACs(budget))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return model, images, result


@pytest.mark.parametrize("way", ["read", "return", "add", "look"])
def test_it_trains_after_pruning(way: str) -> None:
    _, images, result = pruned(way)
    assert sum(p.numel() for p in result.model.parameters()) == result.plan.params[1]
    for value in result.model.train()(images[:4]):
        assert bool(value.isfinite().all())


def test_the_head_is_cut_with_what_it_reads() -> None:
    model, _, result = pruned("read", 0.4)
    width = result.model.one.out_channels
    assert width < 8 and result.model.aux[0].in_channels == len(result.model.scale) == width
    assert "only training uses it: it loses the channels that it reads, and is not refitted: aux.0 (5)" in str(
        result.plan
    )
    kept = result.kept["one.weight"][0]
    assert torch.equal(result.model.scale, model.scale[kept])
    assert torch.equal(result.model.aux[0].weight, model.aux[0].weight[:, kept])


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("return", "in train mode: it is an output of the model"),
        ("add", "in train mode: its channels are combined with others"),
        ("look", r"forward\(\) does not work with fewer"),
    ],
)
def test_what_training_needs_stays(way: str, words: str) -> None:
    model, images, result = pruned(way)
    assert result.model.one.out_channels == 8
    with pytest.raises(reapx.InputError, match="bounds nothing"):
        reapx.plan(model, images, budget=reapx.MACs(0.9), bounds={"one": (0.1, 0.5)})
    assert any(entry.layer == "one" and re.search(words, entry.reason) for entry in result.plan.frozen)
