"""zero_scan against torch's own maxima: exact, so every comparison is for equality."""

from __future__ import annotations

import kernels
import pytest
import torch
from torch import Tensor

from reapx import _native

SHAPES = [
    (0, 3, 1),
    (3, 0, 9),
    (3, 4, 0),
    (0, 0, 0),
    (1, 1, 1),
    (4, 3, 9),
    (5, 7, 9),
    (3, 17, 1),
    (9, 33, 4),
    (8, 16, 1),
    (31, 5, 25),
    (2, 1, 70),
    (3, 4097, 1),
    (6, 456, 9),
    (700, 3300, 1),
]


def maximum(weight: Tensor, axes: tuple[int, ...], size: int) -> Tensor:
    return weight.abs().amax(axes) if weight.numel() else torch.zeros(size)


def check(weight: Tensor, found: tuple[Tensor, Tensor]) -> None:
    rows, columns = found
    others = tuple(range(2, weight.dim()))
    assert torch.equal(rows, maximum(weight, (1, *others), weight.shape[0]))
    assert torch.equal(columns, maximum(weight, (0, *others), weight.shape[1]))


@pytest.mark.parametrize("core", kernels.CORES)
def test_sizes(core: str) -> None:
    weights = [torch.randn(shape) for shape in SHAPES]
    for weight, found in zip(weights, kernels.zero_scan(weights, core=core), strict=True):
        check(weight, found)


@pytest.mark.parametrize("core", kernels.CORES)
def test_every_place_counts(core: str) -> None:
    """One weight that is not zero, in each place: the only row and the only column with a maximum."""
    weight = torch.zeros(6, 5, 9)
    for i in range(weight.numel()):
        weight.view(-1)[i] = -1e-42  # subnormal
        ((rows, columns),) = kernels.zero_scan([weight], core=core)
        assert rows.nonzero().flatten().tolist() == [i // 45]
        assert columns.nonzero().flatten().tolist() == [i // 9 % 5]
        weight.view(-1)[i] = -0.0
    ((rows, columns),) = kernels.zero_scan([weight], core=core)
    assert not rows.signbit().any() and not columns.signbit().any()


@pytest.mark.parametrize("core", kernels.CORES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_nan_is_never_zero(sign: float, core: str) -> None:
    """NaN of either sign, beside infinities and elsewhere."""
    nan = torch.copysign(torch.tensor(torch.nan), torch.tensor(sign))
    for place in [(0, 0, 0), (4, 16, 3), (8, 18, 3), (3, 7, 1)]:
        weight = torch.zeros(9, 19, 4)
        weight[place[0]] = torch.inf
        weight[place] = nan
        ((rows, columns),) = kernels.zero_scan([weight], core=core)
        assert rows.isnan().nonzero().flatten().tolist() == [place[0]]
        assert columns.isnan().nonzero().flatten().tolist() == [place[1]]
        assert int((rows == 0).sum()) == 8
        assert int((columns == torch.inf).sum()) == 18


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3), (6, 5, 3, 3), (4, 2, 3, 1, 2)])
def test_any_number_of_axes(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, requires_grad=True)
    (found,) = _native.zero_scan([weight])
    check(weight.detach(), found)


def test_threads_do_not_change_a_bit() -> None:
    weights = [torch.randn(shape) for shape in [(1500, 3000, 1), (64, 3, 9), (300, 900, 9), (10, 64, 1)]]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append([t for pair in _native.zero_scan(weights) for t in pair])
    for weight, found in zip(weights, zip(results[0][::2], results[0][1::2], strict=True), strict=True):
        check(weight, found)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_nothing_to_scan() -> None:
    assert _native.zero_scan([]) == []
