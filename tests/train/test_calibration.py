"""Intervals from held-out errors: what they cover of errors that they have not seen."""

import numpy as np
import pytest

from mlip_pace.train import calibration
from mlip_pace.train.calibration import Residuals


def residuals(rng, count, slope=8.0, floor=0.02, tails=False):
    s = np.exp(rng.normal(-5, 1, count))
    width = np.sqrt((slope * s) ** 2 + floor**2)
    errors = rng.laplace(scale=width) if tails else rng.normal(scale=width)
    return np.column_stack([np.abs(errors), s])


@pytest.mark.parametrize("tails", [False, True])
def test_new_errors_are_within_the_intervals_as_often_as_they_say(tails):
    rng = np.random.default_rng(0)
    scale = calibration.scale(residuals(rng, 5000, tails=tails), 100)
    error, s = residuals(rng, 20000, tails=tails).T
    for small in (s < 0.003, s > 0.01):  # whether the data say much or little
        for share, width in scale.widths.items():
            assert np.mean(error[small] <= width * scale.sigma(s[small])) == pytest.approx(share, abs=0.04)
    assert scale.widths[0.68] == 1
    if not tails:  # 0.994 of a normal distribution is what 68 % are within
        assert scale.slope == pytest.approx(8.0, rel=0.1)
        assert scale.floor == pytest.approx(0.02, rel=0.1)
        assert scale.widths[0.95] == pytest.approx(1.97, abs=0.1)


def test_few_groups_give_only_the_intervals_that_they_can():
    some = residuals(np.random.default_rng(1), 200)
    assert calibration.scale(some, 2) is None
    assert list(calibration.scale(some, 3).widths) == [0.68]
    assert list(calibration.scale(some, 9).widths) == [0.68, 0.9]
    assert list(calibration.scale(some, 19).widths) == [0.68, 0.9, 0.95]


def test_what_is_zero_by_symmetry_changes_nothing():
    some = residuals(np.random.default_rng(2), 500)
    with_zeros = np.concatenate([some, np.column_stack([np.zeros(500), np.full(500, 1e-12)])])
    assert calibration.scale(with_zeros, 50) == calibration.scale(some, 50)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_what_is_zero_by_symmetry_is_so_in_any_unit(unit):
    s = unit * np.array([1.0, 0.5, 0.2, 1e-2, 1e-9, 0.0])
    assert calibration.counting(s).tolist() == [True, True, True, True, False, False]


def test_too_few_structures_give_no_calibration():
    some = residuals(np.random.default_rng(3), 30)
    both = Residuals(some, some)
    assert calibration.calibrated(both, ["a", "b"] * 15, (1.0, 1.0), 0.1) is None
    found = calibration.calibrated(both, [str(n) for n in range(30)], (0.5, 0.25), 0.1)
    assert (found.energy_weight, found.forces_weight, found.structures) == pytest.approx((5.0, 2.5, 30))
