"""Couplings: residual streams, concatenations, gates, splits, shuffles."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Case


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """Two basic blocks, the second with a projection shortcut computed after the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.a1, self.a2 = conv(8, 6), conv(6, 8)
        self.b1, self.b2, self.down = conv(8, 10, 3, 2), conv(10, 12), conv(8, 12, 1, 2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.a2(F.relu(self.a1(x))) + x)
        out = self.b2(F.relu(self.b1(x)))
        out += self.down(x)
        return self.head(F.adaptive_avg_pool2d(F.relu(out), 1).flatten(1))


class OptionA(nn.Module):
    """Subsampling and zero-padded channels as a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.b1, self.b2 = conv(3, 4), conv(4, 8, 3, 2), conv(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.head(F.relu(self.b2(F.relu(self.b1(x))) + shortcut).mean((2, 3)))


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.norm, self.one, self.two = nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(x + self.two(F.relu(self.one(F.relu(self.norm(x))))))


class AddInput(nn.Module):
    """The raw input is added to a layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 3, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.two(F.relu(self.one(x))))


class Concat(nn.Module):
    """A fire module and a flatten behind a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.small, self.large = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1), nn.Conv2d(6, 7, 3, padding=1)
        self.mix, self.head = nn.Conv2d(12, 6, 1), nn.Linear((6 + 3) * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.squeeze(x))
        y = torch.cat([F.relu(self.small(y)), F.relu(self.large(y))], 1)
        y = torch.cat([F.relu(self.mix(y)), x], dim=-3)
        return self.head(F.adaptive_avg_pool2d(y, 2).flatten(1))


class Dense(nn.Module):
    """Each layer reads all that came before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8 + 4 * k), nn.ReLU(), nn.Conv2d(8 + 4 * k, 4, 3, padding=1)) for k in range(2)
        )
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        values = [self.first(x)]
        for layer in self.layers:
            values.append(layer(torch.cat(values, 1)))
        return self.last(torch.cat(values, 1))


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.down, self.up = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x))
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.last(x * gate)


class Split(nn.Module):
    """Halves that go their own ways: chunk, an even slice, glu."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 8, 1)
        self.three, self.last = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.one(x).chunk(2, 1)
        y = self.two(F.relu(a) * torch.sigmoid(b))
        y = self.three(F.glu(y, 1))
        return self.last(y[:, : y.shape[1] // 2] + y[:, y.shape[1] // 2 :])


class HardSlice(nn.Module):
    """Positions written down as numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 6, 1)
        self.three, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(self.one(x)[:, :4])
        return self.last(F.relu(self.three(y[:, 1:4])))


class HardView(nn.Module):
    """A view whose size is a number; another that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Linear(36, 8)
        self.three, self.last = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x)).view(-1, 36)
        return self.last(F.relu(self.three(F.relu(self.two(x)).view(x.shape[0], -1))))


class ChannelsLastFlatten(nn.Module):
    """permute before flatten: channel c feeds columns c, c + C, c + 2C, ..."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.last = nn.Conv2d(3, 6, 3), nn.Linear(6 * 9, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.one(x)).permute(0, 2, 3, 1).flatten(1))


class Shuffle(nn.Module):
    """ShuffleNet's channel shuffle, by hand, between grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Conv2d(3, 36, 1), nn.Conv2d(36, 12, 1, groups=3), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x))
        n, c, h, w = x.shape
        x = x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.last(F.relu(self.two(x)))


class PixelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(4, 6, 3), nn.Conv2d(24, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.pixel_unshuffle(F.relu(self.two(F.pixel_shuffle(F.relu(self.one(x)), 2))), 2))


class PerChannelBuffer(nn.Module):
    """A buffer and a bare parameter with one value a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1)
        self.scale = nn.Parameter(torch.rand(1, 6, 1, 1) + 0.5)
        self.register_buffer("offset", torch.randn(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.one(x) * self.scale + self.offset))


class TwoOutputs(nn.Module):
    """The second output freezes the layer that makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.one(x))
        y = self.two(x)
        return self.last(F.relu(y)), y


class Attention(nn.Module):
    """Two heads of self-attention, and the feed-forward network behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.attend(x, x, x, need_weights=False)[0])
        return x + self.down(F.gelu(self.up(x)))


CASES = {
    "residual": Case(Residual, (3, 8, 8), {"stem.0 + a2.0": 8, "a1.0": 6, "b1.0": 10, "b2.0 + down.0": 12}),
    "option_a": Case(OptionA, (3, 8, 8), {"stem.0 + b2.0": 4, "b1.0": 8}, "pads the channel axis"),
    "pre_activation": Case(PreActivation, (3, 6, 6), {"stem + two": 8, "one": 6}),
    "add_input": Case(AddInput, (3, 6, 6), {"one": 6}, "model input"),
    "concat": Case(Concat, (3, 6, 6), {"squeeze": 6, "small": 5, "large": 7, "mix": 6}),
    "dense": Case(Dense, (3, 6, 6), {"first": 8, "layers.0.2": 4, "layers.1.2": 4}),
    "gate": Case(Gate, (3, 6, 6), {"one + up": 8, "down": 4}),
    "split": Case(Split, (3, 5, 5), {"one": 4, "two": 4, "three": 4}),
    "hard_slice": Case(HardSlice, (3, 5, 5), {"three": 6}, "at a fixed position"),
    "hard_view": Case(HardView, (3, 3, 3), {"two": 8, "three": 6}, "forward() does not work with fewer"),
    "channels_last_flatten": Case(ChannelsLastFlatten, (3, 5, 5), {"one": 6}),
    "shuffle": Case(Shuffle, (3, 5, 5), {"one": 4, "two": 4}),
    "pixel_shuffle": Case(PixelShuffle, (3, 7, 7), {"one": 4, "two": 6}),
    "per_channel_buffer": Case(PerChannelBuffer, (3, 5, 5), {"one": 6}),
    "two_outputs": Case(TwoOutputs, (3, 5, 5), {"one": 6}),
    "attention": Case(Attention, (5, 8), {"attend": 2, "up": 16}, "model input"),
}
