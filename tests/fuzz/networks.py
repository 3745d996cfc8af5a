"""Random networks, and how nodes in them are killed."""

from __future__ import annotations

from random import Random

import torch
from graphs import lively
from torch import Tensor, nn

from .blocks import FUNCTIONS, Concat, Gate, Halves, Lambda, Residual, Twice, Volume, act, conv


def _width(rng: Random) -> int:
    return rng.choice([4, 6, 8])


def _plain(rng: Random, channels: int) -> tuple[nn.Module, int]:
    outputs = _width(rng)
    return conv(rng, channels, outputs), outputs


def _function(rng: Random, channels: int) -> tuple[nn.Module, int]:
    return Lambda(rng.choice(list(FUNCTIONS))), channels


def _depthwise(rng: Random, channels: int) -> tuple[nn.Module, int]:
    return conv(rng, channels, channels * rng.choice([1, 1, 2]), channels), 0


def _grouped(rng: Random, channels: int) -> tuple[nn.Module, int]:
    outputs = _width(rng)
    return conv(rng, channels, outputs, 2), outputs


def _residual(rng: Random, channels: int) -> tuple[nn.Module, int]:
    middle, project = _width(rng), rng.random() < 0.4
    outputs = _width(rng) if project else channels
    body = nn.Sequential(conv(rng, channels, middle), nn.Conv2d(middle, outputs, rng.choice([1, 3]), padding="same"))
    shortcut = conv(rng, channels, outputs) if project else nn.Identity()
    return Residual(body, shortcut, act(rng, outputs), rng.random() < 0.3), outputs


def _concat(rng: Random, channels: int) -> tuple[nn.Module, int]:
    left, right = _width(rng), _width(rng)
    branches: list[nn.Module] = [conv(rng, channels, left), conv(rng, channels, right)]
    if rng.random() < 0.3:
        branches.append(nn.Identity())
        right += channels
    return Concat(*branches), left + right


def _gate(rng: Random, channels: int) -> tuple[nn.Module, int]:
    return Gate(channels, _width(rng)), channels


def _halves(rng: Random, channels: int) -> tuple[nn.Module, int]:
    outputs = _width(rng)
    return nn.Sequential(nn.Conv2d(channels, 2 * outputs, 1), Halves()), outputs


def _transposed(rng: Random, channels: int) -> tuple[nn.Module, int]:
    outputs = _width(rng)
    up = nn.ConvTranspose2d(channels, outputs, 2, 2)
    return nn.Sequential(up, act(rng, outputs), nn.AvgPool2d(2)), outputs


def _shuffled(rng: Random, channels: int) -> tuple[nn.Module, int]:
    outputs = _width(rng)
    return nn.Sequential(nn.Conv2d(channels, 4 * outputs, 1), nn.PixelShuffle(2), nn.MaxPool2d(2)), outputs


def _twice(rng: Random, channels: int) -> tuple[nn.Module, int]:
    kind, middle = rng.choice(["chained", "beside", "residual", "gate"]), _width(rng)
    outputs = channels if kind in ("chained", "residual") else _width(rng)
    body = nn.Sequential(conv(rng, channels, middle), conv(rng, middle, outputs))
    return Twice(body, kind), 2 * outputs if kind == "beside" else outputs


def _volume(rng: Random, channels: int) -> tuple[nn.Module, int]:
    outputs = _width(rng)
    return Volume(rng, channels, outputs), outputs


def _spread(rng: Random, channels: int) -> tuple[nn.Module, int]:
    up = nn.ConvTranspose2d(channels, channels, 2, 2, groups=channels, bias=rng.random() < 0.5)
    return nn.Sequential(up, act(rng, channels), nn.AvgPool2d(2)), channels


BLOCKS = (_plain, _plain, _function, _function, _depthwise, _grouped, _residual, _residual, _concat, _gate, _halves,
          _transposed, _shuffled, _twice, _volume, _spread)  # fmt: skip


class Pool(nn.Module):
    """From a feature map to a vector.

    Args:
        kind: ``"mean"`` and ``"max"`` take any size, ``"flat"`` a vector for each of four quarters.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "mean":
            return x.mean((2, 3))
        if self.kind == "max":
            return torch.max(x.flatten(2), 2)[0]
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def network(seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    """A random network in eval mode, in float64 for every fourth seed, and the shape of its images."""
    rng = Random(seed)
    torch.manual_seed(seed)
    channels = _width(rng)
    blocks: list[nn.Module] = [conv(rng, 3, channels)]
    for _ in range(rng.randint(1, 4)):
        block, outputs = rng.choice(BLOCKS)(rng, channels)
        channels = outputs or _outputs(block)
        blocks.append(block)
    kind = rng.choice(["mean", "max", "flat"])
    features, hidden = channels * (4 if kind == "flat" else 1), _width(rng)
    head = [nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 3)]
    model = lively(nn.Sequential(*blocks, Pool(kind), *head))
    return (model.double() if seed % 4 == 3 else model), (3, rng.choice([6, 8]), rng.choice([6, 7, 8]))


def _outputs(block: nn.Module) -> int:
    return next(m.out_channels for m in block.modules() if isinstance(m, nn.Conv2d))


def kill(model: nn.Module, seed: int) -> None:
    """Kill nodes of about half of the layers and norms: rows, scales or columns that are zero."""
    rng = Random(-seed)
    modules = [
        m
        for m in model.modules()
        if isinstance(m, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.Linear | nn.BatchNorm2d)
    ]
    with torch.no_grad():
        for module in modules[:-1]:
            if module.weight is None or rng.random() < 0.5:
                continue
            axis = 1 if isinstance(module, nn.ConvTranspose2d) and module.groups == 1 else 0
            unit = torch.tensor([rng.randrange(module.weight.shape[axis])])
            if not isinstance(module, nn.BatchNorm2d) and rng.random() < 0.3:
                module.weight.index_fill_(1 - axis, torch.tensor([rng.randrange(module.weight.shape[1 - axis])]), 0)
                continue
            module.weight.index_fill_(axis, unit, 0)
            if module.bias is not None:
                module.bias[unit] = rng.choice([-0.7, 0.0, 0.6])
