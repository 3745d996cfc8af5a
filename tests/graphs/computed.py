"""Operands that are computed from parameters, operators with several results, and blocks of their own."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Case


class FrozenNorm(nn.Module):
    """A batch norm made of buffers, computed in forward()."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(channels)
        for name in ("weight", "bias", "mean", "variance"):
            self.register_buffer(name, torch.rand(channels, generator=generator) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.variance + 1e-5).rsqrt()
        shift = self.bias - self.mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


class Gelu(nn.Module):
    """The tanh form, written out: a sum of one layer's output and its own cube."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3))))


class CastParameter(nn.Module):
    """A scale that is cast, and read twice: by the cast and by a product."""

    def __init__(self, channels: int, twice: bool) -> None:
        super().__init__()
        self.scale, self.twice = nn.Parameter(torch.rand(1, channels, 1, 1) + 0.5), twice

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.scale.to(x.dtype)
        return y * self.scale if self.twice else y


class OneVectorForTwo(nn.Module):
    """A vector that scales two layers' outputs couples them, though they never meet."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(F.relu(self.one(x) * self.scale)) + self.right(F.relu(self.two(x) * self.scale))


class Between(nn.Module):
    """A function of the positions between two layers and a head."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.head, self.function = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 6, 1), nn.Linear(6, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(F.relu(self.two(F.relu(self.one(x))))))


class SpatialGate(nn.Module):
    """The mean and the largest value over the channels gate the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.gate = nn.Conv2d(3, 8, 3), nn.Conv2d(2, 1, 3, padding=1)
        self.two, self.last = nn.Conv2d(8, 6, 3), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        y = y * torch.sigmoid(self.gate(torch.cat([y.mean(1, keepdim=True), y.max(1, keepdim=True)[0]], 1)))
        return self.last(F.relu(self.two(y)))


class Blocks(nn.Module):
    """Blocks that run under a setting, one inside of another, and values that are written in place."""

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.one, self.two, self.last, self.enabled = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 6, 1),
            nn.Conv2d(6, 4, 1),
            enabled,
        )

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.enabled):
            y = F.relu(self.one(x), inplace=True)
            with torch.autocast("cpu", enabled=False), torch.enable_grad():
                z = y.float() + 1
        z.flatten(2).mul_(2)
        return self.last(F.relu(self.two(z * y.float())))


def _chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


_POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda y: torch.max(y, 2)[0],
    "max_kept": lambda y: y.max(dim=2, keepdim=True)[0].flatten(1),
    "min": lambda y: y.min(2).values,
    "median": lambda y: y.median(2)[0],
    "kthvalue": lambda y: y.kthvalue(3, 2)[0],
    "topk": lambda y: y.topk(3, dim=2)[0].mean(2),
    "sort": lambda y: y.sort(dim=2)[0][:, :, -1],
    "cummax": lambda y: y.cummax(2)[0][:, :, -1],
    "var_mean": lambda y: sum(torch.var_mean(y, dim=2)),  # type: ignore[arg-type, return-value]
    "aminmax": lambda y: torch.aminmax(y, dim=2)[1],
    "counted": lambda y: y.sum(2) / (y > 0).sum(2).clamp(min=1),
}

CASES = {
    "frozen_norm": Case(
        lambda: _chain(nn.Conv2d(3, 8, 3, bias=False), FrozenNorm(8), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False),
                       FrozenNorm(6), nn.ReLU(), nn.Conv2d(6, 4, 1)),
        (3, 8, 8),
        {"0": 8, "3": 6},
    ),
    "gelu_written_out": Case(
        lambda: _chain(nn.Conv2d(3, 8, 3), Gelu(), nn.Conv2d(8, 6, 3), Gelu(), nn.Conv2d(6, 4, 1)),
        (3, 8, 8),
        {"0": 8, "2": 6},
    ),
    "cast_parameter": Case(
        lambda: _chain(nn.Conv2d(3, 8, 3), CastParameter(8, False), nn.ReLU(), nn.Conv2d(8, 6, 1),
                       CastParameter(6, True), nn.ReLU(), nn.Conv2d(6, 4, 1)),
        (3, 6, 6),
        {"0": 8, "3": 6},
    ),
    "one_vector_for_two": Case(OneVectorForTwo, (3, 6, 6), {"one + two": 8}),
    "spatial_gate": Case(SpatialGate, (3, 8, 8), {"two": 6}, "combines the channels"),
    "autocast": Case(lambda: Blocks(True), (3, 6, 6), {"one": 8, "two": 6}),
    "autocast_off": Case(lambda: Blocks(False), (3, 6, 6), {"one": 8, "two": 6}),
    **{
        f"pool_{name}": Case(lambda pool=pool: Between(pool), (3, 9), {"one": 8, "two": 6})  # type: ignore[misc]
        for name, pool in _POOLS.items()
    },
    "max_over_channels": Case(
        lambda: Between(lambda y: torch.max(y, 1)[0][:, :6]), (3, 9), {"one": 8}, "max combines the channels", 0.9
    ),
}  # fmt: skip

STREAMLESS = ("frozen_norm", "gelu_written_out", "cast_parameter")
"""Chains, in which nothing is a residual stream."""
