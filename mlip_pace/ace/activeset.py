"""The active set of a potential: for each element as many atoms as it has functions, of which all others are combinations.

With the functions of these atoms as the rows of A, the extrapolation grade of an atom b is γ = max |b A^-1|: no training atom's
is above HIGHEST, and A is of (nearly) the largest volume |det A| (Y. Lysogorskiy et al., Phys. Rev. Materials 7, 043801
(2023)). It is what `pace_activeset` computes, with pyace's maxvol; here the rows come from `expansion.py`, and if they are many
they are looked at part by part, so that memory does not grow with the data: first the best of every part by LU pivoting, then
again and again those of the highest grades.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
from ase import Atoms
from scipy.linalg import LinAlgWarning, lu_factor
from threadpoolctl import threadpool_limits

from mlip_pace.ace import basis, projections
from mlip_pace.ace.basis import Basis, BasisFile
from mlip_pace.ace.expansion import Expansion
from mlip_pace.ace.projections import OnFile
from mlip_pace.arrays import Array
from mlip_pace.run import pool
from mlip_pace.run.pool import Workers

HIGHEST = 1.1  # grade that a training atom may have where they are too many for one part
TOLERANCE, SWAPS = 1.01, 300  # of maxvol among the atoms of the highest grades, as in pace_activeset
PASSES = 20  # through all atoms at most
PART_BYTES = 2**24  # of rows that are worked on at a time; maxvol needs three times as much
EPSILON = 1e-16  # on the diagonal of functions that are the same for all atoms, as in pyace
FILE = "potential.asi"  # beside potential.yaml
EXTRAPOLATION = 5.0  # a grade beyond which a structure is spoken of


@dataclass(frozen=True)
class Grader:
    """Extrapolation grades γ by the A^-1 of each element."""

    expansion: Expansion
    inverses: dict[str, Array]

    @classmethod
    def of(cls, folder: Path) -> Grader | None:
        """That of the files `potential.yaml` and FILE of a folder; none where there is no active set."""
        if not (folder / FILE).exists():
            return None
        with np.load(folder / FILE) as written:
            return cls(basis.expansion(BasisFile(folder / "potential.yaml")), dict(written))

    def of_many(self, structures: Sequence[Atoms]) -> Iterator[Array]:
        """The grade of each atom (n,) of each structure."""
        for atoms, functions in zip(structures, self.expansion.functions(structures), strict=True):
            grades = np.empty(len(atoms))
            for symbol, rows in functions.items():
                grades[atoms.symbols == symbol] = np.abs(rows @ self.inverses[symbol]).max(axis=1)
            yield grades


def write(target: Path, structures: Sequence[Atoms], on: Basis, workers: Workers) -> None:
    """Write A^-1 of every element into `target` (`.asi`), as LAMMPS and pyace read it.

    Raises `ValueError` if an element has fewer atoms than functions, or not enough that differ.
    """
    expansion = basis.expansion(on)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        written = projections.on_disk(Path(folder), structures, expansion, workers, np.float64)
        for symbol, count in zip(expansion.elements, expansion.counts, strict=True):
            if (atoms := len(written.structure.get(symbol, []))) < count:
                raise ValueError(f"{count} functions of {symbol}, but {atoms} atoms")
        rows = [written.rows(symbol) for symbol in written.files]
        inverses = dict(zip(written.files, pool.parallel_map(_inverse, rows, workers), strict=True))
    part = target.with_name(f".{target.name}.part")
    with part.open("wb") as file:
        np.savez(file, **inverses)  # type: ignore[arg-type]
    part.replace(target)


def _inverse(rows: OnFile) -> Array:
    return np.linalg.pinv(of_largest_volume(rows))


# Small matrices: more threads cost more than they bring.
@threadpool_limits.wrap(limits=1)  # type: ignore[untyped-decorator]
def of_largest_volume(rows: Array | OnFile, part_bytes: int = PART_BYTES) -> Array:
    """As many of the rows (atoms, functions) as there are functions, of nearly the largest volume. Raises `ValueError`."""
    functions = rows.shape[1]
    size = max(2 * functions, part_bytes // (8 * functions))
    starts = range(0, len(rows), size)
    lowest, highest = zip(*((part.min(axis=0), part.max(axis=0)) for part in (rows[n : n + size] for n in starts)), strict=True)
    constant = np.flatnonzero(np.min(lowest, axis=0) == np.max(highest, axis=0))

    def part(n: int) -> Array:
        found = np.array(rows[n : n + size])
        if n == 0:
            found[np.arange(len(constant)), constant] += EPSILON
        return found

    if len(starts) == 1:
        return _maxvol(part(0))
    chosen = reduce(lambda best, n: _pivots(np.concatenate([best, part(n)])), starts, np.empty((0, functions)))
    for _ in range(PASSES):
        inverse = np.linalg.inv(chosen)
        grades = np.concatenate([np.abs(part(n) @ inverse).max(axis=1) for n in starts])
        if grades.max() <= HIGHEST:
            break
        best = np.sort(np.argsort(-grades, kind="stable")[:size])
        chosen = _maxvol(np.concatenate([chosen, rows[best]]))
    return chosen


def _maxvol(rows: Array) -> Array:
    from pyace.maxvol import maxvol

    chosen: Array = rows[maxvol(rows, tol=TOLERANCE, max_iters=SWAPS)[0]]
    return chosen


def _pivots(rows: Array) -> Array:
    """The rows that LU decomposition with partial pivoting takes."""
    order = np.arange(len(rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LinAlgWarning)  # of functions that no atom of a part has; a later part has some
        pivots = lu_factor(rows, check_finite=False)[1]
    for n, pivot in enumerate(pivots):
        order[[n, pivot]] = order[[pivot, n]]
    best: Array = rows[order[: rows.shape[1]]]
    return best
