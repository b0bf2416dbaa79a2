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
from copy import copy
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement, pairwise, product
from typing import Any

import numpy as np
from ase import Atoms

from mlip_pace.ace import bonds, kernels
from mlip_pace.ace.bonds import Bonds, Joined
from mlip_pace.ace.functions import Functions, Variables
from mlip_pace.ace.harmonics import tables
from mlip_pace.ace.kernels import LANES
from mlip_pace.arrays import Array, Integers

Pair = tuple[int, int]  # numbers of two elements, the smaller first

GRID = 0.002  # Å between the points of the splines of g_k


@dataclass(frozen=True)
class _Sums:
    """Sums over bonds, each of one of the radial functions times one of the harmonics: `of_radial` and `of_angle` say which.

    Radial functions (functions, bonds) come with their slopes, harmonics (lm, bonds) with their derivatives by the place of the
    neighbour (3, lm, bonds).
    """

    bonds: Bonds
    radial: Array
    slopes: Array
    y: Array
    dy: Array
    of_radial: Integers
    of_angle: Integers

    def some(self, centres: slice) -> _Sums:
        return replace(self, bonds=self.bonds.some(centres))

    def total(self) -> Array:
        """(centres, sums)."""
        result = np.empty((len(self.bonds.first) - 1, len(self.of_radial)))
        kernels.sums(self.bonds.first, self.radial, self.y, self.of_radial, self.of_angle, result)
        return result

    def moved(self, centre: int) -> Array:
        """The derivatives of a centre's sums by its coordinates: (sums, coordinates)."""
        bonds, (first, last) = self.bonds, self.bonds.first[centre : centre + 2]
        result = np.empty((len(self.of_radial), len(bonds.targets(centre))))
        kernels.moved(
            first, last, bonds.link, bonds.distance, bonds.direction, self.radial, self.slopes, self.y, self.dy, self.of_radial,
            self.of_angle, result,
        )  # fmt: skip
        return result


