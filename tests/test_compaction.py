"""Dead nodes of single layers and what reads them: where each constant goes, and what has to stay."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from compacting import chain, compacted, gone, kill, left, reasons, weights
from graphs import lively
from torch import Tensor, nn

import reapx

IMAGE = (3, 9, 8)


def images(*shape: int) -> Tensor:
    return torch.randn(4, *(shape or IMAGE))


def test_linear_chain_folds_by_hand() -> None:
    model = chain(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    kill(model[0], 1, 0.75)
    kill(model[0], 2, -0.5)
    done = compacted(model, images(5))
    assert gone(done) == {"0": [1, 2]} and done.nodes.groups[0].constant == 1
    wanted = weights(model, "2.bias") + 0.75 * weights(model, "2.weight")[:, 1]
    torch.testing.assert_close(weights(done.model, "2.bias"), wanted, rtol=1e-6, atol=1e-7)
    assert torch.equal(done.model[2].weight, model[2].weight[:, [0, 3]])
    assert done.nodes.params == (4 * 6 + 3 * 5, 2 * 6 + 3 * 3) == (39, sum(p.numel() for p in done.model.parameters()))
    assert done.nodes.macs == (20 + 12, 10 + 6)


def test_unpadded_convolution_folds_the_sum_over_its_taps() -> None:
    model = chain(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3, stride=2, dilation=2))
    kill(model[0], 4, 0.3)
    done = compacted(model, images(3, 13, 12), (3, 20, 21))
    wanted = weights(model, "2.bias") + torch.tensor(0.3).double() * weights(model, "2.weight")[:, 4].sum((1, 2))
    torch.testing.assert_close(weights(done.model, "2.bias"), wanted, rtol=1e-6, atol=1e-7)
    assert done.model[0].out_channels == done.model[2].in_channels == 4


def test_running_mean_takes_what_no_bias_can() -> None:
    """Behind a norm the constant is ReLU(beta - gamma * mean / sigma), and for a scale of zero ReLU(beta)."""
    model = chain(
        nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 2, bias=False), nn.BatchNorm2d(4)
    )
    kill(model[0], 0)
    norm = model[1]
    with torch.no_grad():
        norm.running_mean[0], norm.bias[0] = -0.4, 0.2
        norm.weight[3], norm.bias[3] = 0.0, 0.9
        norm.weight[2], norm.bias[2] = 0.0, -0.9
    first = 0.2 + 0.4 * norm.weight[0].item() / (float(norm.running_var[0]) + norm.eps) ** 0.5
    done = compacted(model, images(), (3, 12, 12))
    assert gone(done) == {"0": [0, 2, 3]} and done.nodes.groups[0].constant == 2
    taken = first * weights(model, "3.weight")[:, 0].sum((1, 2)) + 0.9 * weights(model, "3.weight")[:, 3].sum((1, 2))
    wanted = model[4].running_mean.double() - taken
    torch.testing.assert_close(done.model[4].running_mean.double(), wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(done.model[4].bias, model[4].bias)


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.GELU, nn.Hardswish, nn.SiLU, nn.Softplus, nn.ELU, nn.Tanh])
@pytest.mark.parametrize("bias", [0.0, 0.8, -1.3])
def test_activations_of_zero_and_of_the_bias(activation: type[nn.Module], bias: float) -> None:
    model = chain(nn.Linear(5, 4), activation(), nn.Linear(4, 3))
    kill(model[0], 3, bias)
    value = float(activation()(torch.tensor(bias, dtype=torch.float32).double()))
    done = compacted(model, images(5))
    assert gone(done) == {"0": [3]} and done.nodes.groups[0].constant == (value != 0)
    wanted = weights(model, "2.bias") + value * weights(model, "2.weight")[:, 3]
    torch.testing.assert_close(weights(done.model, "2.bias"), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shared", [False, True])
def test_prelu_has_a_slope_for_what_is_negative(shared: bool) -> None:
    model = chain(nn.Linear(5, 4), nn.PReLU(1 if shared else 4, 0.5), nn.Linear(4, 3))
    kill(model[0], 0, -0.6)
    done = compacted(model, images(5))
    wanted = weights(model, "2.bias") - 0.3 * weights(model, "2.weight")[:, 0]
    torch.testing.assert_close(weights(done.model, "2.bias"), wanted, rtol=1e-6, atol=1e-7)
    assert done.model[1].num_parameters == (1 if shared else 3)


PADDED = {
    "padded": lambda: nn.Conv2d(6, 4, 3, padding=1),
    "same": lambda: nn.Conv2d(6, 4, (5, 3), padding="same"),
    "pointwise": lambda: nn.Conv2d(6, 4, 1, padding=1),
    "strided": lambda: nn.Conv2d(6, 4, 3, stride=2, padding=2, dilation=2),
    "grouped": lambda: nn.Conv2d(6, 4, 3, padding=1, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1),
    "bare": lambda: nn.Conv2d(6, 4, 1, bias=False),
}


@pytest.mark.parametrize("kind", PADDED)
def test_zeros_leave_whatever_reads_them(kind: str) -> None:
    model = chain(nn.Conv2d(3, 6, 3), nn.ReLU(), PADDED[kind]())
    for unit, bias in ((1, -0.5), (4, 0.0)):  # of the grouped one, both read in one unit
        kill(model[0], unit, bias)
    done = compacted(model, images(), (3, 12, 15))
    assert gone(done) == {"0": [1] if kind == "grouped" else [1, 4]}
    assert not reasons(done)


@pytest.mark.parametrize("kind", PADDED)
def test_a_carrier_stands_for_all_other_constants(kind: str) -> None:
    model = chain(nn.Conv2d(3, 6, 3), nn.ReLU(), PADDED[kind]())
    dead = (0, 1, 3, 4) if kind == "grouped" else (0, 2, 5)
    for unit, bias in zip(dead, (0.4, 0.7, 0.2, 0.9), strict=False):
        kill(model[0], unit, bias)
    done = compacted(model, images(), (3, 12, 15))
    count = 1 if kind == "grouped" else 2
    assert left(done) == {"0": count} and done.nodes.groups[0].constant == count
    (stays,) = done.nodes.groups[0].staying
    assert "2 reads its constant" in reasons(done) or "border of 2" in reasons(done)
    if kind != "grouped":
        assert stays == 2, "the largest constant carries the others with the smallest weights"
    if kind in ("padded", "pointwise", "bare"):
        own = weights(model, "2.weight")
        wanted = own[:, 2] + torch.tensor(0.4).double() / 0.7 * own[:, 0] + 0.2 / 0.7 * own[:, 5]
        torch.testing.assert_close(weights(done.model, "2.weight")[:, 1], wanted, rtol=1e-5, atol=1e-6)
        assert model[2].bias is None or torch.equal(done.model[2].bias, model[2].bias)


@pytest.mark.parametrize("kind", [kind for kind in PADDED if kind != "grouped"])
def test_a_single_constant_stays_and_says_why(kind: str) -> None:
    model = chain(nn.Conv2d(3, 6, 3), nn.ReLU(), PADDED[kind]())
    kill(model[0], 2, 0.7)
    done = compacted(model, images())
    assert not left(done)
    why = "neither a bias nor a batch norm" if kind == "bare" else "no.* at the border of 2, which pads with zeros"
    with pytest.warns(reapx.CompactionWarning, match=f"0: 1 dead, but stays: .*{why}"):
        smaller = reapx.compact(model, images())
    assert all(torch.equal(a, b) for a, b in zip(smaller.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_other_paddings_keep_a_constant_constant(mode: str) -> None:
    model = chain(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1, padding_mode=mode))
    kill(model[0], 2, 0.7)
    done = compacted(model, images(), (3, 12, 15))
    assert gone(done) == {"0": [2]} and done.nodes.groups[0].constant == 1


class Padded(nn.Module):
    """F.pad in front of a convolution that does not pad by itself."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.one, self.two, self.value = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), value

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.pad(F.relu(self.one(x)), (1, 1, 1, 1), value=self.value))


