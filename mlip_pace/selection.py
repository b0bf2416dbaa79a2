"""D-optimal choice of training structures: NumPy on matrices.

Every structure brings the basis functions of its atoms, one row B an atom. The information matrix of a chosen set S is
M = Σ_S B^T B (for each element of its own), and the gain of a further structure is log det(1 + B M^-1 B^T), the growth of
log det M. Structures are taken greedily by their gain, which for this submodular function comes within 1 - 1/e of the
best (G. L. Nemhauser et al., Math. Program. 14, 265 (1978)); gains only shrink, so old ones are upper bounds (M. Minoux, 1978).

The grade of an atom b is its leverage b^T M^-1 b: the variance of its energy in units of the noise of one training energy.
Without a number of structures asked for, the choice ends when no atom left out has a grade above `GRADE`.
"""

from __future__ import annotations

import heapq
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.linalg import cholesky, solve_triangular
from threadpoolctl import threadpool_limits

from mlip_pace import basis
from mlip_pace.dataset import ATOMS, ENERGY, ENERGY_ATOMS, SOURCE, SPLIT, TRAIN, composition, geometry_key
from mlip_pace.reference import shortest_distances
from mlip_pace.settings import SelectionSettings
from mlip_pace.steps import write_whole

Array = npt.NDArray[np.float64]
Rows = dict[str, Array]  # by element: (atoms, functions)

GRADE = 0.01  # the energy of an atom left out is known to a tenth of the noise of one training energy
# Keeps M invertible before it is full; functions are scaled to a mean square of 1.
RIDGE = 1e-6


@dataclass(frozen=True)
class Choice:
    """Positions of the chosen structures, in ascending order, and the largest grade of an atom in each left out."""

    chosen: list[int]
    grades: dict[int, float]


class _Information:
    """M of the structures chosen so far, as its Cholesky factors."""

    def __init__(self, functions: dict[str, int]) -> None:
        self.matrix = {symbol: RIDGE * np.eye(count) for symbol, count in functions.items()}
        self.factor = {symbol: cholesky(matrix, lower=True) for symbol, matrix in self.matrix.items()}

    def add(self, rows: Rows) -> None:
        for symbol, block in rows.items():
            self.matrix[symbol] += block.T @ block
            self.factor[symbol] = cholesky(self.matrix[symbol], lower=True)

    def gain_and_grade(self, rows: Rows) -> tuple[float, float]:
        """Growth of log det M by this structure, and the largest leverage of its atoms."""
        gain, grade = 0.0, 0.0
        for symbol, block in rows.items():
            whitened = solve_triangular(self.factor[symbol], block.T, lower=True)
            small = whitened.T @ whitened if len(block) <= block.shape[1] else whitened @ whitened.T
            gain += float(np.linalg.slogdet(np.eye(len(small)) + small)[1])
            grade = max(grade, float((whitened**2).sum(axis=0).max()))
        return gain, grade


# Small matrices: more threads cost more than they bring (35 times slower on a 2-core machine), and one gives the same bits.
@threadpool_limits.wrap(limits=1)  # type: ignore[untyped-decorator]
def doptimal(structures: list[Rows], keys: list[bytes], always: list[int], limit: int | None) -> Choice:
    """Choose structures greedily until `limit` are taken or every atom left out has a grade of at most `GRADE`.

    `keys` identify structures whatever their order: the choice does not depend on it. `always` are taken first.
    """
    order = sorted(range(len(structures)), key=keys.__getitem__)
    scaled = _scaled([structures[n] for n in order])
    position = {n: place for place, n in enumerate(order)}
    information = _Information({symbol: block.shape[1] for rows in scaled for symbol, block in rows.items()})
    chosen = sorted({position[n] for n in always})[:limit]
    for place in chosen:
        information.add(scaled[place])
    left = [place for place in range(len(scaled)) if place not in set(chosen)]
    fresh = {place: information.gain_and_grade(scaled[place]) for place in left}
    queue = [(-gain, place) for place, (gain, _) in fresh.items()]
    grades = {place: grade for place, (_, grade) in fresh.items()}
    heapq.heapify(queue)
    while queue and (len(chosen) < limit if limit is not None else _any_above(grades, information, scaled)):
        _, best = heapq.heappop(queue)
        gain, grades[best] = information.gain_and_grade(scaled[best])
        if queue and -gain > queue[0][0]:
            heapq.heappush(queue, (-gain, best))
            continue
        chosen.append(best)
        del grades[best]
        information.add(scaled[best])
    final = {order[place]: information.gain_and_grade(scaled[place])[1] for place in grades}
    return Choice(sorted(order[place] for place in chosen), dict(sorted(final.items())))


