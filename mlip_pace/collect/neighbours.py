"""Neighbour lists (matscipy's), also for structures without a cell."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms
from matscipy.neighbours import neighbour_list

NEAR = 3.0  # Å; most atoms have a neighbour here, and it is far faster to see than all within a cutoff


def neighbours(quantities: str, atoms: Atoms, cutoff: float) -> Any:
    """`matscipy.neighbours.neighbour_list`: every pair closer than `cutoff` (Å), from both ends."""
    if atoms.cell.rank < 3:  # matscipy would invert the cell
        atoms = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        atoms.center(vacuum=1.0, axis=np.flatnonzero(~atoms.cell.any(axis=1)))
    return neighbour_list(quantities, atoms, cutoff)


def nearest(atoms: Atoms, within: float) -> npt.NDArray[np.float64]:
    """Distance (Å) of each atom to its nearest neighbour; infinite if there is none `within` (Å)."""
    found = np.full(len(atoms), np.inf)
    for reach in (min(NEAR, within), within):
        i, distance = neighbours("id", atoms, reach)
        np.minimum.at(found, i, distance)
        if np.isfinite(found).all():
            break
    return found
