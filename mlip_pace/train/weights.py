"""Weights of the loss: what a structure's energy, forces and virial count for.

The loss is (1 - κ) Σ w_E (ΔE/N)^2 + κ Σ w_F |ΔF|^2 (eV, Å) with Σ w_E = Σ w_F = 1; that of virials is in `linear.py`.
`energy` weighting is pacemaker's EnergyBasedWeightingPolicy with its defaults, but on DFT energies and forces: on the delta it
would mean nothing. What the user gives, by config_type or in the data, and what the choice of structures gives multiply these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from ase import Atoms
from scipy.optimize import linprog

from mlip_pace.arrays import Array
from mlip_pace.collect.columns import Arrays
from mlip_pace.collect.dataset import (
    ATOMS,
    CONFIG_TYPE,
    ENERGY,
    ENERGY_ATOMS,
    FORCES,
    LABEL_WEIGHTS,
    SPLIT,
    WEIGHT,
)
from mlip_pace.collect.geometry import shares
from mlip_pace.collect.split import TRAIN
from mlip_pace.errors import DataError, SettingsError
from mlip_pace.settings import TrainingSettings

DELTA_ENERGY, DELTA_FORCE = 1.0, 1.0  # eV/atom; eV²/Å²
FEW = 0.1  # of the structures: an effective number below it is warned of
SETTING = "MLIP_PACE_TRAINING_WEIGHTS"


@dataclass(frozen=True)
class LossWeights:
    """w_E and w_W of each structure, (structures,), and w_F of each of its atoms: as many arrays (atoms,)."""

    energy: Array
    forces: Arrays
    virial: Array


def loss_weights(frame: pd.DataFrame, training: TrainingSettings) -> LossWeights:
    """The weights of a frame of `reference.delta`. Raises `DataError` if all weights of the energies or forces are zero.

    uniform: all equal. energy: w_E ~ 1/(distance to the convex hull + 1 eV)^2, w_F ~ w_E/(|F|^2 + 1 eV²/Å²).
    """
    counts = frame[ATOMS].map(len).to_numpy()
    if training.weighting == "uniform":
        of_structure, of_atoms = np.ones(len(frame)), np.ones(counts.sum())
    else:
        energy = ((frame[ENERGY] - frame[ENERGY_ATOMS]) / counts).to_numpy()
        of_structure = 1 / (energy - _convex_hull(frame[ATOMS], energy) + DELTA_ENERGY) ** 2
        squares = np.concatenate([(f**2).sum(axis=1) for f in frame[FORCES]])
        of_atoms = np.repeat(of_structure, counts) / (squares + DELTA_FORCE)
    w_energy, w_forces, w_virial = (of_structure * given for given in _given(frame, training.weights))
    forces = of_atoms * np.repeat(w_forces / of_structure, counts)
    if not (w_energy.sum() > 0 and forces.sum() > 0):
        raise DataError(
            "all weights of the energies or of the forces are zero",
            f"look at {SETTING} and at {', '.join(LABEL_WEIGHTS)} in the data",
        )
    return LossWeights(w_energy / w_energy.sum(), Arrays.of(forces / forces.sum(), counts), w_virial / w_energy.sum())


def _given(frame: pd.DataFrame, by_type: dict[str, float]) -> list[Array]:
    """What the weights of energy, forces and virial are multiplied by."""
    factors = []
    for label, column in zip(("energy", "forces", "stress"), LABEL_WEIGHTS, strict=True):
        factor = frame[column].to_numpy(dtype=float) if column in frame else np.ones(len(frame))
        for name, weight in by_type.items():
            kind, _, only = name.rpartition(":")
            if only in ("energy", "forces", "stress"):
                applies = (frame[CONFIG_TYPE] == kind).to_numpy() & (only == label)
            else:
                applies = (frame[CONFIG_TYPE] == name).to_numpy()
            factor = np.where(applies, factor * weight, factor)
        factors.append(factor * frame[WEIGHT].to_numpy() if WEIGHT in frame else factor)
    return factors


def refuse_unknown(target: pd.DataFrame, by_type: dict[str, float]) -> None:
    """Raise `SettingsError` where a weight is given to a config_type that no training structure has."""
    there = set(target[target[SPLIT] == TRAIN][CONFIG_TYPE]) if by_type else set()
    for name in by_type:
        kind, _, only = name.rpartition(":")
        if name not in there and not (only in ("energy", "forces", "stress") and kind in there):
            raise SettingsError(
                f"{SETTING}: no training structure has the config_type {name!r}",
                f"there are {', '.join(sorted(there))}; write Surface:10 or, for energies alone, Surface:energy:10",
            )


def warnings(weights: LossWeights) -> list[str]:
    """What a user should know of weights that leave most structures without a say."""
    effective = float(weights.energy.sum() ** 2 / (weights.energy**2).sum())
    if effective > FEW * len(weights.energy):
        return []
    return [
        f"the weights of the {len(weights.energy)} training structures are as good as those of {effective:.1f} (Kish's "
        f"effective number): few structures rule the fit; look at MLIP_PACE_TRAINING_WEIGHTING, {SETTING} and the weights in "
        "the data"
    ]


def _convex_hull(structures: Sequence[Atoms], energy: Array) -> Array:
    """Lowest energy per atom of a mixture of the structures with the composition of each: a small linear programme."""
    content = shares(structures, sorted({symbol for atoms in structures for symbol in set(atoms.symbols)}))
    kinds, which = np.unique(content.round(9), axis=0, return_inverse=True)
    lowest = np.array([energy[which == kind].min() for kind in range(len(kinds))])
    hull = [linprog(lowest, A_eq=kinds.T, b_eq=kind, bounds=(0, None)).fun for kind in kinds]
    return np.array(hull)[which]
