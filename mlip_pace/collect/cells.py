"""Cells as pyace and LAMMPS take them, right-handed and not so skewed that their inverse is lost to rounding; voids."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import minkowski_reduce
from scipy.spatial import cKDTree

from mlip_pace.arrays import Array

GAP = 5.0  # Å without atoms: a vacuum
VOID = 3.0  # Å between a place and the surface of the nearest atom; liquids have up to 2.9, zeolites and C60 3.8 and more
SPACING, PLACES = 0.5, 10**5  # Å between the places that are looked at; about so many at most
SKEWED = 5.0  # lengths of the cell vectors over the volume that they span; 1 for a brick, 1.4 for the primitive cell of fcc


def compact(atoms: Atoms) -> Atoms:
    """The same periodic structure in a right-handed cell of short vectors; as it is, if its cell is sound.

    The lattice, the places of the atoms and so energy, forces and stress (Cartesian) are the same: only the vectors that
    span the lattice are others (ASE's Minkowski reduction, and minus one times all of them).
    """
    if not atoms.pbc.all():
        return atoms
    volume, lengths = np.linalg.det(atoms.cell.array), atoms.cell.lengths()
    skewed = np.prod(lengths) > SKEWED * abs(volume)
    if volume > 0 and not skewed:
        return atoms
    cell = minkowski_reduce(atoms.cell.array)[0] if skewed else atoms.cell.array
    sound: Atoms = atoms.copy()
    sound.set_cell(cell if np.linalg.det(cell) > 0 else -cell, scale_atoms=False)
    return sound


def heights(atoms: Atoms) -> Array:
    """The distances (3,) between opposite faces of the cell, Å."""
    result: Array = 1 / np.linalg.norm(np.linalg.inv(atoms.cell.array), axis=0)
    return result


def gap_along(atoms: Atoms, axis: int) -> float:
    """The widest layer without atoms between planes of the other two cell vectors, Å."""
    places = np.sort(atoms.get_scaled_positions()[:, axis])
    return float(np.diff(places, append=places[0] + 1).max() * heights(atoms)[axis])


def is_bulk(atoms: Atoms) -> bool:
    """Whether a structure is periodic, and has no layer without atoms nor another void."""
    if not atoms.pbc.all() or max(gap_along(atoms, axis) for axis in range(3)) > GAP:
        return False
    return emptiest(atoms)[1] <= VOID


def emptiest(atoms: Atoms) -> tuple[Array, float]:
    """The emptiest place of a periodic cell, (3,), and its distance (Å) from the surface of an atom, by covalent radii (B.
    Cordero et al., Dalton Trans. 2008, 2832); of a distance above VOID only that it is.
    """
    spacing = max(SPACING, float(np.cbrt(atoms.cell.volume / PLACES)))
    counts = np.ceil(atoms.cell.lengths() / spacing).astype(int)
    places = np.stack(np.meshgrid(*(np.arange(count) / count for count in counts), indexing="ij"), axis=-1).reshape(-1, 3)
    reach = (VOID + float(covalent_radii[atoms.numbers].max())) / heights(atoms)
    numbers = (np.arange(-n, n + 1) for n in np.ceil(reach).astype(int))
    shifts = np.stack(np.meshgrid(*numbers, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    images = atoms.get_scaled_positions() + shifts
    near = ((images > -reach) & (images < 1 + reach)).all(axis=-1)
    empty = np.full(len(places), np.inf)
    for number in np.unique(atoms.numbers):
        of_element = (images[:, atoms.numbers == number])[near[:, atoms.numbers == number]]
        distance, _ = cKDTree(of_element @ atoms.cell.array).query(places @ atoms.cell.array)
        np.minimum(empty, distance - covalent_radii[number], out=empty)
    place: Array = places[empty.argmax()] @ atoms.cell.array
    return place, float(empty.max())
