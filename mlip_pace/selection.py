"""The choice of training structures: few that determine the basis functions as all of them together would.

Every structure brings the basis functions of its atoms, one row b an atom. The information of a weighted choice S is, for
each element, M = Σ_S w_s Σ_atoms b^T b; D-optimality wants log det M large. Unweighted, that is a choice of extremes: it
determines the functions best, but a fit to extremes is worse on ordinary structures than one to a random choice
(docs/design.md). So structures and weights are chosen such that M comes as close as it can to the M of all given structures:
greedily by the largest share of the information still missing (matching pursuit, S. G. Mallat, Z. Zhang, IEEE Trans. Signal
Process. 41, 3397 (1993)), then weights w >= 0 by least squares. The weights are those of the structures in the loss. What log
det M has lost is reported as D-efficiency, (det M / det M_all)^(1/functions). Combinations of functions that the data hold
nothing of (ACE's functions are not quite independent) are those of a small ridge in both, and count for nothing.

Matrices are compared along random directions v (functions are whitened by M_all first): a structure's features are
Σ_atoms (b v)^2, so that memory is 8 kB for each structure and element, and 8 bytes for each pair of chosen structures.

The grade of an atom b is its leverage b^T M^-1 b: the variance of its energy in units of the noise of one training energy.
Without a number of structures asked for, the choice ends when no atom left out has a grade above `GRADE`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from mlip_pace.ace import basis, projections
from mlip_pace.ace.basis import Basis
from mlip_pace.ace.projections import Rows
from mlip_pace.arrays import Array
from mlip_pace.collect.dataset import ATOMS, SOURCE, SPLIT, geometry_key
from mlip_pace.collect.split import TRAIN
from mlip_pace.reference import lowest_of_compositions, shortest_distances
from mlip_pace.run.steps import write_whole
from mlip_pace.settings import SelectionSettings

GRADE = 0.1  # the energy of an atom left out is known to a third of the noise of one training energy
PROBES = 2000  # directions for each element along which information is compared
RIDGE = 1e-10  # of M_all, relative to its diagonal: keeps it invertible
LEAST_WEIGHT = 0.01  # what is chosen counts, if little
NEWS = 8  # atoms left out with a grade above GRADE that are kept in view


@dataclass(frozen=True)
class Choice:
    """Positions of the chosen structures, ascending, their weights, and the largest grade of an atom in each left out."""

    chosen: list[int]
    weights: list[float]
    grades: dict[int, float]
    efficiency: float


# Small matrices: more threads cost more than they bring (35 times slower on a 2-core machine), and one gives the same bits.
@threadpool_limits.wrap(limits=1)  # type: ignore[untyped-decorator]
def doptimal(structures: Sequence[Rows], keys: list[bytes], always: list[int], limit: int | None) -> Choice:
    """Choose structures until `limit` are taken or every atom left out has a grade of at most `GRADE`.

    `keys` identify structures whatever their order: the choice does not depend on it. `always` are taken first. The rows
    are whitened where they are: they may be more than memory holds.
    """
    order = sorted(range(len(structures)), key=keys.__getitem__)
    ordered = [structures[n] for n in order]
    position = {n: place for place, n in enumerate(order)}
    nothing = _whiten(ordered)
    features = _features(ordered, {symbol: len(matrix) for symbol, matrix in nothing.items()})
    total = features.sum(axis=0, dtype=np.float64).astype(np.float32)
    norms = np.maximum(np.linalg.norm(features, axis=1), 1e-30)
    right, gram = (features @ total).astype(np.float64), np.zeros((0, 0))
    chosen = sorted({position[n] for n in always})[:limit]
    most = len(ordered) if limit is None else min(limit, len(ordered))
    news: list[_News] = []
    while True:
        gram = _grown(gram, features, chosen)
        weights, taken = _weights(gram, right[chosen]), [ordered[place] for place in chosen]
        if limit is None and not any(one.place not in chosen and one.grade(taken, weights) > GRADE for one in news):
            metric = _metric(_information(taken, weights, nothing))
            others = sorted(set(range(len(ordered))) - set(chosen))
            news = list(islice((one for place in others if (one := _news(place, ordered[place], metric))), NEWS))
        if len(chosen) == most or (limit is None and not news):
            break
        merit = features @ (total - weights.astype(np.float32) @ features[chosen]) / norms
        merit[chosen] = -np.inf
        several = max(1, len(chosen) // (10 if limit is None else 20))  # few where there is little to choose from
        chosen += np.argsort(-merit, kind="stable")[: min(several, most - len(chosen))].tolist()
    information = _information(taken, weights, nothing)
    metric = _metric(information)
    left = sorted(set(range(len(ordered))) - set(chosen))
    pairs = sorted((order[place], float(weight)) for place, weight in zip(chosen, weights, strict=True))
    grades = {order[place]: float(max(map(np.max, _grades(ordered[place], metric).values()))) for place in left}
    log_det = sum(float(np.linalg.slogdet(matrix)[1]) for matrix in information.values())
    efficiency = float(np.exp(log_det / sum(len(matrix) for matrix in information.values())))
    return Choice([n for n, _ in pairs], [weight for _, weight in pairs], dict(sorted(grades.items())), efficiency)


def _whiten(structures: Sequence[Rows]) -> dict[str, Array]:
    """Make M of all atoms, with the ridge, the unit matrix, and return by element what the ridge has become."""
    ridges: dict[str, Array] = {}
    information: dict[str, Array] = {}
    for rows in structures:
        for symbol, block in rows.items():
            information[symbol] = information.get(symbol, 0.0) + block.T.astype(np.float64) @ block
    for symbol, matrix in information.items():
        scale = 1 / np.sqrt(np.where(matrix.diagonal() > 0, matrix.diagonal(), np.inf))
        scaled = matrix * scale[:, None] * scale + RIDGE * np.eye(len(matrix))
        inverse = solve_triangular(cholesky(scaled, lower=True), np.eye(len(matrix)), lower=True)
        transformation = scale[:, None] * inverse.T
        for rows in structures:
            if symbol in rows:
                rows[symbol][...] = rows[symbol] @ transformation
        ridges[symbol] = RIDGE * inverse @ inverse.T
    return dict(sorted(ridges.items()))


def _features(structures: Sequence[Rows], sizes: dict[str, int]) -> npt.NDArray[np.float32]:
    """Σ_atoms (b v)^2 of each structure for PROBES random directions v an element: (structures, elements PROBES)."""
    rng = np.random.default_rng(0)
    directions = {symbol: rng.normal(size=(size, PROBES)).astype(np.float32) for symbol, size in sizes.items()}
    features = np.zeros((len(structures), len(directions), PROBES), dtype=np.float32)
    for n, rows in enumerate(structures):
        for place, (symbol, along) in enumerate(directions.items()):
            if symbol in rows:
                features[n, place] = ((rows[symbol] @ along) ** 2).sum(axis=0)
    return features.reshape(len(structures), -1)


def _grown(gram: Array, features: npt.NDArray[np.float32], chosen: list[int]) -> Array:
    """The products of the features of the chosen structures; those of the first of them are known."""
    known = len(gram)
    products = (features[chosen[known:]] @ features[chosen].T).astype(np.float64)
    return np.block([[gram, products[:, :known].T], [products]])


def _weights(gram: Array, right: Array) -> Array:
    """Weights of the chosen structures with which their features add up to those of all as well as they can.

    From the products of their features with each other, and with the sum of all.
    """
    if len(gram) == 0:
        return np.zeros(0)
    gram = gram + 1e-3 * np.diag(gram.diagonal())  # spreads weight over what is alike
    scale = 1 / np.sqrt(np.maximum(gram.diagonal(), 1e-300))
    gram, right = gram * scale[:, None] * scale, right * scale

    def misfit(x: Array) -> tuple[float, Array]:
        product = gram @ x
        return float(0.5 * x @ product - right @ x), product - right

    lowest = LEAST_WEIGHT / scale
    result = minimize(misfit, np.maximum(right / gram.sum(axis=1), lowest), jac=True, method="L-BFGS-B",
                      bounds=[(low, None) for low in lowest])  # fmt: skip
    weights: Array = result.x * scale
    return weights


def _information(structures: Sequence[Rows], weights: Array, nothing: dict[str, Array]) -> dict[str, Array]:
    """The weighted information of structures, on top of that of none: what the ridge has become."""
    information = {symbol: matrix.copy() for symbol, matrix in nothing.items()}
    for rows, weight in zip(structures, weights, strict=True):
        for symbol, block in rows.items():
            information[symbol] += weight * block.T.astype(np.float64) @ block
    return information


def _metric(information: dict[str, Array]) -> dict[str, Array]:
    """For each element the matrix A for which |A b|^2 is the grade of an atom b."""
    return {
        symbol: solve_triangular(cholesky(matrix, lower=True), np.eye(len(matrix)), lower=True)
        for symbol, matrix in information.items()
    }


def _grades(rows: Rows, metric: dict[str, Array]) -> dict[str, Array]:
    """The grades of the atoms of a structure, by element."""
    return {symbol: ((block @ metric[symbol].T) ** 2).sum(axis=1) for symbol, block in rows.items()}


@dataclass(frozen=True)
class _News:
    """An atom b of the structure at `place`, left out with a grade above GRADE when information was M, and v = M^-1 b."""

    place: int
    symbol: str
    atom: Array
    direction: Array

    def grade(self, structures: Sequence[Rows], weights: Array) -> float:
        """No more than its grade once M is that of these structures: (b v)^2 / v^T M v (Cauchy and Schwarz)."""
        along = [rows[self.symbol] @ self.direction if self.symbol in rows else np.zeros(1) for rows in structures]
        known = sum(weight * float(values @ values) for weight, values in zip(weights, along, strict=True))
        return float((self.atom @ self.direction) ** 2 / max(known, 1e-300))


def _news(place: int, rows: Rows, metric: dict[str, Array]) -> _News | None:
    """The atom of the largest grade in a structure, if that is above GRADE."""
    grades = _grades(rows, metric)
    symbol = max(sorted(grades), key=lambda s: grades[s].max())
    worst = int(grades[symbol].argmax())
    atom = rows[symbol][worst].astype(np.float64)
    return _News(place, symbol, atom, metric[symbol].T @ (metric[symbol] @ atom)) if grades[symbol][worst] > GRADE else None


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
    """What the stage says of the choice; weights and leverages are in its folder."""

    method: str
    given: int
    chosen: int
    chosen_atoms: int
    functions: dict[str, int]  # of each element
    parameters: int
    largest_grade_left_out: float | None = None  # leverage, of those not chosen
    d_efficiency: float | None = None


@dataclass(frozen=True)
class Chosen:
    """The chosen structures, by source: their weights, and the largest leverage of an atom in each of the others."""

    weights: dict[str, float]
    leverages: dict[str, float]


def choose(
    train: pd.DataFrame, on: Basis, settings: SelectionSettings, workers: int, scratch: Path
) -> tuple[Chosen, Selected]:  # fmt: skip
    """Choose of the training structures those to fit on; files for the time being go to `scratch`."""
    size = basis.size(on)
    sources = train[SOURCE].tolist()
    if settings.method == "none":
        atoms = int(train[ATOMS].map(len).sum())
        selected = Selected("none", len(train), len(train), atoms, size.functions, size.parameters)
        return Chosen(dict.fromkeys(sources, 1.0), {}), selected
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        structures = list(train[ATOMS])
        maps, spans = projections.on_disk(Path(folder), structures, basis.expansion(on), workers, np.float32)
        rows = [{symbol: maps[symbol][span] for symbol, span in structure.items()} for structure in spans]
        keys = [geometry_key(atoms) for atoms in structures]
        choice = doptimal(rows, keys, indispensable(train, basis.cutoff_of(on)), settings.max_structures)
    chosen = Chosen(
        {sources[n]: weight for n, weight in zip(choice.chosen, choice.weights, strict=True)},
        {sources[n]: grade for n, grade in choice.grades.items()},
    )
    atoms = int(train[ATOMS].iloc[choice.chosen].map(len).sum())
    return chosen, Selected(
        settings.method, len(train), len(choice.chosen), atoms, size.functions, size.parameters,
        max(choice.grades.values(), default=0.0), choice.efficiency,
    )  # fmt: skip


def select(
    folder: Path, target: pd.DataFrame, on: Basis, settings: SelectionSettings, workers: int
) -> Selected:  # fmt: skip
    """The stage: write `chosen.json`, the sources and weights of the structures to train on, and `grades.json`, the grade of
    each of the others; the summary says how many, why, how well.

    `on` is the basis that training will use.
    """
    chosen, selected = choose(target[target[SPLIT] == TRAIN], on, settings, workers, folder)
    write_whole(folder / "chosen.json", json.dumps(chosen.weights, indent=0))
    if settings.method != "none":
        write_whole(folder / "grades.json", json.dumps(chosen.leverages, indent=0))
    return selected


def chosen_in(folder: Path) -> dict[str, float]:
    """The sources of the chosen structures and their weights, from the folder of the stage."""
    weights: dict[str, float] = json.loads((folder / "chosen.json").read_text())
    return weights
