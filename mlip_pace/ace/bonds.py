"""What atoms see: their bonds with the atoms around them, and the coordinates that these depend on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from ase import Atoms

from mlip_pace.ace import kernels
from mlip_pace.arrays import Array, Integers
from mlip_pace.collect.neighbours import neighbours

ATOMS_IN_BATCH = 64  # small structures are worked on together
CENTRES_IN_BLOCK = 64  # and large ones in parts


@dataclass(frozen=True)
class Joined:
    """Some structures as one: atoms and bonds of all, and where the rows of each structure are: its energy, the forces on its
    atoms, its virial."""

    species: Integers  # (atoms,)
    first: Integers  # (atoms + 1,): where the bonds of an atom begin
    neighbour: Integers  # (bonds,), of each atom ascending
    distance: Array
    direction: Array  # (3, bonds), from the atom to the neighbour
    spans: list[slice]  # the atoms of each structure
    rows: list[slice]  # and its rows
    energies: Integers  # (atoms,): the row of the energy of the structure that an atom is of
    places: Integers  # (atoms,): the first of the rows of the force on it
    strained: Integers  # (atoms,): the first of the rows of the virial
    strains: int  # 6 rows of a virial, or none

    def blocks(self) -> Iterator[tuple[int, Integers]]:
        """Centres of one element, as many as are worked on at a time."""
        for element in np.unique(self.species):
            centres = np.flatnonzero(self.species == element)
            for n in range(0, len(centres), CENTRES_IN_BLOCK):
                yield int(element), centres[n : n + CENTRES_IN_BLOCK]


@dataclass(frozen=True)
class Bonds:
    """Of some centres with one element of neighbours.

    The coordinates of a centre are the places of the different atoms that it sees, its own place, and the strains (see
    `kernels.coordinates`); `target` are the rows that they belong to.
    """

    first: Integers  # (centres + 1,): where the bonds of a centre begin
    link: Integers  # (bonds,): which of the different atoms that its centre sees
    starts: Integers  # (centres + 1,): where the coordinates of a centre begin
    target: Integers  # (coordinates,)
    distance: Array  # (bonds,)
    direction: Array  # (3, bonds)

    def targets(self, centre: int) -> Integers:
        return self.target[self.starts[centre] : self.starts[centre + 1]]

    def some(self, centres: slice) -> Bonds:
        """Of some of the centres."""
        kept = slice(centres.start, centres.stop + 1)
        return replace(self, first=self.first[kept], starts=self.starts[kept])


def joined(structures: Iterable[Atoms], elements: list[str], cutoff: float, stress: bool) -> Iterator[Joined]:
    """The structures in batches. `cutoff` in Å; `stress`: with rows of a virial."""
    batch: list[Atoms] = []
    for atoms in structures:
        batch.append(atoms)
        if sum(map(len, batch)) >= ATOMS_IN_BATCH:
            yield _join(batch, elements, cutoff, stress)
            batch = []
    if batch:
        yield _join(batch, elements, cutoff, stress)


def _join(batch: list[Atoms], elements: list[str], cutoff: float, stress: bool) -> Joined:
    number = {symbol: n for n, symbol in enumerate(elements)}
    counts = np.array([len(atoms) for atoms in batch])
    found = [neighbours("ijdD", atoms, cutoff) for atoms in batch]
    ends, strains = np.cumsum([0, *counts]), 6 if stress else 0
    i, j, distance, vector = (np.concatenate(parts) for parts in zip(*found, strict=True))
    offset = np.repeat(ends[:-1], [len(one[0]) for one in found])
    i, j = i + offset, j + offset
    order = np.argsort(i * ends[-1] + j, kind="stable")
    row_ends = np.cumsum([0, *(1 + 3 * counts + strains)])
    energies = np.repeat(row_ends[:-1], counts)
    return Joined(
        species=np.array([number[symbol] for atoms in batch for symbol in atoms.symbols]),
        first=np.searchsorted(i[order], np.arange(ends[-1] + 1)),
        neighbour=j[order],
        distance=distance[order],
        direction=np.ascontiguousarray((vector[order] / distance[order, None]).T),
        spans=[slice(first, last) for first, last in pairwise(ends)],
        rows=[slice(first, last) for first, last in pairwise(row_ends)],
        energies=energies,
        places=energies + 1 + 3 * (np.arange(ends[-1]) - np.repeat(ends[:-1], counts)),
        strained=np.repeat(row_ends[1:] - strains, counts),
        strains=strains,
    )


def bonds(of: Joined, centres: Integers, other: int, cutoff: float) -> Bonds:
    """Of some centres (ascending) with neighbours of an element, closer than the cutoff (Å)."""
    span = slice(of.first[centres[0]], of.first[centres[-1] + 1])
    centre = np.repeat(np.arange(centres[0], centres[-1] + 1), np.diff(of.first[centres[0] : centres[-1] + 2]))
    number = np.full(centres[-1] + 1, -1)
    number[centres] = np.arange(len(centres))
    kept = (number[centre] >= 0) & (of.species[of.neighbour[span]] == other) & (of.distance[span] < cutoff)
    first = np.searchsorted(number[centre[kept]], np.arange(len(centres) + 1))
    neighbour = of.neighbour[span][kept]
    link, starts = np.empty_like(neighbour), np.empty_like(first)
    target = np.empty(3 * (len(neighbour) + len(centres)) + of.strains * len(centres), np.int64)
    kernels.coordinates(centres, first, neighbour, of.places, of.strained, of.strains, link, starts, target)
    direction = np.ascontiguousarray(of.direction[:, span][:, kept])
    return Bonds(first, link, starts, target[: starts[-1]], of.distance[span][kept], direction)
