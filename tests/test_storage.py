"""Saved results: loaded they compute the same; damaged or foreign ones change nothing."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from graphs import coupled, lively, plain
from saved import Page, rewrite, rewrite_weights
from torch import nn

import reapx

PLAN, WEIGHTS = "plan.json", "weights.safetensors"
Saved = tuple[Path, reapx.Result, torch.Tensor]


@pytest.fixture(scope="module")
def pruned() -> tuple[reapx.Result, torch.Tensor]:
    torch.manual_seed(0)
    case = coupled.CASES["residual"]
    images = torch.randn(60, *case.shape)
    return reapx.prune(lively(case.build()), images, budget=reapx.MACs(0.5), streams=True), images


@pytest.fixture
def saved(pruned: tuple[reapx.Result, torch.Tensor], tmp_path: Path) -> Saved:
    result = replace(pruned[0], model=copy.deepcopy(pruned[0].model))
    result.save(tmp_path / "half")
    return tmp_path / "half", result, pruned[1]


def refused(folder: Path, words: str) -> None:
    """Loading says so, and the model is as it was."""
    model = fresh()
    before, text = copy.deepcopy(model.state_dict()), str(model)
    with pytest.raises(reapx.CheckpointError, match=words):
        reapx.load(model, folder)
    assert str(model) == text
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def fresh() -> nn.Module:
    torch.manual_seed(7)
    return coupled.CASES["residual"].build().eval()


def test_loaded_equals_saved(saved: Saved) -> None:
    folder, result, images = saved
    loaded = reapx.load(fresh(), folder)
    with torch.no_grad():
        assert torch.equal(loaded(images), result.model(images))
    assert sorted(path.name for path in folder.iterdir()) == ["plan.json", "weights.safetensors"]
    assert loaded.a1[0].out_channels == len(loaded.a1[0].weight)


def test_loaded_can_be_pruned_again(saved: Saved) -> None:
    folder, _, images = saved
    result = reapx.prune(reapx.load(fresh(), folder), images, budget=reapx.MACs(0.7), streams=True)
    assert result.gap < 1e-8


def halve(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])


def wrong_cut(page: Page) -> None:
    next(iter(page["cuts"].values()))["0"] = [0, 999]


def fractional_cut(page: Page) -> None:
    next(iter(page["cuts"].values()))["0"][0] = 0.5


def endless_cut(page: Page) -> None:
    next(iter(page["cuts"].values()))["0"][0] = 10**30


def nested(folder: Path) -> None:
    (folder / "plan.json").write_text("[" * 100_000 + "]" * 100_000)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "half the weights": (lambda x: halve(x, WEIGHTS), "weights.safetensors is damaged or truncated"),
    "half the page": (lambda x: halve(x, PLAN), "plan.json is damaged or truncated"),
    "no page": (lambda x: (x / PLAN).unlink(), "has no plan.json"),
    "no weights": (lambda x: (x / WEIGHTS).unlink(), "has no weights.safetensors"),
    "unknown format": (lambda x: rewrite(x, lambda page: page.update(format=99)), "has format 99"),
    "wrong cut": (lambda x: rewrite(x, wrong_cut), "does not fit the model"),
    "wrong cut, format 1": (lambda x: rewrite(x, wrong_cut, 1), "does not fit the model"),
    "fractional cut": (lambda x: rewrite(x, fractional_cut), "0.5 is not a whole number"),
    "endless cut": (lambda x: rewrite(x, endless_cut), "plan.json is damaged"),
    "nested page": (nested, "plan.json is damaged"),
    "edited by hand": (lambda x: (x / PLAN).write_text((x / PLAN).read_text() + " "), "its checksum is wrong"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_the_model_untouched(saved: Saved, name: str) -> None:
    damage, words = DAMAGES[name]
    damage(saved[0])
    refused(saved[0], words)


def swap_two(tensors: dict[str, torch.Tensor]) -> None:
    a, b = "stem.1.weight", "stem.1.running_mean"
    tensors[a], tensors[b] = tensors[b], tensors[a]


def fill(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors[name].view(-1)[:1].fill_(value)  # type: ignore[return-value]


def cast(name: str, dtype: torch.dtype) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({name: tensors[name].to(dtype)})


VALUES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], None], str]] = {
    "NaN": (fill("head.weight", float("nan")), "head.weight holds NaN"),
    "infinite": (fill("head.bias", float("inf")), "head.bias holds infinite values"),
    "infinite mean": (fill("stem.1.running_mean", float("-inf")), "stem.1.running_mean holds infinite values"),
    "negative variance": (fill("stem.1.running_var", -0.5), "stem.1.running_var holds negative variances"),
    "int8": (cast("head.weight", torch.int8), r"head.weight is torch.float32, the file has torch.int8"),
    "float64": (cast("stem.1.running_var", torch.float64), "the file has torch.float64"),
    "counted in floats": (cast("stem.1.num_batches_tracked", torch.float32), "is torch.int64, the file has"),
    "missing": (lambda tensors: tensors.pop("head.bias"), "lacks .'head.bias'."),  # type: ignore[dict-item,return-value]
}


@pytest.mark.parametrize("form", [1, 2])
@pytest.mark.parametrize("name", VALUES)
def test_values_that_no_network_has_are_refused(saved: Saved, name: str, form: int) -> None:
    change, words = VALUES[name]
    rewrite_weights(saved[0], change, form)
    refused(saved[0], words)


def test_swapped_tensors_are_refused(saved: Saved) -> None:
    folder = saved[0]
    page = (folder / PLAN).read_text()
    rewrite_weights(folder, swap_two)
    (folder / PLAN).write_text(page)
    refused(folder, "belongs to another plan.json")


def test_the_page_of_another_result_is_refused(saved: Saved, tmp_path: Path) -> None:
    """One with the same cuts and other weights: nothing but the checksum tells them apart."""
    folder, result, _ = saved
    with torch.no_grad():
        result.model.head.bias[0] += 1e-3
    result.save(tmp_path / "other")
    (folder / PLAN).write_bytes((tmp_path / "other" / PLAN).read_bytes())
    refused(folder, "belongs to another plan.json")


def test_no_bit_flips_silently(saved: Saved) -> None:
    """300 single bits, anywhere in the two files: each is noticed."""
    folder, draw = saved[0], random.Random(0)
    for number in range(300):
        path = folder / (PLAN if number % 3 == 0 else WEIGHTS)
        data = path.read_bytes()
        flipped, place = bytearray(data), draw.randrange(8 * len(data))
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(reapx.CheckpointError):
            reapx.load(fresh(), folder)
        path.write_bytes(data)
    reapx.load(fresh(), folder)


def cut_kernel(page: Page) -> None:
    page["cuts"]["a2.0.weight"]["2"] = [0, 1]


def bias_alone(page: Page) -> None:
    page["cuts"].setdefault("head.bias", {})["0"] = [0, 1]


MISFITS: dict[str, tuple[Callable[[Page], None], dict[str, Callable[[torch.Tensor], torch.Tensor]]]] = {
    "kernel": (cut_kernel, {"a2.0.weight": lambda x: x[:, :, :2].contiguous()}),
    "bias alone": (bias_alone, {"head.bias": lambda x: x[:2].clone()}),
}


@pytest.mark.parametrize("form", [1, 2])
@pytest.mark.parametrize("name", MISFITS)
def test_cuts_that_would_fail_in_forward_are_refused(saved: Saved, name: str, form: int) -> None:
    folder, (change, tensors) = saved[0], MISFITS[name]
    rewrite(folder, change)
    rewrite_weights(folder, lambda own: own.update({key: cut(own[key]) for key, cut in tensors.items()}), form)
    refused(folder, r"would have a (weight|bias) of shape")


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ({"weight": [0], "bias": [0]}, "1 channels, which are not in groups of 4"),
        ({"weight": [0, 1, 2, 3, 4], "bias": [0, 1, 2, 3, 4]}, "5 channels, which are not in groups of 4"),
        ({"bias": [0, 1, 2, 3]}, "a bias of shape"),
    ],
)
def test_norm_groups_in_parts_are_refused(keep: dict[str, list[int]], words: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    reapx.prune(net, torch.randn(40, 3, 6, 6), budget=reapx.MACs(1.0)).save(tmp_path)
    rewrite(tmp_path, lambda page: page["cuts"].update({f"1.{leaf}": {"0": where} for leaf, where in keep.items()}))

    def cut(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({f"1.{leaf}": tensors[f"1.{leaf}"][where].clone() for leaf, where in keep.items()})

    rewrite_weights(tmp_path, cut)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(reapx.CheckpointError, match=words):
        reapx.load(net, tmp_path)
    assert net[1].num_channels == 8 and all(torch.equal(x, before[name]) for name, x in net.state_dict().items())


@pytest.mark.parametrize("name", ["conv", "linear"])
def test_another_model_is_refused(saved: Saved, name: str) -> None:
    model = plain.CASES[name].build().eval()
    with pytest.raises(reapx.CheckpointError, match="does not fit the model"):
        reapx.load(model, saved[0])


def test_a_pruned_model_is_refused(saved: Saved) -> None:
    folder, result, _ = saved
    with pytest.raises(reapx.CheckpointError, match="at its original widths"):
        reapx.load(copy.deepcopy(result.model), folder)


def test_buffers_outside_the_state_dict_are_saved_where_they_were_cut(tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = plain.CASES["fixed_filter"]
    images = torch.randn(60, *case.shape)
    result = reapx.prune(lively(case.build()), images, budget=reapx.MACs(0.6))
    result.save(tmp_path / "small")
    loaded = reapx.load(case.build().eval(), tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(loaded(images), result.model(images))


def test_a_file_in_place_of_the_folder_is_refused(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(reapx.InputError, match="is a file: give a folder"):
        saved[1].save(tmp_path / "taken")


def test_earlier_versions_results_load(saved: Saved) -> None:
    """Format 1 had neither checksums nor the widths of norms without tensors."""
    folder, result, images = saved
    rewrite(folder, lambda page: page.pop("norms"), form=1)
    with torch.no_grad():
        assert torch.equal(reapx.load(fresh(), folder)(images), result.model(images))


def test_a_result_is_only_replaced_if_asked_for(saved: Saved) -> None:
    folder, result, _ = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(reapx.InputError, match=r"has a plan.json already: .* overwrite=True"):
        result.save(folder)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    with torch.no_grad():
        result.model.head.bias[0] = 3
    result.save(folder, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == [PLAN, WEIGHTS]
    assert reapx.load(fresh(), folder).head.bias[0].item() == 3


def test_what_could_not_be_loaded_is_not_saved(saved: Saved, tmp_path: Path) -> None:
    _, result, images = saved
    reapx.prune(result.model, images, budget=reapx.MACs(0.7), streams=True, inplace=True)
    with pytest.raises(reapx.InputError, match=r"it was changed since. Save before"):
        result.save(tmp_path / "late")
    assert not (tmp_path / "late").exists()


def test_failed_training_is_not_saved(saved: Saved, tmp_path: Path) -> None:
    with torch.no_grad():
        saved[1].model.head.bias[0] = float("nan")
    with pytest.raises(reapx.InputError, match=r"head.bias holds NaN, which reapx.load would refuse"):
        saved[1].save(tmp_path / "late")


def test_masks_may_be_infinite(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)
            self.register_buffer("mask", torch.tensor([0.0, 0.0, float("-inf")]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.two(self.one(x).relu()) + self.mask).softmax(1)

    torch.manual_seed(0)
    images = torch.randn(60, 6)
    result = reapx.prune(Masked().eval(), images, budget=reapx.MACs(0.6), allocation="uniform")
    result.save(tmp_path)
    with torch.no_grad():
        assert torch.equal(reapx.load(Masked().eval(), tmp_path)(images), result.model(images))
