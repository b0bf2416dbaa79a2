"""E0, the energy (eV) of each element's free atom: as given, of isolated atoms in the data, or by least squares.

Least squares take the energies of the structures against their numbers of atoms, with known E0 held fixed. What the
compositions do not tell (every structure is H2O, say) is not left to the algebra, which gave E0(H) = -723 eV for all-electron
energies: there E0 goes with Z^(7/3), as the total energies of atoms do (Thomas and Fermi), so that hydrogen gets little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers

from mlip_pace.arrays import Array
from mlip_pace.collect.geometry import composition
from mlip_pace.errors import DataError

STRONG = 30.0  # eV/Å
FARTHEST = 15.0  # eV/atom between two structures of one composition, one above the other; the strongest bonds are 11
UNCERTAIN = 10.0  # eV; beyond that the data are said not to tell an E0
ISOLATED, FITTED, SHARED, GIVEN, NONE = "isolated atom", "least squares", "share of least squares by Z^(7/3)", "given", "none"


def atomic_energies(
    structures: Sequence[Atoms], energies: Array, isolated: dict[str, float], setting: Any
) -> tuple[dict[str, float], dict[str, str]]:  # fmt: skip
    """E0 (eV) of each element and where it is from (one of the constants above).

    `energies` (eV) are those of the structures, `isolated` those (eV) of isolated atoms. Raises `DataError` where the setting
    lacks an element.
    """
    symbols = sorted({symbol for atoms in structures for symbol in atoms.symbols} | set(isolated))
    if setting == "none":
        return dict.fromkeys(symbols, 0.0), dict.fromkeys(symbols, NONE)
    if isinstance(setting, dict):
        if missing := sorted(set(symbols) - set(setting)):
            raise DataError(f"MLIP_PACE_DATA_E0 has no value for {', '.join(missing)}", "give one for each element, or auto")
        return dict(setting), dict.fromkeys(setting, GIVEN)
    e0, source = dict(isolated), dict.fromkeys(isolated, ISOLATED)
    unknown = [symbol for symbol in symbols if symbol not in e0]
    if unknown:
        numbers = np.array([atomic_numbers[symbol] for symbol in symbols])
        counts = np.array([(atoms.numbers[:, None] == numbers).sum(axis=0) for atoms in structures], dtype=float)
        known = np.array([e0.get(symbol, 0.0) for symbol in symbols])
        free = [symbols.index(symbol) for symbol in unknown]
        solved, told = _solved(counts[:, free], energies - counts @ known, numbers[free])
        e0.update(zip(unknown, map(float, solved), strict=True))
        source.update({symbol: FITTED if is_told else SHARED for symbol, is_told in zip(unknown, told, strict=True)})
    return e0, source


def _solved(counts: Array, energies: Array, numbers: Array) -> tuple[Array, list[bool]]:
    """E0 (eV) of elements from counts (structures, elements) and energies (eV), and whether the data tell each."""
    solved: Any = np.linalg.lstsq(counts, energies, rcond=None)[0]
    with_them = counts.sum(axis=1) > 0
    counts, energies = counts[with_them], energies[with_them]
    atoms = counts.sum(axis=1)
    fractions, per_atom = counts / atoms[:, None], energies / atoms
    scatter = float(np.sqrt(np.mean((fractions @ solved - per_atom) ** 2)))  # eV/atom that E0 cannot describe
    # Every composition once: how often it is there says nothing of what it tells.
    _, values, directions = np.linalg.svd(np.unique(fractions.round(12), axis=0), full_matrices=True)
    values = np.append(values, np.zeros(len(directions) - len(values)))
    told = (values > 1e-6) & (scatter < UNCERTAIN * values)
    if told.all() or len(numbers) == 1:
        return solved, [True] * len(numbers)
    shape = numbers ** (7 / 3)
    share = shape * (energies @ (counts @ shape)) / np.sum((counts @ shape) ** 2)
    seen = directions[told]
    solved = share + seen.T @ np.linalg.lstsq(counts @ seen.T, energies - counts @ share, rcond=None)[0]
    return solved, [bool(np.abs(row).max() < 1e-6) for row in directions[~told].T]


def warnings(
    e0: dict[str, float], source: dict[str, str], structures: Sequence[Atoms], energies: Sequence[float]
) -> list[str]:  # fmt: skip
    """What a user should know of where E0 is from; `energies` (eV) are those of the structures."""
    fitted = [symbol for symbol, where in source.items() if where == FITTED]
    shared = [symbol for symbol, where in source.items() if where == SHARED]
    said = []
    if fitted:
        binding = [
            (energy - sum(e0.get(symbol, 0.0) for symbol in atoms.symbols)) / len(atoms)
            for atoms, energy in zip(structures, energies, strict=True)
        ]
        said.append(
            f"E0 of {', '.join(fitted)} by least squares: energies are not relative to free atoms (the lowest is "
            f"{min(binding, default=0.0):.2f} eV/atom, where solids are bound by 1 to 9), so that vacuum or a broken bond "
            "costs too little far from the data; add isolated atoms to the data, or set MLIP_PACE_DATA_E0"
        )
    if shared:
        values = ", ".join(f"{symbol} {e0[symbol]:.3f} eV" for symbol in shared)
        said.append(
            f"the compositions of the data do not tell E0 of {', '.join(shared)} apart: the energy is shared by Z^(7/3) "
            f"({values}), which is no property of free atoms; add isolated atoms to the data, or set MLIP_PACE_DATA_E0"
        )
    return said


def of_several_setups(structures: Sequence[Atoms], energies: Sequence[float], forces: Sequence[Array]) -> list[str]:
    """Names the composition whose structures have energies farther apart than any binding. Atoms that push each other with more
    than STRONG are not looked at: two in a core may have any energy.
    """
    alike: dict[bytes, list[tuple[float, Atoms]]] = {}
    for atoms, energy, pushed in zip(structures, energies, forces, strict=True):
        if np.abs(pushed).max() > STRONG:
            continue
        counts = np.bincount(atoms.numbers)
        alike.setdefault((counts // np.gcd.reduce(counts)).tobytes(), []).append((float(energy) / len(atoms), atoms))
    for found in alike.values():
        values = np.sort([energy for energy, _ in found])
        gaps = np.diff(values)
        if len(gaps) and gaps.max() > FARTHEST:
            name, n = composition(found[0][1]), int(gaps.argmax())
            return [
                f"energies of {name} are {gaps.max():.0f} eV/atom apart ({n + 1} structures up to {values[n]:.2f} eV/atom, "
                f"{len(values) - n - 1} from {values[n + 1]:.2f} on): they are of several programs, pseudopotentials or units, "
                "and no potential learns both"
            ]
    return []
