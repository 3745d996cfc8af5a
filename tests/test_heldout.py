"""Held-out images: what is chosen and reported comes from images that no fit has seen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from graphs import lively
from torch import Tensor, nn

import reapx
import reapx.planning.pipeline
from reapx.calibration.images import Images
from reapx.calibration.processes import Processes
from reapx.calibration.sample import EVERY, split, split_counts
from reapx.capture.graph import capture
from reapx.capture.layers import Layer, describe
from reapx.capture.tails import tail_of
from reapx.moments.measure import Accumulator
from reapx.reconstruction.activations import Activation, activations_behind, relevance
from reapx.reconstruction.damping import GRID, descend, held_out_squares
from reapx.reconstruction.rectify import FittedWeights
from reapx.surgery.proof import output_change

CPU = torch.device("cpu")


def images_of(*sizes: int) -> Images:
    """Images whose value is their number."""
    return Images([part.reshape(-1, 1) for part in torch.arange(sum(sizes)).float().split(list(sizes))], CPU)


def numbers(part: Images) -> list[int]:
    return [int(value) for batch in part for value in batch[0].flatten()]


@pytest.mark.parametrize("sizes", [(100,), (30, 20, 13, 20, 17), (1,) * 100, (99, 1)])
def test_the_split_depends_on_images_not_on_batches(sizes: tuple[int, ...]) -> None:
    fitted, judged = split(images_of(*sizes))
    assert numbers(judged) == list(range(EVERY - 1, 100, EVERY))
    assert sorted(numbers(fitted) + numbers(judged)) == list(range(100))
    assert (fitted.count, judged.count) == split_counts(100) == (75, 25)
    assert max(judged.lengths[0]) <= max(sizes)


@pytest.mark.parametrize("first", [1, 6, 50, 99])
def test_the_split_does_not_depend_on_the_processes(first: int) -> None:
    """Each of two processes finds its share of what one process finds, and knows the lengths of the other's."""
    _, alone = split(images_of(100))
    found, before, lengths = [], [], []
    for rank, own in enumerate(torch.arange(100.0).split([first, 100 - first])):
        images = Images([own.reshape(-1, 1)], CPU)
        images.processes, images.lengths, images.count = Processes(rank, 2), [[first], [100 - first]], 100
        fitted, judged = split(images)
        found += numbers(judged)
        before.append((fitted.before, judged.before))
        lengths.append((fitted.lengths, judged.lengths))
    assert found == numbers(alone)
    assert lengths[0] == lengths[1]
    assert before[1] == (len(lengths[0][0][0]), len(lengths[0][1][0]))


@pytest.mark.parametrize(("count", "counts"), [(2, (1, 1)), (3, (2, 1)), (4, (3, 1)), (8, (6, 2)), (9, (7, 2))])
def test_few_images(count: int, counts: tuple[int, int]) -> None:
    fitted, judged = split(images_of(count))
    assert (fitted.count, judged.count) == split_counts(count) == counts
    assert set(numbers(fitted)).isdisjoint(numbers(judged))


def test_one_image_is_in_both_parts_and_says_so() -> None:
    with pytest.warns(reapx.CalibrationWarning, match="one image.*none can be held out.*at least 2"):
        fitted, judged = split(images_of(1))
    assert numbers(fitted) == numbers(judged) == [0]


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return lively(
        nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(),
            nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU6(),
            nn.Conv2d(12, 10, 1, bias=False), nn.BatchNorm2d(10), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 5),
        )
    )  # fmt: skip


def test_eight_images_are_enough_to_run() -> None:
    model = small_network()
    with pytest.warns(reapx.CalibrationWarning, match="6 images that are fitted"):
        result = reapx.prune(model, torch.randn(8, 3, 6, 6), budget=reapx.MACs(0.6))
    assert result.plan.images == (6, 2)
    assert "6 images fitted, 2 held out to judge" in str(result.plan)
    assert math.isfinite(result.change)


