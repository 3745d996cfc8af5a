"""Damping of several moments together."""

from __future__ import annotations

import pytest
import torch

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
