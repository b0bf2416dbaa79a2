"""The start of the fit: ACE's function coefficients by weighted least squares, all at once.

With radial functions fixed, an ACE energy that is linear in the density is linear in its coefficients c:
E = Σ_k c_k B_k and F = -Σ_k c_k ∂B_k/∂r. The loss is that of the training, with the same weights:

    (1 - κ) Σ w_E (ΔE/N)^2 + κ Σ w_F |ΔF|^2 + κ_W Σ w_W |ΔW/N|^2 + λ Σ_k (c_k/s_k)^2,     1/s_k = 1 + Σ_i (n_i^2 + l_i^2)

The scales s prefer smooth functions, those of low radial order n and angular momentum l (the algebraic prior of W. C. Witt et
al., J. Chem. Phys. 159, 164101 (2023); in cross-validation and by evidence better than none on Al-Mg and two sets of Si).
λ is the one with the highest evidence (D. J. C. MacKay, Neural Computation 4, 415 (1992)), found from the training data alone.
Only the normal matrix G (functions^2) is kept, whatever the number of structures. Energies in eV, forces in eV/Å. W, of the
structures with a stress, is its virial: volume times stress in the six components of Voigt, eV.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd
from ase import Atoms

from mlip_pace.ace import basis
from mlip_pace.ace.basis import Basis
from mlip_pace.ace.expansion import Expansion
from mlip_pace.arrays import Array, Integers
from mlip_pace.collect.dataset import ATOMS, SOURCE
from mlip_pace.errors import SettingsError
from mlip_pace.reference import VIRIAL
from mlip_pace.run import limits, pool
from mlip_pace.run.pool import Workers
from mlip_pace.settings import TrainingSettings
from mlip_pace.train.weights import loss_weights

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

# Atoms that a worker accumulates before it hands its sum back; fixed, so that sums do not depend on the number of workers.
ATOMS_IN_CHUNK = 500
STRESS = 0.1  # κ_W/κ: stresses are fitted four times as well for 1 % of the errors of forces (docs/design.md)
MATRICES = 10  # (functions, functions), that there are at once with two folds: theirs, their sums, those of the solve
ROWS_PER_COEFFICIENT = 24  # rows of forces of a sample
LAMBDAS = 10.0 ** np.arange(-16, 2, 0.1)


@dataclass(frozen=True)
class Labelled:
    """A structure with its target energy (eV), forces (n, 3), virial (6,) or none, and the weights w_E, w_F (n,) and w_W."""

    atoms: Atoms
    energy: float
    forces: Array
    virial: Array | None
    w_energy: float
    w_forces: Array
    w_virial: float

    @property
    def target(self) -> Array:
        """Energy, forces and virial, if there is one: (1 + 3 n,) or (1 + 3 n + 6,)."""
        return np.concatenate([[self.energy], self.forces.ravel(), [] if self.virial is None else self.virial])

    def weights(self, kappa: float) -> Array:
        """Those of the squares of the errors of `target`."""
        of_energy = (1 - kappa) * self.w_energy / len(self.atoms) ** 2
        of_virial: Any = [] if self.virial is None else np.full(6, STRESS * kappa * self.w_virial / len(self.atoms) ** 2)
        return np.concatenate([[of_energy], kappa * np.repeat(self.w_forces, 3), of_virial])


@dataclass(frozen=True)
class Normal:
    """Normal equations G c = b of some `columns` (ascending), those of other columns being zero, with the sum of squares of the
    right-hand sides and the number of rows.
    """

    columns: Integers
    matrix: Array
    vector: Array
    square: float
    rows: int

    def __add__(self, other: Normal) -> Normal:
        columns = np.union1d(self.columns, other.columns)
        one, two = self.of(columns), other.of(columns)
        return Normal(columns, one.matrix + two.matrix, one.vector + two.vector, one.square + two.square, one.rows + two.rows)

    def loss(self, c: Array) -> float:
        """The sum of squares that is left with the coefficients c."""
        return self.square + float(c @ (self.matrix @ c - 2 * self.vector))

    def of(self, columns: Integers) -> Normal:
        """The same in columns that have its own among them."""
        if len(columns) == len(self.columns):
            return self
        at = np.searchsorted(columns, self.columns)
        matrix, vector = np.zeros((len(columns), len(columns))), np.zeros(len(columns))
        matrix[np.ix_(at, at)], vector[at] = self.matrix, self.vector
        return Normal(columns, matrix, vector, self.square, self.rows)


@dataclass(frozen=True)
class Solution:
    """Coefficients (functions,), the λ of highest evidence, the log of that evidence, and the loss without the prior's part.

    `at_floor`: λ is the lowest that double precision allows, so that the evidence might want still less.
    """

    coefficients: Array
    lam: float
    log_evidence: float
    loss: float
    at_floor: bool = False


class Indexed(Protocol[T_co]):
    """What has things by number."""

    def __getitem__(self, item: int, /) -> T_co: ...


@dataclass(frozen=True)
class Some(Sequence[T]):
    """Some of many things, which are looked at when they are asked for; to another process they alone are sent."""

    of: Indexed[T]
    at: Integers

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, item: Any) -> Any:
        return Some(self.of, self.at[item]) if isinstance(item, slice) else self.of[int(self.at[item])]

    def __reduce__(self) -> Any:
        return list, (list(self),)


@dataclass(frozen=True)
class _Columns:
    """The structures of a frame, of which each is made when it is asked for: there may be a million of them."""

    columns: tuple[Any, ...]

    def __getitem__(self, item: int) -> Labelled:
        return Labelled(*(column[item] for column in self.columns))


def labelled(target: pd.DataFrame, training: TrainingSettings | None = None) -> Sequence[Labelled]:
    """The structures of a frame of `reference.delta`, with the weights that the settings give them."""
    weights = loss_weights(target, training or TrainingSettings())
    columns = (
        target[ATOMS].array,
        target["energy_corrected"].to_numpy(),
        target["forces"].array,
        target[VIRIAL].array if VIRIAL in target else [None] * len(target),
        weights.energy,
        weights.forces,
        weights.virial,
    )
    return Some(_Columns(columns), np.arange(len(target)))


def sample(train: pd.DataFrame, on: Basis, seed: int, per_coefficient: int = ROWS_PER_COEFFICIENT) -> pd.DataFrame:
    """Structures drawn at random until there are so many rows of forces for each coefficient, in their order."""
    rows = per_coefficient * sum(basis.size(on).functions.values())
    drawn = train.sort_values(SOURCE).sample(frac=1, random_state=seed)
    enough = int(np.searchsorted(3 * drawn[ATOMS].map(len).cumsum().to_numpy(), rows)) + 1
    return train[train[SOURCE].isin(drawn[SOURCE].iloc[:enough])]


def normal_equations(
    chunk: Sequence[Labelled], rows: Sequence[Array], targets: Sequence[Array], kappa: float, columns: Integers | None = None
) -> Normal:
    """The normal equations of some structures in `columns`, those that are not zero if none are given.

    `rows` are those of energies, forces and virials; as much of them counts as the targets have.
    """
    weights = np.concatenate([labelled.weights(kappa) for labelled in chunk])
    # Transposed, as rows are made, so that they are copied in one piece.
    together = np.concatenate([row[: len(target)].T for row, target in zip(rows, targets, strict=True)], axis=1)
    if columns is None:
        columns = np.flatnonzero(together.any(axis=1))  # of the elements that are there
    counts = weights > 0
    if not counts.all() or len(columns) < len(together):
        together = together[np.ix_(columns, counts)]
    root = np.sqrt(weights[counts])
    together *= root
    target = np.concatenate(targets)[counts] * root
    return Normal(columns, together @ together.T, together @ target, float(target @ target), len(target))


def refuse_too_many(functions: int, elements: int) -> None:
    """Raise `SettingsError` if the matrices of so many functions of each element have no room in memory."""
    needed, available = 8 * MATRICES * (functions * elements) ** 2, limits.memory()
    if needed <= available:
        return
    most = int((available / (8 * MATRICES)) ** 0.5) // elements
    raise SettingsError(
        f"MLIP_PACE_BASIS_FUNCTIONS={functions}: the least squares of {elements} elements, {functions * elements} functions in "
        f"all, take {needed / 2**30:.1f} GB of memory, but there are {available / 2**30:.1f}",
        f"at most {most} have room" if most >= elements else "fewer elements, or more memory",
    )


def has_stress(chunk: Sequence[Labelled]) -> bool:
    """Whether one of the structures has a virial to be fitted."""
    return any(labelled.virial is not None for labelled in chunk)


def accumulate(chunk: Sequence[Labelled], expansion: Expansion, kappa: float) -> Normal:
    """The normal equations of some structures."""
    rows = [of_c for of_c, _ in expansion.rows((labelled.atoms for labelled in chunk), stress=has_stress(chunk))]
    return normal_equations(chunk, rows, [labelled.target for labelled in chunk], kappa)


def solve(normal: Normal, scale: Array) -> Solution:
    """The solution of highest evidence for the prior scales s (functions,)."""
    normal = normal.of(np.arange(len(scale)))
    values, vectors = np.linalg.eigh(normal.matrix * scale[:, None] * scale)
    values = np.clip(values, 0.0, None)
    projected = vectors.T @ (normal.vector * scale)

    rounding = max(1e-14 * normal.square, np.finfo(float).tiny)

    def log_evidence(lam: float) -> float:
        misfit = normal.square - float((projected**2 / (values + lam)).sum())
        if misfit < -rounding:  # what is left of eigenvalues that are zero but for rounding
            return -np.inf
        return -0.5 * float(normal.rows * np.log(max(misfit, rounding)) + np.log1p(values / lam).sum())

    allowed = LAMBDAS[1e-14 * values[-1] < LAMBDAS]
    lam: float = max(map(float, allowed), key=log_evidence)
    scaled = projected / (values + lam)
    loss = max(normal.square - float(scaled @ (2 * projected - values * scaled)), 0.0)  # less than nothing is rounding
    return Solution(scale * (vectors @ scaled), lam, log_evidence(lam), loss, bool(lam == allowed[0]))


def chunks_of(structures: Sequence[Labelled]) -> list[Sequence[Labelled]]:
    """The structures in order, in chunks of about ATOMS_IN_CHUNK atoms."""
    starts, atoms = list[int](), ATOMS_IN_CHUNK
    for n, labelled in enumerate(structures):
        if atoms >= ATOMS_IN_CHUNK:
            starts.append(n)
            atoms = 0
        atoms += len(labelled.atoms)
    return [structures[first:last] for first, last in pairwise([*starts, len(structures)])]


def fit(structures: Sequence[Labelled], on: Basis, kappa: float, workers: Workers = 1) -> Solution:
    """The least-squares solution for the coefficients of a basis."""
    return fit_with(basis.expansion(on), basis.smoothness(on), structures, kappa, workers)


def fit_with(
    expansion: Expansion, scale: Array, structures: Sequence[Labelled], kappa: float, workers: Workers
) -> Solution:  # fmt: skip
    """`fit` of a basis in arrays, with these prior scales (functions,)."""
    (normal,) = pool.parallel_sums(partial(accumulate, expansion=expansion, kappa=kappa), [chunks_of(structures)], workers)
    return solve(normal, scale)
