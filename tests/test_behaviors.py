"""Behaviours: correlations and errors of emulation against brute force over the values themselves."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path

import pytest
import reference
import torch
from torch import Tensor, nn

import reapx
from reapx._native import Window
from reapx.behavior import similarity_figure
from reapx.behavior.behaviors import Behaviors

F64 = torch.float64
ROUNDING = 256 * torch.finfo(torch.float32).eps
"""Of a float32 sum of 256 products, the longest that the kernels form, relative to the sum of magnitudes."""


class Convs(nn.Module):
    """Two convolutions with a norm and a ReLU between them."""

    def __init__(self, channels: int = 6, kernel: int = 3, padding: int = 1, relu: bool = True, bias: bool = True):
        super().__init__()
        act = nn.ReLU() if relu else nn.Identity()
        self.first = nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), act)
        self.second = nn.Conv2d(channels, 5, kernel, padding=padding, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x))
        return out


class Residual(nn.Module):
    """A stream that two layers write and three read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.branch = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 6, 1)
        self.left, self.right = nn.Conv2d(6, 3, 1), nn.Conv2d(6, 2, 3, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x).relu()
        x = x + self.branch(self.inner(x).relu())
        return self.left(x), self.right(x)


class Joined(nn.Module):
    """One layer whose first four channels are coupled to one layer, and the others to another layer or to none."""

    def __init__(self, other: bool) -> None:
        super().__init__()
        self.both, self.a, self.last = nn.Conv2d(3, 10, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(10, 2, 1)
        self.b = nn.Conv2d(3, 6, 1) if other else None

    def forward(self, x: Tensor) -> Tensor:
        first = self.a(x)
        padded = nn.functional.pad(first, (0, 0, 0, 0, 0, 6)) if self.b is None else torch.cat([first, self.b(x)], 1)
        out: Tensor = self.last((self.both(x) + padded).relu())
        return out


def images(count: int = 24, size: int = 8) -> Tensor:
    return torch.randn(count, 3, size, size) + 0.3


def patches_of(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """(rows, features) float64: what a convolution multiplies by its weights."""
    window = Window(*(tuple(pair) for pair in (conv.kernel_size, conv.stride, conv.padding)))  # type: ignore[arg-type]
    rows, columns = conv(x).shape[2:]
    return reference.patches(x, window, (rows, columns))[0]


def behaviour_of(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """(rows, features) float64: the patches, of padded convolutions at the middle of a 3x3 kernel alone."""
    patches = patches_of(conv, x)
    return patches if conv.padding == (0, 0) else patches.reshape(len(patches), -1, 9)[:, :, 4]


def correlation_of(parts: list[Tensor], channels: int) -> Tensor:
    """Of patches of several readers: columns about their means, all taps of a channel in one long vector."""
    vectors = [(part - part.mean(0)).reshape(len(part), channels, -1).transpose(0, 1).flatten(1) for part in parts]
    unit = nn.functional.normalize(torch.cat(vectors, 1))
    return unit @ unit.T


def errors_of(part: Tensor, weight: Tensor, channels: int) -> Tensor:
    """‖X_q W_q - a X_p W_q‖² / ‖X W‖² with the best a, for all pairs, from the products themselves."""
    x = part.reshape(len(part), channels, -1)
    w = weight.double().reshape(len(weight), channels, -1)
    whole = float(torch.einsum("nct,mct->nm", x, w).square().sum())
    table = torch.full((channels, channels), torch.inf, dtype=F64)
    for q in range(channels):
        out = x[:, q] @ w[:, q].T
        for p in range(channels):
            if p != q:
                other = x[:, p] @ w[:, q].T
                gain = (out * other).sum() / other.square().sum()
                table[q, p] = (out - gain * other).square().sum() / whole
    return table


def close(left: Tensor, right: Tensor) -> bool:
    """Equal to the rounding of the kernels' float32 products, infinite where the other is."""
    return torch.allclose(left, right, rtol=10 * ROUNDING, atol=10 * ROUNDING)


@torch.no_grad()
def test_correlation_of_values_that_a_pointwise_layer_reads() -> None:
    model, x = Convs(kernel=1, padding=0).eval(), images()
    found = reapx.behaviors(model, x, "first.0")
    values = model.first(x).transpose(0, 1).flatten(1).double()
    assert close(found.correlation, torch.corrcoef(values))
    assert torch.equal(found.correlation, found.correlation.T)
    assert torch.equal(found.correlation.diagonal(), torch.ones(6, dtype=F64))


@torch.no_grad()
def test_correlation_and_errors_of_a_padded_reader() -> None:
    model, x = Convs().eval(), images()
    found = reapx.behaviors(model, x, "first.0")
    patches = patches_of(model.second, model.first(x))
    assert close(found.correlation, torch.corrcoef(model.first(x).transpose(0, 1).flatten(1).double()))
    assert close(found.errors, errors_of(patches - patches.mean(0), model.second.weight, 6))
    assert found.readers == ("second",) and found.group == "first.0" and len(found.dead) == 0


@torch.no_grad()
def test_without_an_intercept_errors_are_about_zero_and_correlations_about_the_mean() -> None:
    model, x = Convs(bias=False).eval(), images()
    found = reapx.behaviors(model, x, "first.0")
    patches = patches_of(model.second, model.first(x))
    assert close(found.correlation, correlation_of([behaviour_of(model.second, model.first(x))], 6))
    assert close(found.errors, errors_of(patches, model.second.weight, 6))


@torch.no_grad()
def test_several_readers() -> None:
    model, x = Residual().eval(), images()
    found = reapx.behaviors(model, x, "stem")
    assert len(found.readers) == 3 and found.group == "stem + branch"
    first = model.stem(x).relu()
    total = first + model.branch(model.inner(first).relu())
    parts = [(model.inner, first), (model.left, total), (model.right, total)]
    patches = [patches_of(conv, values) for conv, values in parts]
    assert close(found.correlation, correlation_of([behaviour_of(conv, values) for conv, values in parts], 6))
    tables = [errors_of(own - own.mean(0), conv.weight, 6) for own, (conv, _) in zip(patches, parts, strict=True)]
    assert close(found.errors, sum(tables[1:], tables[0]) / 3)
    assert torch.equal(reapx.behaviors(model, x, "branch").errors, found.errors)


@torch.no_grad()
def test_flattened_maps() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 5)).eval()
    x = images(40, 6)
    found = reapx.behaviors(model, x, "0", positions=2)
    patches = model[:3](x).double()
    assert found.positions is None  # a vector is always looked at as a whole
    assert close(found.correlation, correlation_of([patches], 6))
    assert close(found.errors, errors_of(patches - patches.mean(0), model[3].weight, 6))


@torch.no_grad()
def test_a_copy_is_emulated_for_nothing() -> None:
    model = Convs().eval()
    for own in (*model.first[0].parameters(), *model.first[1].parameters()):
        own[4] = own[1]
    found = reapx.behaviors(model, images(), "first.0")
    first = found.pairs()[0]
    assert {first.removed, first.partner} == {1, 4}
    assert first.correlation == pytest.approx(1, abs=ROUNDING) and first.error < ROUNDING
    assert set(found.alike(0.999).tolist()) == {1, 4}
    places = found.order.argsort()
    assert abs(int(places[1]) - int(places[4])) == 1


@torch.no_grad()
def test_a_negated_channel_is_emulated_with_a_negative_gain() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4)).eval()
    model[0].weight[2], model[0].bias[2] = -2 * model[0].weight[0], 3.0
    found = reapx.behaviors(model, torch.randn(60, 5), "0")
    assert float(found.correlation[0, 2]) == pytest.approx(-1, abs=ROUNDING)
    assert max(float(found.errors[0, 2]), float(found.errors[2, 0])) < ROUNDING
    assert set(found.alike(0.999).tolist()) == {0, 2}


