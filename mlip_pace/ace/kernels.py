"""The innermost loops of the expansion, compiled by numba: what depends on every bond, product or row.

Arrays are those of `bonds.py`, `expansion.py` and `functions.py`. The last axis is what the innermost loops run over, numbers
that lie side by side: bonds, the coordinates of one centre, or, for polynomials, LANES centres that are computed together.
Kernels are compiled for their signatures when this module is imported, and kept beside it, or, where that folder cannot be
written, in a temporary one, or, where there is none, not at all. They run on one thread: worker processes are for more.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np

from mlip_pace.arrays import Array

Compiled = TypeVar("Compiled", bound=Callable[..., None])
KEPT = Path(__file__).parent / ".kernels"
LANES = 8


def _cache() -> str | None:
    """A folder for compiled kernels that can be written; numba refuses others even to read from. None: there is none."""
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        return given
    if os.access(KEPT if KEPT.exists() else KEPT.parent, os.W_OK):
        return str(KEPT)
    try:
        folder = tempfile.mkdtemp(prefix="mlip-pace-")  # nobody else's: what is in it is run
    except FileNotFoundError:
        return None
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not a worker
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    if KEPT.exists():
        shutil.copytree(KEPT, folder, dirs_exist_ok=True)
    return folder


CACHE = _cache()
if CACHE is not None:
    numba.config.CACHE_DIR = CACHE  # type: ignore[attr-defined]


def kernel(signature: str) -> Callable[[Compiled], Compiled]:
    # The order of sums is the compiler's, so that it can make several parts at a time: the same in all processes of a machine.
    fastmath = {"reassoc", "contract", "nsz"}
    compiled: Callable[[Compiled], Compiled] = numba.njit(  # type: ignore[assignment]
        signature, cache=CACHE is not None, error_model="numpy", fastmath=fastmath
    )
    return compiled


@kernel("void(f8[::1], f8[:,::1], f8[:,::1], f8[:,::1], f8, f8[:,::1], f8[:,::1], i8[::1], i8[::1], f8[:,::1], f8[:,::1],"
        " f8[:,::1], f8[:,:,::1])")  # fmt: skip
def bond_functions(
    distance: Array, direction: Array, values: Array, slopes: Array, step: float, legendre: Array, derivative: Array, ls: Any,
    ms: Any, g: Array, dg: Array, y: Array, dy: Array,
) -> None:  # fmt: skip
    """g_k and its slope, from cubic splines through values and slopes at 1, 2, ... steps, and harmonics with gradients.

    `legendre` and `derivative` are the tables of `harmonics.py` for the pairs `ls`, `ms`. Bonds are last in all arrays.
    """
    powers = np.empty(legendre.shape[0])
    around = np.empty(legendre.shape[0] + 1, np.complex128)
    for b in range(len(distance)):
        at = max(distance[b] / step - 1, 0.0)
        n = min(int(at), len(values) - 2)
        t = at - n
        u = 1 - t
        a0, a1, b0, b1 = (1 + 2 * t) * u * u, t * t * (3 - 2 * t), t * u * u * step, -t * t * u * step
        d0, e0, e1 = -6 * t * u / step, u * (1 - 3 * t), t * (3 * t - 2)
        for k in range(len(g)):
            g[k, b] = a0 * values[n, k] + a1 * values[n + 1, k] + b0 * slopes[n, k] + b1 * slopes[n + 1, k]
            dg[k, b] = d0 * (values[n, k] - values[n + 1, k]) + e0 * slopes[n, k] + e1 * slopes[n + 1, k]
        rx, ry, rz = direction[0, b], direction[1, b], direction[2, b]
        inverse = 1 / distance[b]
        powers[0], around[0] = 1.0, 1.0
        for p in range(1, len(powers)):
            powers[p] = powers[p - 1] * rz
        for p in range(1, len(around)):
            around[p] = around[p - 1] * complex(rx, ry)
        for pair in range(len(ls)):
            l, m = ls[pair], ms[pair]  # noqa: E741
            value = slope = 0.0
            for p in range(len(powers)):
                value += powers[p] * legendre[p, pair]
                slope += powers[p] * derivative[p, pair]
            along = around[m]
            by_x = m * value * around[m - 1] if m else 0j
            by_z = slope * along
            for part in range(2 if m else 1):
                if part:
                    made, gx, gy, gz = (value * along).imag, by_x.imag, by_x.real, by_z.imag
                else:
                    made, gx, gy, gz = (value * along).real, by_x.real, -by_x.imag, by_z.real
                lm = l * l + (2 * m - 1 + part if m else 0)
                outward = rx * gx + ry * gy + rz * gz
                y[lm, b] = made
                dy[0, lm, b] = (gx - rx * outward) * inverse
                dy[1, lm, b] = (gy - ry * outward) * inverse
                dy[2, lm, b] = (gz - rz * outward) * inverse


@kernel("void(i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8, i8[::1], i8[::1], i8[::1])")
def coordinates(
    centres: Any, first: Any, neighbour: Any, places: Any, strained: Any, strains: int, link: Any, starts: Any, target: Any
) -> None:  # fmt: skip
    """The coordinates of centres, starts[c] .. starts[c + 1] - 1 of each, and the rows that they belong to.

    They are x, y, z of the different atoms that it sees (`link` says which of these a bond leads to) and, last, its own; then
    `strains`. Of an atom `places` are the rows of the force on it, `strained` those of its structure's virial.
    """
    end = 0
    for c in range(len(centres)):
        starts[c], links = end, 0
        for b in range(first[c], first[c + 1]):
            if b == first[c] or neighbour[b] != neighbour[b - 1]:
                links += 1
            link[b] = links - 1
        links += 1
        for a in range(3):
            for b in range(first[c], first[c + 1]):
                target[end + link[b]] = places[neighbour[b]] + a
            end += links
            target[end - 1] = places[centres[c]] + a
        for s in range(strains):
            target[end + s] = strained[centres[c]] + s
        end += strains
    starts[len(centres)] = end


@kernel("void(i8[::1], f8[:,::1], f8[:,::1], i8[::1], i8[::1], f8[:,::1])")
def sums(first: Any, radial: Array, y: Array, of_radial: Any, of_angle: Any, total: Array) -> None:
    """Σ over the bonds of each centre of one of the `radial` functions times one of the harmonics, for each pair of `of_radial`
    and `of_angle`: (centres, pairs)."""
    for c in range(len(first) - 1):
        for v in range(len(of_radial)):
            value = 0.0
            for b in range(first[c], first[c + 1]):
                value += radial[of_radial[v], b] * y[of_angle[v], b]
            total[c, v] = value


@kernel("void(i8, i8, i8[::1], f8[::1], f8[:,::1], f8[:,::1], f8[:,::1], f8[:,::1], f8[:,:,::1], i8[::1], i8[::1], f8[:,::1])")
def moved(
    first: int, last: int, link: Any, distance: Array, direction: Array, radial: Array, slopes: Array, y: Array, dy: Array,
    of_radial: Any, of_angle: Any, result: Array,
) -> None:  # fmt: skip
    """The derivatives of `sums` over the bonds of one centre, first .. last - 1, by its `coordinates`: (pairs, coordinates).

    Those by places have the sign of forces.
    """
    count = last - first
    links = link[last - 1] + 2 if count else 1
    vector, step = np.empty((3, count)), np.empty((3, count))
    for a in range(3):
        for j in range(count):
            vector[a, j] = direction[a, first + j] * distance[first + j]
    for v in range(len(of_radial)):
        r, angle, slope = radial[of_radial[v], first:last], y[of_angle[v], first:last], slopes[of_radial[v], first:last]
        for a in range(3):
            along, turn = direction[a, first:last], dy[a, of_angle[v], first:last]
            by_place = result[v, a * links : (a + 1) * links]
            for j in range(count):
                step[a, j] = slope[j] * angle[j] * along[j] + r[j] * turn[j]
            own = value = 0.0
            atom = 0  # whose bonds, which follow one another, are being added up
            for j in range(count):
                if link[first + j] != atom:
                    by_place[atom] = -value
                    own, value, atom = own + value, 0.0, link[first + j]
                value += step[a, j]
            by_place[atom] = -value
            by_place[links - 1] = own + value
        for s in range(result.shape[1] - 3 * links):
            # Voigt's order: xx, yy, zz, yz, xz, xy
            one, other = (s, s) if s < 3 else ((1, 2) if s == 3 else ((0, 2) if s == 4 else (0, 1)))
            value = 0.0
            for j in range(count):
                value += vector[one, j] * step[other, j]
            result[v, 3 * links + s] = value


@kernel("void(f8[:,::1], i8[:,::1], c16[:,::1], f8[:,::1])")
def densities(x: Array, numbers: Any, along: Any, result: Array) -> None:
    """A = along[0] x[numbers[0]] + along[1] x[numbers[1]] of up to LANES centres (centres, variables): each real and imaginary
    part a row (2 variables, LANES)."""
    result[:] = 0.0
    for v in range(x.shape[1]):
        for i in range(len(x)):
            one, other = x[i, numbers[0, v]], x[i, numbers[1, v]]
            result[2 * v, i] = along[0, v].real * one + along[1, v].real * other
            result[2 * v + 1, i] = along[0, v].imag * one + along[1, v].imag * other


@kernel("void(f8[:,::1], i8[::1], i8[::1], f8[:,::1], f8[:,::1])")
def products(densities: Array, ends: Any, factors: Any, without: Array, whole: Array) -> None:
    """The real part of the product of each term's factors, and the products that lack one of them.

    Complex numbers are two rows, real and imaginary part; columns are centres: (2 variables, LANES) to (2 factors, LANES).
    """
    after = np.empty((2, LANES))
    for t in range(len(ends) - 1):
        first, last = ends[t], ends[t + 1]
        without[2 * first], without[2 * first + 1] = 1.0, 0.0
        for f in range(first + 1, last):
            a = 2 * factors[f - 1]
            for i in range(LANES):
                p, q, x, y = without[2 * f - 2, i], without[2 * f - 1, i], densities[a, i], densities[a + 1, i]
                without[2 * f, i], without[2 * f + 1, i] = p * x - q * y, p * y + q * x
        a = 2 * factors[last - 1]
        for i in range(LANES):
            after[0, i], after[1, i] = densities[a, i], densities[a + 1, i]
            whole[t, i] = without[2 * last - 2, i] * after[0, i] - without[2 * last - 1, i] * after[1, i]
        for f in range(last - 2, first - 1, -1):
            a = 2 * factors[f]
            for i in range(LANES):
                p, q, r, s = without[2 * f, i], without[2 * f + 1, i], after[0, i], after[1, i]
                x, y = densities[a, i], densities[a + 1, i]
                without[2 * f, i], without[2 * f + 1, i] = p * r - q * s, p * s + q * r
                after[0, i], after[1, i] = r * x - s * y, r * y + s * x


@kernel("void(f8[:,::1], i8[::1], i8[::1], f8[:,::1])")
def products_without_two(densities: Array, ends: Any, factors: Any, without: Array) -> None:
    """The products of each term's factors that lack two of them: the first and the second, the first and the third, ..."""
    re, im = np.empty(LANES), np.empty(LANES)
    row = 0
    for t in range(len(ends) - 1):
        for one in range(ends[t], ends[t + 1]):
            for other in range(one + 1, ends[t + 1]):
                for i in range(LANES):
                    re[i], im[i] = 1.0, 0.0
                for f in range(ends[t], ends[t + 1]):
                    if f not in (one, other):
                        a = 2 * factors[f]
                        for i in range(LANES):
                            x, y = densities[a, i], densities[a + 1, i]
                            re[i], im[i] = re[i] * x - im[i] * y, re[i] * y + im[i] * x
                for i in range(LANES):
                    without[row, i], without[row + 1, i] = re[i], im[i]
                row += 2


