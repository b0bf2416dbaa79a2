"""What the data say of energy and volume at any composition, and so of what a structure unlike them may have at least.

Of each composition the bulk structure of lowest energy gives a curve of energy against volume: that of Birch and Murnaghan
(F. Birch, Phys. Rev. 71, 809 (1947)) with B' = 4 below its volume, constant above. Between the compositions of the data
energies, volumes and bulk moduli are mixed as on the convex hull of the energies, with UNSEEN off the energy, since a compound
that the data do not have may be more stable than what they have; beyond them nothing is known.
Energies are relative to the sum of E0, in eV/atom; volumes in Å^3/atom; bulk moduli in eV/Å^3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from ase import Atoms
from scipy.optimize import linprog

from mlip_pace.arrays import Array
from mlip_pace.collect.cells import is_bulk
from mlip_pace.collect.dataset import ATOMS, ENERGY, ENERGY_ATOMS
from mlip_pace.collect.geometry import composition

STRAINS = (-0.02, -0.01, 0.0, 0.01, 0.02)  # of lengths, from which the bulk modulus comes
SOFTEST, STIFFEST = 0.005, 4.0  # eV/Å^3 (0.8 and 640 GPa), that a modulus is kept between
UNSEEN = 0.5  # eV/atom

Energy = Callable[[Atoms], float]  # of a structure, relative to E0 (eV)


@dataclass(frozen=True)
class Curve:
    """Energy against volume."""

    energy: float  # the lowest, eV/atom
    volume: float  # where it is, Å^3/atom
    modulus: float  # eV/Å^3

    def above(self, volume: float) -> float:
        """Energy at a volume (Å^3/atom) above the lowest, eV/atom."""
        strain = max((self.volume / volume) ** (2 / 3) - 1, 0.0)
        return float(9 / 8 * self.volume * self.modulus * strain**2)

    def pressure(self, volume: float) -> float:
        """-∂E/∂V at a volume below that of the lowest energy, eV/Å^3."""
        ratio = self.volume / volume
        return float(3 / 2 * self.modulus * (ratio ** (7 / 3) - ratio ** (5 / 3)))


@dataclass(frozen=True)
class Ground:
    """The bulk structures of lowest energy, one of each composition, and their curves."""

    structures: list[Atoms]
    curves: list[Curve]

    @property
    def elements(self) -> list[str]:
        return sorted({symbol for atoms in self.structures for symbol in atoms.symbols})

    def curve(self, symbols: Sequence[str]) -> Curve | None:
        """That of a composition, if it is one of the data or between them."""
        vertices = np.array([self.content(list(atoms.symbols)) for atoms in self.structures])
        content, energies = self.content(symbols), np.array([curve.energy for curve in self.curves])
        seen = np.flatnonzero(np.abs(vertices - content).max(axis=1) < 1e-9)
        if len(seen):
            return self.curves[int(seen[0])]
        mixed = linprog(energies, A_eq=vertices.T, b_eq=content, bounds=(0, None))
        if not mixed.success:
            return None
        volume, modulus = (float(mixed.x @ [getattr(curve, name) for curve in self.curves]) for name in ("volume", "modulus"))
        return Curve(float(mixed.fun) - UNSEEN, volume, modulus)

    def content(self, symbols: Sequence[str]) -> Array:
        """Shares of the elements."""
        return np.array([list(symbols).count(element) / len(symbols) for element in self.elements])


def ground(train: pd.DataFrame, energy: Energy) -> Ground:
    """What the structures to train on (columns of `reference.delta`) say; bulk moduli are those of `energy`."""
    cohesive = (train[ENERGY] - train[ENERGY_ATOMS]) / train[ATOMS].map(len)
    structures, curves = [], []
    for _, alike in cohesive.groupby(train[ATOMS].map(composition)):
        lowest = next((n for n in alike.sort_values(kind="stable").index if is_bulk(train[ATOMS][n])), None)
        if lowest is not None:
            atoms = train[ATOMS][lowest]
            structures.append(atoms)
            volume = float(atoms.cell.volume) / len(atoms)
            curves.append(Curve(float(cohesive[lowest]), volume, _modulus(atoms, energy)))
    return Ground(structures, curves)


def _modulus(atoms: Atoms, energy: Energy) -> float:
    """V ∂²E/∂V² by a parabola in the logarithm of the length, which it is a ninth of the curvature in."""
    energies = [energy(strained(atoms, np.eye(3) * (1 + strain))) for strain in STRAINS]
    curvature = 2 * float(np.polyfit(np.log1p(STRAINS), energies, 2)[0])
    return float(np.clip(curvature / (9 * atoms.cell.volume), SOFTEST, STIFFEST))


def strained(atoms: Atoms, deformation: Array) -> Atoms:
    """The structure with all places and cell vectors r as r @ deformation (3, 3)."""
    moved: Atoms = atoms.copy()
    moved.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    return moved
