"""The choice of training structures: few that determine the basis functions as all of them together would.

What it is for is the costly part of the fit, the radial functions: `enough` structures for that are chosen. The function
coefficients that are published are then fitted to all (`train/fit.py`), unless a number of structures was asked for.

Every structure brings the basis functions of its atoms, one row b an atom. The information of a weighted choice S is, for
each element, M = Σ_S w_s Σ_atoms b^T b; D-optimality wants log det M large. Unweighted, that is a choice of extremes: it
determines the functions best, but a fit to extremes is worse on ordinary structures than one to a random choice
(docs/design.md). So structures and weights are chosen such that M comes as close as it can to the M of all n given structures:
greedily by the largest share of the information still missing (matching pursuit, S. G. Mallat, Z. Zhang, IEEE Trans. Signal
Process. 41, 3397 (1993)), then weights by least squares. The weights of k structures add up to n, and none is above
LARGEST_WEIGHT n/k: no structure stands for many that are not like it. What log det M has lost is reported as D-efficiency,
(det M / det M_all)^(1/functions). A ridge, RIDGE of the trace of M_all in all directions, is in both: what hardly any
structure has anything of counts for nothing.

Matrices are compared along random directions v, which are whitened by M_all: a structure's features are Σ_atoms (b v)^2.

The grade of an atom b is the variance of its energy in units of the noise of one training energy, by the sandwich formula,
b^T M^-1 (Σ_S w_s^2 Σ_atoms b^T b) M^-1 b: a structure of weight w has been computed once, not w times (H. White,
Econometrica 48, 817 (1980)).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from ase import Atoms
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from mlip_pace.ace import basis, projections
from mlip_pace.ace.basis import Basis
from mlip_pace.ace.projections import Projections
from mlip_pace.arrays import Array
from mlip_pace.collect.dataset import ATOMS, SOURCE, SPLIT
from mlip_pace.collect.geometry import geometry_key
from mlip_pace.collect.split import TRAIN
from mlip_pace.reference import lowest_of_compositions, shortest_distances
from mlip_pace.run.pool import Workers
from mlip_pace.run.steps import write_whole
from mlip_pace.settings import SelectionSettings

ROWS_PER_COEFFICIENT = 64  # force components that the refinement of the radial functions works on
LEAST_ROWS = 24  # a structure counts as at least so many: one of few atoms in a symmetric cell has hardly any force
PROBES = 2000  # directions for each element along which information is compared; fewer where FEATURES would be exceeded
FEATURES = 2**27  # numbers (single precision, 512 MB) that the features of all structures may be
RIDGE = 1e-10  # of the trace of M_all: keeps it invertible
LEAST_WEIGHT, LARGEST_WEIGHT = 0.01, 2.0  # what is chosen counts, if little; times n/k
SPREAD = 1e-3  # of the squares of the weights, relative to the misfit: spreads weight over what is alike
CHOSEN, GRADES = "chosen.json", "grades.json"  # in the folder of the stage
STEPS = 20  # of the minimisation of weights while structures are still added; it is converged at the end


@dataclass(frozen=True)
class Choice:
    """Positions of the chosen structures, ascending, their weights, and the largest grade of an atom in each left out."""

    chosen: list[int]
    weights: list[float]
    grades: dict[int, float]
    efficiency: float

    @property
    def effective_number(self) -> float:
        """Of structures of equal weight that would have as large a variance (L. Kish, Survey Sampling (1965))."""
        weights = np.array(self.weights)
        return float(weights.sum() ** 2 / (weights**2).sum())


def enough(structures: Sequence[Atoms], coefficients: int) -> int:
    """How many structures have ROWS_PER_COEFFICIENT rows of forces for each coefficient, if they are the smallest ones.

    With more structures it does not become less.
    """
    rows = np.cumsum(sorted(max(3 * len(atoms), LEAST_ROWS) for atoms in structures))
    return min(int(np.searchsorted(rows, ROWS_PER_COEFFICIENT * coefficients)) + 1, len(structures))


# Small matrices: more threads cost more than they bring (35 times slower on a 2-core machine), and one gives the same bits.
@threadpool_limits.wrap(limits=1)  # type: ignore[untyped-decorator]
def doptimal(structures: Projections, always: Sequence[int], number: int) -> Choice:
    """Choose `number` of the structures and their weights; those `always` to be chosen are taken first, as far as they go."""
    everything = _information(structures, np.ones(len(structures)))
    ridges = {symbol: RIDGE * float(matrix.trace()) or 1.0 for symbol, matrix in everything.items()}
    whole = _with_ridge(everything, ridges)
    features = _features(structures, whole)
    total = features.sum(axis=0, dtype=np.float64).astype(np.float32)
    norms = np.maximum(np.linalg.norm(features, axis=1), 1e-30)
    chosen = sorted(set(always))[:number]
    weights = np.full(len(chosen), len(structures) / max(len(chosen), 1))
    while len(chosen) < number:
        merit = (features @ (total - weights.astype(np.float32) @ features[chosen])) / norms
        merit[chosen] = -np.inf
        several = min(max(1, len(chosen) // 20), number - len(chosen))  # few where there is little to choose from
        before = len(chosen)
        chosen += np.argsort(-merit, kind="stable")[:several].tolist()
        first = np.append(weights, np.full(several, len(structures) / len(chosen))) * (before / len(chosen))
        weights = _weights(features[chosen], total, len(structures), first, STEPS)
    weights = _weights(features[chosen], total, len(structures), weights, 1000)
    spread = np.zeros(len(structures))
    spread[chosen] = weights
    information = _with_ridge(_information(structures, spread), ridges)
    metrics = {symbol: _sandwich(information[symbol], matrix) for symbol, matrix in _information(structures, spread**2).items()}
    grades = _largest_grades(structures, metrics)
    gain = sum(np.linalg.slogdet(information[s])[1] - np.linalg.slogdet(whole[s])[1] for s in whole)
    efficiency = float(np.exp(gain / sum(map(len, whole.values()))))
    order = np.argsort(chosen)
    left = sorted(set(range(len(structures))) - set(chosen))
    return Choice(
        [chosen[n] for n in order], weights[order].tolist(), {n: float(grades[n]) for n in left}, efficiency
    )  # fmt: skip


def _information(structures: Projections, weights: Array) -> dict[str, Array]:
    """M of each element: Σ w Σ_atoms b^T b."""
    information = {symbol: np.zeros((count, count)) for symbol, count in structures.functions.items()}
    for symbol, which, rows in structures.parts():
        used = weights[which] > 0
        if used.any():
            weighted = rows[used] * np.sqrt(weights[which[used]])[:, None]
            information[symbol] += weighted.T @ weighted
    return information


def _with_ridge(information: dict[str, Array], ridges: dict[str, float]) -> dict[str, Array]:
    return {symbol: matrix + ridges[symbol] * np.eye(len(matrix)) for symbol, matrix in information.items()}


def _features(structures: Projections, whole: dict[str, Array]) -> npt.NDArray[np.float32]:
    """Σ_atoms (b v)^2 of each structure for random directions v of each element: (structures, elements directions)."""
    rng = np.random.default_rng(0)
    probes = max(1, min(PROBES, FEATURES // (len(structures) * len(whole))))
    directions = {
        symbol: solve_triangular(cholesky(matrix, lower=True), rng.normal(size=(len(matrix), probes)), lower=True, trans="T")
        for symbol, matrix in whole.items()
    }
    features = np.zeros((len(structures), len(whole), probes), dtype=np.float32)
    place = {symbol: n for n, symbol in enumerate(directions)}
    for symbol, which, rows in structures.parts():
        along = (rows.astype(np.float32) @ directions[symbol].astype(np.float32)) ** 2
        starts = np.flatnonzero(np.r_[True, np.diff(which) != 0])
        features[which[starts], place[symbol]] += np.add.reduceat(along, starts, axis=0)
    return features.reshape(len(structures), -1)


def _weights(features: npt.NDArray[np.float32], total: npt.NDArray[np.float32], sum_: int, first: Array, steps: int) -> Array:
    """Weights within their bounds with which features (chosen, directions) add up to `total` and to the number of all."""
    mean = sum_ / len(features)
    scale = float(total @ total) or 1.0
    number = np.sqrt(scale) / sum_  # the number counts as one more feature, as large as all others together

    def misfit(x: Array) -> tuple[float, Array]:
        gap = x.astype(np.float32) @ features - total
        of_number = number * (x.sum() - sum_)
        value = float(gap @ gap) + of_number**2 + SPREAD * scale / len(x) * float(((x / mean - 1) ** 2).sum())
        slope = features @ gap + number * of_number + SPREAD * scale / len(x) * (x / mean - 1) / mean
        return value / scale, 2 * slope.astype(np.float64) / scale

    low, high = LEAST_WEIGHT * mean, LARGEST_WEIGHT * mean
    bounds, options = [(low, high)] * len(features), {"maxiter": steps}
    weights: Array = minimize(misfit, np.clip(first, low, high), jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    for _ in range(100):  # until the sum is right to the last digits
        weights = np.clip(weights * sum_ / weights.sum(), low, high)
    return weights


def _sandwich(information: Array, squared: Array) -> Array:
    """The matrix A for which |A b|^2 is the grade of an atom b."""
    inverse = solve_triangular(cholesky(information, lower=True), np.eye(len(information)), lower=True)
    inverse = inverse.T @ inverse
    values, vectors = np.linalg.eigh(inverse @ squared @ inverse)
    root: Array = np.sqrt(np.clip(values, 0.0, None))[:, None] * vectors.T
    return root


def _largest_grades(structures: Projections, metrics: dict[str, Array]) -> Array:
    """The largest grade of an atom in each structure."""
    largest = np.zeros(len(structures))
    for symbol, which, rows in structures.parts():
        np.maximum.at(largest, which, ((rows @ metrics[symbol].T) ** 2).sum(axis=1))
    return largest


def indispensable(frame: pd.DataFrame, cutoff: float) -> list[int]:
    """Positions of the lowest-energy structure of each composition and of the shortest distance (Å) of each element pair."""
    lowest = frame.index.get_indexer(lowest_of_compositions(frame))
    nearest: dict[str, tuple[float, int]] = {}
    for n, atoms in enumerate(frame[ATOMS]):
        for pair, distance in shortest_distances([atoms], cutoff).items():
            if pair not in nearest or distance < nearest[pair][0]:
                nearest[pair] = (distance, n)
    return sorted(set(lowest.tolist()) | {n for _, n in nearest.values()})


@dataclass(frozen=True)
class Selected:
    """What the stage says of the choice; weights and grades are in its folder."""

    method: str
    reason: str
    given: int
    chosen: int
    chosen_atoms: int
    functions: dict[str, int]  # of each element
    parameters: int
    largest_grade_left_out: float | None = None  # of those not chosen
    d_efficiency: float | None = None
    effective_number: float | None = None  # Kish's
    largest_weight: float | None = None


@dataclass(frozen=True)
class Chosen:
    """The chosen structures, by source: their weights, and the largest grade of an atom in each of the others."""

    weights: dict[str, float]
    grades: dict[str, float]


def choose(
    train: pd.DataFrame, on: Basis, settings: SelectionSettings, workers: Workers, scratch: Path, iterations: int = 1
) -> tuple[Chosen, Selected]:  # fmt: skip
    """Choose of the training structures those to fit on; files for the time being go to `scratch`.

    `iterations` are those of the fit that the choice is to make cheaper.
    """
    size = basis.size(on)
    structures, sources = train[ATOMS].array, train[SOURCE].tolist()
    coefficients = sum(size.functions.values()) + len(basis.radial_coefficients(on))
    number, reason = _number(structures, coefficients, settings, iterations)
    if number >= len(train):
        atoms = int(train[ATOMS].map(len).sum())
        selected = Selected("none", reason, len(train), len(train), atoms, size.functions, size.parameters)
        return Chosen(dict.fromkeys(sources, 1.0), {}), selected
    # In an order of their own, so that the choice does not depend on how they came.
    keys = [geometry_key(atoms) for atoms in structures]
    order = sorted(range(len(structures)), key=keys.__getitem__)
    place = {n: where for where, n in enumerate(order)}
    always = [place[n] for n in indispensable(train, basis.cutoff_of(on))]
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        rows = projections.on_disk(Path(folder), structures[np.array(order)], basis.expansion(on), workers, np.float32)
        choice = doptimal(rows, always, number)
    weights = {sources[order[n]]: weight for n, weight in zip(choice.chosen, choice.weights, strict=True)}
    grades = {sources[order[n]]: grade for n, grade in choice.grades.items()}
    atoms = sum(len(structures[order[n]]) for n in choice.chosen)
    return Chosen(weights, grades), Selected(
        settings.method, reason, len(train), number, atoms, size.functions, size.parameters,
        max(choice.grades.values()), choice.efficiency, choice.effective_number, max(choice.weights),
    )  # fmt: skip


def _number(
    structures: Sequence[Atoms], coefficients: int, settings: SelectionSettings, iterations: int
) -> tuple[int, str]:  # fmt: skip
    """How many structures to choose, and why so many, in words."""
    count, asked = len(structures), settings.max_structures
    if settings.method == "none":
        return count, "none was asked for"
    if asked is not None:
        return min(asked, count), f"{asked} were asked for"
    if iterations == 0:
        return count, "without iterations a choice would save no time"
    number = enough(structures, coefficients)
    if number == count:
        return count, f"so many are needed for {coefficients} coefficients"
    return number, f"enough for {coefficients} coefficients"


def select(
    folder: Path, target: pd.DataFrame, on: Basis, settings: SelectionSettings, workers: Workers, iterations: int
) -> Selected:  # fmt: skip
    """The stage: write `chosen.json`, the sources and weights of the structures to train on, and `grades.json`, the grade of
    each of the others; the summary says how many, why, how well.

    `on` is the basis that training will use.
    """
    chosen, selected = choose(target[target[SPLIT] == TRAIN], on, settings, workers, folder, iterations)
    write_whole(folder / CHOSEN, json.dumps(chosen.weights, indent=0))
    if selected.method != "none":
        write_whole(folder / GRADES, json.dumps(chosen.grades, indent=0))
    return selected


def chosen_in(folder: Path) -> dict[str, float]:
    """The sources of the chosen structures and their weights, from the folder of the stage."""
    weights: dict[str, float] = json.loads((folder / CHOSEN).read_text())
    return weights
