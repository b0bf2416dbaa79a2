"""The innermost loops of the expansion, compiled by numba: what depends on every bond, product or row.

Arrays are those of `expansion.py` and `functions.py`. Of each centre the derivatives by places are a block (width, 3 links),
links innermost, so that the longest loop runs over numbers that lie side by side; blocks follow one another in one flat array.
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
    compiled: Callable[[Compiled], Compiled] = numba.njit(signature, cache=CACHE is not None, error_model="numpy")  # type: ignore[assignment]
    return compiled


@kernel("void(f8[::1], f8[:,::1], f8[:,::1], f8[:,::1], f8, f8[:,::1], f8[:,::1], i8[::1], i8[::1], f8[:,::1], f8[:,::1],"
        " f8[:,::1], f8[:,:,::1])")  # fmt: skip
def bond_functions(
    distance: Array, direction: Array, values: Array, slopes: Array, step: float, legendre: Array, derivative: Array, ls: Any,
    ms: Any, g: Array, dg: Array, y: Array, dy: Array,
) -> None:  # fmt: skip
    """g_k and its slope, from cubic splines through values and slopes at 1, 2, ... steps, and harmonics with gradients.

    `legendre` and `derivative` are the tables of `harmonics.py` for the pairs `ls`, `ms`.
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
        for k in range(g.shape[1]):
            g[b, k] = a0 * values[n, k] + a1 * values[n + 1, k] + b0 * slopes[n, k] + b1 * slopes[n + 1, k]
            dg[b, k] = d0 * (values[n, k] - values[n + 1, k]) + e0 * slopes[n, k] + e1 * slopes[n + 1, k]
        rx, ry, rz = direction[b]
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
                y[b, lm] = made
                dy[b, 0, lm], dy[b, 1, lm], dy[b, 2, lm] = gx - rx * outward, gy - ry * outward, gz - rz * outward


@kernel("void(i8[::1], i8[::1], i8[::1], f8[::1], f8[:,::1], f8[:,::1], f8[:,::1], f8[:,::1], f8[:,:,::1], f8[:,:,::1],"
        " f8[:,::1], f8[::1], f8[:,:,::1])")  # fmt: skip
def variables(
    centre: Any, link: Any, first: Any, distance: Array, direction: Array, g: Array, dg: Array, y: Array, dy: Array,
    radial: Array, x: Array, by_place: Array, by_strain: Array,
) -> None:  # fmt: skip
    """Add what each bond adds to x (centres, width), to its derivatives by places, and by strains (centres, 6, width).

    Nothing is added to derivatives that have no room.
    """
    nr, lmax, nk = radial.shape[0], radial.shape[1] - 1, radial.shape[2]
    width, places, strains = x.shape[1], len(by_place) > 0, by_strain.shape[1] > 0
    slopes = np.empty((width, 3))
    for b in range(len(centre)):
        c, inverse = centre[b], 1 / distance[b]
        for k in range(nk):
            x[c, k] += g[b, k]
            for a in range(3):
                slopes[k, a] = dg[b, k] * direction[b, a]
        for l in range(lmax + 1):  # noqa: E741
            for n in range(nr):
                value = slope = 0.0
                for k in range(nk):
                    value += radial[n, l, k] * g[b, k]
                    slope += radial[n, l, k] * dg[b, k]
                v = nk + nr * l * l + n * (2 * l + 1)
                for m in range(2 * l + 1):
                    lm = l * l + m
                    x[c, v + m] += value * y[b, lm]
                    for a in range(3):
                        slopes[v + m, a] = slope * y[b, lm] * direction[b, a] + value * inverse * dy[b, a, lm]
        if places:
            links = first[c + 1] - first[c]
            begin = 3 * (first[c] * width + link[b] - first[c])
            for v in range(width):
                for a in range(3):
                    by_place[begin + 3 * links * v + a] += slopes[v, a]
        if strains:
            for s in range(6):
                # Voigt's order: xx, yy, zz, yz, xz, xy
                one, other = (s, s) if s < 3 else ((1, 2) if s == 3 else ((0, 2) if s == 4 else (0, 1)))
                moved = direction[b, one] * distance[b]
                for v in range(width):
                    by_strain[c, s, v] += moved * slopes[v, other]


@kernel("void(i8[::1], i8[::1], i8[::1], f8[::1], f8[:,::1], f8[:,::1], f8[:,::1], f8[:,::1], f8[:,:,::1], f8[:,:,::1],"
        " f8[::1], f8[:,:,:,::1])")  # fmt: skip
def sums(
    centre: Any, link: Any, first: Any, distance: Array, direction: Array, g: Array, dg: Array, y: Array, dy: Array,
    total: Array, by_place: Array, by_strain: Array,
) -> None:  # fmt: skip
    """Add g_k Y_lm of each bond to `total` (centres, k, lm), and its derivatives as in `variables`: blocks (k, lm, 3 links)."""
    nk, nlm, strains = total.shape[1], total.shape[2], by_strain.shape[1] > 0
    for b in range(len(centre)):
        c, inverse = centre[b], 1 / distance[b]
        links = first[c + 1] - first[c]
        begin = 3 * (first[c] * nk * nlm + link[b] - first[c])
        for k in range(nk):
            for lm in range(nlm):
                total[c, k, lm] += g[b, k] * y[b, lm]
                for a in range(3):
                    slope = dg[b, k] * y[b, lm] * direction[b, a] + g[b, k] * inverse * dy[b, a, lm]
                    by_place[begin + 3 * links * (k * nlm + lm) + a] += slope
                    if strains:
                        for s in range(6):
                            one, other = (s, s) if s < 3 else ((1, 2) if s == 3 else ((0, 2) if s == 4 else (0, 1)))
                            if other == a:
                                by_strain[c, s, k, lm] += direction[b, one] * distance[b] * slope