@kernel("void(f8[:,::1], i8, i8[::1], i8[::1], f8[:,::1])")
def unfold(values: Array, lane: int, rows: Any, columns: Any, matrix: Array) -> None:
    """A symmetric matrix from one of LANES columns of those of its entries that are not always zero."""
    for n in range(len(rows)):
        matrix[rows[n], columns[n]] = matrix[columns[n], rows[n]] = values[n, lane]


@kernel("void(f8[:,::1], i8[::1], i8, f8[:,::1])")
def add_values(values: Array, energies: Any, column: int, rows: Array) -> None:
    """Add the functions of some centres (functions, LANES) to rows (columns, rows): those of the energies, from `column` on."""
    for k in range(len(values)):
        for i in range(len(energies)):
            rows[column + k, energies[i]] += values[k, i]


@kernel("void(f8[:,::1], i8, i8[::1], i8[::1], f8[:,::1], i8[::1], i8, f8[:,::1])")
def add_slopes(
    slopes: Array, lane: int, ends: Any, places: Any, moved: Array, target: Any, column: int, rows: Array
) -> None:  # fmt: skip
    """Add the derivatives of a centre's functions by its `coordinates`, each to its `target`.

    Function k has the slopes (one of LANES columns) ends[k] .. ends[k + 1] - 1, by the variables `places`, whose derivatives
    are `moved`; its row is the kth from `column` on.
    """
    size = len(target)
    buffer = np.empty(size)
    for k in range(len(ends) - 1):
        e, last, row = ends[k], ends[k + 1], rows[column + k]
        if e == last:
            continue
        # Two at a time: the buffer is read and written half as often.
        if (last - e) % 2:
            weight, first = slopes[e, lane], moved[places[e]]
            for n in range(size):
                buffer[n] = weight * first[n]
            e += 1
        else:
            buffer[:] = 0.0
        while e < last:
            weight, other, first, second = slopes[e, lane], slopes[e + 1, lane], moved[places[e]], moved[places[e + 1]]
            for n in range(size):
                buffer[n] += weight * first[n] + other * second[n]
            e += 2
        for n in range(size):
            row[target[n]] += buffer[n]


