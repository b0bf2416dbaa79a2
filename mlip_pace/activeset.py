"""The active set of a potential: for each element as many atoms as it has functions, of which all others are combinations.

With the functions of these atoms as the rows of A, the extrapolation grade of an atom b is γ = max |b A^-1|: no training atom's
is above HIGHEST, and A is of (nearly) the largest volume |det A| (Y. Lysogorskiy et al., Phys. Rev. Materials 7, 043801
(2023)). It is what `pace_activeset` computes, with pyace's maxvol; here the rows come from `expansion.py` and are looked at
part by part, so that memory does not grow with the data: first the best of every part by LU pivoting, then, as long as there
are any, the atoms that A does not yet explain.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms
from scipy.linalg import lu_factor
from threadpoolctl import threadpool_limits

from mlip_pace import basis, projections

Array = npt.NDArray[np.float64]

HIGHEST = 1.1  # grade that a training atom may have
TOLERANCE, SWAPS = 1.01, 300  # of maxvol among the atoms of the highest grades, as in pace_activeset
PASSES = 20  # through all atoms at most
ATOMS_IN_PART = 4000
EPSILON = 1e-16  # on the diagonal of functions that are the same for all atoms, as in pyace


def write(target: Path, structures: Sequence[Atoms], potential: dict[str, Any], workers: int) -> None:
    """Write A^-1 of every element into `target` (`.asi`), as LAMMPS and pyace read it.

    Raises `ValueError` if an element has fewer atoms than functions, or not enough that differ.
    """
    expansion = basis.expansion(potential)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        rows, _ = projections.on_disk(Path(folder), structures, expansion, workers, np.float64)
        for symbol, count in zip(expansion.elements, expansion.counts, strict=True):
            if symbol not in rows or len(rows[symbol]) < count:
                raise ValueError(f"{count} functions of {symbol}, but {len(rows.get(symbol, []))} atoms")
        inverses = {symbol: np.linalg.pinv(of_largest_volume(block)) for symbol, block in rows.items()}
    part = target.with_name(f".{target.name}.part")
    with part.open("wb") as file:
        np.savez(file, **inverses)  # type: ignore[arg-type]
    part.replace(target)


@threadpool_limits.wrap(limits=1)  # type: ignore[untyped-decorator]
def of_largest_volume(rows: Array) -> Array:
    """As many of the rows (atoms, functions) as there are functions, of nearly the largest volume. Raises `ValueError`."""
    from pyace.maxvol import maxvol

    functions = rows.shape[1]
    constant = np.flatnonzero(rows.min(axis=0) == rows.max(axis=0))
    shift = np.zeros((len(constant), functions))
    shift[np.arange(len(constant)), constant] = EPSILON

    def parts() -> Any:
        for n in range(0, len(rows), ATOMS_IN_PART):
            part = np.array(rows[n : n + ATOMS_IN_PART])
            if n == 0:
                part[: len(constant)] += shift
            yield part

    chosen = np.empty((0, functions))
    for part in parts():
        chosen = np.concatenate([chosen, part])
        if len(chosen) > functions:
            chosen = chosen[_pivots(chosen)]
    for _ in range(PASSES):
        inverse = np.linalg.inv(chosen)
        grades = np.concatenate([np.abs(part @ inverse).max(axis=1) for part in parts()])
        if grades.max() <= HIGHEST:
            break
        highest = np.sort(np.argsort(-grades, kind="stable")[: 4 * functions])
        together = np.concatenate([chosen, rows[highest]])
        chosen = together[maxvol(together, tol=TOLERANCE, max_iters=SWAPS)[0]]
    return chosen


def _pivots(rows: Array) -> npt.NDArray[np.int64]:
    """The rows that LU decomposition with partial pivoting takes."""
    order = np.arange(len(rows))
    for n, pivot in enumerate(lu_factor(rows, check_finite=False)[1]):
        order[[n, pivot]] = order[[pivot, n]]
    return order[: rows.shape[1]]
