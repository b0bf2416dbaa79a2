"""How far energies and forces of a potential may be from DFT: intervals from the posterior of its coefficients.

The least squares A c = b leave the coefficients a covariance, ν A^-1, with the noise ν (the loss over the number of its rows),
so that an energy or force component with the row x (its derivatives by c) has the standard deviation s = (ν x A^-1 x)^(1/2)
(C. M. Bishop, Pattern Recognition and Machine Learning, section 3.3). It is large where the data say little, and ranks errors;
but it knows of noise alone and not of what the basis cannot describe, so it is many times too small. What is given is

    σ = (a^2 s^2 + b^2)^(1/2)

with a and b from structures that were held out (`train/calibration.py`), such that 68 % of their errors are within σ, and 90
and 95 % within the given multiples of it. Energies in eV, forces in eV/Å by component; b and s of energies are per atom. The
reference and E0 are taken as exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from scipy.linalg import cholesky, solve_triangular

from mlip_pace.ace import basis
from mlip_pace.ace.basis import BasisFile
from mlip_pace.ace.expansion import Expansion
from mlip_pace.arrays import Array

FILE = "potential.uncertainty.npy"  # beside potential.yaml, whose functions it is about
ONE_SIGMA = 0.68  # of the errors are within σ


@dataclass(frozen=True)
class Scale:
    """How s becomes σ: a, b (eV/atom or eV/Å), and by share of errors within an interval its half width in units of σ."""

    slope: float
    floor: float
    widths: dict[float, float]

    def sigma(self, s: Array) -> Array:
        return np.sqrt((self.slope * s) ** 2 + self.floor**2)


@dataclass(frozen=True)
class Calibration:
    """Of energies and of forces, how many structures were held out for it, and the weights of rows in the loss: that of
    (energy per atom)^2 of an average structure and that of a squared force component, divided by the noise.
    """

    energy: Scale
    forces: Scale
    structures: int
    energy_weight: float  # (eV/atom)^-2
    forces_weight: float  # (eV/Å)^-2


def factor(matrix: Array, noise: float) -> Array:
    """F, lower triangular, with ν A^-1 = F^T F, so that s = |F x|."""
    inverse = solve_triangular(cholesky(matrix, lower=True), np.eye(len(matrix)), lower=True)
    result: Array = np.sqrt(noise) * inverse
    return result


def save(path: Path, whole: Array) -> None:
    """Write the triangle of a factor, row by row, in single precision: 0.5 MB for 500 functions."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        np.save(file, whole[np.tril_indices(len(whole))].astype(np.float32))
    part.replace(path)


def load(path: Path) -> Array:
    """The factor of a file, (functions, functions)."""
    packed = np.load(path)
    whole = np.zeros((int(np.sqrt(2 * len(packed))),) * 2)
    whole[np.tril_indices(len(whole))] = packed
    return whole


@dataclass(frozen=True)
class Uncertainty:
    """σ of any structure of the elements that the potential knows."""

    expansion: Expansion
    factor: Array
    calibration: Calibration

    @classmethod
    def of(cls, folder: Path, calibration: Calibration) -> Uncertainty:
        """That of the files `potential.yaml` and FILE of a folder."""
        return cls(basis.expansion(BasisFile(folder / "potential.yaml")), load(folder / FILE), calibration)

    def __call__(self, atoms: Atoms) -> tuple[float, Array]:
        """σ of the energy (eV) and of the forces (n, 3)."""
        return next(self.of_many([atoms]))

    def of_many(self, structures: Sequence[Atoms]) -> Iterator[tuple[float, Array]]:
        for atoms, s in zip(structures, spreads(self.expansion, self.factor, structures), strict=True):
            energy = len(atoms) * float(self.calibration.energy.sigma(s[:1] / len(atoms))[0])
            yield energy, self.calibration.forces.sigma(s[1:]).reshape(-1, 3)


def spreads(expansion: Expansion, whole: Array, structures: Sequence[Atoms]) -> Iterator[Any]:
    """s of energy and forces of each structure: (1 + 3 n,), eV and eV/Å."""
    for of_c, _ in expansion.rows(structures):
        yield np.linalg.norm(of_c @ whole.T, axis=1)
