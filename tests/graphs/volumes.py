"""Convolutions over three axes, depthwise transposed convolutions, and writes into parts of tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Case


class Video(nn.Module):
    """A residual block over three axes, with norms, pools, strides, dilations and groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(2, 8, (3, 3, 1), (1, 2, 1), (1, 1, 0), bias=False), nn.BatchNorm3d(8))
        self.body = nn.Sequential(
            nn.Conv3d(8, 6, 3, padding="same", dilation=(1, 2, 1)), nn.ReLU(), nn.Conv3d(6, 6, 3, 1, 1, groups=6),
            nn.ReLU(), nn.Conv3d(6, 8, 1, bias=False), nn.BatchNorm3d(8),
        )  # fmt: skip
        self.tail = nn.Sequential(nn.Conv3d(8, 12, (2, 1, 3), (2, 1, 1), groups=2), nn.ReLU(), nn.AvgPool3d(1))
        self.last = nn.Conv3d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(self.stem(x).relu(), 3, 1, 1)
        x = F.interpolate((x + self.body(x)).relu(), scale_factor=2, mode="trilinear")
        return self.last(self.tail(x)).mean((2, 3, 4))


class Shifts(nn.Module):
    """Temporal shifts of halves of the channels, written into zeros, and one row that is filled."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).relu()
        half, y = x.shape[1] // 2, torch.zeros_like(x)
        y[:, :half, 1:] = x[:, :half, :-1]
        y[:, half:] = x[:, half:]
        y = self.two(y)
        y[..., 0] = 0.5
        y[y < 0] = 0.1
        return self.last(y)


class Pieces(nn.Module):
    """Writes at fixed positions of the channel axis, and into a tensor of fixed size."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 1)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.one(x), torch.zeros(x.shape[0], 8, 5, 5)
        y[:, 0:3] = 0
        z[:, :, :4] = self.two(y)[:, :, :4]
        return self.last(self.three(z).relu())


CASES = {
    "video": Case(Video, (2, 4, 7, 6), {"stem.0 + body.4": 4, "body.0": 6, "tail.0": 6}),
    "upsampled": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=8, bias=False),
                              nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        (3, 6, 6),
        {"0": 8},
    ),
    "shifts": Case(Shifts, (3, 6, 6), {"one": 4, "two": 6}),
    "pieces": Case(Pieces, (3, 5, 5), {"three": 6}, "written into a model input or a tensor of fixed size", 0.95),
}  # fmt: skip