@kernel("void(c16[::1], i8[::1], i8[::1], c16[::1], f8[::1])")
def products(densities: Any, ends: Any, factors: Any, without: Any, whole: Array) -> None:
    """The real part of the product of each term's factors, and the products that lack one of them."""
    for t in range(len(ends) - 1):
        first, last = ends[t], ends[t + 1]
        running = 1.0 + 0j
        for f in range(first, last):
            without[f] = running
            running *= densities[factors[f]]
        whole[t] = running.real
        running = 1.0 + 0j
        for f in range(last - 1, first - 1, -1):
            without[f] *= running
            running *= densities[factors[f]]


@kernel("void(i8[::1], i8[::1], f8[::1], f8[::1], f8[::1])")
def times(ends: Any, columns: Any, data: Array, vector: Array, result: Array) -> None:
    """A sparse matrix, row by row, times a vector."""
    for row in range(len(ends) - 1):
        value = 0.0
        for n in range(ends[row], ends[row + 1]):
            value += data[n] * vector[columns[n]]
        result[row] = value


@kernel("void(f8[::1], i8[::1], i8, f8[::1])")
def add_forces(by_place: Array, atoms: Any, centre: int, forces: Array) -> None:
    """From the derivatives of a centre's energy by the places of the atoms that it sees (3 links,) to forces (3 atoms,)."""
    own_x = own_y = own_z = 0.0
    for n in range(len(atoms)):
        fx, fy, fz = by_place[3 * n], by_place[3 * n + 1], by_place[3 * n + 2]
        at = 3 * atoms[n]
        forces[at] -= fx
        forces[at + 1] -= fy
        forces[at + 2] -= fz
        own_x, own_y, own_z = own_x + fx, own_y + fy, own_z + fz
    forces[3 * centre] += own_x
    forces[3 * centre + 1] += own_y
    forces[3 * centre + 2] += own_z


@kernel("void(f8[:,::1], i8[::1], i8, i8, f8[:,::1])")
def add_all_forces(by_place: Array, atoms: Any, centre: int, column: int, forces: Array) -> None:
    """`add_forces` for (columns, 3 links), from `column` on."""
    for k in range(len(by_place)):
        add_forces(by_place[k], atoms, centre, forces[column + k])


@kernel("void(f8[::1], i8[::1], i8[::1], f8[::1], i8[::1], f8[:,::1], i8, i8, f8[:,::1], f8[::1], f8[:,::1])")
def add_rows(
    slopes: Array, ends: Any, places: Any, by_place: Array, atoms: Any, by_strain: Array, centre: int, column: int,
    forces: Array, buffer: Array, virials: Array,
) -> None:  # fmt: skip
    """Add the derivatives of a centre's functions by places and strains, of one element of neighbours.

    Function k has the slopes ends[k] .. ends[k + 1] - 1, by the variables `places`; `by_place` is the block (width, 3 links)
    of the `atoms` (links,), `by_strain` (6, width). Rows are (columns, 3 atoms) and (columns, 6), from `column` on.
    """
    size = 3 * len(atoms)
    for k in range(len(ends) - 1):
        if ends[k] == ends[k + 1]:
            continue
        buffer[:size] = 0.0
        for e in range(ends[k], ends[k + 1]):
            slope, block = slopes[e], by_place[size * places[e] : size * (places[e] + 1)]
            for n in range(size):
                buffer[n] += slope * block[n]
            for s in range(len(by_strain)):
                virials[column + k, s] += slope * by_strain[s, places[e]]
        add_forces(buffer[:size], atoms, centre, forces[column + k])


@kernel("void(i8[::1], f8[:,::1], f8[::1], f8[:,::1], f8[:,:,::1], f8[:,::1])")
def by_radial(shape: Any, moved: Array, by_x: Array, seen: Array, seen_by: Array, result: Array) -> None:
    """Σ_m ∂E/∂x_nlm g_k Y_lm by C_nlk, and its derivatives by several coordinates: (n l k, coordinates).

    `by_x` (variables of one element of neighbours,) and `seen` (k, lm) make the value in no coordinate; `moved` (variables,
    coordinates) are the derivatives of the first, `seen_by` (k, lm, coordinates) those of the second, or empty for none.
    """
    ns, ls, ks, nr, nk, of_seen = shape[0], shape[1], shape[2], shape[3], shape[4], seen_by.shape[2] > 0
    for n in range(ns):
        for l in range(ls):  # noqa: E741
            v = nk + nr * l * l + n * (2 * l + 1)
            for k in range(ks):
                row = result[(n * ls + l) * ks + k]
                for m in range(2 * l + 1):
                    weight, block = seen[k, l * l + m], moved[v + m]
                    for i in range(len(row)):
                        row[i] += weight * block[i]
                    if of_seen:
                        slope, along = by_x[v + m], seen_by[k, l * l + m]
                        for i in range(len(row)):
                            row[i] += slope * along[i]
