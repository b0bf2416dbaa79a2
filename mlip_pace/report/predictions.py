"""The predictions of the stage evaluate beside their labels, as flat arrays.

Energies are relative to the sum of E0 (E - Σ E0), in eV/atom; forces in eV/Å and stress in GPa, by component.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from ase.units import GPa

from mlip_pace.arrays import VOIGT, Array
from mlip_pace.collect.dataset import ATOMS, ENERGY, ENERGY_ATOMS, FORCES, SOURCE, STRESS

QUANTITIES = {"energy": ("energy", "eV/atom"), "forces": ("force component", "eV/Å"), "stress": ("stress component", "GPa")}


def spread(frame: pd.DataFrame) -> dict[str, float]:
    """Standard deviation of the DFT energies (eV/atom), forces (eV/Å) and stresses (GPa): the RMSE of a constant."""
    return {name: float(dft.std()) for name, (dft, _) in labels_and_predictions(frame).items() if len(dft)}


def labels_and_predictions(frame: pd.DataFrame) -> dict[str, tuple[Array, Array]]:
    """By quantity, DFT and ACE + reference as flat arrays; units as in `QUANTITIES`, forces and stress by component."""
    counts = frame[ATOMS].map(len).to_numpy()
    energies = [((frame[column] - frame[ENERGY_ATOMS]) / counts).to_numpy(dtype=float) for column in (ENERGY, "energy_pred")]
    forces = [np.concatenate([np.ravel(f) for f in frame[column]] or [np.zeros(0)]) for column in (FORCES, "forces_pred")]
    found = {"energy": (energies[0], energies[1]), "forces": (forces[0], forces[1])}
    if STRESS in frame:
        both = frame[[d is not None and p is not None for d, p in zip(frame[STRESS], frame.stress_pred, strict=True)]]
        if len(both):
            dft, ace = (np.array([s[VOIGT] for s in both[column]]).ravel() / GPa for column in (STRESS, "stress_pred"))
            found["stress"] = (dft, ace)
    return found


def structure_of_each(frame: pd.DataFrame, quantity: str) -> list[str]:
    """The source of each of the values of `labels_and_predictions`."""
    if quantity == "stress":
        frame = frame[[d is not None and p is not None for d, p in zip(frame[STRESS], frame.stress_pred, strict=True)]]
    per = {"energy": 1, "stress": 6}.get(quantity)
    repeats = frame[ATOMS].map(lambda atoms: per or 3 * len(atoms))
    return list(np.repeat(frame[SOURCE].to_numpy(dtype=object), repeats))
