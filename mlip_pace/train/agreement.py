"""Whether energies, forces and stresses of the data belong together.

A linear fit (`linear.py`) to energies alone predicts forces, one to forces by how much energies differ, one to both stresses,
and their posterior says of which structures they are sure (`uncertainty.py`). What is of the other sign there, or of another
size, is no scatter of a fit: the unit is wrong, or the sign (gradients for forces), or the labels are those of something else.
A fit to such labels goes to neither, and its errors need not show it; so it is said before. docs/design.md has the public data
sets that this was tried with. Energies in eV, forces in eV/Å, stresses in eV/Å^3, tension positive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from ase import Atoms

from mlip_pace.ace import basis, uncertainty
from mlip_pace.ace.basis import Basis
from mlip_pace.ace.expansion import Expansion
from mlip_pace.arrays import VOIGT, Array, Integers
from mlip_pace.collect.dataset import ATOMS, CONFIG_TYPE, ENERGY, ENERGY_ATOMS, FORCES, LABEL_WEIGHTS, SOURCE, STRESS
from mlip_pace.collect.geometry import shares
from mlip_pace.errors import DataError, SettingsError
from mlip_pace.run import pool
from mlip_pace.run.pool import Workers
from mlip_pace.train import crossvalidation, linear
from mlip_pace.train.linear import Labelled, Normal

COEFFICIENTS = 500  # of all elements: what the fit has at most
MOST = 2000  # of a file to go on from, which has as many as it has: more would take minutes, and nothing is said
ROWS = 12  # of forces for each coefficient
LOOKED_AT = 20  # structures whose forces and stresses are predicted
ATOMS_LOOKED_AT = 10_000  # about, that they have at most
FEWEST = 8  # structures of which the fit is sure
MAJORITY = 0.5  # of those looked at that it must be sure of: a few that it is sure of wrongly do not decide
EXPLAINED = 0.5  # of the squares of what it was fitted to that it must explain: else it knows nothing, and is sure of it
SURE = 0.5  # a prediction counts if its standard deviation is a smaller part of it (norms of all its components)
FACTOR = 5.0  # that the median ratio differs by from 1: more than fits scatter, less than units differ
# Cosine (median of structures) or correlation (of energies) with what is predicted, of either sign, that tells a factor.
STRESSES_ALONG, FORCES_ALONG, ENERGIES_ALONG = 0.5, 0.8, 0.9
CONFIRMED = 0.8  # median cosine of stresses that belong: 0.88 and more where they do
UNITS = {  # the ratio of stresses where one unit is taken for another
    160.22: "in GPa and taken for eV/Å^3",
    1602.2: "in kbar and taken for eV/Å^3",
    1.6022e6: "in bar and taken for eV/Å^3",
    1 / 160.22: "in eV/Å^3 and taken for GPa",
    1000.0: "in bar and taken for kbar",
    1 / 1000: "in kbar and taken for bar",
    10.0: "in kbar and taken for GPa",
    1 / 10: "in GPa and taken for kbar",
    1 / 183.63: "in Hartree/bohr^3 and taken for eV/Å^3",
    1 / 91.82: "in Rydberg/bohr^3 and taken for eV/Å^3",
}
NEAR = 0.3  # difference of logarithms to a ratio that is named

Predicted = tuple[Array, Array, Array]  # labels, what a fit predicts of them, its standard deviations; each (n,)


@dataclass(frozen=True)
class _Fit:
    """Coefficients, and F of `uncertainty.factor`, by which they are known."""

    coefficients: Array
    factor: Array
    explained: float  # of the squares of what was fitted to

    @classmethod
    def to(cls, normal: Normal, on: Basis) -> _Fit:
        scale = basis.smoothness(on)
        solution = linear.solve(normal, scale)
        matrix = normal.of(np.arange(len(scale))).matrix + np.diag(solution.lam / scale**2)
        factor = uncertainty.factor(matrix, solution.loss / max(normal.rows, 1))
        return cls(solution.coefficients, factor, 1 - solution.loss / normal.square if normal.square > 0 else 0.0)

    def predict(self, rows: Array) -> tuple[Array, Array]:
        """What these rows (n, functions) are the design of, and its standard deviations: (n,) each, in the same units. They are
        infinite where the fit explains little.
        """
        spread = np.linalg.norm(rows @ self.factor.T, axis=1)
        return rows @ self.coefficients, spread if self.explained > EXPLAINED else np.full(len(rows), np.inf)


@dataclass(frozen=True)
class _Comparison:
    """Labels of some structures beside their predictions: the cosine of both, -1 to 1, and the size of labels by that of
    predictions (medians; of energies the correlation of all). `structures`: of how many the fit is sure.
    """

    structures: int
    agreement: float
    ratio: float

    def contradicts(self, along: float) -> bool:
        """Whether labels have the direction of their predictions, but the other sign, or another size than fits scatter by."""
        return self.structures >= FEWEST and (self.agreement < -along or (self.agreement > along and not self._as_large))

    def confirms(self, along: float) -> bool:
        """Whether labels are those predicted, in direction and size."""
        return self.structures >= FEWEST and self.agreement > along and self._as_large

    @property
    def _as_large(self) -> bool:
        return 1 / FACTOR < self.ratio < FACTOR

    def __str__(self) -> str:
        return f"{np.sign(self.agreement) * self.ratio:.3g} times"


NOTHING = _Comparison(0, 0.0, 1.0)


def doubt_about_stresses(frame: pd.DataFrame, build: Callable[[int], Basis], seed: int, workers: Workers) -> str:
    """What speaks against the stresses of the structures to train on, in words; empty if nothing does.

    `frame` has the columns of `dataset.collect`; `build` makes a basis of at most so many functions for each element. Labels
    are fitted as they are, whatever the reference potential. Raises `DataError` if energies and forces do not belong together.
    """
    elements = len({number for atoms in frame[ATOMS] for number in set(atoms.numbers.tolist())})
    counted = [(frame[column] != 0).to_numpy() for column in LABEL_WEIGHTS[:2] if column in frame]
    frame = frame[np.all(counted, axis=0)] if counted else frame  # what the data themselves leave out contradicts nothing
    try:
        on = build(COEFFICIENTS // elements)
    except SettingsError:  # with so few functions not all of these elements would see each other
        return ""
    if frame.empty or sum(basis.size(on).functions.values()) > MOST:
        return ""
    looked_at = _looked_at(frame, seed)
    some = frame[frame[SOURCE].isin([*looked_at[SOURCE], *linear.sample(frame, on, seed, ROWS)[SOURCE]])]
    expansion = basis.expansion(on)
    of_chunk = partial(crossvalidation.accumulate, expansion=expansion)
    (parted,) = pool.parallel_sums(of_chunk, [linear.chunks_of(_labelled(some))], workers)
    predict = partial(_predicted, expansion=expansion, fit=_Fit.to(parted.energies, on))
    found = list(pool.parallel_map(predict, list(zip(looked_at[ATOMS], looked_at[FORCES], strict=True)), workers))
    forces = _compared([of_forces for of_forces, _ in found])
    energies = _energies(some, expansion, _Fit.to(parted.forces, on))
    if not energies.confirms(ENERGIES_ALONG):
        _refuse("forces", "energies", forces, FORCES_ALONG)
    if not forces.confirms(FORCES_ALONG):
        _refuse("energy differences", "forces", energies, ENERGIES_ALONG)
    both = _Fit.to(parted.normal(crossvalidation.WITHOUT_FOLDS), on)
    stresses = _stresses(looked_at, [of_virial for _, of_virial in found], both, expansion.elements)
    if not stresses.contradicts(STRESSES_ALONG):
        return ""
    causes = _causes(stresses)
    return (
        "the stresses of the training data do not go with their energies and forces, and are not fitted: they are "
        f"{stresses} what a fit to these predicts (median of {stresses.structures} structures)"
        f"{f': {causes}?' if causes else ''}; MLIP_PACE_DATA_STRESS_KEY=none leaves them out"
    )


def _looked_at(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The structures whose labels are predicted: with stresses, if enough have them, and enough that have forces."""
    having = frame[_with_stress(frame)]
    chosen = _drawn(having, seed) if len(having) >= FEWEST else having.iloc[:0]
    if sum(bool(forces.any()) for forces in chosen[FORCES]) < FEWEST:  # crystals at rest have none, whatever their stresses
        pushed = _drawn(frame[[bool(forces.any()) for forces in frame[FORCES]]], seed)
        chosen = frame[frame[SOURCE].isin([*chosen[SOURCE], *pushed[SOURCE]])]
    return chosen


