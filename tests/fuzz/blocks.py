"""Blocks of random networks: each makes one feature map of another, with random widths, norms and activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]


def _moved(x: Tensor) -> Tensor:
    """Each position takes the value above it; the first row stays."""
    y = x.clone()
    y[:, :, 1:] = x[:, :, :-1]
    return y


def _marked(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, 0, 1:] *= 0.3
    y[y < -0.5] = 0.1
    return y


def _half_moved(x: Tensor) -> Tensor:
    """Half of the channels are moved, as temporal shifts do."""
    half, y = x.shape[1] // 2, torch.zeros_like(x)
    y[:, :half, :, 1:] = x[:, :half, :, :-1]
    y[:, half:] = x[:, half:]
    return y


FUNCTIONS: dict[str, Function] = {
    "scaled by the size": lambda x: x * x.shape[-1] ** -0.5,
    "shifted by the size": lambda x: x + x.shape[-2] / 50,
    "scaled by the number": lambda x: x * (1 + 1 / x.shape[0]),
    "halved": lambda x: F.avg_pool2d(x, 2, ceil_mode=True),
    "pooled": lambda x: F.max_pool2d(x, 3, 1, 1),
    "pooled with zeros": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "doubled": lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest")[:, :, ::2, 1::2],
    "padded": lambda x: F.pad(x, (1, 0, 0, 1)),
    "gelu": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3)))),
    "less the mean": lambda x: x - x.mean((2, 3), keepdim=True),
    "masked": lambda x: torch.where(x > 0.2, x, 0.1 * x),
    "cast": lambda x: x.to(torch.float32).clamp(-3, 3) if x.dtype == torch.float32 else x.clamp(-3, 3),
    "moved": _moved,
    "marked": _marked,
    "half moved": _half_moved,
    "turned": lambda x: x.flip(1),
    "windows": lambda x: F.pad(x, (0, 0, 1, 1)).unfold(2, 3, 1).mean(-1),
    "stacked": lambda x: torch.stack([x, x.flip(3)], 2).mean(2),
    "sorted": lambda x: x.sort(2)[0].roll(1, 3),
    "rows": lambda x: x.flip(2).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
}


class Lambda(nn.Module):
    """One of the functions above."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return FUNCTIONS[self.name](x)


class Scale(nn.Module):
    """A number for each channel, read twice, and a frozen norm of buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(1, channels, 1, 1) + 0.5)
        self.register_buffer("mean", torch.randn(channels) / 5)

    def forward(self, x: Tensor) -> Tensor:
        return (x - (self.mean * 0.5)[:, None, None]) * self.scale.to(x.dtype) + 0.1 * self.scale


class Residual(nn.Module):
    """body(x) + shortcut(x), in place or not."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, last: nn.Module, in_place: bool) -> None:
        super().__init__()
        self.body, self.shortcut, self.last, self.in_place = body, shortcut, last, in_place

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.in_place:
            y += self.shortcut(x)
            return self.last(y)
        return self.last(y + self.shortcut(x))


class Concat(nn.Module):
    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Halves(nn.Module):
    """Both halves of the channels multiplied."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return a * torch.sigmoid(b)


class Twice(nn.Module):
    """One module called twice: on its own output, on two inputs whose results are added, or on two sizes."""

    def __init__(self, body: nn.Module, kind: str) -> None:
        super().__init__()
        self.body, self.kind = body, kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "chained":
            return self.body(self.body(x))
        if self.kind == "beside":
            return torch.cat([self.body(x), self.body(x.flip(2))], 1)
        if self.kind == "residual":
            x = x + self.body(x)
            return x + self.body(x)
        return self.body(x) * self.body(F.avg_pool2d(x, 2, ceil_mode=True)).mean((2, 3), keepdim=True)


class Volume(nn.Module):
    """A convolution over three axes, of which the first holds moved copies of the image."""

    def __init__(self, rng: Random, inputs: int, outputs: int) -> None:
        super().__init__()
        layer = nn.Conv3d(inputs, outputs, (rng.choice([1, 2, 3]), 3, 1), (rng.choice([1, 2]), 1, 1), (1, 1, 0))
        pool = rng.choice([nn.Identity(), nn.MaxPool3d(3, 1, 1)])
        self.body = nn.Sequential(layer, rng.choice([nn.BatchNorm3d(outputs), nn.Identity()]), nn.ReLU(), pool)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.stack([x, x.flip(2), x.roll(1, 3)], 2)).mean(2)


def act(rng: Random, channels: int) -> nn.Module:
    kinds: list[Callable[[], nn.Module]] = [nn.ReLU, nn.ReLU, nn.SiLU, nn.LeakyReLU, nn.Hardswish, nn.Identity]
    kinds += [lambda: nn.PReLU(channels), lambda: nn.ReLU(inplace=True)]
    return rng.choice(kinds)()


def norm(rng: Random, channels: int) -> nn.Module:
    kinds: list[Callable[[], nn.Module]] = [lambda: nn.BatchNorm2d(channels), nn.Identity]
    kinds += [lambda: nn.BatchNorm2d(channels, affine=False), lambda: Scale(channels)]
    if channels % 2 == 0:
        kinds.append(lambda: nn.GroupNorm(channels // 2, channels))
    return rng.choice(kinds)()


def conv(rng: Random, inputs: int, outputs: int, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the size, a norm and an activation."""
    kernel = rng.choice([1, 3])
    padding = kernel // 2
    mode = rng.choice(["zeros", "zeros", "zeros", "reflect"]) if padding else "zeros"
    bias = rng.random() < 0.7
    layer = nn.Conv2d(inputs, outputs, kernel, padding=padding, groups=groups, bias=bias, padding_mode=mode)
    return nn.Sequential(layer, norm(rng, outputs), act(rng, outputs))
