"""VASP: what the readers of its two outputs, vasprun.py and outcar.py, have in common.

Energy is `TOTEN`, the free energy of the electrons at their temperature, which is what the forces are the derivative of.
Cells are always periodic.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_numbers
from ase.units import GPa

from mlip_pace.arrays import Array
from mlip_pace.collect.files import FIELD, NOTE, Frame, Unconverged

KBAR = 0.1 * GPa  # eV/Å^3
MACHINE_LEARNED = "{} of VASP's machine-learned force field, which is no DFT calculation"
TOLERANCE = 1e-5  # eV: energies of the last electronic step and of the whole, where nothing comes between them


@dataclass(frozen=True)
class Settings:
    """What a run was asked for, as far as it decides whether it is training data. None: the file does not say."""

    nelm: int | None = None
    icharg: int | None = None
    ialgo: int | None = None
    isif: int | None = None
    pressure: float = 0.0  # PSTRESS, kbar
    field: bool = False  # an external electric field: EFIELD, EFIELD_PEAD
    mixed: bool = False  # the virtual crystal approximation: atoms that are only there by a fraction


@dataclass(frozen=True)
class Labels:
    """One ionic step. Lengths in Å, energies in eV, forces in eV/Å, stress (6,) in kbar in the order xx yy zz xy yz zx."""

    cycles: int  # electronic steps
    cell: Array
    positions: Array
    forces: Array
    energy: float  # TOTEN
    extrapolated: float | None  # to zero smearing
    stress: Array | None  # VASP's sign: positive when the cell wants to expand


def element(symbol: str, potential: str = "") -> str:
    """The element of a symbol, or of the name of a potential (`PAW_PBE Zr_sv 04Jan2005`); some versions cut symbols off."""
    for word in (*re.sub(r"^\s*(PAW|US|NC)\w*\s+", "", potential).split()[:1], symbol):
        match = re.match(r"([A-Z][a-z]?)([_.:\d\s].*)?$", word.strip())
        if match and match[1] in atomic_numbers and match[1] != "X":
            return match[1]
    return ""


def frame(symbols: list[str], labels: Labels, settings: Settings, unconverged: str = "") -> Frame:
    """The structure of an ionic step, or why it is none."""
    count = len(symbols)
    for name, array in (("positions", labels.positions), ("forces", labels.forces)):
        if array.shape != (count, 3):
            return f"{name} of {len(array)} atoms are printed for this step, and there are {count}"
    if settings.mixed:
        return "its atoms are mixtures of elements (VCA)"
    atoms = Atoms(symbols, positions=labels.positions, cell=labels.cell, pbc=True)
    if settings.field:
        atoms.info[NOTE] = FIELD
    results = {"free_energy": labels.energy, "energy": labels.energy, "forces": labels.forces}
    if labels.extrapolated is not None:
        results["energy"] = labels.extrapolated
    # With ISIF=1 only the trace of the stress is calculated.
    if labels.stress is not None and settings.isif != 1:
        results["stress"] = -KBAR * labels.stress[[0, 1, 2, 4, 5, 3]]
    atoms.calc = SinglePointCalculator(atoms, **results)
    reason = unconverged or _not_valid(labels.cycles, settings)
    return Unconverged(atoms, reason) if reason else atoms


def _not_valid(cycles: int, settings: Settings) -> str:
    if settings.icharg is not None and settings.icharg >= 10:
        return f"not self-consistent: ICHARG={settings.icharg} keeps the charge density"
    if settings.ialgo in (2, 3, 4):
        return f"not self-consistent: IALGO={settings.ialgo} does not iterate"
    if settings.nelm is None:
        return "NELM is not in the file, so that nobody can tell whether the electronic steps converged"
    if cycles >= settings.nelm:
        return f"not converged: as many electronic steps as are allowed (NELM={settings.nelm})"
    return ""


def without_pressure(energy: float, last: float | None, volume: float, settings: Settings) -> float | None:
    """TOTEN from what is printed with PSTRESS, which may be the enthalpy; None if nobody can tell. `last` is TOTEN of the last
    electronic step in eV, `volume` in Å^3."""
    work = settings.pressure * KBAR * volume
    if abs(work) < TOLERANCE:
        return energy
    if last is None:
        return None
    return min((e for e in (energy, energy - work) if abs(e - last) < TOLERANCE), key=lambda e: abs(e - last), default=None)


def numbers(words: list[str] | list[bytes], columns: int) -> Array:
    """As an array with that many columns. Raises `ValueError` for what is no finite number."""
    array = np.array(words, dtype=float).reshape(-1, columns)
    if not np.isfinite(array).all():
        raise ValueError("not finite")
    return array
