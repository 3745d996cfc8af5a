"""reapx.plan after a kill: the same call with the same folder gives the same plan, and measures only what is left."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import exit_code
from test_pro import count_runs, same
from torch import Tensor, nn

import reapx
import reapx.planning.pipeline

BATCHES = 5


def network(scale: float = 1.0) -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4)
    )
    with torch.no_grad():
        model[3].bias.mul_(scale)
    return model.eval()


def batches(shift: float = 0.0) -> list[Tensor]:
    torch.manual_seed(4)
    return [torch.randn(20, 3, 7, 7) + shift for _ in range(BATCHES)]


def planned(folder: str | Path | None, **options: Any) -> reapx.Plan:
    given = {"budget": reapx.MACs(0.5), **options}
    return reapx.plan(network(), batches(), resume=folder, **given)


def is_killed(folder: Path, kind: str, count: int, options: dict[str, Any]) -> None:
    """This process, as its ``count``-th file of one kind is on the disk."""
    reapx.planning.pipeline.Checkpoint = partial(reapx.planning.pipeline.Checkpoint, interval=0)  # type: ignore[assignment,misc]
    place = os.replace
    stored = 0

    def replace(source: Path, target: Path) -> None:
        nonlocal stored
        place(source, target)
        stored += target.name.startswith(kind)
        if stored == count:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace  # type: ignore[assignment]
    planned(folder, **options)


@pytest.mark.parametrize(
    ("kind", "count", "options", "left"),
    [
        ("moments", 2, {}, {"moments": BATCHES - 2, "outputs": BATCHES}),
        ("outputs", 3, {}, {"moments": 0, "outputs": BATCHES - 3}),
        # Of the second round each batch is run twice: as the original, and as the network it starts from.
        ("outputs", BATCHES + 1, {"rounds": 2, "points": 2}, {"moments": 0, "outputs": 2 * (BATCHES - 1)}),
    ],
)
def test_a_killed_plan_goes_on_and_is_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    count: int,
    options: dict[str, Any],
    left: dict[str, int],
) -> None:
    folder = tmp_path / "stored"
    assert exit_code(is_killed, folder, kind, count, options) == (-signal.SIGKILL, "")

    whole = planned(None, **options)
    runs = count_runs(monkeypatch)
    resumed = planned(folder, **options)
    assert {name: runs.count(name) for name in left} == left
    assert same(resumed, whole)
    runs.clear()
    assert same(planned(folder, **options), whole) and not runs
    assert not list(folder.glob("*.part"))


def test_another_model_other_images_or_positions_are_refused(tmp_path: Path) -> None:
    planned(tmp_path)
    budget = reapx.MACs(0.5)
    for call, words in (
        (lambda: reapx.plan(network(1.01), batches(), budget=budget, resume=tmp_path), "the model's tensors differ"),
        (lambda: reapx.plan(network(), batches(0.01), budget=budget, resume=tmp_path), "the images differ"),
        (lambda: reapx.plan(network(), batches()[:-1], budget=budget, resume=tmp_path), "the images differ"),
        (lambda: planned(tmp_path, positions=5), "positions is 5, it was measured with None"),
    ):
        with pytest.raises(reapx.InputError, match=f"cannot be resumed: {words}.*Give another folder, or delete"):
            call()
    other = network()
    other[4] = nn.Tanh().eval()
    with pytest.raises(reapx.InputError, match="cannot be resumed: operators is"):
        reapx.plan(other, batches(), budget=budget, resume=tmp_path)
    assert same(planned(tmp_path), planned(None))


@pytest.mark.parametrize(
    ("options", "outputs"),
    [
        ({"damping": 0.3}, BATCHES),
        ({"budget": reapx.MACs(0.4)}, 0),  # of the first round nothing depends on it
        ({"budget": reapx.MACs(0.4), "rounds": 2}, 2 * BATCHES),
        ({"selection": "magnitude"}, BATCHES),
        ({"allocation": "uniform"}, 0),
    ],
)
def test_other_settings_measure_outputs_anew_but_not_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], outputs: int
) -> None:
    planned(tmp_path)
    whole = planned(None, **options)
    runs = count_runs(monkeypatch)
    resumed = planned(tmp_path, **options)
    assert runs == ["outputs"] * outputs
    if options.get("allocation") == "uniform":
        assert [entry.removed.tolist() for entry in resumed.groups] == [
            entry.removed.tolist() for entry in whole.groups
        ]
    else:
        assert same(resumed, whole)
    # What was measured for the first settings is still there.
    runs.clear()
    planned(tmp_path)
    assert not runs
