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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mlip_pace import basis, process
from mlip_pace.basis import Array

# Structures a worker accumulates before it hands its sum back; fixed, so that sums do not depend on the number of workers.
CHUNK = 8
LAMBDAS = 10.0 ** np.arange(-16, 2, 0.1)


@dataclass(frozen=True)
class Labelled:
    """A structure with its target energy (eV), forces (n, 3) and the weights of its loss terms (one; (n,))."""

    atoms: Atoms
    energy: float
    forces: Array
    w_energy: float
    w_forces: Array


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


def accumulate(chunk: Sequence[Labelled], potential: dict[str, Any], kappa: float) -> Normal:
    """The normal equations of some structures on the basis of a potential section."""
    total: Normal | None = None
    for structure, (energy_row, force_rows) in zip(chunk, basis.design_rows(potential, [s.atoms for s in chunk]), strict=True):
        count = len(structure.atoms)
        root_energy = np.sqrt((1 - kappa) * structure.w_energy) / count
        root_forces = np.sqrt(kappa * np.repeat(structure.w_forces, 3))
        rows = np.vstack([root_energy * energy_row, root_forces[:, None] * force_rows])
        right = np.concatenate([[root_energy * structure.energy], root_forces * structure.forces.ravel()])
        part = Normal(rows.T @ rows, rows.T @ right, float(right @ right), len(right))
        total = part if total is None else total + part
    assert total is not None
    return total


def solve(normal: Normal, scale: Array) -> tuple[Array, float]:
    """The coefficients of highest evidence, and their λ, for the prior scales s (functions,)."""
    values, vectors = np.linalg.eigh(normal.matrix * scale[:, None] * scale)
    values = np.clip(values, 0.0, None)
    projected = vectors.T @ (normal.vector * scale)

    def log_evidence(lam: float) -> float:
        misfit = max(normal.square - float((projected**2 / (values + lam)).sum()), 1e-300)
        return -0.5 * float(normal.rows * np.log(misfit) + np.log1p(values / lam).sum())

    lam: float = max(map(float, LAMBDAS), key=log_evidence)
    return scale * (vectors @ (projected / (values + lam))), lam


def start(
    target: Path, structures: Sequence[Labelled], potential: dict[str, Any], kappa: float, workers: int = 1
) -> dict[str, float]:
    """Write the B-basis file `target` whose first density is the least-squares solution; returns λ and the number of rows."""
    chunks = [structures[n : n + CHUNK] for n in range(0, len(structures), CHUNK)]
    parts = process.parallel_map(partial(accumulate, potential=potential, kappa=kappa), chunks, workers)
    normal = next(parts)
    for part in parts:
        normal = normal + part
    coefficients, lam = solve(normal, basis.smoothness(potential))
    basis.write_linear(target, potential, coefficients)
    return {"lambda": lam, "rows": normal.rows}
