"""The refinement of the radial functions by variable projection.

With the radial functions R_nl(r) = Σ_k C_nlk g_k(r) given, the function coefficients c are a linear least-squares problem
(`linear.py`). So c is not a variable of its own here, it follows from C: the loss is a function of C alone, far better
conditioned than that of C and c together (G. H. Golub, V. Pereyra, SIAM J. Numer. Anal. 10, 413 (1973)). An iteration is a
Gauss-Newton step in C, its Jacobian projected as by L. Kaufman (BIT 15, 49 (1975)), and a new solve for c. The step stays
within a trust region (J. J. Moré, Lect. Notes Math. 630, 105 (1978)), and counts only if the evidence of the new linear model
is higher: on few data that is what keeps C from being fitted to noise.

The Jacobian is that of a sample of the structures: it only says where to go. Energies in eV, forces in eV/Å.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from mlip_pace.ace import basis
from mlip_pace.ace.basis import Basis, BasisFile
from mlip_pace.ace.evaluators import Predictor
from mlip_pace.ace.expansion import Expansion, Pair
from mlip_pace.ace.files import write_linear
from mlip_pace.arrays import Array
from mlip_pace.run import pool
from mlip_pace.run.compute import Compute
from mlip_pace.run.pool import Workers
from mlip_pace.run.steps import write_whole
from mlip_pace.train import linear
from mlip_pace.train.linear import Labelled, Normal, Solution

ROWS_PER_COEFFICIENT = 24  # of the first sample; twice as many after a step that brought little or nothing
COEFFICIENTS_AT_ONCE = 1000  # of C in one step; with many elements the pairs take turns
TRUST = 0.06  # length of the first step, relative to that of C
GAIN = 0.02  # relative gain of the loss, 1 % of the errors; when every group's last two steps are below it, it ends
ITERATION = 4.0  # times the solve for c alone: another solve, the Jacobian and the errors
SHORTEST = TRUST / 10  # when steps of this length bring nothing, nothing is to be had


@dataclass(frozen=True)
class State:
    """Where the refinement is: the B-basis file (a name in its folder), the solution for c, the length of the next step."""

    iteration: int
    potential: str
    solution: Solution
    trust: float
    structures: int  # that it was fitted to
    rows: float = ROWS_PER_COEFFICIENT
    idle: int = 0  # iterations in a row with next to no gain
    ended: str = ""  # why it came to its end

    def save(self, folder: Path) -> None:
        solution = {**asdict(self.solution), "coefficients": self.solution.coefficients.tolist()}
        write_whole(folder / "state.json", json.dumps({**asdict(self), "solution": solution}))


def load(folder: Path) -> State | None:
    """The state in a folder, if there is one."""
    try:
        saved = json.loads((folder / "state.json").read_text())
    except FileNotFoundError:
        return None
    solution = Solution(**{**saved["solution"], "coefficients": np.array(saved["solution"]["coefficients"])})
    return State(**{**saved, "solution": solution})


@dataclass(frozen=True)
class Problem:
    """What is fitted: structures to train on, those that are only watched, the weight κ of forces, the seed of samples."""

    train: Sequence[Labelled]
    test: Sequence[Labelled]
    kappa: float
    seed: int = 42


def start(folder: Path, problem: Problem, first: Basis, workers: Workers = 1) -> State:
    """The least-squares solution with the radial functions as they are in the first basis: iteration 0."""
    solution = linear.fit(problem.train, first, problem.kappa, workers)
    write_linear(folder / "iteration-0.yaml", first, solution.coefficients)
    nothing = "" if len(basis.radial_coefficients(first)) else "there are no radial functions to refine"
    state = State(0, "iteration-0.yaml", solution, TRUST, len(problem.train), ended=nothing)
    state.save(folder)
    return state


def refine(folder: Path, problem: Problem, most: int, compute: Compute, longest: float = 0.0) -> State:
    """Go on from the state in `folder` until it ends, for at most `most` iterations in all, or until the deadline.

    None is begun that might not end before the deadline: the `longest` so far (s) is what one takes.

    After each iteration the state is saved, and the loss and the errors of the target are added to the tables
    `metrics.txt` and `test_metrics.txt`, which have the columns of pacemaker's.
    """
    state = load(folder)
    assert state is not None
    if state.iteration == 0:
        write_metrics(folder, state, problem, compute.workers)
    while not state.ended and state.iteration < most and time.monotonic() + longest < compute.deadline:
        begin = time.monotonic()
        state = iterate(folder, state, problem, compute.workers)
        row = write_metrics(folder, state, problem, compute.workers)
        compute.progress({**row, "iteration": row["iter_num"]})
        state.save(folder)
        longest = max(longest, time.monotonic() - begin)
    return state


def iterate(folder: Path, state: State, problem: Problem, workers: Workers) -> State:
    """One step in C and the solve for c that belongs to it."""
    here = BasisFile(folder / state.potential)
    number = state.iteration + 1
    slices = basis.radial_pairs(here)
    groups = _groups(slices)
    pairs = groups[state.iteration % len(groups)]
    columns = np.r_[tuple(slices[pair] for pair in pairs)]
    size = state.rows * (len(columns) + len(state.solution.coefficients))
    sample = _sample(problem.train, size, np.random.default_rng((problem.seed, number)))
    expansion, scale, coefficients = basis.expansion(here), basis.smoothness(here), state.solution.coefficients
    function = partial(jacobian, expansion=expansion, pairs=pairs, coefficients=coefficients, kappa=problem.kappa)
    (normal,) = pool.parallel_sums(function, [linear.chunks_of(sample)], workers)
    normal = normal.of(np.arange(len(columns) + len(coefficients)))
    radial = basis.radial_coefficients(here)
    length = state.trust * float(np.linalg.norm(radial[columns]))
    radial[columns] += _within(length, *_projected(normal, len(columns), state.solution.lam / scale**2, coefficients))
    solution = linear.fit_with(expansion.with_radial(radial), scale, problem.train, problem.kappa, workers)
    if solution.log_evidence <= state.solution.log_evidence:
        ended = "no step brings a gain" if state.trust / 2 < SHORTEST else ""
        return replace(state, iteration=number, trust=state.trust / 2, rows=2 * state.rows, ended=ended)
    name = f"iteration-{number}.yaml"
    write_linear(folder / name, here, solution.coefficients, radial)
    if solution.loss > (1 - GAIN) * state.solution.loss:
        ended = "the loss no longer falls" if state.idle + 1 == 2 * len(groups) else ""
        return State(number, name, solution, state.trust, state.structures, 2 * state.rows, state.idle + 1, ended)
    return State(number, name, solution, state.trust, state.structures, state.rows)


def jacobian(
    chunk: Sequence[Labelled], expansion: Expansion, pairs: Sequence[Pair], coefficients: Array, kappa: float
) -> Normal:
    """The normal equations of a step in C of some pairs of elements and in c together, from c = `coefficients`."""
    rows = expansion.rows((labelled.atoms for labelled in chunk), coefficients, pairs, linear.has_stress(chunk))
    together, gaps = [], []
    for labelled, (of_c, of_radial) in zip(chunk, rows, strict=True):
        target = labelled.target
        together.append(np.hstack([of_radial, of_c]))
        gaps.append(target - of_c[: len(target)] @ coefficients)
    return linear.normal_equations(chunk, together, gaps, kappa)


def _groups(pairs: dict[Pair, slice]) -> list[list[Pair]]:
    """The pairs of elements whose coefficients in C move together: all, or as many as a step can take."""
    groups: list[list[Pair]] = [[]]
    for pair, columns in pairs.items():
        if groups[-1] and columns.stop - pairs[groups[-1][0]].start > COEFFICIENTS_AT_ONCE:
            groups.append([])
        groups[-1].append(pair)
    return groups


def _sample(structures: Sequence[Labelled], rows: float, rng: np.random.Generator) -> list[Labelled]:
    """Structures drawn at random until there are enough rows, in their order, with their weights normalised anew."""
    drawn, count = [], 0
    for n in rng.permutation(len(structures)):
        if count >= rows:
            break
        drawn.append(n)
        count += 1 + 3 * len(structures[n].atoms)
    sample = [structures[n] for n in sorted(drawn)]
    energies = sum(labelled.w_energy for labelled in sample)
    forces = sum(float(labelled.w_forces.sum()) for labelled in sample)
    return [
        replace(s, w_energy=s.w_energy / energies, w_forces=s.w_forces / forces, w_virial=s.w_virial / energies) for s in sample
    ]


def _projected(normal: Normal, count: int, prior: Array, coefficients: Array) -> tuple[Array, Array]:
    """Matrix and vector of the step in C alone (the first `count` coefficients), c following it."""
    r, c = slice(None, count), slice(count, None)
    following = np.linalg.solve(
        normal.matrix[c, c] + np.diag(prior), np.column_stack([normal.matrix[c, r], normal.vector[c] - prior * coefficients])
    )
    return (
        normal.matrix[r, r] - normal.matrix[r, c] @ following[:, :-1],
        normal.vector[r] - normal.matrix[r, c] @ following[:, -1],
    )


def _within(length: float, matrix: Array, vector: Array) -> Array:
    """The Gauss-Newton step, damped (Levenberg-Marquardt) as little as its length allows."""
    values, vectors = np.linalg.eigh(matrix)
    values, along = np.clip(values, 0.0, None), vectors.T @ vector
    if not values[-1] > 0:  # nothing depends on them
        return np.zeros_like(vector)
    dampings = values[-1] * 10.0 ** np.arange(-14, 4, 0.1)
    enough = next((d for d in dampings if np.linalg.norm(along / (values + d)) <= length), np.linalg.norm(along) / length)
    step: Array = vectors @ (along / (values + enough))
    return step


def write_metrics(folder: Path, state: State, problem: Problem, workers: Workers) -> dict[str, float]:
    """Add a row to the tables, and return that of the training structures."""
    rows = {}
    for table, labelled in (("metrics.txt", problem.train), ("test_metrics.txt", problem.test)):
        if labelled:
            found = errors(folder / state.potential, labelled, problem.kappa, workers)
            rows[table] = {"ladder_step": 0.0, "iter_num": float(state.iteration), **found}
            path = folder / table
            if state.iteration == 0:
                write_whole(path, " ".join(rows[table]) + "\n")
            with path.open("a") as file:
                file.write(" ".join(f"{value:.8g}" for value in rows[table].values()) + "\n")
    return rows["metrics.txt"]


def errors(potential: Path, structures: Sequence[Labelled], kappa: float, workers: Workers) -> dict[str, float]:
    """Loss and errors of the target (eV/atom; eV/Å per component), under pacemaker's names."""
    of_chunk = partial(_errors, predictor=Predictor(BasisFile(potential)), kappa=kappa)
    ((loss, energy_squares, energies, force_squares, forces, count, components),) = pool.parallel_sums(
        of_chunk, [linear.chunks_of(structures)], workers
    )
    return {
        "loss": float(loss),
        "rmse_epa": float(np.sqrt(energy_squares / count)),
        "rmse_f_comp": float(np.sqrt(force_squares / components)),
        "mae_epa": float(energies / count),
        "mae_f_comp": float(forces / components),
    }


def _errors(chunk: Sequence[Labelled], predictor: Predictor, kappa: float) -> Array:
    """The sums of loss, (ΔE/N)^2, |ΔE/N|, ΔF^2 and |ΔF|, and the numbers of energies and force components: (7,)."""
    sums = np.zeros(7)
    for one in chunk:
        gap = predictor(one.atoms)[: len(one.target)] - one.target
        energy, forces = gap[0] / len(one.atoms), gap[1 : 1 + 3 * len(one.atoms)]
        loss = one.weights(kappa) @ gap**2
        sums += [loss, energy**2, abs(energy), forces @ forces, np.abs(forces).sum(), 1, len(forces)]
    return sums
