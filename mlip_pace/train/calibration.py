"""How the spread that least squares give becomes an interval that holds: by errors of structures that were held out.

σ^2 = a^2 s^2 + b^2 (`ace/uncertainty.py`). The ratio of a and b is that of largest likelihood for errors of Laplace's
distribution (their tails are long); then both are scaled so that 68 % of the held-out errors are within σ, and the half widths
of wider intervals are further quantiles of |error|/σ (conformal prediction: G. Shafer, V. Vovk, J. Mach. Learn. Res. 9, 371
(2008)). Errors are those of the folds of the cross-validation, so of whole structures and their groups. A force component that
symmetry makes zero says nothing, and does not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from mlip_pace.ace.uncertainty import ONE_SIGMA, Calibration, Scale
from mlip_pace.arrays import Array

SHARES = (ONE_SIGMA, 0.9, 0.95)  # of errors within an interval
SYMMETRIC = 1e-3  # of the root mean square of s: less is zero by symmetry
# Logarithms of slope and floor over what the medians say, at least: without any slope nothing would ever be uncertain.
LEAST = -2.0, -7.0
LOOKED_AT = 20_000  # values, about, that the likelihood is made of


@dataclass(frozen=True)
class Residuals:
    """|error| and s of held-out energies (eV/atom) and force components (eV/Å): (values, 2) each."""

    energies: Array
    forces: Array

    def __add__(self, other: Residuals) -> Residuals:
        return Residuals(np.concatenate([self.energies, other.energies]), np.concatenate([self.forces, other.forces]))


def calibrated(residuals: Residuals, groups: Sequence[str], weights: tuple[float, float], noise: float) -> Calibration | None:
    """The calibration by structures of these groups, with the weights of rows in the loss; None if they are too few."""
    scales = [scale(of, len(set(groups))) for of in (residuals.energies, residuals.forces)]
    if scales[0] is None or scales[1] is None or not noise > 0:
        return None
    return Calibration(scales[0], scales[1], len(residuals.energies), weights[0] / noise, weights[1] / noise)


def scale(residuals: Array, groups: int) -> Scale | None:
    """The scale of residuals (values, 2) of so many groups; None if they are too few for any interval.

    A share p needs as many groups that the largest error of one may be beyond it: p (groups + 1) <= groups.
    """
    shares = [share for share in SHARES if share * (groups + 1) <= groups]
    error, s = residuals[counting(residuals[:, 1])].T
    if not shares or not len(error) or not error.any():
        return None
    some = slice(None, None, math.ceil(len(error) / LOOKED_AT))
    unit, small = float(np.median(error) / np.median(s)), float(np.median(error))

    def misfit(x: Array) -> float:
        sigma = np.sqrt((unit * np.exp(x[0]) * s[some]) ** 2 + (small * np.exp(x[1])) ** 2)
        return float(np.mean(np.log(sigma) + error[some] / sigma))

    x = minimize(misfit, [0.0, -0.5], method="Nelder-Mead", bounds=[(LEAST[0], None), (LEAST[1], None)]).x
    plain = Scale(unit * float(np.exp(x[0])), small * float(np.exp(x[1])), {})
    ratios = np.sort(error / plain.sigma(s))
    places = [min(math.ceil(share * (len(ratios) + 1)), len(ratios)) - 1 for share in shares]
    one, *_ = widths = [float(ratios[place]) for place in places]
    return Scale(plain.slope * one, plain.floor * one, {share: w / one for share, w in zip(shares, widths, strict=True)})


def counting(s: Array) -> Array:
    """Which values of s are not zero by symmetry."""
    result: Array = s > SYMMETRIC * np.sqrt(np.mean(s**2))
    return result
