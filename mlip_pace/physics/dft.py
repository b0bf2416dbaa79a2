"""What the data themselves say of a crystal: recognised in them, never guessed.

Of the same crystal (space group, occupied places and shape of the cell) a series of volumes gives an equation of state, and
strained cells elastic constants (`strained.py`). Slabs and vacancies of elements count where the atoms are at rest; both get
the energy of the potential for the very same structure beside that of DFT. What is not recognised is absent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from ase import Atoms
from scipy.spatial import cKDTree

from mlip_pace.arrays import Array
from mlip_pace.collect.cells import GAP, gap_along, heights
from mlip_pace.collect.dataset import ATOMS, ENERGY, ENERGY_ATOMS, FORCES, SOURCE
from mlip_pace.collect.geometry import composition
from mlip_pace.physics import strained, volumes
from mlip_pace.physics.crystals import (
    Crystal,
    cohesive,
    group_of,
    in_time,
    rotations_of,
    standard,
    symmetry_of,
)
from mlip_pace.physics.defects import surface_energy
from mlip_pace.physics.volumes import Equation

AT_REST = 0.05  # eV/Å: largest force
SLABS_AT_REST = 0.1  # eV/Å
SAME_SHAPE, VOLUMES = 0.03, (0.75, 1.35)  # of lengths and angles; of the volume, relative to the crystal
FILLED = 0.3  # Å: places of a crystal around a vacancy, once it is filled
MOST = 5000  # structures of a composition that are looked at


@dataclass(frozen=True)
class Slab:
    """A slab of the data: its facet, atoms, energies of the same structure in J/m^2."""

    source: str
    indices: tuple[int, int, int]
    atoms: int
    dft: float
    potential: float


@dataclass(frozen=True)
class WithVacancy:
    """A cell of the data with a vacancy: atoms of the perfect cell, formation energies of the same structure in eV."""

    source: str
    atoms: int
    dft: float
    potential: float


@dataclass(frozen=True)
class Data:
    """What the data say of a crystal. None and empty: nothing was recognised."""

    equation: Equation | None
    elastic: dict[str, float] | None  # GPa
    strained: int  # cells, that these come from
    slabs: list[Slab]
    vacancies: list[WithVacancy]


def of_crystal(
    crystal: Crystal, frame: pd.DataFrame, calculator: Any, e0: Mapping[str, float], deadline: float = math.inf
) -> Data:  # fmt: skip
    """What the data (columns of `dataset.py`) say of a crystal. Raises `LeftOutError`."""
    name = composition(crystal.atoms())
    alike = frame[frame[ATOMS].map(lambda atoms: composition(atoms) == name and bool(atoms.pbc.all()))][:MOST]
    alike = alike.assign(energy=(alike[ENERGY] - alike[ENERGY_ATOMS]) / alike[ATOMS].map(len))
    alike = alike.assign(force=[float(np.abs(forces).max()) for forces in alike[FORCES]])
    which = []
    for atoms in alike[ATOMS]:
        in_time(deadline)
        which.append(is_same(atoms, crystal))
    same = alike[which]
    constants, cells = strained.of_data(crystal, alike, same)
    slabs, vacant = list[Slab](), list[WithVacancy]()
    if len(crystal.elements) == 1 and len(same):
        known = _Bulk(crystal, same.energy.min(), same[ATOMS][same.energy.idxmin()], calculator, e0)
        slabs = [one for _, row in alike[alike.force < SLABS_AT_REST].iterrows() if (one := known.slab(row))]
        vacant = [cell for _, row in alike[alike.force < AT_REST].iterrows() if (cell := known.with_vacancy(row))]
    return Data(_equation(crystal, alike), constants, cells, slabs, vacant)


def is_same(atoms: Atoms, crystal: Crystal) -> bool:
    """Whether a structure is the crystal, at about its volume."""
    ratio = float(atoms.cell.volume) / len(atoms) / crystal.relaxed.volume
    if not VOLUMES[0] < ratio < VOLUMES[1] or group_of(atoms)[1] != crystal.relaxed.number:
        return False
    found, known = standard(atoms), crystal.atoms()
    if found is None or sorted(found.symbols) != sorted(known.symbols):
        return False
    shape = found.cell.cellpar() * ([np.cbrt(1 / ratio)] * 3 + [1.0] * 3)
    return bool(np.allclose(shape, known.cell.cellpar(), rtol=SAME_SHAPE)) and _places(found) == _places(known)


def _places(atoms: Atoms) -> list[tuple[str, str]]:
    """Elements and site symmetries, sorted. (Wyckoff letters depend on the choice of the origin.)"""
    found = symmetry_of(atoms)
    return [] if found is None else sorted(zip(atoms.symbols, found.site_symmetry_symbols, strict=True))


def _equation(crystal: Crystal, alike: pd.DataFrame) -> Equation | None:
    """That of the longest series of volumes of the crystal."""
    series = [family for family in volumes.families(alike) if any(is_same(atoms, crystal) for atoms in family[ATOMS])]
    found = [volumes.equation_of_state(family.volume, family.energy) for family in sorted(series, key=len, reverse=True)]
    return next((one for one in found if one is not None), None)


@dataclass(frozen=True)
class _Bulk:
    """An element's crystal, its lowest energy in the data (eV/atom) and the structure that has it, a calculator, and E0."""

    crystal: Crystal
    energy: float
    atoms: Atoms
    calculator: Any
    e0: Mapping[str, float]

    def slab(self, row: Any) -> Slab | None:
        """What a row is, if it is a slab."""
        atoms = row[ATOMS]
        normals = [axis for axis in range(3) if gap_along(atoms, axis) > GAP]
        if len(normals) != 1:
            return None
        (normal,) = normals
        if (facet := facet_of(atoms, normal, self._lattice())) is None:
            return None
        energies = [len(atoms) * e for e in (row.energy, self._ours(atoms))]
        dft, ours = (
            surface_energy(atoms, e, b, normal) for e, b in zip(energies, (self.energy, self._ours(self.atoms)), strict=True)
        )
        return Slab(str(row[SOURCE]), facet, len(atoms), dft, ours)

    def with_vacancy(self, row: Any) -> WithVacancy | None:
        """What a row is, if it is the crystal without one atom."""
        atoms, volume = row[ATOMS], float(self.atoms.cell.volume) / len(self.atoms)
        sites = float(atoms.cell.volume) / volume
        if abs(sites - len(atoms) - 1) > 0.3 or len(atoms) < 7:
            return None
        filled = atoms + Atoms(atoms.symbols[:1], [_emptiest(atoms)], cell=atoms.cell, pbc=True)
        found = symmetry_of(filled, FILLED)
        if found is None or found.number != self.crystal.relaxed.number:
            return None
        pairs = ((row.energy, self.energy), (self._ours(atoms), self._ours(self.atoms)))
        dft, potential = (len(atoms) * (e - b) for e, b in pairs)
        return WithVacancy(str(row[SOURCE]), len(atoms) + 1, float(dft), float(potential))

    def _ours(self, atoms: Atoms) -> float:
        """The potential's energy, eV/atom: that of the bulk, too, is at the lattice of the data, as DFT's is."""
        return cohesive(atoms, self.calculator, self.e0)

    def _lattice(self) -> tuple[Array, Array, Array]:
        """Primitive and conventional vectors at the volume of the data, and the rotations."""
        scale = np.cbrt(float(self.atoms.cell.volume) / len(self.atoms) / self.crystal.relaxed.volume)
        primitive = self.crystal.primitive()
        return primitive.cell.array * scale, self.crystal.atoms().cell.array * scale, rotations_of(primitive)


