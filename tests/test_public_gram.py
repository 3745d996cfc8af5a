"""reapx.kernels.gram_matrix and the moments it returns, against rows that are written out in float64."""

from __future__ import annotations

import kernels
import pytest
import reference
import torch
import torch.nn.functional as F

from reapx._native import Window
from reapx.kernels import gram_matrix, least_squares

F64 = torch.float64
DEVICES = pytest.mark.parametrize("device", kernels.DEVICES)

WINDOWS = [
    Window(),
    Window((3, 3), (1, 1), (1, 1)),
    Window((3, 3), (2, 2), (1, 1)),
    Window((2, 3), (1, 2), (0, 1), (2, 1), 2),
    Window((5, 5), (1, 1), (2, 2), (1, 1), 4),
]


@DEVICES
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_gram_matrix_of_a_convolution(window: Window, device: str) -> None:
    x = torch.randn(3, 4, 9, 8)
    weight = torch.randn(8, 4 // window.groups, *window.kernel)
    y = F.conv2d(x, weight, None, window.stride, window.padding, window.dilation, window.groups)
    found = gram_matrix(
        x.to(device), window.kernel, window.stride, window.padding, window.dilation, window.groups, y.to(device)
    )
    wanted = reference.gram_accumulate(x, window, (y.shape[2], y.shape[3]), y)
    bounds = reference.gram_bounds(x, y)
    for name, value in wanted.items():
        own = getattr(found, name)
        assert own.dtype == F64 and own.device.type == device
        shape = (window.groups, *value.reshape(window.groups, -1).shape[1:]) if value.dim() == 1 else value.shape
        assert own.shape == (shape[1:] if window.groups == 1 else shape)
        assert float((own.cpu().flatten() - value.flatten()).abs().max()) <= bounds[name]
    assert found.rows == y.shape[0] * y.shape[2] * y.shape[3]
    assert torch.equal(found.gram, found.gram.mT)


def test_pairs_may_be_single_numbers_and_rows_are_those_of_unfold() -> None:
    x = torch.randn(2, 3, 7, 6)
    found = gram_matrix(x, 3, 2, 1)
    assert torch.equal(found.gram, gram_matrix(x, (3, 3), (2, 2), (1, 1)).gram)
    rows = F.unfold(x.to(F64), 3, padding=1, stride=2).mT.flatten(0, 1)
    assert float((found.gram - rows.T @ rows).abs().max()) <= reference.gram_bounds(x, x)["gram"]
    assert found.rows == len(rows) and found.cross is None


@DEVICES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gram_matrix_of_a_matrix(dtype: torch.dtype, device: str) -> None:
    x, y = torch.randn(300, 5).to(dtype), torch.randn(300, 3).to(dtype)
    found = gram_matrix(x.to(device), target=y.to(device))
    bounds = reference.gram_bounds(x[:, :, None, None], y[:, :, None, None])
    a, b = x.to(F64), y.to(F64)
    wanted = {"gram": a.T @ a, "total": a.sum(0), "cross": b.T @ a, "target_square": b.square().sum(0)}
    for name, value in wanted.items():
        assert float((getattr(found, name).cpu() - value).abs().max()) <= bounds[name]
    assert found.rows == 300


def test_batches_add_up() -> None:
    x, y = torch.randn(6, 4, 5, 5), torch.randn(6, 2, 5, 5)
    whole = gram_matrix(x, 3, padding=1, target=y)
    parts = gram_matrix(x[:2], 3, padding=1, target=y[:2]) + gram_matrix(x[2:], 3, padding=1, target=y[2:])
    assert parts.rows == whole.rows
    for name, bound in reference.gram_bounds(x, y).items():
        assert float((getattr(parts, name) - getattr(whole, name)).abs().max()) <= 2 * bound


def test_no_rows_add_nothing() -> None:
    none, some = gram_matrix(torch.empty(0, 3)), gram_matrix(torch.randn(9, 3))
    assert none.rows == 0 and not none.gram.any() and not none.centred().gram.any()
    assert torch.equal((none + some).gram, some.gram)


@pytest.mark.parametrize("groups", [1, 2])
def test_moments_about_the_mean_fit_an_intercept(groups: int) -> None:
    x, y = torch.randn(400, 6) + 2, torch.randn(400, 4) - 1
    sums = gram_matrix(x, groups=groups, target=y)
    bound = sum(reference.gram_bounds(x[:, :, None, None], y[:, :, None, None]).values())
    pairs = zip(sums.split(), sums.centred().split(), x.chunk(groups, 1), y.chunk(groups, 1), strict=True)
    for own, about, a, b in pairs:
        a, b = a.to(F64), b.to(F64)
        inner, outer = a - a.mean(0), b - b.mean(0)
        assert float((about.gram - inner.T @ inner).abs().max()) <= 4 * bound
        assert float((about.target_square - outer.square().sum(0)).abs().max()) <= 4 * bound
        assert not about.total.any() and not about.target_total.any() and about.centred() is about
        weight = least_squares(about.gram, about.cross)
        intercept = (own.target_total - weight @ own.total) / own.rows
        ones = torch.cat([a, torch.ones(len(a), 1, dtype=F64)], 1)
        wanted = torch.linalg.lstsq(ones, b).solution.T
        assert float((torch.cat([weight, intercept[:, None]], 1) - wanted).abs().max()) <= 1e-3  # float32 products
