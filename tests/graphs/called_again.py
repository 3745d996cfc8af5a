"""Networks with modules that are called several times."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.ReLU())


class Head(nn.Module):
    """A detection head on two levels of a pyramid, under one name or two."""

    def __init__(self, names: int = 1) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8, 2), conv(8, 8, 2)
        self.head = nn.Sequential(conv(8, 10), nn.Conv2d(10, 2, 3, padding=1))
        self.other = self.head if names == 2 else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.a(x)
        return self.head(fine), (self.head if self.other is None else self.other)(self.b(fine))


class Towers(nn.Module):
    """Siamese towers with batch norms, compared by a product."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return (self.tower(x) * self.tower(x.flip(3))).mean((2, 3))


class Levels(nn.Module):
    """One convolution on two levels, each with a norm of its own, as in EfficientDet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.last = conv(3, 8), nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Conv2d(8, 2, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = self.stem(x), F.avg_pool2d(self.stem(x), 2)
        return [self.last(norm(self.shared(y)).relu()) for y, norm in zip(levels, self.norms, strict=True)]


class Dilated(nn.Module):
    """One weight at two dilations, as in TridentNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.last = conv(3, 8), nn.Conv2d(8, 7, 3), nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, (w, b) = self.stem(x), (self.shared.weight, self.shared.bias)
        return self.last((F.conv2d(y, w, b, padding=1) + F.conv2d(y, w, b, padding=2, dilation=2)).relu())


class Update(nn.Module):
    """A recurrent update of a hidden state."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.read, self.last = conv(3, 8), conv(3, 6), nn.Conv2d(8, 2, 1)
        self.update = nn.Sequential(nn.Conv2d(14, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        state, seen = self.start(x), self.read(x)
        for _ in range(3):
            state = torch.tanh(self.update(torch.cat([state, seen], 1)))
        return self.last(state)


class Attention(nn.Module):
    """The gate of CBAM: one small network on two poolings."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = conv(3, 12), nn.Conv2d(12, 2, 1)
        self.mlp = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 12))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        gate = self.mlp(y.mean((2, 3))) + self.mlp(y.amax((2, 3)))
        return self.last(y * gate.sigmoid()[:, :, None, None])


class Tied(nn.Module):
    """Two linear layers that hold one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 2)
        self.c, self.d = nn.Linear(12, 12, bias=False), nn.Linear(12, 12, bias=False)
        self.d.weight = self.c.weight

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(1)
        return self.last(self.c(self.a(x).relu()).relu() + self.d(self.b(x).relu()).relu())


class Deep(nn.Module):
    """A shared layer whose second call depends on the branch that waits for its first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.last = conv(3, 8), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.branch = nn.Sequential(conv(8, 6), nn.Conv2d(6, 8, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = self.branch(y) + self.shared(y)
        return self.last(self.shared(y.relu()).relu())


class Sums(nn.Module):
    """A shared layer in two residual adds, of which the second has a shortcut that depends on the first call.

    Args:
        crossed: Whether a further shared layer stands in front of the one add and behind the other.
    """

    def __init__(self, crossed: bool) -> None:
        super().__init__()
        self.stem, self.side, self.last = conv(3, 8), nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.shared, self.between, self.crossed = nn.Conv2d(8, 8, 3, padding=1), conv(8, 8), crossed

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.stem(x), self.side(x)
        if not self.crossed:
            return self.last((self.shared(z.relu()) + self.between(self.shared(y) + y)).relu())
        first = (self.shared(y) + y).relu()
        return self.last((self.shared(z.relu()) + self.between(y)).relu() + self.between(first))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "head": (Head, ["a.0 + b.0", "head.0.0"]),
    "head with two names": (lambda: Head(2), ["a.0 + b.0", "other.0.0"]),
    "towers": (Towers, ["tower.0"]),
    "levels": (Levels, ["stem.0", "shared"]),
    "dilated": (Dilated, ["stem.0", "shared"]),
    "update": (Update, ["start.0 + update.2", "read.0", "update.0"]),
    "attention": (Attention, ["stem.0 + mlp.2", "mlp.0"]),
    "tied": (Tied, ["a + b", "d"]),
    "deep": (Deep, ["stem.0 + branch.1 + shared", "branch.0.0"]),
    "sums": (lambda: Sums(False), ["stem.0 + 3 more"]),
    "crossed": (lambda: Sums(True), ["stem.0 + 3 more"]),
}
"""How to build it, and the names of its groups."""


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[name][0]().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model
