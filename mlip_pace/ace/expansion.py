"""The atomic cluster expansion in arrays: its functions and their derivatives, as rows of a least-squares problem.

pyace computes energy and forces for one set of coefficients fast, their derivatives by every coefficient slowly. Here they come
from matrix products over all functions at once; the basis itself (functions, coupling coefficients, radial functions) is read
from pyace, and tests compare with its values. `functions.py` has the functions B of the variables x; here the x are made from
places of atoms:

    A_nlm = Σ_j R_nl(r_j) Y_lm(r_j),    R_nl = Σ_k C_nlk g_k,    E = Σ_atoms Σ_functions c B

Forces and virial follow by the chain rule from ∂B/∂x, their derivatives by C from ∂²B/∂x∂x. √4π Y_lm takes the place of Y_lm,
as in pyace. Distances in Å, energies in eV.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, pairwise
from typing import Any

import numpy as np
from ase import Atoms

from mlip_pace.ace import kernels
from mlip_pace.ace.functions import Complex, Functions, Variables
from mlip_pace.ace.harmonics import tables
from mlip_pace.arrays import Array, Integers
from mlip_pace.collect.neighbours import neighbours

Pair = tuple[int, int]  # numbers of two elements, the smaller first

GRID = 0.002  # Å between the points of the splines of g_k
ATOMS_IN_BATCH = 64  # small structures are worked on together
CENTRES_IN_BLOCK = 64  # and large ones in parts


@dataclass(frozen=True)
class _Joined:
    """Some structures as one: atoms and bonds of all."""

    species: Integers  # (atoms,)
    centre: Integers  # (bonds,), ascending
    neighbour: Integers
    distance: Array
    direction: Array  # (bonds, 3), from the centre to the neighbour
    spans: list[slice]  # the atoms of each structure
    structure: Integers  # (atoms,): of which an atom is


@dataclass(frozen=True)
class _Bonds:
    """Of some centres (numbers among these) with one element of neighbours; a link is a centre and an atom that it sees, be it
    in several cells."""

    centre: Integers  # (bonds,), ascending
    link: Integers
    distance: Array
    direction: Array  # (bonds, 3)
    g: Array  # (bonds, k)
    dg: Array
    y: Array  # (bonds, lm)
    dy: Array  # (bonds, 3, lm): the derivatives of y by the direction
    atoms: Integers  # (links,)
    first: Integers  # (centres + 1,): where the links of a centre begin

    def links(self, centre: int) -> slice:
        return slice(self.first[centre], self.first[centre + 1])


@dataclass(frozen=True)
class _Seen:
    """What some centres see of one element of neighbours: Σ over bonds, and their derivatives by places and strains.

    Of each centre the derivatives by places are a block (quantities, 3 links), one after the other in `by_place`.
    """

    bonds: _Bonds
    total: Array  # (centres, quantities)
    by_place: Array
    by_strain: Array  # (centres, 6 or 0, quantities)

    def block(self, centre: int) -> Array:
        """(quantities, 3 links)."""
        links, size = self.bonds.links(centre), self.total.shape[1]
        return self.by_place[3 * size * links.start : 3 * size * links.stop].reshape(size, -1)


@dataclass(frozen=True)
class _Energy:
    """Of a centre: the `n`th of those with the same surroundings."""

    element: int
    n: int
    centre: int
    by_x: Array  # (variables,)
    by_xx: Array  # (variables, variables)


class Expansion:
    """The basis of a potential (pyace's `ACEBBasisSet`). Coefficients c and C are in its order."""

    def __init__(self, basis: Any) -> None:
        self.elements = list(basis.elements_name)
        self.cutoff = float(basis.cutoffmax)
        self.nk, self.nr, self.lmax = int(basis.nradbase), int(basis.nradmax), int(basis.lmax)
        self.variables = Variables(len(self.elements), self.nk, self.nr, self.lmax)
        self.width = self.variables.width
        self.splines: dict[Pair, tuple[Array, Array]] = {}  # g_k and its slope at 1, 2, ... times GRID
        self.ls, self.ms, self.legendre, self.derivative = tables(self.lmax)
        self.cutoffs: dict[Pair, float] = {}
        self.radial: dict[Pair, Array] = {}  # C_nlk
        self.shapes: dict[Pair, tuple[int, int, int]] = {}  # a pair may have fewer than others
        for pair in combinations_with_replacement(range(len(self.elements)), 2):
            bond = basis.map_bond_specifications[pair]
            given = np.array(bond.radcoefficients)
            if given.ndim != 3:  # functions of body order 2 are made of g_k alone
                given = np.zeros((0, 0, 0))
            n, l, k = self.shapes[pair] = given.shape  # noqa: E741
            self.radial[pair] = np.zeros((self.nr, self.lmax + 1, self.nk))
            self.radial[pair][:n, :l, :k] = given
            self.cutoffs[pair] = float(bond.rcut)
            self.splines[pair] = self._spline(basis.radial_functions, pair, bond.rcut)
        by_element = zip(basis.basis_rank1, basis.basis, strict=True)
        self.of_element = [Functions([*one, *more], len(one), self.variables) for one, more in by_element]
        self.counts = [functions.count for functions in self.of_element]

    def functions(self, structures: Iterable[Atoms]) -> Iterator[dict[str, Array]]:
        """The basis functions of every atom: for each structure, by element, an array (atoms of it, functions)."""
        for joined in self._joined(structures):
            values = [np.empty((len(joined.species), count)) for count in self.counts]
            for element, centres in self._blocks(joined):
                values[element][centres] = self.of_element[element].values(self._densities(joined, element, centres))
            for span in joined.spans:
                species = joined.species[span]
                yield {self.elements[s]: values[s][span][species == s] for s in np.unique(species)}

    def rows(
        self, structures: Iterable[Atoms], coefficients: Array | None = None, pairs: Sequence[Pair] = (),
        stress: bool = False,
    ) -> Iterator[tuple[Array, Array]]:  # fmt: skip
        """For each structure the derivatives of energy, forces and, with `stress`, virial by c, and by C for c = coefficients.

        They are (1 + 3 n [+ 6], functions) and (1 + 3 n [+ 6], radial coefficients), the latter those of the `pairs` of
        elements, one after the other. The virial is ∂E/∂ε (eV) for the strains ε of Voigt's xx, yy, zz, yz, xz, xy: volume
        times stress.
        """
        ends = np.cumsum([0, *self.counts])
        columns = [slice(first, last) for first, last in pairwise(ends)]  # of each element's functions
        curvatures = []
        if coefficients is not None:
            curvatures = [f.curvature(coefficients[c]) for f, c in zip(self.of_element, columns, strict=True)]
        for joined in self._joined(structures):
            of_c = _Rows(joined, ends[-1])
            of_radial = _Rows(joined, sum(math.prod(self.shapes[pair]) for pair in pairs))
            for element, centres in self._blocks(joined):
                bonds = [self._bonds(joined, element, other, centres) for other in range(len(self.elements))]
                seen = [self._variables(element, other, of, stress) for other, of in enumerate(bonds)]
                sums = [self._sums(of, stress) for of in bonds] if coefficients is not None else []
                functions = self.of_element[element]
                densities = self.variables.densities(np.concatenate([of.total for of in seen], axis=1))
                hessians: Iterable[Array] = [np.empty(0)] * len(centres)
                if coefficients is not None:
                    hessians = functions.hessians(curvatures[element], densities)
                for n, (centre, by_xx) in enumerate(zip(centres, hessians, strict=True)):
                    whole, without = functions.products(densities[n])
                    slopes = functions.slopes.times(without)
                    of_c.energies[columns[element], joined.structure[centre]] += functions.mixing.times(whole)
                    of_c.add_functions(centre, n, columns[element].start, slopes, functions, seen)
                    if coefficients is not None:
                        along = slopes * coefficients[columns[element]][functions.slope_functions]
                        by_x = np.zeros(self.variables.count)
                        np.add.at(by_x, functions.slope_variables, along)
                        self._add_radial(of_radial, pairs, _Energy(element, n, centre, by_x, by_xx), seen, sums)
            for n in range(len(joined.spans)):
                yield of_c.of(n, stress), of_radial.of(n, stress)

    def _add_radial(self, rows: _Rows, pairs: Sequence[Pair], of: _Energy, seen: list[_Seen], sums: list[_Seen]) -> None:
        """The derivatives of a centre's energy by C."""
        element, n, centre = of.element, of.n, of.centre
        blocks = [of.by_xx[:, s * self.width : (s + 1) * self.width] for s in range(len(seen))]
        moved = [block @ one.block(n) for block, one in zip(blocks, seen, strict=True)]  # (variables, 3 links)
        strained = [block @ one.by_strain[n].T for block, one in zip(blocks, seen, strict=True)]
        first = 0
        for pair in pairs:
            columns = slice(first, first := first + math.prod(self.shapes[pair]))
            if element not in pair:
                continue
            other = pair[pair[0] == element]
            mine = slice(other * self.width, (other + 1) * self.width)
            total, by_x = sums[other].total[n], of.by_x[mine]
            rows.energies[columns, rows.structure[centre]] += self._by_radial(pair, by_x[:, None], by_x, total)[:, 0]
            for s, one in enumerate(seen):
                places, strains = (sums[s].block(n), sums[s].by_strain[n].T) if s == other else (None, None)
                by_place = self._by_radial(pair, moved[s][mine], by_x, total, places)
                by_strain = self._by_radial(pair, strained[s][mine], by_x, total, strains)
                rows.add(centre, one.bonds.atoms[one.bonds.links(n)], columns, by_place, by_strain)

    def _by_radial(self, pair: Pair, moved: Array, by_x: Array, total: Array, places: Array | None = None) -> Array:
        """`kernels.by_radial` for the coefficients of a pair of elements: (coefficients, coordinates)."""
        count, nlm = moved.shape[1], (self.lmax + 1) ** 2
        result = np.zeros((math.prod(self.shapes[pair]), count))
        given = np.empty((self.nk, nlm, 0)) if places is None else np.ascontiguousarray(places).reshape(self.nk, nlm, count)
        shape = np.array([*self.shapes[pair], self.nr, self.nk])
        kernels.by_radial(shape, np.ascontiguousarray(moved), by_x, total.reshape(self.nk, nlm), given, result)
        return result

    def _spline(self, functions: Any, pair: Pair, cutoff: float) -> tuple[Array, Array]:
        """g_k of a pair of elements, and its slopes."""
        grid = np.arange(1, math.ceil(cutoff / GRID) + 1) * GRID
        values, slopes = [], []
        for r in grid:
            functions.evaluate(min(r, cutoff), self.nk, self.nr, *pair)
            values.append(np.array(functions.gr))
            slopes.append(np.array(functions.dgr))
        return np.array(values), np.array(slopes)

    def _joined(self, structures: Iterable[Atoms]) -> Iterator[_Joined]:
        batch: list[Atoms] = []
        for atoms in structures:
            batch.append(atoms)
            if sum(map(len, batch)) >= ATOMS_IN_BATCH:
                yield self._join(batch)
                batch = []
        if batch:
            yield self._join(batch)

    def _join(self, batch: list[Atoms]) -> _Joined:
        number = {symbol: n for n, symbol in enumerate(self.elements)}
        ends = np.cumsum([0, *map(len, batch)])
        bonds = [neighbours("ijdD", atoms, self.cutoff) for atoms in batch]
        i, j, distance, vector = (np.concatenate(found) for found in zip(*bonds, strict=True))
        offset = np.repeat(ends[:-1], [len(found[0]) for found in bonds])
        species = np.array([number[symbol] for atoms in batch for symbol in atoms.symbols])
        spans = [slice(first, last) for first, last in pairwise(ends)]
        structure = np.repeat(np.arange(len(batch)), [len(atoms) for atoms in batch])
        return _Joined(species, i + offset, j + offset, distance, vector / distance[:, None], spans, structure)

    def _blocks(self, joined: _Joined) -> Iterator[tuple[int, Integers]]:
        """Centres of one element, as many as are worked on at a time."""
        for element in np.unique(joined.species):
            centres = np.flatnonzero(joined.species == element)
            for n in range(0, len(centres), CENTRES_IN_BLOCK):
                yield int(element), centres[n : n + CENTRES_IN_BLOCK]

    def _bonds(self, joined: _Joined, element: int, other: int, centres: Integers) -> _Bonds:
        """Of some centres of one element with neighbours of another."""
        pair, atoms = _pair(element, other), len(joined.species)
        number = np.full(atoms, -1)
        number[centres] = np.arange(len(centres))
        chosen = (number[joined.centre] >= 0) & (joined.species[joined.neighbour] == other)
        chosen &= joined.distance < self.cutoffs[pair]
        centre, neighbour = number[joined.centre[chosen]], joined.neighbour[chosen]
        distance, direction = joined.distance[chosen], joined.direction[chosen]
        g, dg = (np.empty((len(distance), self.nk)) for _ in range(2))
        y, dy = np.empty((len(distance), (self.lmax + 1) ** 2)), np.empty((len(distance), 3, (self.lmax + 1) ** 2))
        kernels.bond_functions(
            distance, direction, *self.splines[pair], GRID, self.legendre, self.derivative, self.ls, self.ms, g, dg, y, dy
        )
        links, link = np.unique(centre * atoms + neighbour, return_inverse=True)
        first = np.searchsorted(links, np.arange(len(centres) + 1) * atoms)
        return _Bonds(centre, link, distance, direction, g, dg, y, dy, links % atoms, first)

    def _variables(self, element: int, other: int, of: _Bonds, stress: bool, places: bool = True) -> _Seen:
        """The variables of one element of neighbours."""
        centres = len(of.first) - 1
        by_place = np.zeros(3 * len(of.atoms) * self.width if places else 0)
        seen = _Seen(of, np.zeros((centres, self.width)), by_place, np.zeros((centres, 6 if stress else 0, self.width)))
        radial = self.radial[_pair(element, other)]
        bonds = (of.centre, of.link, of.first, of.distance, of.direction, of.g, of.dg, of.y, of.dy)
        kernels.variables(*bonds, radial, seen.total, seen.by_place, seen.by_strain)
        return seen

    def _sums(self, of: _Bonds, stress: bool) -> _Seen:
        """g_k Y_lm, of which the variables are linear combinations."""
        centres, nlm = len(of.first) - 1, (self.lmax + 1) ** 2
        total, by_strain = np.zeros((centres, self.nk, nlm)), np.zeros((centres, 6 if stress else 0, self.nk, nlm))
        by_place = np.zeros(3 * len(of.atoms) * self.nk * nlm)
        bonds = (of.centre, of.link, of.first, of.distance, of.direction, of.g, of.dg, of.y, of.dy)
        kernels.sums(*bonds, total, by_place, by_strain)
        quantities = self.nk * nlm
        return _Seen(of, total.reshape(centres, quantities), by_place, by_strain.reshape(centres, -1, quantities))

    def _densities(self, joined: _Joined, element: int, centres: Integers) -> Complex:
        bonds = (self._bonds(joined, element, other, centres) for other in range(len(self.elements)))
        seen = [self._variables(element, other, of, stress=False, places=False) for other, of in enumerate(bonds)]
        return self.variables.densities(np.concatenate([of.total for of in seen], axis=1))


class _Rows:
    """Rows under construction, transposed: of energies (columns, structures), forces (columns, 3 atoms), virials (columns,
    structures, 6)."""

    def __init__(self, joined: _Joined, columns: int) -> None:
        self.spans, self.structure = joined.spans, joined.structure
        self.energies = np.zeros((columns, len(joined.spans)))
        self.forces = np.zeros((columns, 3 * len(joined.species)))
        self.virials = np.zeros((len(joined.spans), columns, 6))

    def add_functions(
        self, centre: int, n: int, column: int, slopes: Array, functions: Functions, seen: Sequence[_Seen]
    ) -> None:  # fmt: skip
        """The derivatives of a centre's functions, by those of its variables."""
        buffer = np.empty(3 * max(len(of.bonds.atoms) for of in seen))
        for ends, of in zip(functions.slope_ends, seen, strict=True):
            atoms = of.bonds.atoms[of.bonds.links(n)]
            kernels.add_rows(
                slopes, ends, functions.slope_places, of.block(n).ravel(), atoms, of.by_strain[n], centre, column,
                self.forces, buffer, self.virials[self.structure[centre]],
            )  # fmt: skip

    def add(self, centre: int, atoms: Integers, columns: slice, by_place: Array, by_strain: Array) -> None:
        """A centre's energy by the places of different atoms that it sees (columns, 3 atoms), and by strains (columns, 6)."""
        kernels.add_all_forces(by_place, atoms, centre, columns.start, self.forces)
        self.virials[self.structure[centre], columns, : by_strain.shape[1]] += by_strain

    def of(self, n: int, stress: bool) -> Array:
        """(1 + 3 n [+ 6], columns) of a structure."""
        span = self.spans[n]
        parts = [self.energies[:, n : n + 1], self.forces[:, 3 * span.start : 3 * span.stop]]
        return np.concatenate([*parts, self.virials[n]] if stress else parts, axis=1).T


def _pair(one: int, other: int) -> Pair:
    return (min(one, other), max(one, other))