def test_one_large_batch_and_many_small_ones_make_one_network() -> None:
    model, images = small_network(), torch.randn(60, 3, 6, 6)

    def loader() -> Iterator[Tensor]:
        yield from images.split(7)

    one, many = (reapx.prune(model, given, budget=reapx.MACs(0.6)) for given in ([images], loader()))
    for left, right in zip(one.plan.groups, many.plan.groups, strict=True):
        assert left.removed.tolist() == right.removed.tolist()
    for left, right in zip(one.model.state_dict().values(), many.model.state_dict().values(), strict=True):
        assert torch.allclose(left.float(), right.float(), atol=1e-4)
    assert one.change == pytest.approx(many.change, rel=1e-3)


def test_squares_from_moments_are_those_of_the_rows() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(50, 6).add(1), torch.randn(50, 4).sub(2)
    model = nn.Sequential(nn.Linear(6, 4)).eval()
    graph = capture(model, (x[:2],))
    layer = next(found for node in graph.nodes if isinstance(found := describe(graph, node), Layer))
    moments = Accumulator(layer, 4, device=CPU)
    moments.add(x, (50, 4), y)
    moments.mirror()
    fit = FittedWeights(torch.randn(1, 4, 6, dtype=torch.float64), torch.randn(4, dtype=torch.float64))
    squares, variances = held_out_squares(moments, fit, centred=True)
    rows = y.double() - x.double() @ fit.weight[0].T - fit.intercept
    assert torch.allclose(squares, rows.square().sum(0), rtol=1e-5)
    assert torch.allclose(variances, (y.double() - y.double().mean(0)).square().sum(0), rtol=1e-5)


@pytest.mark.parametrize("best", range(len(GRID)))
def test_descent_finds_the_smallest_of_a_valley(best: int) -> None:
    tried = []

    def error(index: int) -> float:
        tried.append(index)
        return abs(index - best)

    assert descend(error, len(GRID), 1) == best
    assert len(set(tried)) <= abs(best - 1) + 3


