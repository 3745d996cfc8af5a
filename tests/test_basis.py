"""basis_compute against the inverse."""

from __future__ import annotations

import kernels
import pytest
import reference
import torch
from torch import Tensor

from reapx import _native

F64 = torch.float64
EPS = torch.finfo(F64).eps
SIZES = [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 129, 255, 257, 600]


def random_gram(size: int) -> Tensor:
    x = torch.randn(2 * size + 3, size, dtype=F64)
    return x.T @ x


def check(gram: Tensor, ridge: float, basis: Tensor) -> None:
    damped = gram + ridge * torch.eye(len(gram), dtype=F64)
    if len(gram) == 0:
        return
    bound = 10 * len(gram) * EPS * float(torch.linalg.cond(damped))
    want = reference.basis_compute(gram, ridge)
    assert (basis - want).norm() <= bound * want.norm()
    assert torch.equal(basis, basis.T)


@pytest.mark.parametrize("core", kernels.CORES)
def test_sizes(core: str) -> None:
    grams = [random_gram(size) for size in SIZES]
    bases = [torch.empty_like(gram) for gram in grams]
    ridges = [0.1 * i for i in range(len(grams))]
    assert kernels.basis_compute(grams, ridges, bases, core=core) == [-1] * len(grams)
    for gram, ridge, basis in zip(grams, ridges, bases, strict=True):
        check(gram, ridge, basis)


def test_large_and_small_together_and_threads_do_not_change_a_bit() -> None:
    grams = [random_gram(size) for size in (40, 450, 17, 800)]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        bases = [torch.empty_like(gram) for gram in grams]
        assert _native.basis_compute(grams, [0.0] * 4, bases) == [-1] * 4
        results.append(bases)
    for gram, basis in zip(grams, results[0], strict=True):
        check(gram, 0.0, basis)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("core", kernels.CORES)
@pytest.mark.parametrize(("size", "copy"), [(2, 1), (20, 13), (70, 69), (200, 64), (400, 399)])
def test_first_dependent_column_is_named(size: int, copy: int, core: str) -> None:
    x = torch.randn(3 * size, size, dtype=F64)
    x[:, copy] = x[:, 0]
    gram = x.T @ x
    basis = torch.full_like(gram, 7.0)
    assert kernels.basis_compute([gram], [0.0], [basis], core=core) == [copy]
    assert bool((basis == 7.0).all())
    assert kernels.basis_compute([gram], [1.0], [basis], core=core) == [-1]
    check(gram, 1.0, basis)


@pytest.mark.parametrize("core", kernels.CORES)
def test_only_the_upper_triangle_is_read(core: str) -> None:
    gram = random_gram(150)
    basis = torch.empty_like(gram)
    given = gram.triu() + torch.full_like(gram, float("nan")).tril(-1)
    assert kernels.basis_compute([given], [0.5], [basis], core=core) == [-1]
    check(gram, 0.5, basis)


@pytest.mark.parametrize("core", kernels.CORES)
def test_company_does_not_change_a_bit(core: str) -> None:
    grams = [random_gram(size) for size in (30, 64, 330, 7, 200, 330, 65)]
    for broken, copy in ((1, 40), (2, 300), (4, 70)):
        grams[broken][copy], grams[broken][:, copy] = grams[broken][0], grams[broken][:, 0]
        grams[broken][copy, copy] = grams[broken][0, 0]
    together = [torch.full_like(gram, 7.0) for gram in grams]
    assert kernels.basis_compute(grams, [0.0] * 7, together, core=core) == [-1, 40, 300, -1, 70, -1, -1]
    for gram, basis in zip(grams, together, strict=True):
        alone = torch.full_like(gram, 7.0)
        kernels.basis_compute([gram], [0.0], [alone], core=core)
        assert torch.equal(basis, alone)
    check(grams[5], 0.0, together[5])


@pytest.mark.parametrize("core", kernels.CORES)
@pytest.mark.parametrize(("value", "index"), [(0.0, 3), (float("nan"), 3), (float("inf"), 3)])
def test_dead_or_broken_pivot(value: float, index: int, core: str) -> None:
    gram = torch.eye(9, dtype=F64)
    gram[index, index] = value
    failed = kernels.basis_compute([gram], [0.0], [torch.empty_like(gram)], core=core)[0]
    assert failed >= 0
    assert failed == index or value != 0.0


@pytest.mark.parametrize("core", kernels.CORES)
def test_nothing_to_do(core: str) -> None:
    assert kernels.basis_compute([], [], [], core=core) == []