def _any_above(grades: dict[int, float], information: _Information, scaled: list[Rows]) -> bool:
    """Whether an atom left out has a grade above `GRADE`; grades only shrink, so old ones are checked from the top."""
    for place in sorted(grades, key=grades.__getitem__, reverse=True):
        if grades[place] <= GRADE:
            return False
        grades[place] = information.gain_and_grade(scaled[place])[1]
        if grades[place] > GRADE:
            return True
    return False


def _scaled(structures: list[Rows]) -> list[Rows]:
    """Functions scaled to a mean square of 1 over all atoms of the element; those that are always zero stay zero."""
    scale = {}
    for symbol in sorted({symbol for rows in structures for symbol in rows}):
        blocks = [rows[symbol] for rows in structures if symbol in rows]
        mean_square = sum((block**2).sum(axis=0) for block in blocks) / sum(map(len, blocks))
        scale[symbol] = np.where(mean_square > 0, 1 / np.sqrt(np.where(mean_square > 0, mean_square, 1.0)), 0.0)
    return [{symbol: block * scale[symbol] for symbol, block in rows.items()} for rows in structures]


def indispensable(frame: pd.DataFrame, cutoff: float) -> list[int]:
    """Positions of the lowest-energy structure of each composition and of the shortest distance (Å) of each element pair."""
    energy = ((frame[ENERGY] - frame[ENERGY_ATOMS]) / frame[ATOMS].map(len)).to_numpy()
    lowest: dict[str, int] = {}
    nearest: dict[str, tuple[float, int]] = {}
    for n, atoms in enumerate(frame[ATOMS]):
        kind = composition(atoms)
        if kind not in lowest or energy[n] < energy[lowest[kind]]:
            lowest[kind] = n
        for pair, distance in shortest_distances([atoms], cutoff).items():
            if pair not in nearest or distance < nearest[pair][0]:
                nearest[pair] = (distance, n)
    return sorted(set(lowest.values()) | {n for _, n in nearest.values()})


def too_small(structures: list[Rows]) -> str:
    """Why these structures are too few to choose from, or nothing."""
    atoms: dict[str, int] = {}
    functions: dict[str, int] = {}
    for rows in structures:
        for symbol, block in rows.items():
            atoms[symbol] = atoms.get(symbol, 0) + len(block)
            functions[symbol] = block.shape[1]
    short = [f"{atoms[s]} atoms of {s} for its {functions[s]} functions" for s in sorted(atoms) if atoms[s] <= functions[s]]
    return "too few to choose from: " + ", ".join(short) if short else ""


def select(folder: Path, *, target: pd.DataFrame, potential: dict[str, Any], settings: SelectionSettings) -> dict[str, Any]:
    """The stage: write `chosen.json`, the sources of the structures to train on, and `grades.json`, the grade of each of the
    others; the summary says how many, why, how well.

    `potential` is pacemaker's potential section, the basis that training will use.
    """
    train = target[target[SPLIT] == TRAIN]
    chosen = list(range(len(train)))
    summary: dict[str, Any] = {"method": settings.method, "given": len(train)}
    if settings.method == "doptimal":
        rows = basis.projections(potential, train[ATOMS])
        skipped = too_small(rows) if settings.max_structures is None else ""
        if skipped:
            summary["skipped"] = f"{skipped}; all are kept"
        else:
            keys = [geometry_key(atoms) for atoms in train[ATOMS]]
            always = indispensable(train, basis.cutoff_of(potential))
            choice = doptimal(rows, keys, always, settings.max_structures)
            chosen, summary["largest_grade_left_out"] = choice.chosen, max(choice.grades.values(), default=0.0)
            grades = {train[SOURCE].iloc[n]: grade for n, grade in choice.grades.items()}
            write_whole(folder / "grades.json", json.dumps(grades, indent=0))
    sources = train[SOURCE].iloc[chosen].tolist()
    write_whole(folder / "chosen.json", json.dumps(sources, indent=0))
    atoms = int(train[ATOMS].iloc[chosen].map(len).sum())
    return {**summary, "chosen": len(sources), "chosen_atoms": atoms, "functions": basis.size(potential)}


def chosen_in(folder: Path) -> list[str]:
    """The sources of the chosen structures, from the folder of the stage."""
    sources: list[str] = json.loads((folder / "chosen.json").read_text())
    return sources
