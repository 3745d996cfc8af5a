"""Chains: every kind of layer, norm, activation and pooling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Case


class Functional(nn.Module):
    """Everything called as a function, weights held as bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(8, 3, 3, 3) / 5)
        self.second = nn.Parameter(torch.randn(6, 8, 1, 1) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.first, padding=1))
        return F.conv2d(x, self.second).mean((2, 3))


class ClassToken(nn.Module):
    """A linear layer that reads one token of many."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(6, 16), nn.Linear(16, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.down(F.relu(self.up(x))))[:, 0])


class TokenNorm(nn.Module):
    """A batch norm that runs along the tokens, not along the linear layer's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(6, 16), nn.Linear(16, 5, bias=False), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.down(F.relu(self.up(x) + 1)))


class SharedNorm(nn.Module):
    """Two convolutions behind which one batch norm stands."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (
            nn.Conv2d(3, 12, 3),
            nn.Conv2d(12, 8, 1, bias=False),
            nn.Conv2d(12, 8, 1, bias=False),
        )
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x) + 1)
        return torch.cat([self.norm(self.two(x)), self.norm(self.three(x))], 1)


class SharedBias(nn.Module):
    """Two convolutions with one bias: it couples their outputs, and neither may move it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 1), nn.Conv2d(12, 8, 1)
        self.four, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x))
        bias = self.two.bias
        y = F.conv2d(x, self.two.weight, bias) * F.conv2d(x, self.three.weight, bias)
        return self.last(F.relu(self.four(y)))


class Rearranged(nn.Module):
    """expand_as, view_as, movedim, swapaxes, masked_fill, maximum, flip of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.gate, self.two, self.last = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 8, 1),
            nn.Conv2d(8, 6, 1),
            nn.Conv2d(6, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True))).expand_as(x)
        x = self.two(torch.max(x, x.flip(2)).masked_fill(x > 2, 0.0))
        return self.last(x.movedim(1, 3).swapaxes(1, 3).swapaxes(2, 3))


class FixedFilter(nn.Module):
    """A depthwise blur held as a buffer that no state dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.register_buffer("blur", torch.full((8, 1, 3, 3), 1 / 9), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x))
        return self.last(F.conv2d(x, self.blur, stride=2, padding=1, groups=x.shape[1]))


class ManyOutputs(nn.Module):
    """An input, a parameter, one value twice, and a counter that forward() moves."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        y = self.last(F.relu(self.one(x)))
        return y, x, self.last.bias, y


class FixedGroups(nn.Module):
    """A depthwise convolution whose number of groups is a number in forward()."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.depth = nn.Parameter(torch.randn(8, 1, 3, 3) / 3)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.conv2d(self.first(x), self.depth, groups=8))


class Unknown(nn.Module):
    """renorm along the channels is no operator that acts per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(torch.renorm(self.first(x), 2, 1, 0.5)))


class Shared(nn.Module):
    """One convolution called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.twice(self.twice(self.stem(x)))))


def _chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def _activations() -> nn.Module:
    kinds = [nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.ELU, nn.Tanh, nn.Softplus, nn.LeakyReLU]
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 1)]
    for kind in kinds:
        layers += [kind(), nn.Conv2d(8, 8, 1)]
    return nn.Sequential(*layers)


