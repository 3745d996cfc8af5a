"""A plan is kept in a folder, looked at, and applied another day to the same bits."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import coupled, lively
from torch import Tensor, nn

import reapx
from reapx.files.sealed_folder import sealed
from reapx.planning.saved_plan import read_plan

HALF = reapx.MACs(0.5)
PAGE, TENSORS = "reapx-plan.json", "reapx-plan.safetensors"


def residual() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    case = coupled.CASES["residual"]
    return lively(case.build()), torch.randn(60, *case.shape)


def same(left: reapx.Result, right: reapx.Result) -> bool:
    pairs = zip(left.model.state_dict().items(), right.model.state_dict().items(), strict=True)
    return all(mine[0] == other[0] and torch.equal(mine[1], other[1]) for mine, other in pairs)


CASES: dict[str, dict[str, Any]] = {
    "pro": {"budget": HALF, "rounds": 2},
    "kl": {"budget": reapx.Params(0.6), "output_error": "kl", "bounds": {"b1.0": (0.5, 1.0)}, "exclude": ["a1"]},
    "uniform": {"budget": HALF, "allocation": "uniform", "streams": True, "swaps": 3, "positions": 9},
    "nu": {"budget": HALF, "allocation": "uniform", "selection": "nu", "damping": 1e-3},
    "widths": {"allocation": {"a1.0": 3, "b*": 0.5}, "selection": "magnitude"},
}


@pytest.mark.parametrize("name", CASES)
def test_a_loaded_plan_is_the_plan_and_applies_to_the_same_bits(name: str, tmp_path: Path) -> None:
    model, images = residual()
    plan = reapx.plan(model, images, **CASES[name])
    plan.save(tmp_path / "new" / "folder")
    fresh, again = residual()
    loaded = reapx.load_plan(fresh, again, tmp_path / "new" / "folder")
    assert str(loaded) == str(plan) and loaded.settings == plan.settings
    assert (loaded.macs, loaded.params) == (plan.macs, plan.params)
    assert loaded.output_error == plan.output_error or name not in ("pro", "kl")
    for options in ({}, {"reconstruct": False}, {"damping": 0.1, "refit": "consumers"}):
        assert same(loaded.apply(**options), plan.apply(**options))  # type: ignore[arg-type]


def test_a_loaded_plan_shows_what_was_measured(tmp_path: Path) -> None:
    model, images = residual()
    plan = reapx.plan(model, images, budget=HALF, rounds=2)
    plan.save(tmp_path)
    loaded = reapx.load_plan(model, images, tmp_path)
    assert loaded.tradeoff() == plan.tradeoff()
    for name, curve in plan.curves().items():
        assert (loaded.curves()[name].errors == curve.errors).all()
        assert loaded.curves()[name].measured == curve.measured
    with pytest.raises(reapx.InputError, match=r"a plan that was loaded stays at its budget: call reapx\.plan again"):
        loaded.at(reapx.MACs(0.7))


def test_the_callers_units_and_rules_are_kept(tmp_path: Path) -> None:
    model, images = residual()

    def first(group: reapx.Group, *_: object) -> list[int]:
        return list(range(group.size))

    plan = reapx.plan(model, images, budget=HALF, allocation="uniform", selection=first)
    own = plan.with_removed({"a1.0": [1, 3]})
    own.save(tmp_path)
    loaded = reapx.load_plan(model, images, tmp_path)
    assert loaded.chosen == {"a1.0"} and str(loaded) == str(own) and "first selection" in str(loaded)
    assert same(loaded.apply(), own.apply())
    other = loaded.with_removed({"b1.0": [0]})
    assert {e.group.name: e.removed.tolist() for e in other.groups}["a1.0"] == [1, 3]
    loaded.save(tmp_path / "again")
    assert same(reapx.load_plan(model, images, tmp_path / "again").apply(), own.apply())


def test_a_loaded_plan_that_folds_keeps_its_units(tmp_path: Path) -> None:
    model, images = residual()
    reapx.plan(model, images, **CASES["nu"]).save(tmp_path)
    with pytest.raises(reapx.InputError, match=r"a loaded plan with selection='nu'.*keeps its units"):
        reapx.load_plan(model, images, tmp_path).with_removed({"a1.0": [0]})


def test_milliseconds_are_those_that_were_measured(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 4, 3)).eval()
    images = torch.randn(20, 3, 24, 24)
    plan = reapx.plan(model, images, budget=reapx.Latency(1, batch=4), points=1)
    plan.save(tmp_path)
    loaded = reapx.load_plan(model, images, tmp_path)
    assert loaded.latency == plan.latency is not None and loaded.budget == plan.budget
    assert str(loaded).splitlines()[2] == str(plan).splitlines()[2]
    with pytest.raises(reapx.InputError, match="a loaded plan has no trade-off of milliseconds"):
        loaded.tradeoff()
    result = loaded.apply()
    assert result.latency is not None and result.gap < 1e-8


def _other_weights(model: nn.Module) -> None:
    with torch.no_grad():
        model.head.bias.add_(1)


def _other_operators(model: nn.Module) -> None:
    model.a1[1].eps = 0.1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_other_weights, "holds a plan of another model: its tensors differ"),
        (_other_operators, "holds a plan of another model: its operators differ"),
    ],
)
def test_another_model_is_refused(change: Callable[[nn.Module], None], words: str, tmp_path: Path) -> None:
    model, images = residual()
    reapx.plan(model, images, **CASES["widths"]).save(tmp_path)
    change(model)
    with pytest.raises(reapx.CheckpointError, match=words):
        reapx.load_plan(model, images, tmp_path)


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    page = json.loads((folder / PAGE).read_text())
    del page["digest"]
    change(page)
    (folder / PAGE).write_text(sealed(page))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / TENSORS).unlink(), f"has no {TENSORS}: give the folder that Plan.save wrote"),
        (lambda f: (f / PAGE).unlink(), f"has no {PAGE}"),
        (lambda f: (f / PAGE).write_text((f / PAGE).read_text()[:300]), "is damaged or truncated"),
        (lambda f: (f / TENSORS).write_bytes(b"0"), "is damaged or truncated, or belongs to another"),
        (lambda f: _edit(f, lambda page: page.update(format=99)), "has format 99, this version reads 1: plan again"),
        (lambda f: (f / PAGE).write_text((f / PAGE).read_text().replace("1", "2")), "is damaged|has format"),
        (lambda f: (f / PAGE).write_text("[" * 100_000), "is damaged or truncated"),
        (lambda f: _edit(f, lambda page: page.pop("groups")), "is damaged or truncated"),
        (lambda f: _edit(f, lambda page: page["groups"][0].update(kept=1)), "is damaged or truncated"),
        (lambda f: _edit(f, lambda page: page["groups"].pop()), "is damaged or truncated"),
        (lambda f: _edit(f, lambda page: page["settings"].update(selection=["best", False])), "is damaged"),
        (lambda f: _edit(f, lambda page: page["sizes"].update(more=3)), "finds other channel groups in it"),
    ],
)
def test_a_damaged_folder_is_refused(damage: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    model, images = residual()
    reapx.plan(model, images, **CASES["widths"]).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(reapx.CheckpointError, match=words):
        reapx.load_plan(model, images, tmp_path)


def test_no_bit_flips_silently(tmp_path: Path) -> None:
    model, images = residual()
    reapx.plan(model, images, **CASES["widths"]).save(tmp_path)
    draw = random.Random(0)
    for number in range(100):
        path = tmp_path / (TENSORS if number % 3 == 0 else PAGE)
        data = path.read_bytes()
        flipped, place = bytearray(data), draw.randrange(8 * len(data))
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(reapx.CheckpointError):
            read_plan(tmp_path)
        path.write_bytes(data)
    read_plan(tmp_path)


def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = residual()
    plan = reapx.plan(model, images, **CASES["widths"])
    plan.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(reapx.CheckpointError, match=r"cannot be written \(No space left"):
        plan.with_removed({"a1.0": [0]}).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(reapx.InputError, match="is a file: give a folder"):
        plan.save(tmp_path / PAGE)