@kernel("void(i8[::1], f8[:,::1], f8[::1], f8[:,::1], f8[:,::1], i8[::1], i8, i8, f8[:,::1])")
def add_radial(
    shape: Any, moved: Array, by_x: Array, seen: Array, seen_by: Array, target: Any, energy: int, column: int, rows: Array
) -> None:
    """Add Σ_m ∂E/∂x_nlm g_k Y_lm of a centre, the derivative of its energy by C_nlk, and its derivatives by coordinates.

    `by_x` (variables of one element of neighbours,) and `seen` (k, lm) make the derivative of the energy; `moved` (variables,
    coordinates) are the derivatives of the first, `seen_by` (k lm, coordinates) those of the second, or empty for none.
    """
    ns, ls, ks, nr, nlm = shape[0], shape[1], shape[2], shape[3], seen.shape[1]
    size = len(target)
    buffer = np.empty(size)
    for n in range(ns):
        for l in range(ls):  # noqa: E741
            v = nr * l * l + n * (2 * l + 1)
            for k in range(ks):
                row = rows[column + (n * ls + l) * ks + k]
                buffer[:] = 0.0
                for m in range(2 * l + 1):
                    lm = l * l + m
                    weight, block = seen[k, lm], moved[v + m]
                    if len(seen_by) > 0:
                        slope, along = by_x[v + m], seen_by[k * nlm + lm]
                        row[energy] += slope * weight
                        for i in range(size):
                            buffer[i] += weight * block[i] + slope * along[i]
                    else:
                        for i in range(size):
                            buffer[i] += weight * block[i]
                for i in range(size):
                    row[target[i]] += buffer[i]
