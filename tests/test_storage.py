"""Saved results: loaded they compute the same; damaged or foreign ones change nothing."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from graphs import coupled, lively, plain
from torch import nn

import reapx


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, torch.Tensor]:
    """What `saved` hands copies of to tests."""
    torch.manual_seed(0)
    case = coupled.CASES["residual"]
    images = torch.randn(60, *case.shape)
    result = reapx.prune(lively(case.build()), images, budget=reapx.MACs(0.5), streams=True)
    folder = tmp_path_factory.mktemp("saved")
    result.save(folder)
    return folder, result.model, images


@pytest.fixture
def saved(saved_once: tuple[Path, nn.Module, torch.Tensor], tmp_path: Path) -> tuple[Path, nn.Module, torch.Tensor]:
    """A folder with a pruned network, the network, and images."""
    folder, model, images = saved_once
    return shutil.copytree(folder, tmp_path / "half"), copy.deepcopy(model), images.clone()


def fresh() -> nn.Module:
    torch.manual_seed(7)
    return coupled.CASES["residual"].build().eval()


def test_loaded_equals_saved(saved: tuple[Path, nn.Module, torch.Tensor]) -> None:
    folder, model, images = saved
    loaded = reapx.load(fresh(), folder)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
    assert sorted(path.name for path in folder.iterdir()) == ["plan.json", "weights.safetensors"]
    assert loaded.a1[0].out_channels == len(loaded.a1[0].weight)


def test_loaded_can_be_pruned_again(saved: tuple[Path, nn.Module, torch.Tensor]) -> None:
    folder, _, images = saved
    result = reapx.prune(reapx.load(fresh(), folder), images, budget=reapx.MACs(0.7), streams=True)
    assert result.gap < 1e-8


def truncate_weights(folder: Path) -> None:
    data = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(data[: len(data) // 2])


def truncate_plan(folder: Path) -> None:
    text = (folder / "plan.json").read_text()
    (folder / "plan.json").write_text(text[: len(text) // 2])


def foreign_format(folder: Path) -> None:
    page = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps({**page, "format": 99}))


def wrong_cut(folder: Path) -> None:
    page = json.loads((folder / "plan.json").read_text())
    next(iter(page["cuts"].values()))["0"] = [0, 999]
    (folder / "plan.json").write_text(json.dumps(page))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate_weights, "weights.safetensors is damaged or truncated"),
        (truncate_plan, "plan.json is damaged or truncated"),
        (lambda folder: (folder / "plan.json").unlink(), "has no plan.json"),
        (foreign_format, "has format 99"),
        (wrong_cut, "does not fit the model"),
    ],
)
def test_damage_is_named_and_the_model_untouched(
    saved: tuple[Path, nn.Module, torch.Tensor], damage: Callable[[Path], None], words: str
) -> None:
    folder = saved[0]
    damage(folder)
    model = fresh()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(reapx.CheckpointError, match=words):
        reapx.load(model, folder)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["conv", "linear"])
def test_another_model_is_refused(saved: tuple[Path, nn.Module, torch.Tensor], name: str) -> None:
    model = plain.CASES[name].build().eval()
    with pytest.raises(reapx.CheckpointError, match="does not fit the model"):
        reapx.load(model, saved[0])


def test_a_pruned_model_is_refused(saved: tuple[Path, nn.Module, torch.Tensor]) -> None:
    folder, model, _ = saved
    with pytest.raises(reapx.CheckpointError, match="at its original widths"):
        reapx.load(copy.deepcopy(model), folder)


def test_buffers_outside_the_state_dict_are_saved_where_they_were_cut(tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = plain.CASES["fixed_filter"]
    images = torch.randn(60, *case.shape)
    result = reapx.prune(lively(case.build()), images, budget=reapx.MACs(0.6))
    result.save(tmp_path / "small")
    loaded = reapx.load(case.build().eval(), tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(loaded(images), result.model(images))


def test_a_file_in_place_of_the_folder_is_refused(saved: tuple[Path, nn.Module, torch.Tensor], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    model, images = coupled.CASES["residual"].build().eval(), saved[2]
    with pytest.raises(reapx.InputError, match="is a file: give a folder"):
        reapx.prune(model, images, budget=reapx.MACs(0.9)).save(tmp_path / "taken")