@torch.no_grad()
@pytest.mark.parametrize("value", [0.0, 1.7])
@pytest.mark.parametrize("padding", [0, 1])
def test_dead_channels(value: float, padding: int) -> None:
    model = Convs(padding=padding).eval()
    model.first[1].weight[3], model.first[1].bias[3] = 0.0, value
    found = reapx.behaviors(model, images(), "first.0")
    assert found.dead.tolist() == [3] and int(found.order[-1]) == 3
    assert torch.equal(found.correlation[3], torch.eye(6, dtype=F64)[3])
    assert "1 never change" in str(found)
    if value == 0 or padding == 0:
        assert float(found.errors[3, :3].max()) < ROUNDING
    else:
        assert float(found.errors[3, :3].min()) > 0.01  # it marks the border, as the reader sees it


@torch.no_grad()
def test_a_pixel_that_never_changes_is_no_dead_channel() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    x = images(30, 6)
    x[:, :, 0] = 0
    assert len(reapx.behaviors(model, x, "0").dead) == 0


@torch.no_grad()
def test_order_puts_clusters_together() -> None:
    model = Convs(channels=8, relu=False).eval()
    conv, norm = model.first[0], model.first[1]
    noise = 0.05 * torch.randn_like(conv.weight)
    for members in ([0, 3, 5, 6], [1, 2, 4, 7]):
        conv.weight[members] = conv.weight[members[:1]] + noise[members]
    norm.running_mean.zero_()
    found = reapx.behaviors(model, images(), "first.0")
    assert sorted(found.order.tolist()) == list(range(8))
    assert set(found.order[:4].tolist()) in ({0, 3, 5, 6}, {1, 2, 4, 7})
    assert torch.equal(reapx.behaviors(model, images(), "first.0").order.sort().values, torch.arange(8))