@pytest.mark.parametrize(("value", "bias", "leaves"), [(0.0, 0.7, 0), (0.0, -0.7, 1), (0.5, -0.7, 0)])
def test_pad_before_a_convolution(value: float, bias: float, leaves: int) -> None:
    model = lively(Padded(value))
    kill(model.one, 2, bias)
    done = compacted(model, images(), (3, 12, 15))
    assert len(done.nodes.groups[0].removed) == leaves


POOLS = {
    "max": (lambda: nn.MaxPool2d(3, 2, 1), True),
    "mean": (lambda: nn.AvgPool2d(3, 2, 1), False),
    "mean_of_what_is_there": (lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), True),
    "ceil": (lambda: nn.AvgPool2d(3, 2, ceil_mode=True), True),
    "divisor": (lambda: nn.AvgPool2d(3, 2, ceil_mode=True, divisor_override=5), False),
    "adaptive_mean": (lambda: nn.AdaptiveAvgPool2d(3), True),
    "adaptive_max": (lambda: nn.AdaptiveMaxPool2d(3), True),
    "nearest": (lambda: nn.Upsample(scale_factor=2), True),
    "bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), True),
    "dropout": (lambda: nn.Dropout(0.5), True),
}


@pytest.mark.parametrize("name", POOLS)
def test_pooling_between(name: str) -> None:
    """An average that counts padded zeros is another one at the border, the others keep a constant."""
    build, keeps = POOLS[name]
    model = chain(nn.Conv2d(3, 6, 3), build(), nn.Conv2d(6, 4, 1))
    kill(model[0], 2, 0.7)
    kill(model[0], 3, 0.0)
    done = compacted(model, images(3, 10, 9), (3, 15, 16))
    assert gone(done) == {"0": [2, 3] if keeps else [3]}


