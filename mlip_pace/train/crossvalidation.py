"""Cross-validation of the least squares: errors of structures that the coefficients were not fitted to, from one pass for all.

The normal equations of every fold are kept apart, and those of its energies from those of its forces. So the fit to all folds
but one, for any κ, needs no further pass through the data, and a second pass gives the errors of all these fits together.
Groups of structures (`collect/split.py`) are never divided between folds. Energies in eV/atom, forces in eV/Å per component.

κ is the one with the smallest ln MAE_E + ln MAE_F of the held-out structures: errors of energies and of forces count alike,
whatever their units. (The evidence cannot choose it: it counts correlated model error as independent noise of forces.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from threadpoolctl import threadpool_limits

from mlip_pace.ace import basis, uncertainty
from mlip_pace.ace.basis import Basis
from mlip_pace.ace.expansion import Expansion
from mlip_pace.arrays import Array, Integers
from mlip_pace.run import pool
from mlip_pace.run.pool import Workers
from mlip_pace.train import linear
from mlip_pace.train.calibration import Residuals
from mlip_pace.train.linear import Labelled, Normal, Solution

FOLDS = 8
FOLD_BYTES = 2**29  # that the matrices of all folds may take; there are fewer folds where they would take more
KAPPAS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
WITHOUT_FOLDS = 0.01  # κ where nothing can be held out
ATOMS_LOOKED_AT = 50_000  # about; of more held-out structures only each second, third, … chunk is looked at
SHARES = (1, 2, 4)  # of the folds, that the learning curve shows beside all but one


@dataclass(frozen=True)
class Errors:
    """Of structures that were held out."""

    energy_mae: float
    energy_rmse: float
    forces_mae: float
    forces_rmse: float


@dataclass(frozen=True)
class CrossValidated:
    """What held-out structures say of the fit."""

    folds: int
    errors: Errors
    learning_curve: list[tuple[float, Errors]] = field(default_factory=list)  # number of structures fitted to, ascending


@dataclass(frozen=True)
class Validated:
    """The least-squares solution of all structures, the normal equations that it solves, the loss of all structures in the fits
    that they were held out of, and what these say; with a single group the loss is that of the solution. Residuals of held-out
    structures only where they were asked for.
    """

    solution: Solution
    normal: Normal
    unseen: float
    held_out: CrossValidated | None = None
    residuals: Residuals | None = None


@dataclass(frozen=True)
class Parted:
    """Normal equations of energies and of forces (with virials)."""

    energies: Normal
    forces: Normal

    def __add__(self, other: Parted) -> Parted:
        return Parted(self.energies + other.energies, self.forces + other.forces)

    def normal(self, kappa: float) -> Normal:
        return _sum([(1 - kappa, self.energies), (kappa, self.forces)])

    def of(self, columns: Integers) -> Parted:
        return Parted(self.energies.of(columns), self.forces.of(columns))


@dataclass(frozen=True)
class _Fold:
    """The structures of a fold, and their normal equations."""

    structures: Sequence[Labelled]
    parted: Parted


def choose_kappa(structures: Sequence[Labelled], groups: Sequence[str], on: Basis, workers: Workers) -> dict[float, Errors]:
    """The errors of the held-out structures for each of KAPPAS; nothing if there are not two groups to hold out."""
    folds = _folds(structures, groups, on, workers)
    if len(folds) < 2:
        return {}
    scale = basis.smoothness(on)
    fits = []
    for kappa in KAPPAS:
        normals = [fold.parted.normal(kappa) for fold in folds]
        lam = linear.solve(_sum([(1.0, normal) for normal in normals]), scale).lam
        fits.append([_without(normals, [n], lam, scale) for n in range(len(folds))])
    return dict(zip(KAPPAS, _held_out(folds, fits, on, workers)[0], strict=True))


def best(errors: dict[float, Errors]) -> float:
    """The κ of the smallest ln MAE_E + ln MAE_F."""
    return min(errors, key=lambda kappa: np.log(errors[kappa].energy_mae) + np.log(errors[kappa].forces_mae))


def validate(
    structures: Sequence[Labelled], groups: Sequence[str], on: Basis, kappa: float, workers: Workers, spreads: bool = False
) -> Validated:  # fmt: skip
    """Fit all structures, and all but some of them. `spreads`: with the residuals, beside what the other folds say of them."""
    folds, scale = _folds(structures, groups, on, workers), basis.smoothness(on)
    normals = [fold.parted.normal(kappa) for fold in folds]
    normal = _sum([(1.0, normal) for normal in normals])
    solution = linear.solve(normal, scale)
    if len(folds) < 2:
        return Validated(solution, normal, solution.loss)
    count, curve, numbers = len(folds), [], []
    for share in (*(share for share in SHARES if share < len(folds) - 1), len(folds) - 1):
        left_out = [[(n + step) % count for step in range(count - share)] for n in range(count)]
        curve.append([_without(normals, left, solution.lam, scale) for left in left_out])
        numbers.append(float(share * len(structures) / count))
    unseen = sum(normal.loss(c) for normal, c in zip(normals, curve[-1], strict=True))
    factors: list[Array] = []
    if spreads:
        noise = solution.loss / max(normal.rows, 1)
        factors = [_factor(normals, n, solution.lam, scale, noise) for n in range(count)]
    errors, residuals = _held_out(folds, curve, on, workers, factors)
    held_out = CrossValidated(count, errors[-1], list(zip(numbers, errors, strict=True)))
    return Validated(solution, normal, unseen, held_out, residuals if spreads else None)


def _folds(structures: Sequence[Labelled], groups: Sequence[str], on: Basis, workers: Workers) -> list[_Fold]:
    """The folds with their normal equations. Groups go to the folds in turn, the largest first, to the smallest fold."""
    size = len(basis.smoothness(on))
    most = int(np.clip(FOLD_BYTES // (16 * size**2), 2, FOLDS))
    members: dict[str, list[int]] = {}
    for n, group in enumerate(groups):
        members.setdefault(group, []).append(n)
    parts: list[list[int]] = [[] for _ in range(min(most, len(members)))]
    for group in sorted(members, key=lambda group: (-len(members[group]), group)):
        min(parts, key=len).extend(members[group])
    everything = np.arange(size)
    folds = [linear.Some(structures, np.array(sorted(part))) for part in parts]
    of_chunk = partial(accumulate, expansion=basis.expansion(on))
    sums = pool.parallel_sums(of_chunk, [linear.chunks_of(fold) for fold in folds], workers)
    return [_Fold(fold, parted.of(everything)) for fold, parted in zip(folds, sums, strict=True)]


def accumulate(chunk: Sequence[Labelled], expansion: Expansion) -> Parted:
    """The normal equations of some structures."""
    rows = [of_c for of_c, _ in expansion.rows((one.atoms for one in chunk), stress=linear.has_stress(chunk))]
    targets = [one.target for one in chunk]
    energies = linear.normal_equations(chunk, rows, targets, 0.0)
    return Parted(energies, linear.normal_equations(chunk, rows, targets, 1.0, energies.columns))


def _sum(parts: Sequence[tuple[float, Normal]]) -> Normal:
    """The weighted sum, of all columns."""
    first = parts[0][1]
    matrix, vector, square, rows = np.zeros_like(first.matrix), np.zeros_like(first.vector), 0.0, 0
    for weight, normal in parts:
        matrix += weight * normal.matrix
        vector += weight * normal.vector
        square, rows = square + weight * normal.square, rows + normal.rows
    return Normal(first.columns, matrix, vector, square, rows)


@threadpool_limits.wrap(limits=1)  # type: ignore[untyped-decorator]
def _without(normals: Sequence[Normal], left: Sequence[int], lam: float, scale: Array) -> Array:
    """The coefficients fitted to all folds but some."""
    matrix, vector = _rest(normals, left, lam, scale)
    coefficients: Array = cho_solve(cho_factor(matrix), vector)
    return coefficients


@threadpool_limits.wrap(limits=1)  # type: ignore[untyped-decorator]
def _factor(normals: Sequence[Normal], left: int, lam: float, scale: Array, noise: float) -> Array:
    """That of `uncertainty.py` for the fit to all folds but one."""
    return uncertainty.factor(_rest(normals, [left], lam, scale)[0], noise).astype(np.float32)  # several are kept


def _rest(normals: Sequence[Normal], left: Sequence[int], lam: float, scale: Array) -> tuple[Array, Array]:
    """The regularised equations of all folds but some; λ in proportion to what is left, since it is relative to the data."""
    kept = _sum([(1.0, normal) for n, normal in enumerate(normals) if n not in left])
    share = kept.rows / sum(normal.rows for normal in normals)
    return kept.matrix + np.diag(share * lam / scale**2), kept.vector


@dataclass(frozen=True)
class _Seen:
    """Of held-out structures: sums of |ΔE/N|, (ΔE/N)^2, |ΔF|, ΔF^2 for each fit, and the numbers of energies and force
    components, (6, fits); and the residuals of the last fit.
    """

    sums: Array
    residuals: Residuals

    def __add__(self, other: _Seen) -> _Seen:
        return _Seen(self.sums + other.sums, self.residuals + other.residuals)


def _held_out(
    folds: Sequence[_Fold], fits: Sequence[Sequence[Array]], on: Basis, workers: Workers, factors: Sequence[Array] = ()
) -> tuple[list[Errors], Residuals]:  # fmt: skip
    """The errors of each fit (coefficients for each fold, of the others) on what it left out, and those of the last one by
    one, with their spreads by the `factors` of its folds, if there are any.
    """
    items = [(n, chunk) for n, fold in enumerate(folds) for chunk in linear.chunks_of(fold.structures)]
    items = items[:: 1 + len(items) * linear.ATOMS_IN_CHUNK // ATOMS_LOOKED_AT]
    together = [np.column_stack([fit[n] for fit in fits]) for n in range(len(folds))]
    function = partial(_errors, expansion=basis.expansion(on), coefficients=together, factors=factors)
    (seen,) = pool.parallel_sums(function, [items], workers)
    sums, energies, components = seen.sums, seen.sums[4, 0], seen.sums[5, 0]
    return [
        Errors(float(e), float(np.sqrt(e2)), float(f), float(np.sqrt(f2)))
        for e, e2, f, f2 in zip(sums[0] / energies, sums[1] / energies, sums[2] / components, sums[3] / components, strict=True)
    ], seen.residuals


def _errors(
    item: tuple[int, Sequence[Labelled]], expansion: Expansion, coefficients: Sequence[Array], factors: Sequence[Array]
) -> _Seen:  # fmt: skip
    """What is seen of some structures of a fold."""
    fold, chunk = item
    sums = np.zeros((6, coefficients[fold].shape[1]))
    of_energies, of_forces = list[Array](), [np.empty((0, 2))]
    for one, (of_c, _) in zip(chunk, expansion.rows(one.atoms for one in chunk), strict=True):
        count = 1 + 3 * len(one.atoms)
        gap = of_c[:count] @ coefficients[fold] - one.target[:count, None]
        energy, forces = gap[0] / len(one.atoms), gap[1:]
        sums += [np.abs(energy), energy**2, np.abs(forces).sum(axis=0), (forces**2).sum(axis=0), 1 + 0 * energy,
                 len(forces) + 0 * energy]  # fmt: skip
        if factors:
            both = np.column_stack([np.abs(gap[:, -1]), np.linalg.norm(of_c[:count] @ factors[fold].T, axis=1)])
            of_energies.append(both[0] / len(one.atoms))
            of_forces.append(both[1:])
    return _Seen(sums, Residuals(np.array(of_energies).reshape(-1, 2), np.concatenate(of_forces)))
