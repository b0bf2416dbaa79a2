"""Weights of the loss: what a structure's energy and forces count for, and forces against energies.

The loss is (1 - κ) Σ w_E (ΔE/N)^2 + κ Σ w_F |ΔF|^2 with Σ w_E = Σ w_F = 1 (eV, Å). `energy` weighting is pacemaker's
EnergyBasedWeightingPolicy with its defaults, but on DFT energies and forces: on the delta it would mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from scipy.optimize import linprog

from mlip_pace.arrays import Array
from mlip_pace.collect.dataset import ATOMS, ENERGY, ENERGY_ATOMS, FORCES, WEIGHT

DELTA_ENERGY, DELTA_FORCE = 1.0, 1.0  # eV/atom; eV²/Å²


def loss_weights(frame: pd.DataFrame, weighting: Literal["uniform", "energy"]) -> tuple[Array, list[Array]]:
    """w_E of each structure and w_F of each of its atoms.

    uniform: all equal. energy: w_E ~ 1/(distance to the convex hull + 1 eV)^2, w_F ~ w_E/(|F|^2 + 1 eV²/Å²). Times the weight
    that the choice of structures gives them (`selection.py`), if there is one.
    """
    if weighting == "uniform":
        w_energy = np.ones(len(frame))
        w_forces = [np.ones(len(atoms)) for atoms in frame[ATOMS]]
    else:
        energy = ((frame[ENERGY] - frame[ENERGY_ATOMS]) / frame[ATOMS].map(len)).to_numpy()
        w_energy = 1 / (energy - _convex_hull(frame[ATOMS], energy) + DELTA_ENERGY) ** 2
        w_forces = [w / ((f**2).sum(axis=1) + DELTA_FORCE) for w, f in zip(w_energy, frame[FORCES], strict=True)]
    if WEIGHT in frame:
        w_energy = w_energy * frame[WEIGHT].to_numpy()
        w_forces = [given * w for given, w in zip(frame[WEIGHT], w_forces, strict=True)]
    total = sum(float(w.sum()) for w in w_forces)
    return w_energy / w_energy.sum(), [w / total for w in w_forces]


def _convex_hull(structures: Sequence[object], energy: Array) -> Array:
    """Lowest energy per atom of a mixture of the structures with the composition of each: a small linear programme."""
    symbols = [list(atoms.symbols) for atoms in structures]  # type: ignore[attr-defined]
    elements = sorted({symbol for one in symbols for symbol in one})
    content = np.array([[one.count(element) / len(one) for element in elements] for one in symbols])
    kinds, which = np.unique(content.round(9), axis=0, return_inverse=True)
    lowest = np.array([energy[which == kind].min() for kind in range(len(kinds))])
    hull = [linprog(lowest, A_eq=kinds.T, b_eq=kind, bounds=(0, None)).fun for kind in kinds]
    return np.array(hull)[which]
