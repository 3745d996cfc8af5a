"""Residual branches that may leave as a whole, and one that may not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reapx

from . import lively
from .coupled import conv


@dataclass(frozen=True)
class Branches:
    """A network, the shape of one input, the groups that may go, and the modules that go with them."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    droppable: set[str]
    modules: set[str]


class Basic(nn.Module):
    """A plain block, and one with a stride and a projection, whose sums are written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a1, self.a2 = conv(3, 8), conv(8, 6), conv(6, 8)
        self.b1, self.b2, self.down = conv(8, 10, 3, 2), conv(10, 12), conv(8, 12, 1, 2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.a2(F.relu(self.a1(x))) + x)
        out = self.b2(F.relu(self.b1(x), inplace=True))
        out += self.down(x)
        return self.head(F.relu(out).mean((2, 3)))


class Biased(nn.Module):
    """Biases, no norms; an even kernel, dilation, a per-channel scale and PReLU inside the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.one, self.two = nn.Conv2d(8, 6, 4, 2, 1), nn.ConvTranspose2d(6, 8, 2, 2)
        self.act, self.scale = nn.PReLU(6), nn.Parameter(torch.rand(6, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.last(F.relu(x + self.two(self.act(self.one(x)) * self.scale)))


class Bare(nn.Module):
    """Neither biases nor norms: what is left of the branch is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.one, self.two = nn.Conv2d(8, 6, 3, padding=2, dilation=2), nn.Conv2d(6, 8, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.last(F.relu(x + self.two(F.relu(self.one(x)))))


class Bottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = conv(3, 12), nn.ReLU(inplace=True)
        self.one, self.two, self.three = conv(12, 5, 1), conv(5, 6), conv(6, 12, 1)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        out = self.three(self.relu(self.two(self.relu(self.one(x)))))
        out += x
        return self.head(self.relu(out).mean((2, 3)))


class Perceptron(nn.Module):
    """A residual block of linear layers over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.up, self.down = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.down(F.gelu(self.up(self.norm(x)))))


class Depthwise(nn.Module):
    """Norms and a depthwise convolution inside, and a norm group that leaves with its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 8), nn.Conv2d(8, 3, 1)
        self.expand, self.norm = nn.Conv2d(8, 12, 1, bias=False), nn.GroupNorm(4, 12)
        self.depth, self.squeeze = nn.Conv2d(12, 12, 3, padding="same", groups=12), conv(12, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        return self.head(x + self.squeeze(F.relu6(self.depth(F.relu6(self.norm(self.expand(x)))))))


class Concatenated(nn.Module):
    """One layer reads two groups; it is only left without inputs when both have gone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = conv(3, 8), conv(8, 5), conv(8, 7, 1)
        self.mix, self.head = conv(12, 8), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu(x + self.mix(F.relu(torch.cat([self.left(x), self.right(x)], 1)))))


class Pooled(nn.Module):
    """max_pool2d takes no tensor without channels, avg_pool2d neither."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.three = conv(3, 8), conv(8, 6), conv(6, 8), conv(8, 6)
        self.four, self.head = conv(6, 8), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.two(F.max_pool2d(self.one(x), 3, 1, 1)))
        return self.head(F.relu(x + self.four(F.relu(self.three(x)))))


class ActivatedNorm(nn.BatchNorm2d):
    """A batch norm with an activation inside."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(super().forward(input))


class Activated(nn.Module):
    """A branch whose norms are more than norms; the first layer's can be empty while the second's is not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 8), nn.Conv2d(8, 3, 1)
        self.one, self.first = nn.Conv2d(8, 6, 3, padding=1, bias=False), ActivatedNorm(6)
        self.two, self.second = nn.Conv2d(6, 7, 3, padding=1, bias=False), ActivatedNorm(7)
        self.three = nn.Conv2d(7, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu(x + self.three(self.second(self.two(self.first(self.one(x)))))))


class Projected(nn.Module):
    """The first block has a projection shortcut, a max pool stands in front of it, and the last has two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a1, self.a2, self.down = conv(3, 8), conv(8, 6), conv(6, 12), conv(8, 12, 1)
        self.b1, self.b2, self.c1, self.c2 = conv(12, 5), conv(5, 10), conv(12, 4), conv(4, 10)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1)
        x = F.relu(self.a2(F.relu(self.a1(x))) + self.down(x))
        x = F.relu(self.b2(F.relu(self.b1(x))) + self.c2(F.relu(self.c1(x))))
        return self.head(x.mean((2, 3)))


def _pairs(*names: str) -> set[str]:
    return {f"{name}.{part}" for name in names for part in (0, 1)}


CASES = {
    "basic": Branches(Basic, (3, 8, 8), {"a1.0", "b1.0"}, _pairs("a1", "a2", "b1", "b2")),
    "biased": Branches(Biased, (3, 6, 6), {"one"}, {"one", "two", "act"}),
    "bare": Branches(Bare, (3, 6, 6), {"one"}, {"one", "two"}),
    "bottleneck": Branches(Bottleneck, (3, 6, 6), {"one.0", "two.0"}, _pairs("one", "two", "three")),
    "perceptron": Branches(Perceptron, (5, 6), {"up"}, {"up", "down"}),
    "depthwise": Branches(Depthwise, (3, 6, 6), {"expand"}, {"expand", "norm", "depth", *_pairs("squeeze")}),
    "activated": Branches(Activated, (3, 6, 6), {"one", "two"}, {"one", "first", "two", "second", "three"}),
    "projected": Branches(Projected, (3, 8, 8), {"a1.0", "b1.0"}, _pairs("a1", "a2", "b1", "b2")),
    "concatenated": Branches(Concatenated, (3, 6, 6), {"left.0", "right.0"}, _pairs("left", "right", "mix")),
}


def built(name: str) -> tuple[nn.Module, Tensor]:
    """A network and images for it."""
    torch.manual_seed(0)
    case = CASES[name]
    return lively(case.build()), torch.randn(70, *case.shape)


def emptied(plan: reapx.Plan, names: Collection[str], others: int = 1, streams: int = 0) -> reapx.Plan:
    """The plan, but some groups leave as a whole and the others lose a few units."""
    groups = []
    for entry in plan.groups:
        group = entry.group
        count = group.size if group.name in names else streams if group.residual_stream else others
        groups.append(replace(entry, kept=group.size - count, removed=torch.arange(count)))
    costs = plan._found.costs
    widths = {entry.group.name: entry.kept for entry in groups}
    return replace(
        plan,
        groups=groups,
        macs=(costs.macs(), costs.macs(widths)),
        params=(costs.params(), costs.params(widths)),
    )


def pruned(name: str, names: set[str] | None = None, **options: bool) -> tuple[nn.Module, Tensor, reapx.Result]:
    """A network, images, and the network without some groups, by default without all that may go.

    Those that are not made in place are made once and shared: tests leave them as they are.
    """
    gone = frozenset(CASES[name].droppable if names is None else names)
    return (_pruned if options.get("inplace") else _shared)(name, gone, **options)


def _pruned(name: str, gone: frozenset[str], **options: bool) -> tuple[nn.Module, Tensor, reapx.Result]:
    model, images = built(name)
    plan = reapx.plan(model, images, budget=reapx.MACs(0.95), allocation="uniform")
    return model, images, emptied(plan, gone).apply(**options)


_shared = functools.cache(_pruned)