class _Energy:
    """The energy of a centre of one element as a function of its variables, with given coefficients c."""

    def __init__(self, functions: Functions, c: Array) -> None:
        variables = functions.variables
        self.functions, self.gradient, self.curvature = functions, functions.gradient(c), functions.curvature(c)
        # Those of one neighbour, g_k, have no second derivatives: they are left out of the matrix.
        width = variables.width - variables.nk
        one, other = (x // variables.width * width + x % variables.width - variables.nk for x in functions.curved)
        self.places = one, other
        self.by_xx = np.zeros(2 * [variables.elements * width])

    def derivatives(self, densities: Array, slopes: Array) -> Iterator[tuple[Array, Array]]:
        """Of one centre after the other, by x (variables,), and twice, without g_k; the latter is overwritten by the next."""
        by_x, by_xx = self.gradient @ slopes, self.curvature @ self.functions.products_without_two(densities)
        one, other = self.places
        for n in range(LANES):
            kernels.unfold(by_xx, n, one, other, self.by_xx)
            yield by_x[:, n], self.by_xx


@dataclass(frozen=True)
class _Radial:
    """The derivatives by C of the energies of some centres: where they go, and what they are made of."""

    rows: Array
    columns: dict[Pair, int]  # where those of each pair of elements begin
    element: int  # of the centres
    plain: list[_Sums]  # g_k Y_lm, of which the variables are linear combinations
    totals: list[Array]


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
        self.factors = self._factors()

    def with_radial(self, coefficients: Array) -> Expansion:
        """The same with other C, those of all pairs of elements one after the other, as pyace has them."""
        result, first = copy(self), 0
        result.radial = {pair: np.zeros_like(before) for pair, before in self.radial.items()}
        for pair, (n, l, k) in self.shapes.items():  # noqa: E741
            last = first + n * l * k
            result.radial[pair][:n, :l, :k] = coefficients[first:last].reshape(n, l, k)
            first = last
        return result

    def functions(self, structures: Iterable[Atoms]) -> Iterator[dict[str, Array]]:
        """The basis functions of every atom: for each structure, by element, an array (atoms of it, functions)."""
        for joined in bonds.joined(structures, self.elements, self.cutoff, stress=False):
            values = [np.empty((len(joined.species), count)) for count in self.counts]
            for element, centres, seen in self._centres(joined):
                values[element][centres] = self.of_element[element].values(self._densities(seen))[:, : len(centres)].T
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
        energies: list[_Energy] = []
        if coefficients is not None and pairs:
            energies = [_Energy(f, coefficients[slice(*c)]) for f, c in zip(self.of_element, pairwise(ends), strict=True)]
        radial_ends = np.cumsum([0, *(math.prod(self.shapes[pair]) for pair in pairs)])
        columns = dict(zip(pairs, radial_ends[:-1].tolist(), strict=True))
        for joined in bonds.joined(structures, self.elements, self.cutoff, stress):
            of_c, of_radial = (np.zeros((count, joined.rows[-1].stop)) for count in (ends[-1], radial_ends[-1]))
            for element, centres, seen in self._centres(joined):
                functions, column = self.of_element[element], ends[element]
                densities = self._densities(seen)
                products, without = functions.products(densities)
                slopes = functions.slopes @ without
                kernels.add_values(functions.mixing @ products, joined.energies[centres], column, of_c)
                if energies:
                    plain = [self._plain(one) for one in seen]
                    radial = _Radial(of_radial, columns, element, plain, [one.total() for one in plain])
                    derivatives = energies[element].derivatives(densities, slopes)
                for n, row in enumerate(joined.energies[centres]):
                    moved = [one.moved(n) for one in seen]
                    for first, by, one in zip(functions.slope_ends, moved, seen, strict=True):
                        target = one.bonds.targets(n)
                        kernels.add_slopes(slopes, n, first, functions.slope_places, by, target, column, of_c)
                    if energies:
                        self._add_radial(radial, n, row, *next(derivatives), moved)
            for rows in joined.rows:
                yield of_c[:, rows].T, of_radial[:, rows].T

    def _add_radial(self, to: _Radial, n: int, row: int, by_x: Array, by_xx: Array, moved: list[Array]) -> None:
        """Add those of the nth centre, whose energy has this row, from its derivatives by variables and those of these."""
        width = self.width - self.nk
        for pair, column in to.columns.items():
            if to.element not in pair:
                continue
            other = pair[pair[0] == to.element]
            mine = np.ascontiguousarray(by_x[other * self.width + self.nk : (other + 1) * self.width])
            matrix, total = by_xx[other * width : (other + 1) * width], to.totals[other][n].reshape(self.nk, -1)
            for s, block in enumerate(moved):
                along = to.plain[s].moved(n) if s == other else np.empty((0, 0))
                shape, target = np.array([*self.shapes[pair], self.nr]), to.plain[s].bonds.targets(n)
                of_variables = matrix[:, s * width : (s + 1) * width] @ block[self.nk :]
                kernels.add_radial(shape, of_variables, mine, total, along, target, row, column, to.rows)

    def _factors(self) -> tuple[Integers, Integers]:
        """Which radial function (g_k, then R_nl) and which harmonic each variable is made of."""
        radial, angle = list(range(self.nk)), [0] * self.nk
        for l, n in product(range(self.lmax + 1), range(self.nr)):  # noqa: E741
            radial += [self.nk + n * (self.lmax + 1) + l] * (2 * l + 1)
            angle += range(l * l, (l + 1) * (l + 1))
        return np.array(radial, np.int64), np.array(angle, np.int64)

    def _spline(self, functions: Any, pair: Pair, cutoff: float) -> tuple[Array, Array]:
        """g_k of a pair of elements, and its slopes."""
        grid = np.arange(1, math.ceil(cutoff / GRID) + 1) * GRID
        values, slopes = [], []
        for r in grid:
            functions.evaluate(min(r, cutoff), self.nk, self.nr, *pair)
            values.append(np.array(functions.gr))
            slopes.append(np.array(functions.dgr))
        return np.array(values), np.array(slopes)

    def _centres(self, joined: Joined) -> Iterator[tuple[int, Integers, list[_Sums]]]:
        """At most LANES centres of one element, and their variables of neighbours of each."""
        for element, centres in joined.blocks():
            seen = [self._variables(joined, element, other, centres) for other in range(len(self.elements))]
            for n in range(0, len(centres), LANES):
                some = slice(n, min(n + LANES, len(centres)))
                yield element, centres[some], [one.some(some) for one in seen]

    def _variables(self, joined: Joined, element: int, other: int, centres: Integers) -> _Sums:
        """The variables of one element of neighbours."""
        pair, nlm = _pair(element, other), (self.lmax + 1) ** 2
        found = bonds.bonds(joined, centres, other, self.cutoffs[pair])
        count = len(found.distance)
        g, dg = (np.empty((self.nk, count)) for _ in range(2))
        y, dy = np.empty((nlm, count)), np.empty((3, nlm, count))
        tables = self.legendre, self.derivative, self.ls, self.ms
        kernels.bond_functions(found.distance, found.direction, *self.splines[pair], GRID, *tables, g, dg, y, dy)  # type: ignore[arg-type]
        mixing = self.radial[pair].reshape(-1, self.nk)
        return _Sums(found, np.concatenate([g, mixing @ g]), np.concatenate([dg, mixing @ dg]), y, dy, *self.factors)

    def _plain(self, variables: _Sums) -> _Sums:
        """g_k Y_lm."""
        nlm = (self.lmax + 1) ** 2
        return replace(variables, of_radial=np.repeat(np.arange(self.nk), nlm), of_angle=np.tile(np.arange(nlm), self.nk))

    def _densities(self, seen: list[_Sums]) -> Array:
        return self.variables.densities(np.concatenate([one.total() for one in seen], axis=1))


def _pair(one: int, other: int) -> Pair:
    return (min(one, other), max(one, other))