CASES = {
    "conv": Case(
        lambda: _chain(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 5, 3, 2, 1, bias=False)),
        (3, 9, 9),
        {"0": 8},
    ),
    "dilated_even_kernel": Case(
        lambda: _chain(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, (2, 4), padding=2, dilation=(1, 2)),
                       nn.ReLU(), nn.Conv2d(6, 5, (3, 5), padding="same", dilation=(2, 1))),
        (3, 9, 9),
        {"0": 8, "2": 6},
    ),
    "circular_padding": Case(
        lambda: _chain(nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), nn.ReLU(),
                       nn.Conv2d(8, 5, 3, padding=1, padding_mode="reflect")),
        (3, 7, 7),
        {"0": 8},
    ),
    "conv1d": Case(
        lambda: _chain(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 5, 3, 2, 1)),
        (3, 11),
        {"0": 8},
    ),
    "conv3d": Case(
        lambda: _chain(nn.Conv3d(2, 8, 1), nn.ReLU(), nn.Conv3d(8, 6, 1), nn.Flatten(), nn.Linear(48, 8),
                       nn.ReLU(), nn.Linear(8, 3)),
        (2, 2, 2, 2),
        {"0": 8, "2": 6, "4": 8},
    ),
    "linear": Case(
        lambda: _chain(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 7, bias=False), nn.ReLU(),
                       nn.Linear(7, 3)),
        (6,),
        {"0": 8, "3": 7},
    ),
    "tokens": Case(
        lambda: _chain(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 3)),
        (5, 6),
        {"0": 8},
        "layer norm",
    ),
    "batch_norm": Case(
        lambda: _chain(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
                       nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8, affine=False), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        (3, 9, 9),
        {"0": 8, "3": 8},
    ),
    "group_norm": Case(
        lambda: _chain(nn.Conv2d(3, 12, 3), nn.GroupNorm(4, 12), nn.ReLU(), nn.Conv2d(12, 4, 1)),
        (3, 7, 7),
        {"0": 4},
    ),
    "instance_norm": Case(
        lambda: _chain(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        (3, 7, 7),
        {"0": 8},
    ),
    "norm_over_all": Case(
        lambda: _chain(nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(),
                       nn.Conv2d(6, 4, 1)),
        (3, 7, 7),
        {"3": 6},
        "statistics over all channels",
        0.9,
    ),
    "prelu": Case(
        lambda: _chain(nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 6, 1), nn.PReLU(), nn.Conv2d(6, 4, 1)),
        (3, 7, 7),
        {"0": 8, "2": 6},
    ),
    "activations": Case(_activations, (3, 4, 4), {str(2 * k): 8 for k in range(8)}),
    "pooling": Case(
        lambda: _chain(nn.Conv2d(3, 8, 3), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(8, 6, 1), nn.AvgPool2d(2),
                       nn.Conv2d(6, 6, 1), nn.AdaptiveMaxPool2d(2), nn.Conv2d(6, 6, 1), nn.AdaptiveAvgPool2d(1),
                       nn.Dropout(), nn.Flatten(), nn.Linear(6, 4)),
        (3, 14, 14),
        {"0": 8, "2": 6, "4": 6, "6": 6},
    ),
    "interpolate": Case(
        lambda: _chain(nn.Conv2d(3, 8, 3), nn.Upsample(scale_factor=2), nn.Conv2d(8, 6, 3),
                       nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(6, 4, 1)),
        (3, 5, 5),
        {"0": 8, "2": 6},
    ),
    "depthwise": Case(
        lambda: _chain(nn.Conv2d(3, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU6(),
                       nn.Conv2d(8, 4, 1)),
        (3, 6, 6),
        {"0": 8},
    ),
    "depthwise_multiplier": Case(
        lambda: _chain(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 12, 3, groups=6), nn.ReLU(), nn.Conv2d(12, 4, 1)),
        (3, 6, 6),
        {"0": 6},
    ),
    "grouped": Case(
        lambda: _chain(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2), nn.ReLU(), nn.Conv2d(12, 4, 1)),
        (3, 6, 6),
        {"0": 4, "2": 6},
    ),
    "transposed": Case(
        lambda: _chain(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.ReLU(),
                       nn.ConvTranspose2d(6, 5, 3, 2, 1, output_padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(),
                       nn.ConvTranspose2d(5, 2, 2, 2)),
        (3, 6, 6),
        {"0": 8, "2": 6, "4": 5},
    ),
    "grouped_transposed": Case(
        lambda: _chain(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, groups=2), nn.ReLU(),
                       nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)),
        (3, 6, 6),
        {"4": 4},
        "grouped transposed",
        0.95,
    ),
    "functional": Case(Functional, (3, 6, 6), {"first": 8}),
    "fixed_groups": Case(
        lambda: nn.Sequential(FixedGroups(), nn.ReLU(), nn.Conv2d(4, 4, 1)),
        (3, 6, 6),
        {"0.last": 4},
        "forward() does not work with fewer",
        0.9,
    ),
    "class_token": Case(ClassToken, (5, 6), {"up": 16}, "model input"),
    "token_norm": Case(TokenNorm, (5, 6), {"up": 16}),
    "shared_norm": Case(SharedNorm, (3, 6, 6), {"one": 12}),
    "shared_bias": Case(SharedBias, (3, 6, 6), {"two + three": 8, "four": 8}, "with a bias that it shares"),
    "rearranged": Case(Rearranged, (3, 6, 6), {"one + gate": 8, "two": 6}),
    "fixed_filter": Case(FixedFilter, (3, 8, 8), {"one": 8}),
    "many_outputs": Case(ManyOutputs, (3, 6, 6), {"one": 8}),
    "unknown_operator": Case(Unknown, (3, 5, 5), {"second": 8}, "renorm is not known"),
    "called_twice": Case(Shared, (3, 5, 5), {"stem + twice": 8, "last": 8}),
}  # fmt: skip