def test_positions_come_close_and_repeat() -> None:
    model, x = Convs(channels=8).eval(), images(200, 10)
    every = reapx.behaviors(model, x, "first.0")
    some, again = (reapx.behaviors(model, x, "first.0", positions=16) for _ in range(2))
    assert (every.positions, some.positions) == (None, 16)
    assert torch.equal(some.correlation, again.correlation) and torch.equal(some.errors, again.errors)
    assert not torch.equal(some.correlation, every.correlation)
    rows = 200 * 16 / 9  # neighbouring taps see almost the same
    assert float((some.correlation - every.correlation).abs().max()) < 6 / math.sqrt(rows)
    assert reapx.behaviors(model, x, "first.0", positions=64).positions is None  # there are no more


def test_pairs_can_be_carried_out_together() -> None:
    found = reapx.behaviors(Convs(channels=12).eval(), images(), "first.0")
    pairs = found.pairs(100)
    removed, partners = [pair.removed for pair in pairs], {pair.partner for pair in pairs}
    assert len(set(removed)) == len(removed) and not set(removed) & partners
    assert set(removed) | partners == set(range(12))
    errors = [pair.error for pair in pairs]
    assert errors == sorted(errors) and errors[0] == float(found.errors.min())
    for pair in pairs:
        assert pair.error == float(found.errors[pair.removed, pair.partner])
        assert pair.correlation == float(found.correlation[pair.removed, pair.partner])
    assert found.pairs(3) == pairs[:3] and found.pairs(0) == []


@torch.no_grad()
def test_channels_of_a_layer_that_stay_are_left_out() -> None:
    model, x = Joined(other=False).eval(), images()
    found = reapx.behaviors(model, x, "both")
    assert found.channels.flatten().tolist() == [0, 1, 2, 3] and found.label(2) == "2"
    assert len(found.others) == 1 and "not looked at: 6 channels stay: forward() pads" in str(found)
    values = (model.both(x)[:, :4] + model.a(x)).relu().transpose(0, 1).flatten(1).double()
    assert close(found.correlation, torch.corrcoef(values))


def test_channels_that_leave_together() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 2, 1, groups=2)).eval()
    found = reapx.behaviors(model, images(), reapx.inspect(model, images()).groups[0].name)
    units, count = found.channels.shape
    assert units * count == 8 and count > 1 and found.correlation.shape == (units, units)
    assert "+" in found.label(0) and f"units of {count} channels" in str(found)


def test_text() -> None:
    found = reapx.behaviors(Convs().eval(), images(), "first.0", progress=False)
    text = str(found)
    assert text.startswith("first.0: 6 channels, 24 images, all positions\nas read by second\n")
    assert "emulated by" in text and "more than 0.9 in magnitude" in text
    assert "tensor" not in repr(found)


def test_nothing_is_touched() -> None:
    model, x = Convs().eval().double(), images().double()
    before, kept = copy.deepcopy(model.state_dict()), x.clone()
    training = [module.training for module in model.modules()]
    reapx.behaviors(model, x, "first.0")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(x, kept) and training == [module.training for module in model.modules()]


@pytest.fixture(scope="module")
def found() -> Behaviors:
    torch.manual_seed(0)
    return reapx.behaviors(Convs().eval(), images(), "first.0")


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("deep/er/b.SVG", b"<?xml")])
def test_plot(found: Behaviors, tmp_path: Path, name: str, start: bytes) -> None:
    path = found.plot(tmp_path / name)
    assert path == tmp_path / name and path.read_bytes().startswith(start)
    content = path.read_bytes()
    assert content == found.plot(str(path)).read_bytes()