@pytest.mark.parametrize("name", ["mean", "divisor"])
def test_pooling_of_a_map_that_is_all_border(name: str) -> None:
    """Each of its positions sees the same padding, those of a larger map do not."""
    model = chain(nn.Conv2d(3, 6, 3), POOLS[name][0](), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    kill(model[0], 2, 0.7)
    done = compacted(model, images(3, 4, 4), (3, 12, 13))
    assert not left(done)


@pytest.mark.parametrize("size", [(3, 1, 1), (3, 6, 6)])
@pytest.mark.parametrize("middle", ["padded", "depthwise", "transposed", "pad"])
def test_mean_over_a_padded_map_depends_on_its_size(middle: str, size: tuple[int, ...]) -> None:
    """A node that reads only constants through padding has one mean on these images, and another on larger ones."""
    between: list[nn.Module] = {
        "padded": [nn.Conv2d(4, 5, 3, padding=1)],
        "depthwise": [nn.Conv2d(4, 4, 3, padding=1, groups=4)],
        "transposed": [nn.ConvTranspose2d(4, 5, 3, padding=1)],
        "pad": [nn.ZeroPad2d(1), nn.Conv2d(4, 5, 3)],
    }[middle]
    width = 4 if middle == "depthwise" else 5
    model = chain(nn.Conv2d(3, 4, 1), nn.ReLU(), *between, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))
    kill(model[0], 1, 0.8)
    if middle != "depthwise":
        with torch.no_grad():  # node 2 reads nothing but that constant
            weight = between[-1].weight
            (weight.transpose(0, 1) if middle == "transposed" else weight)[2, [0, 2, 3]] = 0
    done = compacted(model, images(*size), (3, 9, 7), (3, 4, 4))
    assert not left(done)


class Bordered(nn.Module):
    """The mean of a map and of other numbers beside it."""

    def __init__(self, joined: bool) -> None:
        super().__init__()
        self.one, self.two, self.joined = nn.Conv2d(3, 6, 3), nn.Linear(6, 4), joined

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x))
        x = torch.cat([x, x[:, :, :2] * 0 + 0.25], 2) if self.joined else F.pad(x, (2, 0, 1, 0), value=0.25)
        return self.two(x.mean((2, 3)))


@pytest.mark.parametrize("joined", [False, True])
def test_the_share_of_a_border_depends_on_the_size(joined: bool) -> None:
    model = lively(Bordered(joined))
    for unit, bias in ((0, 0.5), (1, 0.25), (2, -0.5)):
        kill(model.one, unit, bias)
    done = compacted(model, images(3, 6, 6), (3, 8, 9))
    assert gone(done) == {"one": [1]}  # the number that stands there anyway


class Summed(nn.Module):
    def __init__(self, reduce: str) -> None:
        super().__init__()
        self.one, self.two, self.reduce = nn.Conv2d(3, 6, 3), nn.Linear(6, 4), reduce

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x)).flatten(2)
        if self.reduce == "softmax":
            return self.two(x.softmax(2)[:, :, 0])
        return self.two(getattr(x, self.reduce)(2))


@pytest.mark.parametrize(
    ("reduce", "constants", "zeros"),
    [("mean", 1, 1), ("amax", 1, 1), ("std", 1, 1), ("sum", 0, 1), ("logsumexp", 0, 0), ("softmax", 0, 0)],
)
def test_reductions_over_positions(reduce: str, constants: int, zeros: int) -> None:
    """A sum over more positions is another one."""
    model = lively(Summed(reduce))
    kill(model.one, 0, 0.5)
    kill(model.one, 1, -0.5)
    done = compacted(model, images(3, 6, 6), (3, 8, 9))
    assert gone(done).get("one", []) == [0] * constants + [1] * zeros


def test_flatten_gives_every_position_a_column() -> None:
    model = chain(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(5 * 9, 4))
    kill(model[0], 3, 0.45)
    done = compacted(model, images(3, 8, 8))
    wanted = weights(model, "4.bias") + torch.tensor(0.45).double() * weights(model, "4.weight")[:, 27:36].sum(1)
    torch.testing.assert_close(weights(done.model, "4.bias"), wanted, rtol=1e-6, atol=1e-6)
    assert done.model[4].in_features == 36


@pytest.mark.parametrize("whole", [True, False])
def test_group_norm_leaves_by_groups(whole: bool) -> None:
    """Three dead channels with biases of their own are normalised by their mean and deviation."""
    model = chain(nn.Conv2d(3, 9, 3), nn.GroupNorm(3, 9), nn.ReLU(), nn.Conv2d(9, 4, 1))
    biases = [0.5, -0.2, 0.9]
    for unit in range(3, 6 if whole else 5):
        kill(model[0], unit, biases[unit - 3])
    done = compacted(model, images(), (3, 12, 12))
    assert gone(done) == ({"0": [1]} if whole else {})
    if whole:
        value = torch.tensor(biases).double()
        value = (value - value.mean()) / (value.var(correction=0) + model[1].eps).sqrt()
        value = (value * weights(model, "1.weight")[3:6] + weights(model, "1.bias")[3:6]).relu()
        wanted = weights(model, "3.bias") + weights(model, "3.weight")[:, 3:6, 0, 0] @ value
        torch.testing.assert_close(weights(done.model, "3.bias"), wanted, rtol=1e-5, atol=1e-6)
        assert done.model[1].num_groups == 2 and done.model[1].num_channels == 6
