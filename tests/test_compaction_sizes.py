"""A compacted network computes the same on images of other sizes: what depends on the size is no constant."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from compacting import compacted, gone, kill, reasons
from graphs import lively
from torch import Tensor, nn

import reapx


class Joined(nn.Module):
    """Two branches over the positions of a signal, one after another, then a mean over all."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv1d(3, 6, 1), nn.Conv1d(3, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        first, second = F.relu(self.a(x)), F.relu(self.b(x)).mean(2, keepdim=True)
        return self.head(torch.cat([first, second], 2).mean(2))


class Shuffled(nn.Module):
    """Four channels become one with a pattern, whose mean over windows depends on where those lie."""

    def __init__(self, pool: Callable[[Tensor], Tensor], size: int) -> None:
        super().__init__()
        self.one, self.head, self.pool = nn.Conv2d(3, 12, 1), nn.Linear(3 * size, 4), pool

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(F.pixel_shuffle(F.relu(self.one(x)), 2)).flatten(1))


class Product(nn.Module):
    """A sum over positions as a matrix product, which no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.one(x)).flatten(2)
        return self.head((h @ torch.ones_like(h[:, :1]).transpose(1, 2)).squeeze(2) / 10)


def uneven(model: nn.Module, units: range, biases: float) -> None:
    for step, unit in enumerate(units):
        kill(model.one, unit, biases * step)


def test_positions_that_are_joined() -> None:
    model = lively(Joined())
    for unit, (first, second) in enumerate([(0.5, 2.0), (-0.5, -2.0), (0.7, 0.7)]):
        kill(model.a, unit, first)
        kill(model.b, unit, second)
    done = compacted(model, torch.randn(4, 3, 8), (3, 20), (3, 5))
    (nodes,) = gone(done).values()
    assert nodes == [1, 2]  # zeros, and one constant everywhere; not two that are weighed by the length


@pytest.mark.parametrize("biases", [0.0, 1.0])
@pytest.mark.parametrize(
    ("pool", "size"),
    [
        (lambda x: F.adaptive_avg_pool2d(x, 4), 16),
        (lambda x: x.std((2, 3)), 1),
        (lambda x: F.adaptive_max_pool2d(x, 3), 9),
        (lambda x: F.interpolate(x, scale_factor=0.5).mean((2, 3)), 1),
    ],
)
def test_patterns_behind_pools(pool: Callable[[Tensor], Tensor], size: int, biases: float) -> None:
    model = lively(Shuffled(pool, size))
    uneven(model, range(4), biases)
    done = compacted(model, torch.randn(4, 3, 8, 8), (3, 6, 6), (3, 4, 4))
    assert gone(done) in ({}, {"one": [0]}, {"one": [0, 1, 2, 3]})
    assert biases == 0.0 or not gone(done)


def test_sums_that_no_rule_knows() -> None:
    model = lively(Product())
    for unit in range(6):
        kill(model.one, unit, 0.5)
    assert not gone(compacted(model, torch.randn(4, 3, 8, 8), (3, 5, 5), (3, 20, 20)))


@pytest.mark.parametrize("groups", [2, 8])
def test_norms_behind_grouped_transposed_convolutions(groups: int) -> None:
    """Their channels stay; others leave."""
    up = nn.ConvTranspose2d(8, 8, 2, 2, groups=groups)
    model = lively(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), up, nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1), nn.ReLU(),
                                 nn.Conv2d(6, 2, 1)))  # fmt: skip
    kill(model[4], 1, 0.5)
    assert gone(compacted(model, torch.randn(4, 3, 6, 6), (3, 9, 9))) == {"4": [1]}


def test_a_refused_threshold_names_the_node() -> None:
    """A norm behind the ReLU makes a small filter large again."""
    model = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)))
    with torch.no_grad():
        model[0].weight[2] *= 1e-5
        model[0].bias[2] = 0
        model[2].running_var[2] = 1e-9
        model[2].running_mean[2] = 0
        model[2].eps = 1e-12
    nodes = reapx.zero_nodes(model, torch.randn(4, 3, 6, 6))
    with pytest.raises(reapx.ProofError, match=r"0, channel 2, .*e-06 of its layer's largest.*[Ee]xclude"):
        nodes.remove()
    assert not gone(compacted(model, torch.randn(4, 3, 6, 6), exclude=["0"]))


def test_low_precision_excuses_no_live_node() -> None:
    """Only constants may be rounded; an idle parameter of half precision changes nothing either."""
    torch.manual_seed(0)
    model = lively(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)))
    with torch.no_grad():
        model[0].weight[1] *= 0.01
        model[0].bias[1] = 0.0
    for kind in (torch.float32, torch.bfloat16):
        tried = lively(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))).to(kind)
        tried.load_state_dict(model.state_dict())
        tried.register_parameter("idle", nn.Parameter(torch.zeros((), dtype=torch.bfloat16)))
        with pytest.raises(reapx.ProofError):
            reapx.zero_nodes(tried, torch.randn(32, 5).to(kind), relative=0.1).remove()


def test_one_carrier_for_two_readers() -> None:
    """Each reads other dead nodes; the carrier takes the constants of all."""

    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(3, 6, 1)
            self.left, self.right = nn.Conv2d(6, 2, 3, padding=1), nn.Conv2d(6, 2, 3, padding=1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = F.relu(self.one(x))
            return self.left(h), self.right(h)

    model = lively(Forked())
    for unit in range(4):
        kill(model.one, unit, 0.5 + unit)
    with torch.no_grad():
        model.left.weight[:, 2:4] = 0
        model.right.weight[:, :2] = 0
    done = compacted(model, torch.randn(4, 3, 6, 6), (3, 9, 9))
    assert len(gone(done)["one"]) == 3 and "pads with zeros" in reasons(done)


def test_infinite_weights_are_left_out_of_the_plot(tmp_path: object) -> None:
    model = lively(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)))
    nodes = reapx.zero_nodes(model, torch.randn(4, 5))
    nodes.sizes["0"][1] = torch.inf
    path = nodes.plot(f"{tmp_path}/sizes.png")
    assert path.stat().st_size > 1000
