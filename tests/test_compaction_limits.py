"""What counts as zero, what is refused, and what is done with the result."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path

import pytest
import torch
from compacting import assert_same, compacted, gone, kill, left
from graphs import lively
from torch import Tensor, nn

import reapx


def images(*shape: int) -> Tensor:
    return torch.randn(4, *(shape or (5,)))


def dense(*kinds: nn.Module) -> nn.Module:
    return lively(nn.Sequential(nn.Linear(5, 4), *(kinds or (nn.ReLU(),)), nn.Linear(4, 3)))


def with_small(size: float) -> nn.Module:
    """Node 1 reads weights of one size, and its bias keeps it alive where that matters; the largest weight is 2."""
    model = dense(nn.Identity())
    with torch.no_grad():
        model[0].weight.uniform_(0.5, 1.0)[0, 0] = 2.0
        model[0].weight[1] = size
    return model


@pytest.mark.parametrize(
    ("options", "leaves"),
    [
        ({}, 0),
        ({"relative": 2**-11}, 1),  # 2 * 2**-11 is the size itself
        ({"relative": 2**-11 * (1 - 1e-6)}, 0),
        ({"relative": 0.0, "absolute": 2**-10}, 1),
        ({"relative": 0.0, "absolute": 2**-10 * (1 - 1e-6)}, 0),
        ({"relative": 2**-11, "absolute": 1e-9}, 1),
    ],
)
def test_limits_are_inclusive(options: dict[str, float], leaves: int) -> None:
    nodes = reapx.zero_nodes(with_small(-(2**-10)), images(), **options)  # type: ignore[arg-type]
    assert [len(entry.removed) for entry in nodes.groups] == [leaves] == [nodes.groups[0].zero]
    assert nodes.sizes["0"][1] == 2**-10
    assert nodes.limits["0"] == max(2 * options.get("relative", 1e-4), options.get("absolute", 0.0))


def test_a_norm_scales_what_counts_as_size() -> None:
    model = lively(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)))
    with torch.no_grad():
        model[1].weight[2] = 1e-12
    done = compacted(model, images())
    assert gone(done) == {"0": [2]}
    scale = (model[1].weight / (model[1].running_var + model[1].eps).sqrt()).detach()
    torch.testing.assert_close(done.nodes.sizes["0"], model[0].weight.detach().abs().amax(1) * scale)


def test_weights_that_matter_are_not_taken_in_silence() -> None:
    model = with_small(0.05)
    before, x = copy.deepcopy(model.state_dict()), images()
    for inplace in (False, True):
        with pytest.raises(reapx.ProofError, match=r"differ by .* Your model is unchanged"):
            reapx.compact(model, x, relative=0.1, inplace=inplace)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert model[0].out_features == 4
    smaller = reapx.compact(model, x, relative=0.1, tolerance=math.inf)
    assert smaller[0].out_features == 3
    with torch.no_grad():
        gap = (smaller(x) - model(x)).abs().max() / model(x).abs().max()
    assert 1e-5 < gap < 0.2
    done = reapx.zero_nodes(model, x, relative=0.1).remove(tolerance=1.0)
    assert done.gap == pytest.approx(float(gap), rel=1e-4)


@pytest.mark.parametrize("value", [-1e-4, math.nan, math.inf, "small", None, True])
@pytest.mark.parametrize("name", ["relative", "absolute", "tolerance"])
def test_numbers_that_are_none(name: str, value: object) -> None:
    if name == "tolerance" and value == math.inf:
        return
    with pytest.raises(reapx.InputError, match=f"{name}="):
        reapx.compact(dense(), images(), **{name: value})  # type: ignore[arg-type]


def test_train_mode_and_changes_are_refused() -> None:
    model = dense(nn.Dropout())
    nodes = reapx.zero_nodes(model, images())
    model[1].train()
    for call in (lambda: reapx.zero_nodes(model), lambda: reapx.compact(model), nodes.remove):
        with pytest.raises(reapx.InputError, match=r"train mode \(1\)"):
            call()
    model.eval()
    with torch.no_grad():
        model[2].bias[0] += 1
    with pytest.raises(reapx.InputError, match=r"2.bias has changed"):
        nodes.remove()
    model[0].weight = nn.Parameter(torch.zeros(4, 5))
    with pytest.raises(reapx.InputError, match="has changed"):
        nodes.remove()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", ["2.weight", "0.weight"])
def test_weights_that_are_no_numbers_are_not_zero(place: str, value: float) -> None:
    model = dense()
    kill(model[0], 1, 0.5)
    with torch.no_grad():
        model.get_parameter(place)[0, 0] = value
    try:
        nodes = reapx.zero_nodes(model, images())
    except reapx.ReapxError:
        return  # a network that puts out NaN may be refused
    assert nodes.groups[0].removed.tolist() in ([], [1])


class Counted(nn.Module):
    """forward() counts its calls, and reads images of one size, or of any."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layers(x)


