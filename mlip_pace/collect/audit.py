"""One structure: its labels, and whether it can be trusted. Energies in eV, forces (n, 3) in eV/Å, stress in eV/Å^3."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress

from mlip_pace.collect.cells import compact
from mlip_pace.collect.neighbours import nearest
from mlip_pace.settings import ELEMENTS, DataSettings

# Closer than any bond (H2 is 0.74 Å): a unit or a cell is wrong.
CLOSEST = 0.5  # Å
# Beyond anything that a converged calculation of a usable structure gives.
LARGEST_FORCE = 1000.0  # eV/Å


@dataclass
class Audit:
    """What was read, what was left out and why, and which keys held the labels."""

    read: int = 0
    rejected: int = 0
    left_out: list[dict[str, str]] = field(default_factory=list)
    keys: Counter[str] = field(default_factory=Counter)

    def reject(self, source: str, reason: str) -> None:
        """Leave out a structure that is wrong."""
        self.rejected += 1
        self.leave_out(source, reason)

    def leave_out(self, source: str, reason: str) -> None:
        """Leave out a structure that is sound but not to be fitted."""
        self.left_out.append({"source": source, "reason": reason})


class Broken(Exception):
    """A structure cannot be used; says why."""


def labels(atoms: Atoms, keys: DataSettings) -> tuple[dict[str, Any], str]:
    """Energy (eV), forces (n, 3) and stress (3, 3) or none of a structure, and the names of the keys they were under.

    Keys that the user names come first; then a calculator's results, then `REF_*` and `dft_*` in info and arrays. Energy
    and forces are taken from the same place.
    """
    results = dict(atoms.calc.results) if atoms.calc is not None else {}
    stored = {**atoms.info, **atoms.arrays}
    given = {"energy": keys.energy_key, "forces": keys.forces_key, "stress": keys.stress_key}
    named = {kind: key for kind, key in given.items() if key != "auto"}
    for kind, key in named.items():
        if key not in stored and key not in results and kind != "stress":
            raise Broken(f"no {kind} under the key {key!r} (MLIP_PACE_DATA_{kind.upper()}_KEY)")
    places: list[dict[str, str]] = [{k: k for k in ("energy", "free_energy", "forces", "stress") if results.get(k) is not None}]
    for prefix in ("ref", "dft"):
        place = {}
        for key in stored:
            match = re.fullmatch(rf"{prefix}_(free_energy|energy|forces?|stress)", key, flags=re.IGNORECASE)
            if match:
                place["forces" if match[1].lower() == "force" else match[1].lower()] = key
        places.append(place)
    for place in places:
        if "free_energy" in place:
            place["energy"] = place["free_energy"]
        place.update(named)
    place = next((p for p in places if "energy" in p and "forces" in p), {})
    if not place:
        has: dict[str, str] = next((p for p in places if p), {})
        raise Broken("no energy and forces" if not has else "no forces" if "energy" in has else "no energy")
    found = {kind: results.get(key, stored.get(key)) for kind, key in place.items() if kind in given}
    return found, " ".join(f"{kind}={place[kind]}" for kind in given if found.get(kind) is not None)


def checked(
    atoms: Atoms, found: dict[str, Any], elements: Sequence[str] | None, cutoff: float
) -> tuple[float, Any, Any, int]:  # fmt: skip
    """Energy, forces (n, 3) and stress (3, 3) or None as floats, once they have passed every check. Raises `Broken`.

    With them the number of atoms that have no neighbour within the cutoff (Å).
    """
    count = len(atoms)
    if count == 0:
        raise Broken("no atoms")
    try:
        energy = float(found["energy"])
        forces = np.asarray(found["forces"], dtype=float)
        stress = None if found.get("stress") is None else np.asarray(found["stress"], dtype=float)
    except (TypeError, ValueError):
        raise Broken("energy, forces or stress are not numbers") from None
    if forces.shape != (count, 3):
        raise Broken(f"forces has {forces.size} values in shape {forces.shape}, expected ({count}, 3)")
    if stress is not None and stress.size not in (6, 9):
        raise Broken(f"stress has {stress.size} values, expected 6 (Voigt) or 9")
    if not np.isfinite(energy):
        raise Broken(f"energy is {energy}")
    for name, array in (("forces", forces), ("positions", atoms.positions), ("cell", atoms.cell.array), ("stress", stress)):
        if array is not None and not np.isfinite(array).all():
            raise Broken(f"{name} has values that are no finite numbers")
    largest = float(np.linalg.norm(forces, axis=1).max())
    if largest > LARGEST_FORCE:
        raise Broken(f"a force of {largest:.3g} eV/Å, above {LARGEST_FORCE:g}")
    symbols = set(atoms.symbols)
    if unknown := sorted(symbols - set(ELEMENTS)):
        raise Broken(f"{', '.join(unknown)}: no chemical element")
    if atoms.pbc.all() and abs(atoms.cell.volume) < 1e-6:
        raise Broken("periodic, but without a cell")
    distances = nearest(atoms, cutoff)
    if distances.min() < CLOSEST:
        raise Broken(f"atoms are {distances.min():.3f} Å apart, closer than {CLOSEST} Å")
    if elements is not None and (foreign := sorted(symbols - set(elements))):
        raise NotInBasis(f"{', '.join(foreign)} not in MLIP_PACE_BASIS_ELEMENTS={','.join(elements)}")
    if stress is not None:
        stress = voigt_6_to_full_3x3_stress(stress) if stress.size == 6 else stress.reshape(3, 3)
    return energy, forces, stress, int(np.isinf(distances).sum())


class NotInBasis(Broken):
    """Sound, but about other elements than the user asked for."""


def fully_periodic(atoms: Atoms, cutoff: float) -> tuple[Atoms, float]:
    """A slab or wire as a fully periodic cell with enough vacuum; also the volume before over that after. The cell is sound.

    pacemaker knows only fully periodic and fully open structures.
    """
    if atoms.pbc.all() or not atoms.pbc.any():
        return compact(atoms), 1.0
    wide, volume = atoms.copy(), abs(atoms.cell.volume)
    wide.center(vacuum=cutoff, axis=np.flatnonzero(~atoms.pbc))
    wide.pbc = True
    return compact(wide), volume / wide.cell.volume
