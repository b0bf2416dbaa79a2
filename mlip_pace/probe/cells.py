"""Random cells: atoms anywhere in a cell of any shape, but none too close to another. Distances in Å, volumes in Å^3."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import numpy as np
from ase import Atoms

from mlip_pace.arrays import Array
from mlip_pace.collect.neighbours import neighbours
from mlip_pace.reference import pair_name

SKEW = 0.3  # largest entry that is added to the unit matrix before the cell is scaled to its volume
TRIES, PUSHES = 10, 200
BEYOND = 1.03  # times the distance that is allowed: what atoms are pushed apart to


def random_cell(symbols: Sequence[str], volume: float, closest: dict[str, float], rng: np.random.Generator) -> Atoms | None:
    """Atoms of these elements in a periodic cell of this volume, no pair closer than `closest` (by pair name); none if they do
    not fit.

    Random places come first; then atoms that overlap are pushed apart along their bonds, until none do.
    """
    for _ in range(TRIES):
        shape = np.eye(3) + rng.uniform(-SKEW, SKEW, (3, 3))
        cell = shape * np.cbrt(volume / np.linalg.det(shape))
        atoms = Atoms(symbols, scaled_positions=rng.random((len(symbols), 3)), cell=cell, pbc=True)
        if pushed_apart(atoms, closest):
            return atoms
    return None


def _allowed(symbols: Sequence[str], closest: dict[str, float]) -> Array:
    """The shortest distance that each two atoms may have: (n, n)."""
    of_pair = {pair: closest[pair_name(*pair)] for pair in combinations_with_replacement(sorted(set(symbols)), 2)}
    return np.array([[of_pair[min(a, b), max(a, b)] for b in symbols] for a in symbols])


def pushed_apart(atoms: Atoms, closest: dict[str, float]) -> bool:
    """Push atoms that are closer than `closest` (by pair name) apart; whether none of them are in the end."""
    allowed = _allowed(list(atoms.symbols), closest)
    reach = BEYOND * float(allowed.max())
    for _ in range(PUSHES):
        i, j, distance, vector = neighbours("ijdD", atoms, reach)
        wanted = allowed[i, j]
        if (distance >= wanted).all():
            return True
        overlap = np.clip(BEYOND * wanted - distance, 0.0, None)
        if overlap[i == j].any():  # an atom and its own image: only another cell helps
            return False
        push = (overlap / 2 / np.maximum(distance, 1e-3))[:, None] * vector
        moved = np.zeros((len(atoms), 3))
        np.add.at(moved, i, -push)
        atoms.positions += moved
    return False
