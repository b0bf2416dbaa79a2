"""The basis functions of one element as polynomials of what an atom sees: their values and derivatives, all at once.

In the notation of R. Drautz, Phys. Rev. B 99, 014104 (2019): A_nlm = Σ_j R_nl(r_j) Y_lm(r_j) for each element of neighbours,
and B = Σ_ms C_ms Re Π A_nlm. The variables x of an atom are, for each element of neighbours, Σ_j g_k(r_j), of which functions
of one neighbour are made, and the real and imaginary parts of A with m >= 0 (A_nl-m is (-1)^m times the conjugate of A_nlm).
Derivatives come from the products that lack one factor, or two, by one sparse matrix each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import combinations, product
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_array, csr_array, hstack

from mlip_pace.ace import kernels
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

    def densities(self, x: Array) -> Complex:
        """A (centres, variables) from x (centres, variables)."""
        numbers, along = self.parts
        return np.ascontiguousarray(along[0] * x[:, numbers[0]] + along[1] * x[:, numbers[1]])


@dataclass(frozen=True)
class _Terms:
    """The products of one order."""

    factors: Integers  # (order, terms): numbers of A
    mixing: csr_array  # (functions, terms): C_ms


@dataclass(frozen=True)
class Compressed:
    """A sparse matrix row by row, as `kernels.times` takes it."""

    ends: Integers
    columns: Integers
    data: Array

    @staticmethod
    def of(matrix: csr_array) -> Compressed:
        return Compressed(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data)

    def times(self, vector: Array) -> Array:
        result = np.empty(len(self.ends) - 1)
        kernels.times(self.ends, self.columns, self.data, vector, result)
        return result


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
        self.mixing = Compressed.of(csr_array(hstack([terms.mixing for terms in self.terms])))
        slopes = csr_array(self._slope_matrix())
        kept = np.flatnonzero(np.diff(slopes.indptr))
        variable, function = np.divmod(kept, self.count)
        order = np.lexsort((variable, function, variable // variables.width))
        kept, variable, function = kept[order], variable[order], function[order]
        self.slopes = Compressed.of(slopes[kept])
        self.slope_functions, self.slope_variables = function, variable
        self.slope_places = variable % variables.width
        starts = np.arange(variables.elements)[:, None] * self.count + np.arange(self.count + 1)
        self.slope_ends = np.searchsorted(variable // variables.width * self.count + function, starts).astype(np.int64)

    def products(self, densities: Complex) -> tuple[Array, Array]:
        """Of one centre: the products of all terms, and real and imaginary parts of those that lack one factor."""
        without, whole = np.empty(len(self.factors), complex), np.empty(len(self.ends) - 1)
        kernels.products(densities, self.ends, self.factors, without, whole)
        return whole, without.view(np.float64)

    def values(self, densities: Complex) -> Array:
        """B (centres, functions)."""
        return np.array([self.mixing.times(self.products(one)[0]) for one in densities]).reshape(-1, self.count)

    def curvature(self, c: Array) -> csc_array:
        """For `hessians`: from the products without two factors to Σ c ∂²B/∂x∂x (variables variables,)."""
        entries, variables, (numbers, alongs) = _Entries(), self.variables.count, self.variables.parts
        for terms in self.terms:
            weight, t = terms.mixing.T @ c, np.arange(terms.factors.shape[1])
            for one, other in combinations(terms.factors, 2):
                for i, j in product((0, 1), repeat=2):
                    x, y = numbers[i, one], numbers[j, other]
                    along = weight * alongs[i, one] * alongs[j, other]
                    entries.add(x * variables + y, t, along)
                    entries.add(y * variables + x, t, along)
                entries.next_products(len(t))
        return entries.matrix(variables**2)

    def hessians(self, curvature: csc_array, densities: Complex) -> Iterator[Array]:
        """Σ c ∂²B/∂x∂x (variables, variables) of one centre after the other, for the c of the `curvature`."""
        size, products = self.variables.count, []
        for terms in self.terms:
            factors = [np.take(densities, factor, axis=1) for factor in terms.factors]
            for left_out in combinations(range(len(factors)), 2):
                kept = [factor for n, factor in enumerate(factors) if n not in left_out]
                products.append(reduce(np.multiply, kept) if kept else np.ones_like(factors[0]))
        stacked = np.concatenate([*products, np.empty((len(densities), 0))], axis=1).astype(complex, copy=False)
        return ((curvature @ parts).reshape(size, size) for parts in np.ascontiguousarray(stacked).view(np.float64))

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
        entries.next_products(first)
        return entries.matrix(self.variables.count * count)


class _Entries:
    """The entries of a sparse matrix whose columns are real and imaginary parts of products, one kind after the other."""

    def __init__(self) -> None:
        self.rows: list[Integers] = []
        self.columns: list[Integers] = []
        self.data: list[Array] = []
        self.width = 0

    def add(self, rows: Integers, product: Integers, along: Complex) -> None:
        """Re(along product) of products of the present kind."""
        for offset, data in ((0, along.real), (1, -along.imag)):
            self.rows.append(rows)
            self.columns.append(self.width + 2 * product + offset)
            self.data.append(data)

    def next_products(self, count: int) -> None:
        self.width += 2 * count

    def matrix(self, height: int) -> csc_array:
        rows, columns, data = (np.concatenate([*parts, []]) for parts in (self.rows, self.columns, self.data))
        entries = data != 0
        return csc_array((data[entries], (rows[entries].astype(int), columns[entries].astype(int))), shape=(height, self.width))
