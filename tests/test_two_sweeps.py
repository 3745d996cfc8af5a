"""Weights that stay are fitted to all images; what is told of them comes from fits without the held-out ones."""

from __future__ import annotations

import math

import pytest
import torch
from judging import judged_network, moved, removal
from torch import Tensor, nn

import reapx


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 5)).eval()
    return model, torch.randn(80, 8)


def halved(model: nn.Module, images: Tensor) -> reapx.Plan:
    """The first half of each group's units leaves."""
    plan = reapx.plan(model, images, budget=reapx.MACs(0.5), allocation="uniform")
    return plan.with_removed({entry.group.name: torch.arange(entry.group.size // 2) for entry in plan.groups})


def test_the_weights_that_stay_are_fitted_to_all_images() -> None:
    """The first refitted layer sees the original's values, so its fit is that of an ordinary least-squares problem."""
    model, images = network()
    done = removal(halved(model, images), damping=1e-6, rectify=0)
    with torch.no_grad():
        inputs = model[1](model[0](images))[:, 12:].double()
        targets = model[2](model[1](model[0](images)))[:, 8:].double()
    held_out = torch.arange(len(images)) % 4 == 3
    for updates, rows in ((done.refits.updates, held_out | True), (done.refits.judged, ~held_out)):
        x, y = inputs[rows], targets[rows]
        wanted = torch.linalg.lstsq(x - x.mean(0), y - y.mean(0)).solution.T
        torch.testing.assert_close(updates["2.weight"].double(), wanted, rtol=1e-3, atol=1e-3)
    assert not torch.equal(done.refits.updates["2.weight"], done.refits.judged["2.weight"])


def test_both_sweeps_have_the_same_dampings() -> None:
    """A layer that keeps its old weights in the first sweep keeps them in the second."""
    model, images = network()
    done = removal(halved(model, images))
    fixed = removal(halved(model, images), damping=1e9)  # pulls as hard as keeping does
    assert all(fit.damping < math.inf for fit in done.refits.fits) and len(done.refits.fits) == 2
    for name in ("2.weight", "4.weight"):
        rows = done.kept[name].get(0, torch.arange(len(model.get_parameter(name))))
        old = model.get_parameter(name)[rows][:, done.kept[name][1]]
        torch.testing.assert_close(fixed.refits.updates[name], old, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(done.refits.updates[name], old, rtol=1e-2)


def test_what_is_told_comes_from_the_first_sweep() -> None:
    """``change`` is that of the network that has not seen the held-out images, on these."""
    model, images = network()
    plan = reapx.plan(model, images, budget=reapx.MACs(0.5), allocation="uniform")
    result, judged = plan.apply(), judged_network(plan)
    held_out = images[3::4]
    assert result.change == pytest.approx(moved(model, judged, held_out), rel=1e-4)
    assert moved(model, result.model, held_out) < result.change  # it has seen these images


@pytest.mark.filterwarnings("ignore::reapx.errors.CalibrationWarning")
def test_two_images_are_fitted_in_the_end() -> None:
    """One is fitted first and one judges; the second sweep sees both."""
    model, images = network()
    told: list[str] = []
    plan = reapx.plan(
        model, images[:2], budget=reapx.MACs(0.8), on_progress=lambda step, done, total: told.append(step)
    )
    plan.apply()
    assert {"refitting", "refitting on all images"} <= set(told)