def few_rows() -> tuple[nn.Module, Tensor, Tensor]:
    """A network with hardly more images than features, the images, and fresh ones."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return model.eval(), torch.randn(96, 20), torch.randn(3000, 20)


def test_damping_is_chosen_for_images_that_no_fit_has_seen() -> None:
    """On the fitted images the weakest damping always looks best; on fresh ones it is not."""
    model, images, fresh = few_rows()
    plan = reapx.plan(model, images, budget=reapx.MACs(0.5), allocation="uniform")
    judge = split(Images(fresh, CPU))[0]
    changes = {}
    for damping in (1e-4, None):
        result = plan.apply(damping=damping)
        graph = capture(model, (images[:2],))
        changes[damping] = output_change(result.model, graph, judge, judge.count), result.change
    assert changes[None][0] < 0.8 * changes[1e-4][0]
    for real, said in changes.values():
        assert real / 1.5 < said < 1.5 * real
    assert {fit.damping for fit in result.fits} <= {*GRID, math.inf}


def test_words_about_large_changes() -> None:
    model, images, _ = few_rows()
    result = reapx.prune(model, images, budget=reapx.MACs(0.3))
    assert result.change > 0.1
    assert f"differ by {100 * result.change:.0f} % of their variance on 24 images that no fit has seen" in str(result)
    assert "add up to" in str(result.plan) and "a larger budget would help" in str(result.plan)


ACTIVATIONS = {
    "relu": (nn.ReLU(), (0.0, math.inf)),
    "relu6": (nn.ReLU6(), (0.0, 6.0)),
    "hardtanh": (nn.Hardtanh(-2.0, 3.0), (-2.0, 3.0)),
    "hardsigmoid": (nn.Hardsigmoid(), (-3.0, 3.0)),
    "hardswish": (nn.Hardswish(), (-3.0, math.inf)),
}
SMOOTH = {
    "leaky": nn.LeakyReLU(0.1),
    "steep": nn.LeakyReLU(2.0),
    "elu": nn.ELU(),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "tanh form": nn.GELU(approximate="tanh"),
}


def _behind(activation: nn.Module) -> frozenset[Activation]:
    model = nn.Sequential(nn.Linear(4, 4), activation, nn.Linear(4, 2)).eval()
    graph = capture(model, (torch.randn(2, 4),))
    layer = next(found for node in graph.nodes if isinstance(found := describe(graph, node), Layer))
    return activations_behind(graph, layer, tail_of(graph, layer), residual=False)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_where_an_activation_is_constant(name: str) -> None:
    activation, limits = ACTIVATIONS[name]
    assert _behind(activation) == {Activation(*limits)}
    low, high = max(limits[0], -100.0), min(limits[1], 100.0)
    assert torch.equal(activation(torch.tensor(low)), activation(torch.tensor(low - 50.0)))
    if limits[1] < math.inf:
        assert torch.equal(activation(torch.tensor(high)), activation(torch.tensor(high + 50.0)))
    wanted, passed = torch.tensor([-7.0, -7.0, 9.0, 0.5]), torch.tensor([-8.0, 9.0, 10.0, 0.6])
    differs = activation(wanted) != activation(passed)
    assert torch.equal(relevance(_behind(activation), wanted, passed), differs.float())


@pytest.mark.parametrize("name", SMOOTH)
def test_a_smooth_activation_weighs_by_how_much_it_passes_on(name: str) -> None:
    """The weight is never less than the square of what the activation leaves of a difference, and at most 1."""
    activation, generator = SMOOTH[name], torch.Generator().manual_seed(0)
    wanted, passed = 6 * torch.randn(2, 2000, generator=generator)
    passed[:500] = wanted[:500] + 1e-3
    passed[500] = wanted[500]
    weights = relevance(_behind(activation), wanted, passed)
    steepest = max((activation(x + 1e-3) - activation(x)).abs().max() / 1e-3 for x in [torch.linspace(-9, 9, 4000)])
    left = (activation(wanted) - activation(passed)).double() / (wanted - passed).double() / steepest.double()
    left[500] = 0
    assert float(weights.max()) <= 1 and bool((weights >= left.square() - 2e-2).all())
    assert float(weights.min()) < 0.3


def test_operators_that_are_no_activations_are_not_rectified() -> None:
    assert _behind(nn.Identity()) == _behind(nn.Softmax(1)) == _behind(nn.Tanh()) == frozenset()


@pytest.mark.parametrize("activation", [nn.SiLU, nn.GELU, nn.LeakyReLU])
def test_rectification_pays_in_front_of_smooth_activations(activation: type[nn.Module]) -> None:
    torch.manual_seed(0)
    front = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), activation(), nn.Conv2d(24, 24, 3, padding=1), activation())
    model = nn.Sequential(front, nn.Conv2d(24, 4, 1)).eval()
    generator = torch.Generator().manual_seed(1)
    images, fresh = torch.randn(2, 150, 3, 6, 6, generator=generator).mul_(2)
    plan = reapx.plan(model, images, budget=reapx.MACs(0.6), bounds={"0.0": (10, 10)}, allocation="uniform")
    errors = []
    for passes in (0, 1):
        pruned = plan.apply(rectify=passes).model
        with torch.no_grad():
            errors.append(float((pruned(fresh) - model(fresh)).square().mean()))
    assert errors[1] < errors[0]


def test_depthwise_layers_are_refitted() -> None:
    """Their inputs have changed like those of every layer behind a removal."""
    result = reapx.prune(small_network(), torch.randn(64, 3, 6, 6), budget=reapx.MACs(0.85), exclude=["0", "3"])
    assert "3" not in {fit.layer for fit in result.fits}  # nothing in front of it has changed
    torch.manual_seed(1)
    front = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
    model = lively(nn.Sequential(*front, nn.Conv2d(12, 12, 1), *list(small_network())[1:]))
    result = reapx.prune(model, torch.randn(64, 3, 6, 6), budget=reapx.MACs(0.7), allocation="uniform", exclude=["3"])
    fit = next(fit for fit in result.fits if fit.layer == "6")
    assert fit.error <= fit.before


def test_a_folder_of_another_split_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = small_network(), torch.randn(40, 3, 6, 6)
    plan = reapx.plan(model, images, budget=reapx.MACs(0.6), resume=tmp_path)
    again = reapx.plan(model, images, budget=reapx.MACs(0.6), resume=tmp_path)
    assert [entry.kept for entry in plan.groups] == [entry.kept for entry in again.groups]
    monkeypatch.setattr(reapx.planning.pipeline, "EVERY", 5)
    with pytest.raises(reapx.InputError, match="held out is 'one of 5 images'"):
        reapx.plan(model, images, budget=reapx.MACs(0.6), resume=tmp_path)
