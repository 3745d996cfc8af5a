"""Saved results with branches that left: loaded they compute the same; damaged ones change nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from graphs.emptied import CASES, built, pruned
from saved import Page, rewrite

import reapx


@pytest.mark.parametrize("name", CASES)
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    _model, images, result = pruned(name)
    result.save(tmp_path / "small")
    torch.manual_seed(9)
    loaded = reapx.load(CASES[name].build().eval(), tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(loaded(images), result.model(images))
    assert str(loaded) == str(result.model)
    with pytest.raises(reapx.CheckpointError):
        reapx.load(copy.deepcopy(result.model), tmp_path / "small")


def no_constants(page: Page) -> None:
    del page["constants"]


def foreign_norm(page: Page) -> None:
    page["constants"]["a2.0"]["norm"] = "stem.9"


def wide_norm(page: Page) -> None:
    page["constants"]["a2.0"]["norm"] = "down.1"


def another_layer_emptied(page: Page) -> None:
    page["cuts"]["down.0.weight"] = {"0": []}


def another_norm_emptied(page: Page) -> None:
    page["cuts"]["stem.1.weight"] = {"0": []}


def gone_layer_outside(page: Page) -> None:
    page["cuts"]["a1.0.weight"]["1"] = [0, 99]


def negative_axis(page: Page) -> None:
    page["cuts"]["a1.0.weight"]["-1"] = []


@pytest.mark.parametrize("form", [1, 2])
@pytest.mark.parametrize(
    "damage",
    [no_constants, foreign_norm, wide_norm, another_layer_emptied, another_norm_emptied, gone_layer_outside,
     negative_axis],
)  # fmt: skip
def test_damaged_constants_leave_the_model_as_it_was(damage: Callable[[Page], None], form: int, tmp_path: Path) -> None:
    pruned("basic")[2].save(tmp_path)
    rewrite(tmp_path, damage, form)
    model = built("basic")[0]
    before, text = copy.deepcopy(model.state_dict()), str(model)
    with pytest.raises(reapx.CheckpointError, match="does not fit the model"):
        reapx.load(model, tmp_path)
    assert str(model) == text
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
