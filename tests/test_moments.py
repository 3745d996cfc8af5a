"""Moments of convolutions over three axes, and damping of several moments together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reapx
from reapx import _native
from reapx.moments.moments import Moments, damp

F64 = torch.float64


def test_only_what_failed_is_damped_more() -> None:
    """Of three matrices one is definite at once, one when damped more, and one never."""
    grams = [torch.eye(4, dtype=F64) for _ in range(3)]
    grams[1][2, 2] = -0.03
    grams[2][3, 3] = -1e6
    moments = [Moments(gram, torch.zeros(4, dtype=F64), 10) for gram in grams]
    for own in moments:
        own.largest_ridge = 1.0
    bases = [torch.zeros_like(gram) for gram in grams]
    tried: list[list[int]] = []
    used = [0.0] * 3

    def invert(indices: list[int], ridges: list[float]) -> list[int]:
        tried.append(indices)
        for i, ridge in zip(indices, ridges, strict=True):
            used[i] = ridge
        return _native.basis_compute([grams[i] for i in indices], ridges, [bases[i] for i in indices])

    for own in moments:
        own.noise = 1e-2
    assert damp(moments, 1e-2, invert) == [-1, -1, 3]
    assert tried[0] == [0, 1, 2] and tried[-1] == [2]
    assert 1e-2 <= used[0] < used[1] < used[2]
    for i in (0, 1):
        assert torch.allclose(bases[i] @ (grams[i] + used[i] * torch.eye(4, dtype=F64)), torch.eye(4, dtype=F64))


def test_nothing_to_damp() -> None:
    assert damp([], 1e-2, lambda indices, ridges: pytest.fail("called")) == []


def patches(layer: nn.Conv3d, x: Tensor, group: int) -> Tensor:
    """(rows, features) of one conv group in float64, each feature by a convolution with a kernel of one tap."""
    inputs = layer.in_channels // layer.groups
    x = x[:, group * inputs : (group + 1) * inputs].double()
    taps = inputs * layer.weight[0, 0].numel()
    kernels = torch.eye(taps, dtype=F64).reshape(taps, inputs, *layer.kernel_size)
    y = F.conv3d(x, kernels, None, layer.stride, layer.padding, layer.dilation)
    return y.movedim(1, -1).flatten(0, -2)


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        (3, {"padding": 1}),
        ((1, 3, 2), {"stride": (1, 2, 1)}),
        ((2, 1, 1), {"stride": (3, 1, 2), "padding": (2, 0, 0)}),
        ((3, 2, 3), {"dilation": (2, 1, 2), "padding": (2, 0, 1), "stride": (2, 1, 1)}),
        ((3, 1, 3), {"groups": 2, "padding": "same", "dilation": (1, 1, 2)}),
        ((2, 2, 2), {"groups": 2}),
    ],
)
def test_three_axes(kernel: int | tuple[int, int, int], options: dict[str, Any]) -> None:
    """Against the patches themselves."""
    torch.manual_seed(0)
    layer = nn.Conv3d(4, 8, kernel, **options)
    model = nn.Sequential(
        nn.Conv3d(2, 4, 1), nn.ReLU(), layer, nn.ReLU(), nn.Flatten(2), nn.AdaptiveAvgPool1d(1)
    ).eval()
    images = torch.randn(5, 2, 6, 7, 8)
    found = reapx.measure(reapx.inspect(model, images), progress=False)["2.weight"]
    with torch.no_grad():
        rows = [patches(layer, model[:2](images), group) for group in range(layer.groups)]
    for own, x in zip(found, rows, strict=True):
        bound = len(x) * torch.finfo(torch.float32).eps * float(x.abs().max()) ** 2
        assert own.rows == len(x) and (own.gram - x.T @ x).abs().max() <= bound
        assert (own.total - x.sum(0)).abs().max() <= bound


def test_a_channel_of_a_volume_that_is_not_finite_is_named() -> None:
    model = nn.Sequential(nn.Conv3d(2, 4, 1), nn.Conv3d(4, 4, 3), nn.Flatten(), nn.LazyLinear(2)).eval()
    images = torch.randn(3, 2, 4, 4, 4)
    model(images)
    with torch.no_grad():
        model[0].bias[2] = torch.inf
    with pytest.raises(reapx.NumericalError, match="layer 1, input channel 2"):
        reapx.inspect(model, images)
