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
    """cumsum along the channels is no operator that acts per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(torch.cumsum(self.first(x), 1)))


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
        {"4": 8},
        "3 axes",
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
    "unknown_operator": Case(Unknown, (3, 5, 5), {"second": 8}, "cumsum is not known"),
    "shared_parameter": Case(Shared, (3, 5, 5), {"last": 8}, "share the parameter twice.weight"),
}  # fmt: skip
