"""Attention heads: numbers without telling names, damaged files, and heads that share a number."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from graphs.transformers import CASES, HEADS, WIDTH, Transformer, built
from saved import Page, rewrite, rewrite_weights
from torch import Tensor, nn

import reapx
from reapx.surgery.saved_page import FORMAT

SIZE = WIDTH // HEADS


class Textbook(nn.Module):
    """Attention that calls its heads ``h``, and the size of each ``d_k``; queries meet a part of the positions."""

    def __init__(self, size: int = SIZE) -> None:
        super().__init__()
        self.h, self.d_k = HEADS, size
        self.query, self.both = nn.Linear(WIDTH, HEADS * size), nn.Linear(WIDTH, 2 * HEADS * size)
        self.out = nn.Linear(HEADS * size, WIDTH)
        self.scale = nn.Parameter(torch.rand(HEADS, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        few = x[:, :4]
        q = self.query(x).view(x.shape[0], -1, self.h, self.d_k).transpose(1, 2)
        k, v = self.both(few).view(x.shape[0], 4, 2, self.h, self.d_k).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * self.scale).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("size", [SIZE, HEADS])
def test_a_number_without_a_telling_name_is_found(size: int, tmp_path: Path) -> None:
    """Also where the size of a head is the same number, and must stay."""
    torch.manual_seed(0)
    model, images = Transformer(Textbook(size)).eval(), torch.randn(60, 7, 8)
    plan = reapx.plan(model, images, allocation={"*": 1.0})
    (group,) = (group for group in plan.inspection.groups if group.kind == "heads")
    assert group.size == HEADS and group.numbers == (("attention", "h"),)
    assert group.cuts["attention.scale", 0].shape == (HEADS, 1)
    result = plan.with_removed({group.name: [1]}).apply()
    smaller = result.model.attention
    assert result.gap < 1e-12 and (smaller.h, smaller.d_k) == (HEADS - 1, size)
    assert (model.attention.h, model.attention.d_k) == (HEADS, size)
    result.save(tmp_path / "pruned")
    fresh = reapx.load(Transformer(Textbook(size)).eval(), tmp_path / "pruned")
    with torch.no_grad():
        assert torch.equal(fresh(images), result.model(images))


class Twice(nn.Module):
    """Two attentions that one number describes, so that neither can have fewer heads than the other."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.first, self.second = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = x.view(*x.shape[:2], 3, self.num_heads, SIZE).permute(2, 0, 3, 1, 4).unbind(0)
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(self.attend(self.first(x))) + self.two(self.attend(self.second(x.flip(1))))


def test_heads_that_share_a_number_stay() -> None:
    torch.manual_seed(0)
    model = Transformer(Twice()).eval()
    found = reapx.inspect(model, torch.randn(8, 7, 8))
    assert [group.kind for group in found.groups] == ["inside"]
    reasons = {entry.layer: entry.reason for entry in found.frozen}
    for layer in ("attention.first", "attention.second"):
        assert "does not work with fewer of these channels: attention (Twice)" in reasons[layer]
    assert model.attention.num_heads == HEADS


def without(model: nn.Module, images: Tensor, units: list[int]) -> reapx.Result:
    plan = reapx.plan(model, images, allocation={"*": 1.0})
    (group,) = (group for group in plan.inspection.groups if group.kind == "heads")
    return plan.with_removed({group.name: units}).apply()


def test_a_file_with_a_part_of_a_head_is_refused(tmp_path: Path) -> None:
    """It would load, and fail at the first image."""
    model, images = built("torch")
    without(model, images, [1]).save(tmp_path / "pruned")
    rows = 3 * (HEADS - 1) * SIZE

    def tear(page: Page) -> None:
        for axes in page["cuts"].values():
            for positions in axes.values():
                if len(positions) == rows:
                    positions.pop()

    def shorten(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: value[:-1].clone() for name, value in tensors.items() if len(value) == rows})

    rewrite(tmp_path / "pruned", tear, FORMAT)
    rewrite_weights(tmp_path / "pruned", shorten, FORMAT)
    fresh = CASES["torch"]().eval()
    before = copy.deepcopy(fresh.state_dict())
    with pytest.raises(reapx.CheckpointError, match=rf"attention.attend would have {rows - 1} channels in in_proj_"):
        reapx.load(fresh, tmp_path / "pruned")
    assert type(fresh.attention.attend) is nn.MultiheadAttention
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())


def test_pytorchs_attention_may_leave_as_a_whole(tmp_path: Path) -> None:
    model, images = built("torch")
    result = without(model, images, list(range(HEADS)))
    assert result.gap < 1e-12 and result.model.attention.attend.num_heads == 0
    result.save(tmp_path / "pruned")
    fresh = reapx.load(CASES["torch"]().eval(), tmp_path / "pruned")
    with torch.no_grad():
        assert torch.equal(fresh(images), result.model(images))