GUESSED = {
    "vector": (lambda: [nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)], (7,)),
    "flat": (lambda: [nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 3)], (36,)),
    "small": (lambda: [nn.Conv2d(1, 4, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)], (1, 28, 28)),
    "pooled": (
        lambda: [nn.Conv2d(3, 4, 7, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)],
        (3, 224, 224),
    ),
    "sound": (lambda: [nn.Conv1d(2, 4, 5, 4), nn.ReLU(), nn.Conv1d(4, 3, 5)], (2, 224)),
}


@pytest.mark.parametrize("name", GUESSED)
def test_images_are_guessed(name: str) -> None:
    build, shape = GUESSED[name]
    model = lively(Counted(*build()))
    layer = next(m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Conv1d))
    kill(layer, 1, 0.25)
    smaller = reapx.compact(model)
    assert int(model.calls) == 0, "the model was run, and its buffer written to"
    first = next(m for m in smaller.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Conv1d))
    assert len(first.weight) == len(layer.weight) - 1
    assert_same(model, smaller, torch.randn(2, *shape))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(7, 2)), r"shape \(1, 32, 32\).*give images="),
        (nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2)), r"shape \(4,\).*give images="),
        (nn.Sequential(nn.ReLU()), "no convolution and no linear layer"),
    ],
)
def test_no_guess_runs(model: nn.Module, words: str) -> None:
    with pytest.raises(reapx.InputError, match=words):
        reapx.compact(model.eval())


def test_in_place_exclude_and_a_second_time() -> None:
    model = lively(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)))
    kill(model[0], 1, 0.5)
    kill(model[2], 3, 0.5)
    whole = copy.deepcopy(model)
    nodes = reapx.zero_nodes(model, images(), exclude=["2"])
    done = nodes.remove(inplace=True)
    assert done.model is model and gone(done) == {"0": [1]}
    assert model[0].out_features == model[2].in_features == 3 and model[2].out_features == 4
    assert_same(whole, model, images())
    with pytest.raises(reapx.InputError, match="has changed"):
        nodes.remove()
    assert reapx.compact(model, images(), inplace=True) is model and model[2].out_features == 3
    assert_same(whole, model, images())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = reapx.compact(model, images())
    assert str(again) == str(model) and again is not model
    with pytest.raises(reapx.InputError, match="matches no layer"):
        reapx.compact(model, images(), exclude=["nothing"])


def test_saved_and_loaded(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3, bias=False),
            nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1),
        ).eval()  # fmt: skip

    model = lively(build())
    for unit in (1, 2):
        kill(model[0], unit)
        kill(model[3], unit)
        with torch.no_grad():
            model[1].bias[unit], model[4].bias[unit] = 2.0 * unit, 2.0 * unit  # folded, carried
    x = images(3, 9, 9)
    done = compacted(model, x)
    assert left(done) == {"0": 2, "3": 1}
    done.save(tmp_path)
    fresh = reapx.load(build(), tmp_path)
    with torch.no_grad():
        assert torch.equal(fresh(x), done.model(x))
    assert "1 dead, but stays" in (tmp_path / "plan.json").read_text()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    """Zeros leave for nothing; a constant is rounded into the bias, which no tolerance is needed for."""
    model = dense().to(dtype)
    kill(model[0], 1, -0.5)
    done = reapx.zero_nodes(model, images().to(dtype)).remove()
    assert gone(done) == {"0": [1]} and done.model[2].weight.dtype == dtype and done.gap < 1e-12
    kill(model[0], 2, 0.3)
    nodes = reapx.zero_nodes(model)
    done = nodes.remove(tolerance=1e-12)  # which holds before rounding
    assert (done.gap > 1e-5) == (dtype != torch.float64) and done.gap <= 2 * torch.finfo(dtype).eps
    assert gone(done) == {"0": [1, 2]} and done.model[2].bias.dtype == dtype


def test_tied_weights_stay() -> None:
    model = lively(nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)), nn.Linear(4, 3)))
    model[2].weight = model[0].weight
    kill(model[0], 1, 0.5)
    kill(model[3], 2, 0.5)
    done = compacted(model, images(4))
    assert gone(done) == {"3": [2]}
    assert torch.equal(done.model[0].weight, model[0].weight) and done.model[0].weight is done.model[2].weight


def test_a_layer_too_wide_to_measure_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured, so no Gram matrix has to fit into memory."""
    monkeypatch.setattr("reapx.groups.channel_groups.MAX_FEATURES", 3)
    model = dense()
    kill(model[0], 1, 0.5)
    assert gone(compacted(model, images(5))) == {"0": [1]}