def _with_stress(frame: pd.DataFrame) -> list[bool]:
    """Of each structure whether it has a stress, of another weight than 0."""
    stresses, weights = frame.get(STRESS, [None] * len(frame)), frame.get(LABEL_WEIGHTS[2], [1.0] * len(frame))
    return [stress is not None and weight != 0 for stress, weight in zip(stresses, weights, strict=True)]


def _drawn(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    """LOOKED_AT structures at random; of very large ones fewer, but FEWEST."""
    drawn = frame.sort_values(SOURCE).sample(min(LOOKED_AT, len(frame)), random_state=seed)
    small = drawn[ATOMS].map(len).to_numpy().cumsum() <= ATOMS_LOOKED_AT
    return drawn[small | (np.arange(len(drawn)) < FEWEST)]


def _labelled(frame: pd.DataFrame) -> Sequence[Labelled]:
    """Energies relative to E0, and forces, with the weights that they have where nothing is set."""
    labels = {"energy_corrected": frame[ENERGY] - frame[ENERGY_ATOMS], "forces": frame[FORCES]}
    return linear.labelled(frame[[ATOMS, SOURCE, CONFIG_TYPE, ENERGY, ENERGY_ATOMS, FORCES]].assign(**labels))


def _refuse(labels: str, others: str, found: _Comparison, along: float) -> None:
    """Raise `DataError` if labels contradict what a fit to others predicts of them."""
    if found.contradicts(along):
        raise DataError(
            f"energies and forces do not belong together: {labels} are {found} what a fit to the {others} alone predicts "
            f"(median of {found.structures} structures)",
            "forces are minus the gradient, in eV/Å, energies are in eV: look at what wrote the data; labels of weight 0 "
            "(`energy_weight`, `forces_weight` in the data) are not compared",
        )


def _predicted(structure: tuple[Atoms, Array], expansion: Expansion, fit: _Fit) -> tuple[Predicted, Array]:
    """Forces (n, 3) of atoms with what a fit predicts of them, and the rows of the virial (6, functions)."""
    atoms, forces = structure
    ((rows, _),) = expansion.rows([atoms], stress=True)
    return (forces.ravel(), *fit.predict(rows[1:-6])), rows[-6:].copy()  # a view would keep all rows of all structures


def _stresses(frame: pd.DataFrame, rows: Sequence[Array], fit: _Fit, elements: Sequence[str]) -> _Comparison:
    """Stresses, where there are some, with what a fit to energies and forces predicts; `rows` are those of the virials.

    Of data with few volumes that fit knows how pressures differ, but not the pressure, so that both are compared: the stresses,
    and by how much they differ. Those that differ as predicted are not contradicted.
    """
    having = np.flatnonzero(_with_stress(frame))
    if not len(having):
        return NOTHING
    frame = frame.iloc[having]
    given = np.array([stress[VOIGT] for stress in frame[STRESS]])
    of_stress = np.array([rows[n] / atoms.get_volume() for n, atoms in zip(having, frame[ATOMS], strict=True)])

    def compared(given: Array, of_stress: Array) -> _Comparison:
        return _compared([(one, *fit.predict(other)) for one, other in zip(given, of_stress, strict=True)])

    parts = shares(frame[ATOMS], elements)
    differences = compared(_but_for(parts, given), _but_for(parts, of_stress))
    whole = compared(given, of_stress)
    if differences.contradicts(STRESSES_ALONG) or not whole.contradicts(STRESSES_ALONG):
        return differences
    return differences if differences.confirms(CONFIRMED) else whole


def _compared(found: Sequence[Predicted]) -> _Comparison:
    """Labels of each structure with what is predicted and its standard deviations, of which some are sure."""
    found = [structure for structure in found if structure[0].any()]
    norms = [[np.linalg.norm(one) for one in structure] for structure in found]
    sure = [bool(spread < SURE * expected) for _, expected, spread in norms]
    if not any(sure) or sum(sure) < MAJORITY * len(sure):
        return NOTHING
    size, expected, _ = np.array(norms)[sure].T
    dots = np.array([given @ predicted for given, predicted, _ in found])[sure]
    return _Comparison(len(dots), float(np.median(dots / size / expected)), float(np.median(size / expected)))


def _energies(frame: pd.DataFrame, expansion: Expansion, fit: _Fit) -> _Comparison:
    """Energies, with what a fit to forces predicts: per atom, of structures in the same cell, and without what is linear in the
    composition, since forces know nothing of volume, strain and composition.
    """
    counts = frame[ATOMS].map(len).to_numpy()
    sums = np.array([_summed(of_atoms, expansion) for of_atoms in expansion.functions(frame[ATOMS])])
    cells = _cells(frame[ATOMS])
    parts = _but_for_mean(cells, shares(frame[ATOMS], expansion.elements)).round(9)  # what is left of equal shares is rounding
    energies, functions = (frame[ENERGY] - frame[ENERGY_ATOMS]).to_numpy() / counts, sums / counts[:, None]
    given = _but_for(parts, _but_for_mean(cells, energies))
    predicted, spread = fit.predict(_but_for(parts, _but_for_mean(cells, functions)))
    sure = spread < SURE * np.abs(predicted)
    if not sure.any():
        return NOTHING
    given, predicted = given[sure], predicted[sure]
    correlation = given @ predicted / max(float(np.linalg.norm(given) * np.linalg.norm(predicted)), 1e-300)
    return _Comparison(int(sure.sum()), float(correlation), float(np.median(np.abs(given / predicted))))


def _cells(structures: Sequence[Atoms]) -> Integers:
    """Numbers (structures,) that are the same for structures in the same cell, to 1e-3 Å; all without one have the same."""
    rounded = np.array([np.round(atoms.cell.array * 1e3).ravel() * atoms.pbc.any() for atoms in structures])
    numbers: Integers = np.unique(rounded, axis=0, return_inverse=True)[1].ravel()
    return numbers


def _but_for_mean(groups: Integers, values: Array) -> Array:
    """Values (structures, ...) but for the mean of their group; 0 of what is alone in it."""
    sums = np.zeros((groups.max() + 1, *values.shape[1:]))
    np.add.at(sums, groups, values)
    counts = np.bincount(groups).reshape(-1, *[1] * (values.ndim - 1))
    rest: Array = values - (sums / counts)[groups]
    return rest


def _but_for(parts: Array, values: Array) -> Array:
    """Values (structures, ...) but for what is linear in their composition, the shares (structures, elements)."""
    rest: Array = values - np.tensordot(parts, np.tensordot(np.linalg.pinv(parts), values, 1), 1)
    return rest


def _summed(of_atoms: dict[str, Array], expansion: Expansion) -> Array:
    """The sums of functions over atoms (functions,), from those of the atoms of each element."""
    none = {symbol: np.zeros((0, count)) for symbol, count in zip(expansion.elements, expansion.counts, strict=True)}
    return np.concatenate([of_element.sum(axis=0) for of_element in (none | of_atoms).values()])


def _causes(stresses: _Comparison) -> str:
    """What makes stresses so many times what they are, if something that is known does."""
    near = [name for factor, name in {1.0: "", **UNITS}.items() if abs(np.log(stresses.ratio / factor)) < NEAR]
    if not near:
        return ""
    return " and ".join(filter(None, ["of the other sign" if stresses.agreement < 0 else "", " or ".join(near)]))
