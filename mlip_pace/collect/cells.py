"""Cells as pyace and LAMMPS take them, right-handed and not so skewed that their inverse is lost to rounding; heights."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.geometry import minkowski_reduce

from mlip_pace.arrays import Array

GAP = 5.0  # Å without atoms: a vacuum
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
