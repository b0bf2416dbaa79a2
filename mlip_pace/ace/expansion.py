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
from scipy.interpolate import CubicHermiteSpline
from scipy.sparse import csr_array

from mlip_pace.ace.functions import Functions, Variables
from mlip_pace.ace.harmonics import harmonics
from mlip_pace.arrays import VOIGT, Array, Integers
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


@dataclass(frozen=True)
class _Bonds:
    """Of some centres (numbers among these) with one element of neighbours."""

    centre: Integers  # (bonds,)
    neighbour: Integers
    distance: Array
    direction: Array  # (bonds, 3)
    g: Array  # (bonds, k)
    dg: Array
    y: Array  # (bonds, lm)
    dy: Array  # (bonds, 3, lm): the derivatives of y by the direction


@dataclass(frozen=True)
class _Surroundings:
    """What some centres see of one element of neighbours: the variables and their derivatives by the places of atoms."""

    x: Array  # (centres, width)
    x_by_place: Array  # (links, 3, width); a link is a centre and an atom that it sees, be it in several cells
    x_by_strain: Array  # (centres, 6, width)
    sums: Array  # (centres, k, lm): Σ_j g_k Y_lm, of which the variables are linear combinations
    sums_by_place: Array  # (links, 3, k, lm)
    sums_by_strain: Array  # (centres, 6, k, lm)
    atoms: Integers  # (links,)
    first: Integers  # (centres + 1,): where the links of a centre begin

    def links(self, centre: int) -> slice:
        return slice(self.first[centre], self.first[centre + 1])


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
        self.splines: dict[Pair, CubicHermiteSpline] = {}
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
                bonds = [self._bonds(joined, element, s, centres) for s in range(len(self.elements))]
                x = [_summed(self._variables(element, s, of), of.centre, len(centres)) for s, of in enumerate(bonds)]
                densities = self.variables.densities(np.concatenate(x, axis=1))
                values[element][centres] = self.of_element[element].values(densities)
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
            of_c = _Rows(len(joined.species), ends[-1], stress)
            of_radial = _Rows(len(joined.species), sum(math.prod(self.shapes[pair]) for pair in pairs), stress)
            for element, centres in self._blocks(joined):
                surroundings = self._surroundings(joined, element, centres, bool(pairs), stress)
                functions = self.of_element[element]
                densities = self.variables.densities(np.concatenate([seen.x for seen in surroundings], axis=1))
                of_c.energies[centres, columns[element]] = functions.values(densities)
                hessians: Iterable[Array] = [np.empty(0)] * len(centres)
                if coefficients is not None:
                    hessians = functions.hessians(curvatures[element], densities)
                for n, (centre, by_x, by_xx) in enumerate(zip(centres, functions.slopes(densities), hessians, strict=True)):
                    for s, seen in enumerate(surroundings):
                        block, links = by_x[s * self.width : (s + 1) * self.width], seen.links(n)
                        by_place, by_strain = _product(seen.x_by_place[links], block), seen.x_by_strain[n] @ block
                        of_c.add(centre, seen.atoms[links], columns[element], by_place, by_strain)
                    if coefficients is not None:
                        energy = _Energy(element, n, centre, by_x @ coefficients[columns[element]], by_xx)
                        self._add_radial(of_radial, pairs, energy, surroundings)
            for span in joined.spans:
                yield of_c.of(span), of_radial.of(span)

    def _add_radial(self, rows: _Rows, pairs: Sequence[Pair], of: _Energy, surroundings: list[_Surroundings]) -> None:
        """The derivatives of a centre's energy by C."""
        element, n, centre, by_x = of.element, of.n, of.centre, of.by_x
        blocks = [of.by_xx[s * self.width : (s + 1) * self.width] for s in range(len(surroundings))]
        moved = [_product(seen.x_by_place[seen.links(n)], block) for seen, block in zip(surroundings, blocks, strict=True)]
        strained = [seen.x_by_strain[n] @ block for seen, block in zip(surroundings, blocks, strict=True)]
        first = 0
        for pair in pairs:
            columns = slice(first, first := first + math.prod(self.shapes[pair]))
            if element not in pair:
                continue
            other = pair[pair[0] == element]
            sums = surroundings[other].sums[n]
            rows.energies[centre, columns] += self._by_radial(pair, other, by_x, sums)
            for s, seen in enumerate(surroundings):
                links = seen.links(n)
                by_place, by_strain = (self._by_radial(pair, other, by[s], sums) for by in (moved, strained))
                if s == other:
                    by_place += self._by_radial(pair, other, by_x, seen.sums_by_place[links])
                    by_strain += self._by_radial(pair, other, by_x, seen.sums_by_strain[n])
                rows.add(centre, seen.atoms[links], columns, by_place, by_strain)

    def _by_radial(self, pair: Pair, other: int, by_x: Array, seen: Array) -> Array:
        """Σ_m ∂E/∂x_nlm g_k Y_lm (..., coefficients of the pair), by_x (..., variables) or seen (..., k, lm) being of many."""
        many = max(by_x.shape[:-1], seen.shape[:-2], key=len)
        block = np.empty((*many, self.nr, self.lmax + 1, self.nk))
        for l in range(self.lmax + 1):  # noqa: E741
            first = other * self.width + self.nk + self.nr * l**2
            slopes = by_x[..., first : first + self.nr * (2 * l + 1)].reshape(*by_x.shape[:-1], self.nr, 2 * l + 1)
            harmonic = seen[..., l**2 : (l + 1) ** 2]
            if seen.ndim == 2:
                block[..., l, :] = _product(slopes, harmonic.T)
            else:
                block[..., l, :] = _product(harmonic, slopes.T).swapaxes(-1, -2)
        n, l, k = self.shapes[pair]  # noqa: E741
        return block[..., :n, :l, :k].reshape(*many, n * l * k)

    def _spline(self, functions: Any, pair: Pair, cutoff: float) -> CubicHermiteSpline:
        """g_k of a pair of elements."""
        grid = np.arange(1, math.ceil(cutoff / GRID) + 1) * GRID
        values, slopes = [], []
        for r in grid:
            functions.evaluate(min(r, cutoff), self.nk, self.nr, *pair)
            values.append(np.array(functions.gr))
            slopes.append(np.array(functions.dgr))
        return CubicHermiteSpline(grid, np.array(values), np.array(slopes))

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
        return _Joined(species, i + offset, j + offset, distance, vector / distance[:, None], spans)

    def _blocks(self, joined: _Joined) -> Iterator[tuple[int, Integers]]:
        """Centres of one element, as many as are worked on at a time."""
        for element in np.unique(joined.species):
            centres = np.flatnonzero(joined.species == element)
            for n in range(0, len(centres), CENTRES_IN_BLOCK):
                yield int(element), centres[n : n + CENTRES_IN_BLOCK]

    def _bonds(self, joined: _Joined, element: int, other: int, centres: Integers) -> _Bonds:
        """Of some centres of one element with neighbours of another."""
        chosen = np.isin(joined.centre, centres) & (joined.species[joined.neighbour] == other)
        chosen &= joined.distance < self.cutoffs[_pair(element, other)]
        centre = np.searchsorted(centres, joined.centre[chosen])
        distance, direction = joined.distance[chosen], joined.direction[chosen]
        spline = self.splines[_pair(element, other)]
        g, dg = spline(distance), spline(distance, 1)
        return _Bonds(centre, joined.neighbour[chosen], distance, direction, g, dg, *harmonics(direction, self.lmax))

    def _surroundings(
        self, joined: _Joined, element: int, centres: Integers, of_radial: bool, stress: bool
    ) -> list[_Surroundings]:  # fmt: skip
        """Of some centres of one element, for each element of neighbours; g_k Y_lm and strains only if they are asked for."""
        found = []
        for other in range(len(self.elements)):
            bonds = self._bonds(joined, element, other, centres)
            atoms = len(joined.species)
            links, link = np.unique(bonds.centre * atoms + bonds.neighbour, return_inverse=True)
            x = _summed(self._variables(element, other, bonds), bonds.centre, len(centres))
            x_by_place = self._by_place(element, other, bonds)
            sums, gradients = np.empty((len(centres), 0, 0)), np.empty((len(bonds.centre), 3, 0, 0))
            if of_radial:
                sums = _summed(bonds.g[:, :, None] * bonds.y[:, None, :], bonds.centre, len(centres))
                gradients = bonds.direction[:, :, None, None] * (bonds.dg[:, :, None] * bonds.y[:, None, :])[:, None]
                gradients += (bonds.g / bonds.distance[:, None])[:, None, :, None] * bonds.dy[:, :, None, :]
            x_by_strain, sums_by_strain = (_by_strain(bonds, by, len(centres), stress) for by in (x_by_place, gradients))
            x_by_place, sums_by_place = (_summed(by, link, len(links)) for by in (x_by_place, gradients))
            first = np.searchsorted(links, np.arange(len(centres) + 1) * atoms)
            found.append(_Surroundings(x, x_by_place, x_by_strain, sums, sums_by_place, sums_by_strain, links % atoms, first))
        return found

    def _variables(self, element: int, other: int, bonds: _Bonds) -> Array:
        """What each bond adds to x: (bonds, width)."""
        return self._spread(element, other, bonds.g, bonds.y)

    def _by_place(self, element: int, other: int, bonds: _Bonds) -> Array:
        """The derivatives of `_variables` by the place of the neighbour: (bonds, 3, width)."""
        along = self._spread(element, other, bonds.dg, bonds.y)[:, None, :] * bonds.direction[:, :, None]
        return along + self._spread(element, other, (bonds.g / bonds.distance[:, None])[:, None, :], bonds.dy)

    def _spread(self, element: int, other: int, g: Array, y: Array) -> Array:
        """g_k Y_00 and Σ_k C_nlk g_k Y_lm, in the order of the variables: (..., width) from g (..., k) and y (..., lm)."""
        many, radial = y.shape[:-1], self.radial[_pair(element, other)]
        parts = [g * y[..., :1]]
        for l in range(self.lmax + 1):  # noqa: E741
            made = (g @ radial[:, l].T)[..., None] * y[..., None, l**2 : (l + 1) ** 2]
            parts.append(made.reshape(*many, self.nr * (2 * l + 1)))
        return np.concatenate(parts, axis=-1)


