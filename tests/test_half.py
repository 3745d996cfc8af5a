"""Networks of half precision: kernels read their activations as they are, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import lively
from torch import Tensor, nn

import reapx
from reapx import _native
from reapx.capture import layers

HALF = [torch.float16, torch.bfloat16]


class Net(nn.Module):
    """Every kind of layer: a residual block with a norm, a transposed convolution, one along one axis, a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.inside = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.back = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.along = nn.Conv1d(6, 8, 5, stride=2)
        self.score = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.norm(self.back(torch.relu(self.inside(x)))))
        x = torch.relu(self.up(x)).flatten(2)
        return self.score(torch.relu(self.along(x)).mean(2))


@pytest.fixture
def net() -> nn.Module:
    return lively(Net().eval())


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("options", [{}, {"rectify": 1}, {"positions": 5, "reconstruct": False}], ids=str)
def test_plan_and_weights_are_those_of_float32_copies(
    net: nn.Module, dtype: torch.dtype, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit: what the kernels are given holds the same numbers."""
    images, results = torch.randn(32, 3, 8, 8).to(dtype), []
    for kept in (_native.HALF, ()):
        monkeypatch.setattr(layers, "HALF", kept)
        results.append(reapx.prune(net.to(dtype), images, budget=reapx.MACs(0.6), **options))
    found, wanted = results
    assert any(len(group.removed) > 0 for group in found.plan.groups)
    assert [group.kept for group in found.plan.groups] == [group.kept for group in wanted.plan.groups]
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, wanted.model.state_dict()[name]), name
        assert value.dtype == dtype or name.endswith("num_batches_tracked")


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_what_is_not_finite_is_named(net: nn.Module, dtype: torch.dtype) -> None:
    net.inside.weight.data[2] = torch.nan
    with pytest.raises(reapx.NumericalError, match="activation at layer back, input channel 2"):
        reapx.prune(net.to(dtype), torch.randn(8, 3, 8, 8).to(dtype), budget=reapx.MACs(0.6))
