"""Inputs as models want them: by position and by name, nested, token ids, with constants beside them."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reapx

A, B = torch.randn(2, 48, 3, 8, 8, generator=torch.Generator().manual_seed(0))
IDS = torch.randint(0, 20, (48, 6), generator=torch.Generator().manual_seed(1))


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 3)

    def mapped(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x))).mean((2, 3))


class Positional(Base):
    def forward(self, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
        return self.mapped(a - 0.5 * b) * scale


class Listed(Base):
    def forward(self, pair: list[Tensor], mode: str = "mean") -> Tensor:
        return self.mapped(pair[0] - 0.5 * pair[1] if mode == "mean" else pair[0])


class Nested(Base):
    def forward(self, views: dict[str, Any], mask: Tensor | None, flip: bool) -> dict[str, Any]:
        first, second = views["parts"]
        if mask is not None:
            first = first * mask
        value = self.mapped(first - 0.5 * views["other"] + 0 * second)
        return {"logits": value.flip(1) if flip else value, "loss": None}


@dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...] | None = None


torch.utils._pytree.register_dataclass(Output)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.one, self.two = nn.Embedding(20, 6), nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Output:
        hidden = torch.relu(self.one(self.embed(input_ids)))
        if attention_mask is not None:
            hidden = hidden * attention_mask.unsqueeze(-1)
        return Output(self.two(hidden).mean(1))


MASK = torch.ones_like(IDS)
MASK[:, 4:] = 0
CASES: dict[str, tuple[type[nn.Module], list[object] | Tensor]] = {
    "tuples": (Positional, [(A[:24], B[:24]), (A[24:], B[24:])]),
    "tuples with labels": (Positional, [(A[:24], B[:24], 3), (A[24:], B[24:], 4)]),
    "names in any order": (Positional, [{"a": A[:24], "b": B[:24]}, {"b": B[24:], "a": A[24:]}]),
    "constants": (Positional, [{"a": A, "b": B, "scale": 2.0}]),
    "a list": (Listed, [([A, B], 0)]),
    "a named list": (Listed, [{"pair": [A, B], "mode": "mean"}]),
    "nested": (Nested, [{"views": {"parts": (A, B), "other": B}, "mask": None, "flip": True}]),
    "nested with a mask": (Nested, [({"parts": [A, B], "other": B}, A.sign(), False)]),
    "token ids": (Tokens, IDS),
    "an encoding": (Tokens, [UserDict({"input_ids": IDS[:20], "attention_mask": MASK[:20]}),
                             UserDict({"input_ids": IDS[20:], "attention_mask": MASK[20:]})]),
}  # fmt: skip


def called(model: nn.Module, batch: object) -> Tensor:
    """The outputs as forward() gives them to a user who calls it with the same batch."""
    with torch.no_grad():
        if isinstance(batch, Tensor):
            value = model(batch)
        elif isinstance(batch, dict | UserDict):
            value = model(**dict(batch))
        elif isinstance(model, Listed):
            value = model(batch[0])  # type: ignore[index]
        else:
            value = model(*batch[: 3 if isinstance(model, Nested) else 2])  # type: ignore[index]
    value = value.logits if isinstance(value, Output) else value
    return value["logits"] if isinstance(value, dict) else value


@pytest.mark.parametrize("name", CASES)
def test_a_network_is_pruned_with_its_own_inputs(name: str, tmp_path: Path) -> None:
    kind, images = CASES[name]
    model = kind().eval()
    plan = reapx.plan(model, images, budget=reapx.MACs(0.6), resume=tmp_path / "state")
    again = reapx.plan(model, images, budget=reapx.MACs(0.6), resume=tmp_path / "state")
    assert [list(x.removed) for x in plan.groups] == [list(x.removed) for x in again.groups]
    result = plan.apply()
    batches = [images] if isinstance(images, Tensor) else images
    ours, theirs = (torch.cat([called(each, batch) for batch in batches]) for each in (result.model, model))
    error = float((ours - theirs).square().sum() / (theirs - theirs.mean(0)).square().sum())
    assert 0 < error < 1.5 * result.change + 0.05 and result.change < 0.9
    assert result.plan.macs[1] <= 0.6 * result.plan.macs[0] and result.gap < 1e-6
    result.save(tmp_path / "saved")
    loaded = reapx.load(kind().eval(), tmp_path / "saved")
    assert torch.equal(called(loaded, batches[0]), called(result.model, batches[0]))


def test_all_ways_to_give_the_same_inputs_give_the_same_network() -> None:
    ways: list[list[object]] = [[(A, B)], [(A, B, "label")], [{"a": A, "b": B}], [{"b": B, "a": A, "scale": 1.0}]]
    found = [reapx.prune(Positional().eval(), way, budget=reapx.MACs(0.6)).model.state_dict() for way in ways]
    for other in found[1:]:
        assert all(torch.equal(value, other[name]) for name, value in found[0].items())


def test_nested_inputs_are_refined_compacted_and_inspected() -> None:
    kind, images = CASES["nested"]
    model = kind().eval()
    with torch.no_grad():
        model.one.weight[3], model.one.bias[3] = 0, -1  # type: ignore[union-attr, operator, index]
    assert isinstance(images, list)
    assert reapx.compact(model, images).one.out_channels == 11  # type: ignore[union-attr]
    assert [group.name for group in reapx.inspect(model, images).groups] == ["one"]
    refined = reapx.prune(model, images, budget=reapx.MACs(0.6)).refine(steps=3)
    assert refined.refinement is not None and refined.refinement.steps == 3