class _Rows:
    """Rows under construction: of energies (atoms, columns) and virials (atoms, 6, columns) by centre, of forces by atom."""

    def __init__(self, atoms: int, columns: int, stress: bool) -> None:
        self.energies = np.zeros((atoms, columns))
        self.forces = np.zeros((atoms, 3, columns))
        self.virials = np.zeros((atoms, 6 if stress else 0, columns))

    def add(self, centre: int, atoms: Integers, columns: slice, by_place: Array, by_strain: Array) -> None:
        """A centre's energy by the places (atoms, 3, columns) of different atoms that it sees, and by strain (6, columns)."""
        self.forces[atoms, :, columns] -= by_place
        self.forces[centre, :, columns] += by_place.sum(axis=0)
        self.virials[centre, :, columns] += by_strain

    def of(self, span: slice) -> Array:
        """(1 + 3 n [+ 6], columns) of the structure at `span`."""
        return np.concatenate([self.energies[span].sum(axis=0)[None], *self.forces[span], self.virials[span].sum(axis=0)])


def _by_strain(bonds: _Bonds, by_place: Array, centres: int, stress: bool) -> Array:
    """The derivatives (centres, 6, ...) by the strain, which moves neighbours by ε r, from those by places (bonds, 3, ...)."""
    if not stress:
        return np.empty((centres, 0, *by_place.shape[2:]))
    vector = (bonds.direction * bonds.distance[:, None]).reshape(-1, 3, *[1] * (by_place.ndim - 2))
    return np.stack(
        [_summed(vector[:, a] * by_place[:, b], bonds.centre, centres) for a, b in zip(*VOIGT, strict=True)], axis=1
    )


def _pair(one: int, other: int) -> Pair:
    return (min(one, other), max(one, other))


def _summed(values: Array, place: Integers, count: int) -> Array:
    """Sums (count, ...) of the values (n, ...) that have the same place."""
    incidence = csr_array((np.ones(len(place)), (place, np.arange(len(place)))), shape=(count, len(place)))
    flat = incidence @ values.reshape(len(values), math.prod(values.shape[1:]))
    sums: Array = flat.reshape(count, *values.shape[1:])
    return sums


def _product(several: Array, matrix: Array) -> Array:
    """(..., n) times (n, m) as one product: NumPy would make one of each of the matrices in `several`."""
    return (several.reshape(-1, len(matrix)) @ matrix).reshape(*several.shape[:-1], matrix.shape[1])
