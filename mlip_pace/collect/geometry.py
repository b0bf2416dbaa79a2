"""A structure whatever its labels: its composition, a key of its geometry, and signs of wrong units and boundaries.

Lengths in Å.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

from mlip_pace.arrays import Array
from mlip_pace.collect.cells import is_bulk
from mlip_pace.collect.neighbours import NEAR, neighbours

UNBOUND = [atomic_numbers[symbol] for symbol in ("He", "Ne", "Ar", "Kr", "Xe", "Rn")]
FARTHEST = 10.0  # Å between neighbours that are looked at: Rb, in bohr, has 9.2
BOND = 1.35  # times the sum of covalent radii (B. Cordero et al., Dalton Trans. 2008, 2832); metals have up to 1.16
LOOKED_AT = 200  # structures, about
SPACIOUS = 60.0  # Å^3 an atom: no liquid or solid has more


def composition(atoms: Atoms) -> str:
    """The reduced formula, the same for every order of the atoms: `Al3Mg`."""
    return str(atoms.symbols.formula.reduce()[0].format("hill"))


def shares(structures: Iterable[Atoms], elements: Sequence[str]) -> Array:
    """The share of the atoms of each structure that each element has: (structures, elements)."""
    numbers = [atomic_numbers[symbol] for symbol in elements]
    rows = [np.bincount(atoms.numbers, minlength=len(covalent_radii))[numbers] / len(atoms) for atoms in structures]
    return np.array(rows).reshape(-1, len(numbers))


def geometry_key(atoms: Atoms) -> bytes:
    """Equal for equal structures (species, cell and positions to 1e-5 Å), whatever their labels."""
    cell = atoms.cell.array if atoms.pbc.any() else np.zeros((3, 3))
    rounded = np.round(np.vstack([cell, atoms.get_positions(wrap=bool(atoms.pbc.any()), eps=1e-6)]) * 1e5).astype(np.int64)
    return hashlib.sha256(atoms.numbers.tobytes() + atoms.pbc.tobytes() + rounded.tobytes()).digest()


def too_long(structures: Sequence[Atoms]) -> list[str]:
    """What a user should know of structures whose shortest distances are longer than bonds, as those of a wrong unit are."""
    shortest = min((_shortest(atoms) for atoms in structures[:: 1 + len(structures) // LOOKED_AT]), default=np.inf)
    if shortest < BOND or shortest == np.inf:
        return []
    return [
        f"no two atoms of the structures are closer than {shortest:.2f} times the sum of their covalent radii, where bonds are "
        "0.8 to 1.2: are positions and cells in bohr? They are taken as Å"
    ]


def _shortest(atoms: Atoms) -> float:
    """The shortest distance relative to the sum of covalent radii, of atoms that form bonds; infinite if there is none."""
    radii, bound = covalent_radii[atoms.numbers], ~np.isin(atoms.numbers, UNBOUND)
    shortest, largest = np.inf, 2 * float(radii.max())
    for reach in (NEAR, FARTHEST):  # of a hundred times as many pairs, within FARTHEST, few structures need any
        i, j, distance = neighbours("ijd", atoms, min(reach, shortest * largest))
        bonds = bound[i] & bound[j]
        shortest = float((distance / (radii[i] + radii[j]))[bonds].min(initial=shortest))
        if shortest * largest <= reach:
            break
    return shortest


def seems_periodic(atoms: Atoms) -> bool:
    """Whether a structure that is not periodic along all of its cell's vectors would fill the cell if it were."""
    if atoms.pbc.all() or atoms.cell.rank < 3 or abs(atoms.cell.volume) > SPACIOUS * len(atoms):
        return False
    repeated = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
    # A molecule in a box that just holds it would overlap with its images.
    return len(atoms) > 1 and _shortest(repeated) > 0.9 * _shortest(atoms) and is_bulk(repeated)
