"""Neighbour lists (matscipy's), also for structures without a cell."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from matscipy.neighbours import neighbour_list


def neighbours(quantities: str, atoms: Atoms, cutoff: float) -> Any:
    """`matscipy.neighbours.neighbour_list`: every pair closer than `cutoff` (Å), from both ends."""
    if atoms.cell.rank < 3:  # matscipy would invert the cell
        atoms = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        atoms.center(vacuum=1.0, axis=np.flatnonzero(~atoms.cell.any(axis=1)))
    return neighbour_list(quantities, atoms, cutoff)
