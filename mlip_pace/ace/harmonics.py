"""Spherical harmonics and their gradients, as pyace has them: real and imaginary parts of √4π Y_lm, m >= 0."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.polynomial import Legendre, Polynomial

from mlip_pace.arrays import Array, Integers


@cache
def _legendre(lmax: int) -> tuple[Integers, Integers, Array, Array]:
    """l and m >= 0 (lm,), and the coefficients (power of z, lm) of √4π Y_lm/(x + iy)^m and of its derivative by z."""
    pairs = [(l, m) for l in range(lmax + 1) for m in range(l + 1)]  # noqa: E741
    tables = np.zeros((2, lmax + 1, len(pairs)))
    for n, (l, m) in enumerate(pairs):  # noqa: E741
        norm = math.sqrt((2 * l + 1) * math.factorial(l - m) / math.factorial(l + m))
        polynomial = norm * Legendre.basis(l).deriv(m).convert(kind=Polynomial)
        for table, made in zip(tables, (polynomial, polynomial.deriv()), strict=True):
            table[: len(made.coef), n] = made.coef
    l, m = np.array(pairs).T  # noqa: E741
    return l, m, *tables


def harmonics(directions: Array, lmax: int) -> tuple[Array, Array]:
    """√4π Y_lm at unit vectors (n, 3): values (n, lm) and gradients on the unit sphere (n, 3, lm).

    lm runs over l, and for each l over m = 0, Re 1, Im 1, Re 2, ...: l^2 .. (l + 1)^2 - 1.
    """
    l, m, table, slopes = _legendre(lmax)  # noqa: E741
    x, y, z = directions.T
    powers, around = np.vander(z, lmax + 1, increasing=True), np.vander(x + 1j * y, lmax + 1, increasing=True)
    legendre, along, lower = powers @ table, around[:, m], m * around[:, np.maximum(m - 1, 0)]
    by_x = legendre * lower
    complex_ = np.stack([legendre * along, by_x, 1j * by_x, (powers @ slopes) * along], axis=1)
    real = np.empty((len(directions), 4, (lmax + 1) ** 2))
    real[:, :, l**2 + np.maximum(2 * m - 1, 0)] = complex_.real
    real[:, :, (l**2 + 2 * m)[m > 0]] = complex_.imag[:, :, m > 0]
    cartesian = real[:, 1:]
    outward = (directions[:, None, :] @ cartesian)[:, 0]
    return real[:, 0], cartesian - directions[:, :, None] * outward[:, None, :]
