"""Energy against volume: the series in the data that differ in nothing else, the same curve by a potential, V0 and B0.

Volumes in Å^3/atom, energies in eV/atom relative to the sum of E0, bulk moduli in GPa (1 eV/Å^3 = 160.2177 GPa).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from ase import Atoms
from ase.eos import EquationOfState
from ase.units import GPa
from scipy.spatial import cKDTree

from mlip_pace.arrays import Array
from mlip_pace.collect.dataset import ATOMS
from mlip_pace.publish.potential import Potential

SAME_SHAPE = 1e-3  # of scaled positions, and of the cell at volume 1
LEAST_VOLUMES = 5  # of a curve


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


def cohesive(potential: Potential, calculator: Any, atoms: Atoms, volume: float) -> float:
    """Energy (eV/atom) of the structure at a volume (Å^3/atom), relative to the sum of E0."""
    scaled = atoms.copy()
    scaled.set_cell(atoms.cell * np.cbrt(volume * len(atoms) / atoms.cell.volume), scale_atoms=True)
    calculator.calculate(scaled)
    free = sum(potential.metadata["e0"]["energies"].get(symbol, 0.0) for symbol in atoms.symbols)
    return float((calculator.results["energy"] + potential.reference.evaluate(scaled)[0] - free) / len(atoms))


def equation_of_state(volumes: Iterable[float], energies: Iterable[float]) -> list[str]:
    """V0 (Å^3/atom) and B0 (GPa) as text; empty if the volumes do not embrace a minimum."""
    v, e = np.array(list(volumes)), np.array(list(energies))
    if not 0 < int(e.argmin()) < len(e) - 1:
        return ["", ""]
    try:
        v0, _, b0 = EquationOfState(v, e, eos="birchmurnaghan").fit(warn=False)
    except (RuntimeError, ValueError):
        return ["", ""]
    return [f"{v0:.2f}", f"{b0 / GPa:.1f}"]