def test_plot_shows_the_tables_in_order(found: Behaviors) -> None:
    figure = similarity_figure.similarity_figure(found._picture())
    left, right = figure.axes[0], figure.axes[1]
    order = found.order
    labels = [str(channel) for channel in order.tolist()]
    for axes in (left, right):
        assert [label.get_text() for label in axes.get_xticklabels()] == labels
        assert [label.get_text() for label in axes.get_yticklabels()] == labels
    shown = torch.tensor(left.images[0].get_array().tolist(), dtype=F64)
    assert torch.equal(shown, found.correlation[order][:, order])
    errors = right.images[0].get_array()
    assert errors.mask.diagonal().all() and int(errors.mask.sum()) == 6
    assert float(errors.max()) == float(found.errors[found.errors.isfinite()].max())


def test_nothing_in_the_picture_overlaps(found: Behaviors) -> None:
    figure = similarity_figure.similarity_figure(found._picture())
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    boxes = [axes.get_tightbbox() for axes in figure.axes] + [figure._suptitle.get_window_extent()]  # type: ignore
    for k, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:k])
        assert min(box.x0, box.y0) >= 0 and box.x1 <= 1200 and box.y1 <= figure.bbox.y1


def test_plot_of_many_channels_and_of_none_that_differ(tmp_path: Path) -> None:
    model = Convs(channels=similarity_figure.LABELLED + 1).eval()
    many = reapx.behaviors(model, images(12), "first.0")
    assert similarity_figure.similarity_figure(many._picture()).axes[0].get_xticklabels() == []
    with torch.no_grad():
        model.first[1].bias.fill_(-100)
    nothing = reapx.behaviors(model, images(12), "first.0")
    assert len(nothing.dead) == similarity_figure.LABELLED + 1
    assert nothing.plot(tmp_path / "dead.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("low", "top", "marks"),
    [
        (1e-3, 2e-2, [1e-3, 2e-3, 5e-3, 1e-2, 2e-2]),
        (3e-5, 0.4, [1e-4, 1e-3, 1e-2, 1e-1]),
        (0.021, 0.049, [0.021, 0.049]),
    ],
)
def test_ticks(low: float, top: float, marks: list[float]) -> None:
    assert similarity_figure.ticks(low, top) == marks


@pytest.mark.parametrize("name", ["a.pdf", "a", "a.png.txt"])
def test_plot_refuses_what_it_cannot_write(found: Behaviors, tmp_path: Path, name: str) -> None:
    with pytest.raises(reapx.InputError, match=r"\.png or \.svg"):
        found.plot(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_plot_without_matplotlib(found: Behaviors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(reapx.ReapxError, match="matplotlib"):
        found.plot(tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ("first.1", r"layer='first.1' names no convolution .* did you mean first.0"),
        ("first", "did you mean first.0"),
        ("zzz", "there are first.0"),
        ("second", "channels of second cannot be compared.*output of the model.*Choose .* first.0"),
        (7, "layer is a int: give a layer's name"),
    ],
)
def test_refused_layers(layer: str, said: str) -> None:
    with pytest.raises(reapx.InputError, match=said):
        reapx.behaviors(Convs().eval(), images(4), layer)


def test_a_layer_in_several_groups_is_refused_by_their_names() -> None:
    model, x = Joined(other=True).eval(), images(4)
    with pytest.raises(reapx.InputError, match=r"in 2 groups.*'a [+] both' or 'b [+] both'"):
        reapx.behaviors(model, x, "both")
    part = reapx.behaviors(model, x, "b + both")
    assert part.layer == "b" and part.channels.flatten().tolist() == [0, 1, 2, 3, 4, 5] and part.others == ()
    assert torch.equal(reapx.behaviors(model, x, "b").errors, part.errors)


@pytest.mark.parametrize("positions", [0, -1, 1.5, True])
def test_refused_positions(positions: int) -> None:
    with pytest.raises(reapx.InputError, match="positions="):
        reapx.behaviors(Convs().eval(), images(4), "first.0", positions=positions)


def test_one_vector_compares_with_nothing() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)).eval()
    with pytest.raises(reapx.InputError, match="give more images"):
        reapx.behaviors(model, torch.randn(1, 5), "0")


def test_not_finite_activations_are_refused() -> None:
    model = Convs().eval()
    x = images(20)
    x[15] = 1e38
    with torch.no_grad():
        model.first[0].weight.fill_(10.0)
    with pytest.raises(reapx.NumericalError, match="second"):
        reapx.behaviors(model, x, "first.0")
