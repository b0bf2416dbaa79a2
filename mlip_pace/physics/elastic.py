"""Elastic constants with relaxed internal coordinates, and whether the crystal is stable against strain.

C_ij are the changes of stress by strain (central differences of ±0.1 %, matscipy's `measure_triclinic_elastic_constants`; the
atoms are relaxed in each strained cell), averaged over the rotations of the crystal. GPa, in Voigt's order (`arrays.py`), about
the axes of the standard conventional cell. A crystal without external load is stable if and only if the 6 x 6 matrix is
positive definite, which is what Born's criteria say for each crystal system (F. Mouhat, F.-X. Coudert, Phys. Rev. B 90, 224104
(2014)).
Voigt's and Reuss's averages: R. Hill, Proc. Phys. Soc. A 65, 349 (1952).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.optimize import LBFGS
from ase.units import GPa

from mlip_pace.arrays import VOIGT, Array
from mlip_pace.physics.crystals import STEPS, Crystal, in_time, rotations_of

STRAIN, FORCES = 1e-3, 1e-4  # of a difference; eV/Å after a relaxation

# The constants that are independent, by crystal system: all others follow from them, or are zero, in the standard setting.
INDEPENDENT = {
    "cubic": "11 12 44", "hexagonal": "11 12 13 33 44", "trigonal": "11 12 13 14 15 33 44",
    "tetragonal": "11 12 13 16 33 44 66", "orthorhombic": "11 12 13 22 23 33 44 55 66",
    "monoclinic": "11 12 13 15 22 23 25 33 35 44 46 55 66",
    "triclinic": "11 12 13 14 15 16 22 23 24 25 26 33 34 35 36 44 45 46 55 56 66",
}  # fmt: skip
ZERO = 0.05  # GPa: what a symmetry makes zero is not told


@dataclass(frozen=True)
class Elastic:
    """Elastic constants (GPa): the independent ones by name, all of them (6, 6), Hill's moduli, and Born's criteria."""

    constants: dict[str, float]
    matrix: list[list[float]]
    bulk: float
    shear: float
    lowest: float  # eigenvalue of the matrix
    stable: bool
    asymmetry: float  # largest difference of C_ij and C_ji, or of what the symmetry makes equal, as it was computed

    @classmethod
    def of(cls, tensor: Array, system: str, rotations: Array) -> Elastic:
        """Of a tensor (3, 3, 3, 3) as it was computed."""
        even = symmetrised(tensor, rotations)
        matrix = even[VOIGT][:, *VOIGT]
        compliance = np.linalg.inv(matrix)
        bulk = (matrix[:3, :3].sum() / 9 + 1 / compliance[:3, :3].sum()) / 2
        lowest = float(np.linalg.eigvalsh(matrix).min())
        asymmetry = float(np.abs(tensor[VOIGT][:, *VOIGT] - matrix).max())
        shear = (_voigt_shear(matrix) + _reuss_shear(compliance)) / 2
        return cls(named(matrix, system), matrix.round(4).tolist(), float(bulk), shear, lowest, lowest > 0, asymmetry)


def elastic(crystal: Crystal, calculator: Any, deadline: float = math.inf) -> Elastic:
    """The elastic constants of a relaxed crystal. Raises `LeftOutError`."""
    atoms = crystal.primitive()
    return Elastic.of(tensor_of(atoms, calculator, deadline), crystal.system, rotations_of(atoms))


def tensor_of(atoms: Atoms, calculator: Any, deadline: float = math.inf) -> Array:
    """∂σ/∂ε of a structure at rest, (3, 3, 3, 3) in GPa."""

    class Relaxation(LBFGS):
        """That of the atoms in a strained cell, which ends in time."""

        def step(self, *given: Any) -> None:
            in_time(deadline)
            super().step(*given)  # type: ignore[no-untyped-call]

    # It brings scipy.stats, a quarter of a second that only those who ask for elastic constants wait for.
    from matscipy.elasticity import measure_triclinic_elastic_constants

    atoms = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True, calculator=calculator)
    found = measure_triclinic_elastic_constants(atoms, STRAIN, Relaxation, fmax=FORCES, steps=STEPS)
    tensor: Array = found / GPa
    return tensor


def symmetrised(tensor: Array, rotations: Array) -> Array:
    """The average over rotations (n, 3, 3), with C_ijkl = C_jikl = C_ijlk = C_klij."""
    turned = np.mean([np.einsum("ai,bj,ck,dl,ijkl->abcd", r, r, r, r, tensor, optimize=True) for r in rotations], axis=0)
    for order in ((1, 0, 2, 3), (0, 1, 3, 2), (2, 3, 0, 1)):
        turned = (turned + turned.transpose(order)) / 2
    result: Array = turned
    return result


def named(matrix: Array, system: str) -> dict[str, float]:
    """The independent constants of a crystal system, `{"C11": 165.0, …}`."""
    values = {f"C{ij}": float(matrix[int(ij[0]) - 1, int(ij[1]) - 1]) for ij in INDEPENDENT[system].split()}
    may_be_zero = {"C14", "C15", "C16"} if system in ("trigonal", "tetragonal") else set()
    return {name: value for name, value in values.items() if name not in may_be_zero or abs(value) > ZERO}


def _voigt_shear(c: Array) -> float:
    return float((np.trace(c[:3, :3]) - (c[0, 1] + c[0, 2] + c[1, 2]) + 3 * np.trace(c[3:, 3:])) / 15)


def _reuss_shear(s: Array) -> float:
    return float(15 / (4 * np.trace(s[:3, :3]) - 4 * (s[0, 1] + s[0, 2] + s[1, 2]) + 3 * np.trace(s[3:, 3:])))
