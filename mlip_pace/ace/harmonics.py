"""Spherical harmonics as pyace has them: tables for real and imaginary parts of √4π Y_lm, m >= 0 (`kernels.bond_functions`).

Values are numbered by l, and for each l by m = 0, Re 1, Im 1, Re 2, ...: l^2 .. (l + 1)^2 - 1.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.polynomial import Legendre, Polynomial

from mlip_pace.arrays import Array, Integers


@cache
def tables(lmax: int) -> tuple[Integers, Integers, Array, Array]:
    """l and m >= 0 (lm,), and the coefficients (power of z, lm) of √4π Y_lm/(x + iy)^m and of its derivative by z."""
    pairs = [(l, m) for l in range(lmax + 1) for m in range(l + 1)]  # noqa: E741
    made = np.zeros((2, lmax + 1, len(pairs)))
    for n, (l, m) in enumerate(pairs):  # noqa: E741
        norm = math.sqrt((2 * l + 1) * math.factorial(l - m) / math.factorial(l + m))
        polynomial = norm * Legendre.basis(l).deriv(m).convert(kind=Polynomial)
        for table, of in zip(made, (polynomial, polynomial.deriv()), strict=True):
            table[: len(of.coef), n] = of.coef
    l, m = np.ascontiguousarray(np.transpose(pairs))  # noqa: E741
    return l, m, *made
