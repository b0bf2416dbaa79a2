"""The start of the fit: ACE's function coefficients by weighted least squares, all at once.

With radial functions fixed, an ACE energy that is linear in the density is linear in its coefficients c:
E = Σ_k c_k B_k and F = -Σ_k c_k ∂B_k/∂r. The loss is that of the training, with the same weights:

    (1 - κ) Σ w_E (ΔE/N)^2 + κ Σ w_F |ΔF|^2 + λ Σ_k (c_k/s_k)^2,     1/s_k = 1 + Σ_i (n_i^2 + l_i^2)

The scales s prefer smooth functions, those of low radial order n and angular momentum l (the algebraic prior of W. C. Witt et
al., J. Chem. Phys. 159, 164101 (2023); in cross-validation and by evidence better than none on Al-Mg and two sets of Si).
λ is the one with the highest evidence (D. J. C. MacKay, Neural Computation 4, 415 (1992)), found from the training data alone.
Only the normal matrix G (functions^2) is kept, whatever the number of structures. Energies in eV, forces in eV/Å.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any

import numpy as np
from ase import Atoms

from mlip_pace import basis, process
from mlip_pace.basis import Array
from mlip_pace.expansion import Expansion

# Atoms that a worker accumulates before it hands its sum back; fixed, so that sums do not depend on the number of workers.
ATOMS_IN_CHUNK = 500
LAMBDAS = 10.0 ** np.arange(-16, 2, 0.1)


@dataclass(frozen=True)
class Labelled:
    """A structure with its target energy (eV), forces (n, 3) and the weights of its loss terms (one; (n,))."""

    atoms: Atoms
    energy: float
    forces: Array
    w_energy: float
    w_forces: Array

    @property
    def target(self) -> Array:
        """Energy and forces, (1 + 3 n,)."""
        return np.concatenate([[self.energy], self.forces.ravel()])


@dataclass(frozen=True)
class Normal:
    """Normal equations G c = b with the sum of squares of the right-hand sides and the number of rows."""

    matrix: Array
    vector: Array
    square: float
    rows: int

    def __add__(self, other: Normal) -> Normal:
        return Normal(
            self.matrix + other.matrix, self.vector + other.vector, self.square + other.square, self.rows + other.rows
        )


@dataclass(frozen=True)
class Solution:
    """Coefficients (functions,), the λ of highest evidence, the log of that evidence, and the loss without the prior's part."""

    coefficients: Array
    lam: float
    log_evidence: float
    loss: float


def weighted(labelled: Labelled, rows: Array, target: Array, kappa: float) -> Normal:
    """The normal equations of a structure: rows (1 + 3 n, coefficients) of its energy and forces, target (1 + 3 n,)."""
    root_energy = np.sqrt((1 - kappa) * labelled.w_energy) / len(labelled.atoms)
    root = np.concatenate([[root_energy], np.sqrt(kappa * np.repeat(labelled.w_forces, 3))])
    rows, target = root[:, None] * rows, root * target
    return Normal(rows.T @ rows, rows.T @ target, float(target @ target), len(target))


def accumulate(chunk: Sequence[Labelled], expansion: Expansion, kappa: float) -> Normal:
    """The normal equations of some structures."""
    rows = (of_c for of_c, _ in expansion.rows(labelled.atoms for labelled in chunk))
    return reduce(add, (weighted(labelled, row, labelled.target, kappa) for labelled, row in zip(chunk, rows, strict=True)))


def solve(normal: Normal, scale: Array) -> Solution:
    """The solution of highest evidence for the prior scales s (functions,)."""
    values, vectors = np.linalg.eigh(normal.matrix * scale[:, None] * scale)
    values = np.clip(values, 0.0, None)
    projected = vectors.T @ (normal.vector * scale)

    rounding = 1e-14 * normal.square

    def log_evidence(lam: float) -> float:
        misfit = normal.square - float((projected**2 / (values + lam)).sum())
        if misfit < -rounding:  # what is left of eigenvalues that are zero but for rounding
            return -np.inf
        return -0.5 * float(normal.rows * np.log(max(misfit, rounding)) + np.log1p(values / lam).sum())

    lam: float = max(map(float, LAMBDAS[1e-14 * values[-1] < LAMBDAS]), key=log_evidence)
    scaled = projected / (values + lam)
    loss = normal.square - float(scaled @ (2 * projected - values * scaled))
    return Solution(scale * (vectors @ scaled), lam, log_evidence(lam), loss)


def chunks_of(structures: Sequence[Labelled]) -> list[list[Labelled]]:
    """The structures in order, in chunks of about ATOMS_IN_CHUNK atoms."""
    chunks: list[list[Labelled]] = []
    atoms = ATOMS_IN_CHUNK
    for labelled in structures:
        if atoms >= ATOMS_IN_CHUNK:
            chunks.append([])
            atoms = 0
        chunks[-1].append(labelled)
        atoms += len(labelled.atoms)
    return chunks


def fit(structures: Sequence[Labelled], potential: dict[str, Any], kappa: float, workers: int = 1) -> Solution:
    """The least-squares solution on the basis of a potential section."""
    function = partial(accumulate, expansion=basis.expansion(potential), kappa=kappa)
    normal = reduce(add, process.parallel_map(function, chunks_of(structures), workers))
    return solve(normal, basis.smoothness(potential))
