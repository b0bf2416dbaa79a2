"""The basis functions of one element as polynomials of what an atom sees: their values and derivatives, all at once.

In the notation of R. Drautz, Phys. Rev. B 99, 014104 (2019): A_nlm = Σ_j R_nl(r_j) Y_lm(r_j) for each element of neighbours,
and B = Σ_ms C_ms Re Π A_nlm. The variables x of an atom are, for each element of neighbours, Σ_j g_k(r_j), of which functions
of one neighbour are made, and the real and imaginary parts of A with m >= 0 (A_nl-m is (-1)^m times the conjugate of A_nlm).
Derivatives come from the products that lack one factor, or two, by one sparse matrix each, LANES atoms at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_array, csr_array, hstack

from mlip_pace.ace import kernels
from mlip_pace.ace.kernels import LANES
from mlip_pace.arrays import Array, Integers

Complex = npt.NDArray[np.complex128]


@dataclass(frozen=True)
class Variables:
    """The order of the variables x of an atom: by element of neighbours k of Σ_j g_k, then l, n, m of A_nlm.

    For each n and l they are m = 0, Re 1, Im 1, Re 2, ...
    """

    elements: int
    nk: int
    nr: int
    lmax: int

    @property
    def width(self) -> int:
        """Variables for each element of neighbours."""
        return self.nk + self.nr * (self.lmax + 1) ** 2

    @property
    def count(self) -> int:
        return self.elements * self.width

    def place(self, element: int, n: int, l: int, m: int) -> int:  # noqa: E741
        """The number of A_nlm, or for l = -1 of Σ_j g_n: A_nlm and A_nl-m, m > 0, are where Re A_nlm and Im A_nlm are in x."""
        if l < 0:
            return element * self.width + n - 1
        return element * self.width + self.nk + self.nr * l**2 + (n - 1) * (2 * l + 1) + max(0, 2 * abs(m) - (m > 0))

    @cached_property
    def parts(self) -> tuple[Integers, Complex]:
        """A = along[0] x[numbers[0]] + along[1] x[numbers[1]]: both (2, variables)."""
        numbers = np.tile(np.arange(self.count), (2, 1))
        along = np.array([[1.0 + 0j], [0j]]).repeat(numbers.shape[1], axis=1)
        for element, n, l in product(range(self.elements), range(1, self.nr + 1), range(self.lmax + 1)):  # noqa: E741
            for m in range(1, l + 1):
                plus, minus = self.place(element, n, l, m), self.place(element, n, l, -m)
                numbers[:, plus] = numbers[:, minus] = plus, minus
                along[:, plus] = 1, 1j
                along[:, minus] = (-1) ** m, -1j * (-1) ** m
        return numbers, along

    def densities(self, x: Array) -> Array:
        """A (2 variables, LANES) from x (centres, variables) of at most LANES centres."""
        result = np.empty((2 * self.count, LANES))
        kernels.densities(x, *self.parts, result)
        return result


@dataclass(frozen=True)
class _Terms:
    """The products of one order."""

    factors: Integers  # (order, terms): numbers of A
    mixing: csr_array  # (functions, terms): C_ms


class Functions:
    """The functions of one element, in the order of pyace's: those of one neighbour (`rank1` of them) come first.

    Only a few of the ∂B/∂x are not zero, the same for all atoms: the slopes. They are ordered by element of neighbours, then
    by function; `slope_ends[s]` are where those of each function begin, and `slope_places` the variables, of that element.
    """

    def __init__(self, functions: Sequence[Any], rank1: int, variables: Variables) -> None:
        self.count = len(functions)
        self.variables = variables
        self.terms = self._read(functions, rank1)
        orders = [np.full(terms.factors.shape[1], len(terms.factors)) for terms in self.terms]
        self.ends = np.cumsum([0, *np.concatenate(orders)]).astype(np.int64)
        self.factors = np.concatenate([terms.factors.T.ravel() for terms in self.terms]).astype(np.int64)
        self.mixing = csr_array(hstack([terms.mixing for terms in self.terms]))
        slopes = csr_array(self._slope_matrix())
        kept = np.flatnonzero(np.diff(slopes.indptr))
        variable, function = np.divmod(kept, self.count)
        order = np.lexsort((variable, function, variable // variables.width))
        kept, variable, function = kept[order], variable[order], function[order]
        self.slopes = slopes[kept]  # from the products without one factor
        self.slope_functions, self.slope_variables = function, variable
        self.slope_places = variable % variables.width
        starts = np.arange(variables.elements)[:, None] * self.count + np.arange(self.count + 1)
        self.slope_ends = np.searchsorted(variable // variables.width * self.count + function, starts).astype(np.int64)

    def products(self, densities: Array) -> tuple[Array, Array]:
        """Of some centres: the products of all terms (terms, LANES), and those that lack one factor (2 factors, LANES)."""
        without, whole = np.empty((2 * len(self.factors), LANES)), np.empty((len(self.ends) - 1, LANES))
        kernels.products(densities, self.ends, self.factors, without, whole)
        return whole, without

    def values(self, densities: Array) -> Array:
        """B (functions, LANES)."""
        of_centres: Array = self.mixing @ self.products(densities)[0]
        return of_centres

    def gradient(self, c: Array) -> csr_array:
        """From the slopes to Σ c ∂B/∂x (variables)."""
        entries = (c[self.slope_functions], (self.slope_variables, np.arange(len(self.slope_functions))))
        return csr_array(entries, shape=(self.variables.count, len(self.slope_functions)))

    def curvature(self, c: Array) -> csr_array:
        """From `products_without_two` to Σ c ∂²B/∂x∂x, of the pairs of variables `curved`."""
        weights = np.concatenate([terms.mixing.T @ c for terms in self.terms])
        matrix = self._curvature.copy()
        matrix.data *= weights[self._term_of_pair[matrix.indices // 2]]
        return matrix

    @cached_property
    def curved(self) -> tuple[Integers, Integers]:
        """The pairs of variables, the first not after the second, by which functions have second derivatives."""
        return np.divmod(np.flatnonzero(np.diff(self._curvatures.indptr)), self.variables.count)

    def products_without_two(self, densities: Array) -> Array:
        """(2 pairs of factors of one term, LANES)."""
        without = np.empty((2 * len(self._term_of_pair), LANES))
        kernels.products_without_two(densities, self.ends, self.factors, without)
        return without

    def _read(self, functions: Sequence[Any], rank1: int) -> list[_Terms]:
        """The products of which the functions are made, by order."""
        orders: dict[int, dict[tuple[Any, ...], dict[int, float]]] = {}
        for k, function in enumerate(functions):
            for ms, coupling in zip(function.ms_combs, function.gen_cgs, strict=True):
                ls = function.ls if k >= rank1 else [-1]
                term = tuple(sorted(zip(function.mus, function.ns, ls, ms, strict=True)))
                made = orders.setdefault(len(ms), {}).setdefault(term, {})
                made[k] = made.get(k, 0.0) + coupling
        found = []
        for order, terms in sorted(orders.items()):
            factors = np.array([[self.variables.place(*factor) for factor in term] for term in terms]).T
            entries = [(k, t, value) for t, made in enumerate(terms.values()) for k, value in made.items()]
            rows, columns, values = zip(*entries, strict=True)
            mixing = csr_array((values, (rows, columns)), shape=(len(functions), len(terms)))
            found.append(_Terms(factors.reshape(order, len(terms)), mixing))
        return found

    @cached_property
    def _curvature(self) -> csr_array:
        """From `products_without_two` to ∂²(sum of all terms)/∂x∂x, of the pairs of variables `curved`."""
        return self._curvatures[np.flatnonzero(np.diff(self._curvatures.indptr))]

    @cached_property
    def _term_of_pair(self) -> Integers:
        """The term of each pair of factors."""
        orders = np.diff(self.ends)
        return np.repeat(np.arange(len(orders)), orders * (orders - 1) // 2)

    @cached_property
    def _curvatures(self) -> csr_array:
        """`_curvature` of all pairs of variables, (variables variables, 2 pairs of factors): those with the first not after the
        second."""
        entries, variables, (numbers, alongs), first = _Entries(), self.variables.count, self.variables.parts, 0
        for terms in self.terms:
            pairs = list(combinations(terms.factors, 2))
            for n, (one, other) in enumerate(pairs):
                product = first + len(pairs) * np.arange(len(one)) + n
                for i, j in np.ndindex(2, 2):
                    x, y = numbers[i, one], numbers[j, other]
                    along = alongs[i, one] * alongs[j, other]
                    # Twice on the diagonal, ∂²(x x)/∂x∂x.
                    entries.add(np.minimum(x, y) * variables + np.maximum(x, y), product, along * (1 + (x == y)))
            first += len(pairs) * terms.factors.shape[1]
        return csr_array(entries.matrix((variables**2, 2 * first)))

    def _slope_matrix(self) -> csc_array:
        """From the products without one factor, in the order of `factors`, to ∂B/∂x (variables functions,)."""
        entries, count, (numbers, alongs), first = _Entries(), self.count, self.variables.parts, 0
        for terms in self.terms:
            mixing, order = terms.mixing.tocoo(), len(terms.factors)
            k, t = mixing.coords
            for n, factor in enumerate(terms.factors):
                for x, along in zip(numbers[:, factor[t]], alongs[:, factor[t]], strict=True):
                    entries.add(x * count + k, first + t * order + n, mixing.data * along)
            first += terms.factors.size
        return entries.matrix((self.variables.count * count, 2 * first))


class _Entries:
    """The entries of a sparse matrix whose columns are real and imaginary parts of products."""

    def __init__(self) -> None:
        self.rows: list[Integers] = []
        self.columns: list[Integers] = []
        self.data: list[Array] = []

    def add(self, rows: Integers, product: Integers, along: Complex) -> None:
        """Re(along product)."""
        for offset, data in ((0, along.real), (1, -along.imag)):
            self.rows.append(rows)
            self.columns.append(2 * product + offset)
            self.data.append(data)

    def matrix(self, shape: tuple[int, int]) -> csc_array:
        rows, columns, data = (np.concatenate([*parts, []]) for parts in (self.rows, self.columns, self.data))
        entries = data != 0
        return csc_array((data[entries], (rows[entries].astype(int), columns[entries].astype(int))), shape=shape)
