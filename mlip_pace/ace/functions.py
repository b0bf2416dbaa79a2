"""The basis functions of one element as polynomials of what an atom sees: their values and derivatives, all at once.

In the notation of R. Drautz, Phys. Rev. B 99, 014104 (2019): A_nlm = Σ_j R_nl(r_j) Y_lm(r_j) for each element of neighbours,
and B = Σ_ms C_ms Re Π A_nlm. The variables x of an atom are, for each element of neighbours, Σ_j g_k(r_j), of which functions
of one neighbour are made, and the real and imaginary parts of A with m >= 0 (A_nl-m is (-1)^m times the conjugate of A_nlm).
Derivatives come from the products that lack one factor, or two, by one sparse matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import combinations, product
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_array, csr_array

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
        densities: Complex = along[0] * x[:, numbers[0]] + along[1] * x[:, numbers[1]]
        return densities


@dataclass(frozen=True)
class _Terms:
    """The products of one order."""

    factors: Integers  # (order, terms): numbers of A
    mixing: csr_array  # (functions, terms): C_ms


class Functions:
    """The functions of one element, in the order of pyace's: those of one neighbour (`rank1` of them) come first."""

    def __init__(self, functions: Sequence[Any], rank1: int, variables: Variables) -> None:
        self.count = len(functions)
        self.variables = variables
        self.terms = self._read(functions, rank1)
        self._slopes = self._slope_matrix()

    def values(self, densities: Complex) -> Array:
        """B (centres, functions)."""
        products = self._products(densities, but=0)
        values: Array = sum(terms.mixing @ made.real.T for terms, made in zip(self.terms, products, strict=True)).T
        return values

    def slopes(self, densities: Complex) -> Iterator[Array]:
        """∂B/∂x (variables, functions) of one centre after the other."""
        return (made.reshape(-1, self.count) for made in self._applied(self._slopes, densities, but=1))

    def curvature(self, c: Array) -> csc_array:
        """For `bends`: from the products without two factors to Σ c ∂²B/∂x∂x (variables variables,)."""
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
        size = self.variables.count
        return (made.reshape(size, size) for made in self._applied(curvature, densities, but=2))

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
        """From the products without one factor to ∂B/∂x (variables functions,)."""
        entries, count, (numbers, alongs) = _Entries(), self.count, self.variables.parts
        for terms in self.terms:
            mixing = terms.mixing.tocoo()
            k, t = mixing.coords
            for factor in terms.factors:
                for x, along in zip(numbers[:, factor[t]], alongs[:, factor[t]], strict=True):
                    entries.add(x * count + k, t, mixing.data * along)
                entries.next_products(len(factor))
        return entries.matrix(self.variables.count * count)

    def _applied(self, matrix: csc_array, densities: Complex, but: int) -> Iterator[Array]:
        """A matrix of `_Entries` times the products, for one centre after the other."""
        stacked = np.concatenate(list(self._products(densities, but)), axis=1)
        return (matrix @ parts for parts in stacked.view(np.float64))

    def _products(self, densities: Complex, but: int) -> Iterator[Complex]:
        """The products (centres, terms) of all factors of each order but none, one or two, in every way."""
        for terms in self.terms:
            factors = [np.take(densities, factor, axis=1) for factor in terms.factors]
            for left_out in combinations(range(len(factors)), but):
                kept = [factor for n, factor in enumerate(factors) if n not in left_out]
                yield reduce(np.multiply, kept) if kept else np.ones_like(factors[0])


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
