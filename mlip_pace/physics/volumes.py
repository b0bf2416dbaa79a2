"""Energy against volume: the series in the data that differ in nothing else, the same curve by a potential, V0 and B0.

The equation of state is that of Birch and Murnaghan, of third order (F. Birch, Phys. Rev. 71, 809 (1947)), as ASE fits it.
Volumes in Å^3/atom, energies in eV/atom relative to the sum of E0, bulk moduli in GPa (1 eV/Å^3 = 160.2177 GPa).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from ase import Atoms
from ase.eos import EquationOfState
from ase.units import GPa
from scipy.spatial import cKDTree

from mlip_pace.arrays import Array
from mlip_pace.collect.dataset import ATOMS
from mlip_pace.physics.crystals import Crystal, LeftOutError, energy_of, relaxed

SAME_SHAPE = 1e-3  # of scaled positions, and of the cell at volume 1
LEAST_VOLUMES = 5  # of a curve
RANGE, POINTS, FORCES = (0.94, 1.06), 9, 1e-3  # volumes of a crystal relative to the relaxed one; eV/Å after a relaxation


def families(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Structures that differ only by a uniform scaling of the cell, at least LEAST_VOLUMES each; the smallest volume first."""
    periodic = frame[frame[ATOMS].map(lambda atoms: atoms.pbc.all())]
    found = []
    for _, alike in periodic.groupby(periodic[ATOMS].map(lambda atoms: tuple(atoms.numbers)), sort=False):
        if len(alike) < LEAST_VOLUMES:
            continue
        shapes = [_shape(atoms) for atoms in alike[ATOMS]]
        # The cell and the first atoms say of nearly all that they differ; angles, as a place may be on either side of a cell.
        angles = [2 * np.pi * shape[4:7].ravel() for shape in shapes]
        keys = [np.concatenate([shape[:3].ravel(), np.cos(a), np.sin(a)]) for shape, a in zip(shapes, angles, strict=True)]
        near = cKDTree(keys).query_ball_point(keys, 2 * np.pi * SAME_SHAPE, p=np.inf, return_sorted=True)
        members: dict[int, list[int]] = {}
        for n, candidates in enumerate(near):
            first = next((m for m in candidates if m in members and _same(shapes[n], shapes[m])), n)
            members.setdefault(first, []).append(n)
        for several in members.values():
            part = alike.iloc[several]
            volume = part[ATOMS].map(lambda atoms: atoms.cell.volume)
            if volume.round(3).nunique() >= LEAST_VOLUMES:
                found.append(part.assign(volume=volume / part[ATOMS].map(len)).sort_values("volume"))
    return sorted(found, key=lambda part: int(part.index.min()))


def _shape(atoms: Atoms) -> Array:
    """The cell at volume 1, and the scaled positions relative to the first atom: (3 + n, 3)."""
    positions = atoms.get_scaled_positions()
    return np.vstack([atoms.cell.array / np.cbrt(abs(atoms.cell.volume)), positions - positions[0]])


def _same(one: Array, other: Array) -> bool:
    apart = one - other
    apart[3:] -= np.round(apart[3:])
    return bool(np.abs(apart).max() < SAME_SHAPE)


def scaled(atoms: Atoms, volume: float) -> Atoms:
    """The structure at a volume (Å^3/atom)."""
    result: Atoms = atoms.copy()
    result.set_cell(atoms.cell * np.cbrt(volume * len(atoms) / atoms.cell.volume), scale_atoms=True)
    return result


@dataclass(frozen=True)
class Equation:
    """Of state: volume of lowest energy (Å^3/atom), bulk modulus there (GPa), its derivative by pressure."""

    volume: float
    modulus: float
    derivative: float


def equation_of_state(volumes: Iterable[float], energies: Iterable[float]) -> Equation | None:
    """That of energies (eV/atom) at volumes (Å^3/atom); nothing if the volumes do not embrace a minimum."""
    v, e = np.array(list(volumes)), np.array(list(energies))
    if not 0 < int(e.argmin()) < len(e) - 1:
        return None
    curve = EquationOfState(v, e, eos="birchmurnaghan")
    try:
        with np.errstate(invalid="ignore"):  # volumes below 0 are tried on the way
            v0, _, b0 = curve.fit(warn=False)
    except (RuntimeError, ValueError):
        return None
    return Equation(float(v0), float(b0 / GPa), float(curve.eos_parameters[2]))


def of_crystal(crystal: Crystal, calculator: Any, deadline: float = math.inf) -> Equation:
    """The equation of state of a crystal whose cell keeps its shape; the atoms relax. Raises `LeftOutError`."""
    atoms = crystal.primitive()
    grid = np.linspace(*RANGE, POINTS) * float(atoms.cell.volume) / len(atoms)
    at_volumes = (relaxed(scaled(atoms, volume), calculator, deadline, fmax=FORCES) for volume in grid)
    found = equation_of_state(grid, [energy_of(one, calculator) / len(one) for one in at_volumes])
    if found is None:
        raise LeftOutError("its energy has no minimum within 6 % of its volume")
    return found
