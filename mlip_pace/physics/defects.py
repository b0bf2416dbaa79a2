"""Vacancies and surfaces of elements.

A vacancy costs E(N - 1) - (N - 1)/N E(N), the atoms relaxed in the cell of the perfect crystal; eV. A surface costs
(E_slab - N E_bulk/atom)/(2 A), the atoms relaxed, without reconstruction; J/m^2 (1 eV/Å^2 = 16.0218 J/m^2). Of compounds both
depend on the chemical potentials of the elements, so that there is no one number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import surface

from mlip_pace.arrays import Array
from mlip_pace.physics.crystals import SAME_PLACE, Crystal, LeftOutError, energy_of, in_time, relaxed, repeated, symmetry_of

LENGTH, MOST_ATOMS = 10.0, 1000  # Å of a supercell at least; atoms at most
FORCES = 1e-2  # eV/Å
THICK, VACUUM = 15.0, 8.0  # Å of a slab at least; on either side of it
FACETS = {"cubic": ((1, 0, 0), (1, 1, 0), (1, 1, 1)), "hexagonal": ((0, 0, 1), (1, 0, 0))}
SITES = 4  # inequivalent ones at most
COMPOUND = "of a compound it depends on the chemical potentials of the elements"


@dataclass(frozen=True)
class Vacancy:
    """What the removal of an atom costs: its place (site symmetry), atoms of the perfect supercell, relaxed and not, eV."""

    site: str
    atoms: int
    energy: float
    unrelaxed: float


@dataclass(frozen=True)
class Facet:
    """A surface: Miller indices of the conventional cell, atoms and thickness (Å) of the slab, energies in J/m^2."""

    indices: tuple[int, int, int]
    atoms: int
    thickness: float
    energy: float
    unrelaxed: float


def vacancies(crystal: Crystal, calculator: Any, deadline: float = math.inf) -> list[Vacancy]:
    """One for each inequivalent place of an element. Raises `LeftOutError`."""
    cell = _element(crystal)
    perfect = repeated(cell, LENGTH)
    if len(perfect) > MOST_ATOMS:
        raise LeftOutError(f"a supercell of {LENGTH:g} Å would have {len(perfect)} atoms")
    whole, found = energy_of(perfect, calculator), []
    for place, site in _places(cell):
        without = perfect.copy()
        del without[place]
        share = len(without) / len(perfect) * whole
        unrelaxed = energy_of(without, calculator) - share
        energy = energy_of(relaxed(without, calculator, deadline, fmax=FORCES), calculator) - share
        found.append(Vacancy(site, len(perfect), energy, unrelaxed))
    return found


def surfaces(crystal: Crystal, calculator: Any, deadline: float = math.inf) -> list[Facet]:
    """The low-index facets of a cubic or hexagonal element. Raises `LeftOutError`."""
    cell = _element(crystal)
    if crystal.system not in FACETS:
        raise LeftOutError(f"it is {crystal.system}: facets are those of cubic and hexagonal crystals")
    bulk = energy_of(cell, calculator) / len(cell)
    return [_facet(cell, indices, bulk, calculator, deadline) for indices in FACETS[crystal.system]]


def surface_energy(slab: Atoms, energy: float, bulk: float, normal: int = 2) -> float:
    """J/m^2 of a slab with vacuum along one cell vector, from its energy (eV) and that of an atom of the bulk (eV)."""
    first, second = (slab.cell[n] for n in range(3) if n != normal)
    area = float(np.linalg.norm(np.cross(first, second)))
    return float((energy - len(slab) * bulk) / (2 * area) / units.J * units.m**2)


def _facet(cell: Atoms, indices: tuple[int, int, int], bulk: float, calculator: Any, deadline: float) -> Facet:
    """Of all cuts between layers of atoms the one of lowest energy before it relaxes."""
    slabs = []
    for slab in _cuts(cell, indices):
        in_time(deadline)
        slabs.append((surface_energy(slab, energy_of(slab, calculator), bulk), slab))
    unrelaxed, slab = min(slabs, key=lambda one: one[0])
    last = relaxed(slab, calculator, deadline, fmax=FORCES)
    energy = surface_energy(last, energy_of(last, calculator), bulk)
    return Facet(indices, len(slab), float(np.ptp(slab.positions[:, 2])), energy, unrelaxed)


def _cuts(cell: Atoms, indices: tuple[int, int, int]) -> list[Atoms]:
    """Slabs of so many periods of the crystal that they are THICK, each cut between other layers of atoms; z is normal."""
    reciprocal = np.array(indices) @ cell.cell.reciprocal().array
    period, normal = float(1 / np.linalg.norm(reciprocal)), reciprocal / np.linalg.norm(reciprocal)
    heights = np.sort(cell.positions @ normal % period)
    slabs = []
    for plane in heights[np.diff(heights, prepend=heights[-1] - period) > SAME_PLACE]:
        moved = cell.copy()
        moved.positions += (SAME_PLACE / 2 - plane) * normal
        slabs.append(
            surface(moved, indices, max(1, math.ceil(THICK / period)), vacuum=VACUUM, tol=SAME_PLACE / 100, periodic=True)
        )
    return slabs


def _element(crystal: Crystal) -> Atoms:
    if len(crystal.elements) > 1:
        raise LeftOutError(COMPOUND)
    return crystal.atoms()


def _places(cell: Atoms) -> list[tuple[int, str]]:
    """An atom of each inequivalent place, with its site symmetry."""
    found = symmetry_of(cell)
    if found is None:
        return [(0, "")]
    first: Array = np.unique(found.equivalent_atoms)
    return [(int(n), str(found.site_symmetry_symbols[n])) for n in first[:SITES]]