def facet_of(atoms: Atoms, normal: int, lattice: tuple[Array, Array, Array]) -> tuple[int, int, int] | None:
    """The Miller indices of the only facet whose lattice has the two cell vectors of a slab; none if there are several."""
    primitive, conventional, rotations = lattice
    first, second = (atoms.cell.array[n] for n in range(3) if n != normal)
    longest = 1 + SAME_SHAPE
    reach = int(np.ceil(longest * max(np.linalg.norm(first), np.linalg.norm(second)) / heights(Atoms(cell=primitive)).min()))
    steps = np.array(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3)).reshape(3, -1).T
    vectors = steps @ primitive
    lengths = np.linalg.norm(vectors, axis=1)
    ones, others = (vectors[np.abs(lengths - np.linalg.norm(v)) < SAME_SHAPE * np.linalg.norm(v)] for v in (first, second))
    angle = float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))
    found = set()
    for one in ones:
        cosines = others @ one / np.linalg.norm(others, axis=1) / np.linalg.norm(one)
        for other in others[np.abs(cosines - angle) < SAME_SHAPE]:
            miller = conventional @ np.cross(one, other)
            miller = miller / np.abs(miller).max()
            whole = next((n * miller for n in range(1, 12) if np.abs(n * miller - np.round(n * miller)).max() < 0.05), None)
            if whole is None:
                return None
            found.add(_canonical(np.round(whole), conventional, rotations))
    return found.pop() if len(found) == 1 else None


def _canonical(miller: Array, conventional: Array, rotations: Array) -> tuple[int, int, int]:
    """The largest indices among those that the symmetry makes equal, which have the fewest minus signs."""
    reciprocal = np.linalg.inv(conventional).T
    turned = np.round(rotations @ (miller @ reciprocal) @ conventional.T).astype(int)
    both = np.concatenate([turned, -turned])
    h, k, l = max(map(tuple, both.tolist()), key=lambda one: (sum(n >= 0 for n in one), one))  # noqa: E741 (Miller's)
    return h, k, l


def _emptiest(atoms: Atoms) -> Array:
    """The place farthest from all atoms, Å."""
    grid = np.array(np.meshgrid(*[(np.arange(24) + 0.5) / 24] * 3)).reshape(3, -1).T
    shifts = np.array(np.meshgrid(*[[-1, 0, 1]] * 3)).reshape(3, -1).T
    images = (atoms.get_scaled_positions()[:, None] + shifts).reshape(-1, 3) @ atoms.cell.array
    tree, place = cKDTree(images), grid @ atoms.cell.array
    best: Array = place[tree.query(place)[0].argmax()]
    for step in (0.3, 0.1, 0.03):
        near = best + step * shifts
        best = near[tree.query(near)[0].argmax()]
    return best
