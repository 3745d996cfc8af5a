"""Costs against torch's own count of FLOPs, whatever computes them, and against the parameters that there are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graphs import coupled, emptied, lively, plain
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.flop_counter import FlopCounterMode

import reapx


class Around(nn.Module):
    """A function of (images, 8, positions) between layers that can be pruned."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.function = nn.Conv1d(3, 12, 3), nn.Conv1d(12, 8, 3), function
        self.three, self.last = nn.Conv1d(8, 12, 1), nn.Conv1d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.three(self.function(F.relu(self.two(F.relu(self.one(x))))))))


class ScaledWeight(nn.Conv2d):
    """Weights that are standardised in forward()."""

    def forward(self, input: Tensor) -> Tensor:
        scale = self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(input, self.weight / scale, self.bias, self.stride, self.padding)


class SpaceTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv3d(2, 6, 3, padding=1), nn.ConvTranspose3d(6, 4, 2, 2)
        self.hidden, self.head = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.two(F.relu(self.one(x))).mean((2, 3, 4)))))


def _attention(y: Tensor) -> Tensor:
    heads = y.unflatten(1, (2, 4)).transpose(2, 3)
    return F.scaled_dot_product_attention(heads, heads, heads).transpose(2, 3).flatten(1, 2)


def _by_hand(y: Tensor) -> Tensor:
    return y @ ((y.transpose(1, 2) @ y) / 3).softmax(2)


def _chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "attention": (lambda: Around(_attention), (3, 12)),
    "matmul": (lambda: Around(_by_hand), (3, 12)),
    "bmm": (lambda: Around(lambda y: torch.bmm(y, y.transpose(1, 2)) @ y), (3, 12)),
    "baddbmm": (lambda: Around(lambda y: torch.baddbmm(y, y, y.transpose(1, 2) @ y)), (3, 12)),
    "einsum": (lambda: Around(lambda y: torch.einsum("bcn,bdn,bdm->bcm", y, y, y)), (3, 12)),
    "space_time": (SpaceTime, (2, 4, 4, 4)),
    "weight_norm": (
        lambda: _chain(weight_norm(nn.Conv1d(4, 8, 3)), nn.ReLU(), nn.Conv1d(8, 8, 1), nn.ReLU(), nn.Conv1d(8, 2, 1)),
        (4, 10),
    ),
    "spectral_norm": (
        lambda: _chain(spectral_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)),
        (4,),
    ),
    "scaled_weight": (
        lambda: _chain(ScaledWeight(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)),
        (3, 6, 6),
    ),
    **{
        name: ({**plain.CASES, **coupled.CASES}[name].build, {**plain.CASES, **coupled.CASES}[name].shape)
        for name in ("residual", "grouped", "transposed", "depthwise_multiplier", "fixed_filter", "tokens")
    },
    "bottleneck": (emptied.Bottleneck, (3, 6, 6)),
}


def counted(model: nn.Module, image: Tensor) -> int:
    """Multiply-accumulates of one image by torch's counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", NETWORKS)
def test_macs_are_those_of_torch(name: str) -> None:
    build, shape = NETWORKS[name]
    model, images = lively(build()), torch.randn(40, *shape)
    budget = reapx.MACs(0.998 if name == "space_time" else 0.95)
    plan = reapx.plan(model, images, budget=budget, allocation="uniform", streams=True)
    assert plan.macs[0] == counted(model, images[:1])
    result = plan.apply()
    assert plan.macs[1] == counted(result.model, images[:1]) < plan.macs[0]


def test_a_deformable_convolution_counts_as_a_plain_one() -> None:
    """A stand-in with the name and the arguments of torchvision's operator."""
    with torch.library._scoped_library("standin", "FRAGMENT") as library:
        library.define("deform_conv2d(Tensor input, Tensor weight, Tensor offset) -> Tensor")
        library.impl("deform_conv2d", lambda x, w, o: F.conv2d(x + o, w), "CompositeExplicitAutograd")

        class Deformable(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(6, 8, 1)
                self.last, self.weight = nn.Conv2d(8, 4, 1), nn.Parameter(torch.randn(6, 8, 3, 3))

            def forward(self, x: Tensor) -> Tensor:
                y = torch.ops.standin.deform_conv2d(self.one(x), self.weight, x.mean(1, keepdim=True))
                return self.last(F.relu(self.two(y)))

        found = reapx.inspect(Deformable().eval(), torch.randn(4, 3, 8, 8))
    assert found.costs.macs() == 3 * 8 * 64 + 8 * 6 * 9 * 36 + 6 * 8 * 36 + 8 * 4 * 36


def test_layers_that_hold_the_cost_are_named() -> None:
    model = lively(SpaceTime())
    with pytest.raises(reapx.BudgetError, match=r"Most of that is in one \(\d+%\), two \(\d+%\).*inspect"):
        reapx.plan(model, torch.randn(40, 2, 4, 4, 4), budget=reapx.MACs(0.5))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.four, self.last = nn.Linear(8, 12), nn.Linear(12, 3)
        self.three.weight = self.two.weight

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.three(F.relu(self.two(F.relu(self.one(x))))))
        return self.last(F.relu(self.four(y)))


def test_tied_parameters_count_once() -> None:
    torch.manual_seed(0)
    model = Tied().eval()
    plan = reapx.plan(model, torch.randn(60, 6), budget=reapx.Params(0.7))
    result = plan.apply()
    assert plan.params == tuple(sum(p.numel() for p in m.parameters()) for m in (model, result.model))
