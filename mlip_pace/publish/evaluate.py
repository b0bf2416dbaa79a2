"""Errors of the published potential + reference against DFT: of the `.yace` itself, not of pacemaker's log.

Energies in eV/atom, forces in eV/Å per component, stress in eV/Å^3 per component (the six of Voigt).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ase import Atoms
from ase.units import GPa

from mlip_pace.ace.activeset import Grader
from mlip_pace.ace.calculator import PotentialCalculator
from mlip_pace.ace.cost import Cost, md_step
from mlip_pace.ace.uncertainty import Calibration, Uncertainty
from mlip_pace.arrays import VOIGT, Array
from mlip_pace.collect import columns
from mlip_pace.collect.dataset import ATOMS, CONFIG_TYPE, ENERGY, ENERGY_ATOMS, FORCES, SOURCE, SPLIT, STRESS
from mlip_pace.collect.split import TEST
from mlip_pace.publish import committee, coverages, grades
from mlip_pace.publish.committee import NOT_ASKED, Asked
from mlip_pace.publish.grades import Grades
from mlip_pace.reference import Reference
from mlip_pace.run import pool
from mlip_pace.run.pool import Workers
from mlip_pace.settings import EvaluateSettings

DOUBTFUL = 0.5  # of the spread of stresses: errors beyond it are those of the labels
SMALL_STRESS = 1.0 * GPa  # eV/Å^3; errors below it are errors of DFT
# Errors below these are small whatever the spread, of one structure and its copies, say.
LEAST_SPREAD_ENERGY, LEAST_SPREAD_FORCES = 0.005, 0.02  # eV/atom, eV/Å
LITTLE = 0.9  # of the spread: with such errors a fit knows next to nothing
MOST, SMALL, FEW = 0.5, 0.25, 20  # of the squared errors; of the structures; where there are fewer, one may well have most
MANY_TIMES = 4.0
CHUNK = 16  # structures that a worker takes at a time


def predict(potential: Path, reference: Reference, frame: pd.DataFrame, workers: Workers = 1) -> pd.DataFrame:
    """`energy_pred` (eV, on the DFT scale), `forces_pred` (n, 3) and `stress_pred` (3, 3) or None for each row of `frame`."""
    predict_some = partial(_predict, calculator=PotentialCalculator(potential, reference))
    predicted = columns.GrowingFrame(["forces_pred", "stress_pred"])
    for energy, forces, stress in chain.from_iterable(
        pool.parallel_map(predict_some, pool.chunks(frame[ATOMS].array, CHUNK), workers)
    ):
        predicted.append({"energy_pred": energy, "forces_pred": forces, "stress_pred": stress})
    return predicted.frame().set_index(frame.index)


def _predict(structures: Sequence[Atoms], calculator: PotentialCalculator) -> list[tuple[float, Array, Array | None]]:
    return [calculator.predict(atoms) for atoms in structures]


def errors(frame: pd.DataFrame) -> dict[str, float]:
    """MAE and RMSE of a frame with labels and predictions; stress only where both are there."""
    counts = frame[ATOMS].map(len)
    energy = ((frame.energy_pred - frame[ENERGY]) / counts).to_numpy(dtype=float)
    forces = np.concatenate([p - t for p, t in zip(frame.forces_pred, frame[FORCES], strict=True)])
    result: dict[str, float] = {"n_structures": len(frame), "n_atoms": int(counts.sum())}
    parts = {"energy": energy, "forces": forces}
    if STRESS in frame:
        both = [
            (p - t)[VOIGT] for p, t in zip(frame.stress_pred, frame[STRESS], strict=True) if p is not None and t is not None
        ]
        if both:
            parts["stress"] = np.array(both)
    for name, difference in parts.items():
        result[f"{name}_mae"] = float(np.abs(difference).mean())
        result[f"{name}_rmse"] = float(np.sqrt((difference**2).mean()))
    return result


def error_table(errors: dict[str, dict[str, float]]) -> str:
    """The errors of ACE + reference against DFT, as text."""
    lines = [f"{'ACE + reference against DFT':<28}{'energy, meV/atom':>20}{'forces, eV/Å':>20}",
             f"{'structures':>17}{'atoms':>9}{'':2}{'MAE':>10}{'RMSE':>10}{'MAE':>10}{'RMSE':>10}"]  # fmt: skip
    for name, label in (("train", "train"), ("left_out", "not chosen"), ("test", "test"), ("labels", "labels")):
        if e := errors.get(name):
            lines.append(
                f"{label:<10}{e['n_structures']:>7}{e['n_atoms']:>9}  "
                f"{1e3 * e['energy_mae']:>10.2f}{1e3 * e['energy_rmse']:>10.2f}"
                f"{e['forces_mae']:>10.4f}{e['forces_rmse']:>10.4f}"
            )
    return "\n".join(lines)


@dataclass(frozen=True)
class Published:
    """What is published and judged: the `.yace`, the reference, the sources of the structures that it was trained on (None: all
    to train on), the calibration of its uncertainty, if it has any, the committee that is asked for, and whether stresses were
    fitted, where there are some.
    """

    potential: Path
    reference: Reference
    trained_on: Sequence[str] | None
    calibration: Calibration | None = None
    committee: Asked = NOT_ASKED
    stress: bool = True


@dataclass(frozen=True)
class Scores:
    """Errors by subset (train, left_out: not chosen to train on, test), those by config_type, and what is to be said."""

    errors: dict[str, dict[str, Any]]  # numbers; of a float, counts would come back from the file with decimals
    errors_by_config_type: dict[str, dict[str, dict[str, Any]]]
    missed: list[str]  # of the quality gate
    worthless: list[str]  # errors on what it was trained on that are larger than the spread of the data
    warnings: list[str]
    cost: Cost | None  # of a step of molecular dynamics
    coverage: dict[str, dict[str, dict[float, float]]] = field(default_factory=dict)  # of test structures: `coverages.py`
    grades: Grades | None = None  # of test structures, where there is an active set


def score(
    folder: Path, target: pd.DataFrame, published: Published, gate: EvaluateSettings, workers: Workers
) -> Scores:  # fmt: skip
    """The stage: write `predictions`, and compare with DFT; draw the committee, if one is asked for."""
    frame = target.join(predict(published.potential, published.reference, target, workers))
    used = frame[SPLIT] != TEST if published.trained_on is None else frame[SOURCE].isin(published.trained_on)
    frame["subset"] = np.where(frame[SPLIT] == TEST, "test", np.where(used, "train", "left_out"))
    coverage = {}
    if published.calibration is not None and (frame[SPLIT] == TEST).any():
        quantify = Uncertainty.of(published.potential.parent, published.calibration)
        test = (frame[SPLIT] == TEST).to_numpy()
        frame = frame.join(coverages.sigmas(frame, test, quantify, workers))
        coverage = coverages.by_type(frame[test], published.calibration)
    columns.save(frame, folder / "predictions")
    by_subset = {name: errors(rows) for name, rows in frame.groupby("subset")}
    by_type = {name: {kind: errors(rows) for kind, rows in part.groupby(CONFIG_TYPE)} for name, part in frame.groupby("subset")}
    missed = _missed(by_subset.get("test"), gate)
    warnings = _doubts(frame[used], by_subset["train"]) if published.stress else []
    warnings += ruled_by_few(frame[used]) + beyond_training(by_subset) + little_learned(frame[used], by_subset["train"])
    graded = None
    if "test" in by_subset and (grader := Grader.of(published.potential.parent)) is not None:
        graded = grades.of_test(frame[frame["subset"] == "test"], frame[used], grader, workers)
        warnings += graded.warnings
    if published.committee.members and published.calibration is None:
        warnings.append("MLIP_PACE_OUTPUT_COMMITTEE: this fit has no uncertainty to draw a committee from")
    elif published.committee.members and published.calibration is not None:
        fitted = published.potential.parent
        committee.draw(folder, fitted, published.reference, published.calibration, published.committee)
    worthless = worse_than_nothing(frame[used], by_subset["train"])
    cost = md_step(published.potential, target)
    return Scores(by_subset, by_type, missed, worthless, warnings + worthless, cost, coverage, graded)


def _doubts(train: pd.DataFrame, errors: dict[str, float]) -> list[str]:
    """What the errors of the training data say about their labels."""
    if "stress_rmse" not in errors:
        return []
    spread = float(np.std([stress[VOIGT] for stress in train[STRESS] if stress is not None]))
    if errors["stress_rmse"] < max(DOUBTFUL * spread, SMALL_STRESS):
        return []
    return [
        "the stresses of the training data do not go with their energies and forces: errors of "
        f"{errors['stress_rmse'] / GPa:.3g} GPa (RMSE), they themselves vary by {spread / GPa:.3g}; mind their sign (tension "
        "positive), unit and order, or leave them out: MLIP_PACE_DATA_STRESS_KEY=none"
    ]


def ruled_by_few(train: pd.DataFrame) -> list[str]:
    """Names the structure or the config_type that has most of the squared errors, of energies or of forces."""
    counts = train[ATOMS].map(len)
    parts = {
        "energies": ((train.energy_pred - train[ENERGY]) / counts).astype(float) ** 2,
        "forces": pd.Series([((p - t) ** 2).sum() for p, t in zip(train.forces_pred, train[FORCES], strict=True)], train.index),
    }
    said = []
    for label, squares in parts.items():
        shares, structures = squares / max(float(squares.sum()), 1e-300), train[CONFIG_TYPE].value_counts(normalize=True)
        worst, by_type = shares.idxmax(), shares.groupby(train[CONFIG_TYPE]).sum()
        kind = (by_type - structures).idxmax()
        if len(train) >= FEW and shares[worst] > MOST:
            said.append(f"{train[SOURCE][worst]} has {shares[worst]:.0%} of the squared errors of {label}: look at its labels")
        elif len(train) >= FEW and by_type[kind] > MOST and structures[kind] < SMALL:
            said.append(
                f"config_type {kind}, {structures[kind]:.0%} of the training structures, has {by_type[kind]:.0%} of the "
                f"squared errors of {label}: look at its labels, or give it less in MLIP_PACE_TRAINING_WEIGHTS"
            )
    return said


def beyond_training(errors: dict[str, dict[str, float]]) -> list[str]:
    """Test errors that are many times those of training."""
    if "test" not in errors:
        return []
    test, train = errors["test"], errors["train"]
    ratios = {name: test[f"{name}_mae"] / max(train[f"{name}_mae"], 1e-300) for name in ("energy", "forces")}
    small = {"energy": LEAST_SPREAD_ENERGY, "forces": LEAST_SPREAD_FORCES}
    return [
        f"the {name} error (MAE) of the test set is {ratio:.0f} times that of the training set: the fit does not hold for "
        "other structures; more data, or fewer MLIP_PACE_BASIS_FUNCTIONS, help"
        for name, ratio in ratios.items()
        if ratio > MANY_TIMES and test[f"{name}_mae"] > small[name]
    ]


def worse_than_nothing(train: pd.DataFrame, errors: dict[str, float]) -> list[str]:
    """What a potential that knows only E0 and the mean energy, and no forces, would do better, in words.

    On the structures that it was trained on the errors must be smaller than the spread of the DFT values.
    """
    return [
        f"{name} RMSE {errors[f'{name}_rmse']:.4g} {unit} on the training structures is larger than the spread of the DFT "
        f"values, {spread:.4g} {unit}: the fit is worse than none"
        for name, (spread, least, unit) in _spreads(train).items()
        if errors[f"{name}_rmse"] > max(spread, least)
    ]


def little_learned(train: pd.DataFrame, errors: dict[str, float]) -> list[str]:
    """What the fit has hardly learned anything of, though not worse than nothing, in words."""
    return [
        f"the fit has learned next to nothing of the {name}: RMSE {errors[f'{name}_rmse']:.4g} {unit} on the training "
        f"structures, with a spread of {spread:.4g}; do labels and positions belong together (unit, order of the atoms)?"
        for name, (spread, least, unit) in _spreads(train).items()
        if LITTLE * spread < errors[f"{name}_rmse"] <= spread and spread > least
    ]


def _spreads(train: pd.DataFrame) -> dict[str, tuple[float, float, str]]:
    """The spread of the DFT values, the least that is looked at, and the unit: the standard deviation of energies relative to
    the sum of E0 (eV/atom), and the root mean square of force components (eV/Å).
    """
    binding = (train[ENERGY] - train[ENERGY_ATOMS]) / train[ATOMS].map(len)
    return {
        "energy": (float(binding.std(ddof=0)), LEAST_SPREAD_ENERGY, "eV/atom"),
        "forces": (float(np.sqrt(np.mean(np.concatenate(list(train[FORCES])) ** 2))), LEAST_SPREAD_FORCES, "eV/Å"),
    }


def _missed(test: dict[str, float] | None, gate: EvaluateSettings) -> list[str]:
    """What of the quality gate was missed, in words."""
    limits = (("energy", gate.max_energy_rmse, "eV/atom"), ("forces", gate.max_forces_rmse, "eV/Å"))
    missed = []
    for name, limit, unit in limits:
        if limit is None:
            continue
        if test is None:
            missed.append(f"{name} RMSE was not measured: there is no test set")
        elif test[f"{name}_rmse"] > limit:
            missed.append(f"{name} RMSE {test[f'{name}_rmse']:.4g} {unit} on the test set is above {limit:g}")
    return missed
