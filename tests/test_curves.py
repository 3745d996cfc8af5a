"""Error curves between measured widths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import reapx
from reapx.allocation.curves import fit_curve
from reapx.allocation.pro_runs import _counts

STEPS = np.array([0.0, 0.0, 0.01, 0.02, 0.05, 0.1, 0.4, 0.42])
PATH = np.concatenate([[0.0], np.cumsum(STEPS)])


def test_goes_through_its_measured_points() -> None:
    measured = [(7, 0.9), (4, 0.02), (5, 0.2)]
    curve = fit_curve(STEPS, measured)
    for count, error in measured:
        assert curve.errors[count] == pytest.approx(error)
        assert curve.by_width[len(STEPS) - count] == pytest.approx(error)
    assert sorted(curve.measured) == sorted(measured)


def test_is_proportional_to_the_path_with_one_point() -> None:
    curve = fit_curve(STEPS, [(5, 0.7)])
    assert curve.errors == pytest.approx(PATH * 0.7 / PATH[5])


def test_is_proportional_to_the_path_outside_its_points() -> None:
    curve = fit_curve(STEPS, [(4, 0.02), (6, 0.3)])
    assert curve.errors[3] == pytest.approx(0.02 * PATH[3] / PATH[4])
    assert curve.errors[8] == pytest.approx(0.3 * PATH[8] / PATH[6])
    between = np.log(curve.errors[5] / 0.02) / np.log(0.3 / 0.02)
    assert between == pytest.approx(np.log(PATH[5] / PATH[4]) / np.log(PATH[6] / PATH[4]))


def test_is_zero_where_the_path_is_zero() -> None:
    curve = fit_curve(STEPS, [(5, 0.7), (7, 0.9)])
    assert (curve.errors[:3] == 0).all() and (curve.errors[3:] > 0).all()
    assert (fit_curve(STEPS * 0, [(5, 0.7)]).errors == 0).all()


def test_never_falls_even_where_measured_errors_do() -> None:
    for measured in ([(4, 0.5), (6, 0.1)], [(3, 1e-9), (5, 3.0), (8, 1e-5)]):
        curve = fit_curve(STEPS, measured)
        assert (np.diff(curve.errors) >= 0).all() and np.isfinite(curve.errors).all()
        assert curve.errors[measured[-2][0]] == pytest.approx(measured[-2][1])


def test_starts_at_zero_where_units_have_left_before() -> None:
    curve = fit_curve(STEPS, [(6, 0.3)], start=4)
    assert (curve.errors[:5] == 0).all()
    assert curve.errors[5:] == pytest.approx(0.3 * (PATH[5:] - PATH[4]) / (PATH[6] - PATH[4]))


@pytest.mark.parametrize("measured", [[], [(5, 0.0)], [(5, -1e-3)], [(1, 0.5)]])
def test_nothing_that_says_anything_gives_zero(measured: list[tuple[int, float]]) -> None:
    assert (fit_curve(STEPS, measured).errors == 0).all()


def test_extreme_errors_stay_finite() -> None:
    curve = fit_curve(np.array([1e-300, 1e-12, 1.0]), [(1, 1e-12), (3, 2.0)])
    assert np.isfinite(curve.errors).all() and (np.diff(curve.errors) >= 0).all()


def test_more_points_than_widths_measure_every_width() -> None:
    """So many that their list alone would fill the memory."""
    group = reapx.inspect(
        nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 2)).eval(), torch.randn(9, 4)
    ).groups[0]
    assert _counts(group, np.arange(1, 13), 0, 10**12, np.ones(12)) == list(range(1, 12))
