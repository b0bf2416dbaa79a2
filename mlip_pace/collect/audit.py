"""One structure: whether its labels can be trusted. Energies in eV, forces (n, 3) in eV/Å, stress in eV/Å^3."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian, FixedLine, FixedPlane

from mlip_pace.arrays import Array
from mlip_pace.collect.cells import compact
from mlip_pace.collect.labels import Broken, tensor
from mlip_pace.collect.neighbours import nearest
from mlip_pace.settings import ELEMENTS

# Closer than any bond (H2 is 0.74 Å): a unit or a cell is wrong.
CLOSEST = 0.5  # Å
# Beyond anything that a converged calculation of a usable structure gives.
LARGEST_FORCE = 1000.0  # eV/Å
LARGEST_STRESS = 50.0  # eV/Å^3, 8 TPa
THOMAS_FERMI = 20.9  # eV; times Z^(7/3) no atom has less (E. H. Lieb, Rev. Mod. Phys. 53, 603 (1981)), but for relativity
# Of forces that do not add up to 0. DFT's do, but for noise: 0.6 eV/Å in cells of 192 atoms, 0.03 of the root of their squares.
UNBALANCED = 0.1  # of the root of the sum of the squares of all forces; it is 1 if they know nothing of one another
NOISE = 0.1  # eV/Å; less is not told
REMOVED = 0.01, 0.001  # eV/Å; more is no noise where some forces are exactly 0, and where a constraint is known to make them so
ASYMMETRY = 0.02  # of a stress, relative to its largest component; more is no rounding

_LINE = re.compile(r"^line \d+: ")  # where a frame begins: the same flaw of other frames is the same reason


@dataclass
class Audit:
    """What was read, what was left out and why, which keys held the labels, and what a user should know of them."""

    read: int = 0
    rejected: int = 0  # structures that are wrong; those left out for another reason do not count
    unconverged: int = 0  # structures whose calculation is not valid, whether they are kept or left out
    left_out: list[dict[str, str]] = field(default_factory=list)
    keys: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)  # note -> the first structure that it is about

    def reject(self, source: str, reason: str) -> None:
        """Leave out a structure that is wrong."""
        self.rejected += 1
        self.leave_out(source, reason)

    def leave_out(self, source: str, reason: str) -> None:
        """Leave out a structure that is sound but not to be fitted."""
        self.left_out.append({"source": source, "reason": reason})

    def note(self, source: str, notes: Iterable[str]) -> None:
        """What a user should know of a structure that is used."""
        for note in notes:
            self.notes[note] += 1
            self.first.setdefault(note, source)

    def warnings(self) -> list[str]:
        """The notes, each with the number of structures that it is about."""
        return [
            f"{note} ({self.first[note]}{f' and {count - 1} more' if count > 1 else ''})" for note, count in self.notes.items()
        ]

    def reasons(self) -> str:
        """The first reasons why structures were left out, a line each, with the first structure that it is about."""
        alike: dict[str, list[dict[str, str]]] = {}
        for item in self.left_out:
            alike.setdefault(_LINE.sub("", item["reason"]), []).append(item)
        told = [
            f"\n  {first['source']}{f' and {len(others)} more' if others else ''}: {first['reason']}"
            for first, *others in alike.values()
        ]
        more = f"\n  … and {len(told) - 10} other reasons; the last line has all (`left_out`)" if len(told) > 10 else ""
        return "".join(told[:10]) + more


class Checked(NamedTuple):
    """Labels of a structure that have passed every check."""

    energy: float  # eV
    forces: Array  # (n, 3), eV/Å
    stress: Array | None  # (3, 3), eV/Å^3, tension positive
    lonely: int  # atoms that have no neighbour within the cutoff
    notes: tuple[str, ...]  # flaws of what is not needed, which is not used then
    copies: bytes  # the same for copies of a structure, however they are turned; empty where that cannot be told


def checked(atoms: Atoms, found: Mapping[str, Any], elements: Sequence[str] | None, cutoff: float) -> Checked:
    """Energy, forces and stress of `labels` as numbers, once they have passed every check. Raises `Broken`.

    Neighbours are looked for within `cutoff` (Å). A flawed stress is not used, and noted; all else must be right.
    """
    count = len(atoms)
    if count == 0:
        raise Broken("no atoms")
    given = found.get("forces")
    try:
        energy = float(np.asarray(found["energy"], dtype=float).item())
        forces = np.zeros((1, 3)) if given is None and count == 1 else np.asarray(given, dtype=float)
    except (TypeError, ValueError):
        raise Broken("energy or forces are not numbers") from None
    if forces.shape != (count, 3):
        raise Broken(f"forces has {forces.size} values in shape {forces.shape}, expected ({count}, 3)")
    if not np.isfinite(energy):
        raise Broken(f"energy is {energy}")
    if not np.isfinite(forces).all():
        raise Broken("forces has values that are no finite numbers")
    largest = float(np.linalg.norm(forces, axis=1).max())
    if largest > LARGEST_FORCE:
        raise Broken(f"a force of {largest:.3g} eV/Å, above {LARGEST_FORCE:g}")
    distances = sound_geometry(atoms, cutoff)
    lowest = -1.2 * THOMAS_FERMI * float((atoms.numbers ** (7 / 3)).sum())
    if energy < lowest:
        raise Broken(
            f"energy is {energy:g}, but all electrons together have no less than {lowest:.0f} eV: it is in another unit"
        )
    if elements is not None and (foreign := sorted(set(atoms.symbols) - set(elements))):
        raise NotInBasis(f"{', '.join(foreign)} not in MLIP_PACE_BASIS_ELEMENTS={','.join(elements)}")
    notes = _balance(atoms, forces)
    stress, flaw = _checked_stress(found.get("stress"))
    if flaw:
        notes.append(f"the stress is not used: {flaw}")
    key = _copy_key(atoms, energy, forces, distances)
    return Checked(energy, forces, stress, int(np.isinf(distances).sum()), tuple(notes), key)


def _balance(atoms: Atoms, forces: Array) -> list[str]:
    """What a user should know of forces that do not add up to 0. Raises `Broken` for those that a constraint has changed.

    A program that holds atoms in their places may write 0 for their forces. Those that are 0 by symmetry are no sign of it:
    then all together are 0, too.
    """
    net, all_forces = float(np.linalg.norm(forces.sum(axis=0))), float(np.linalg.norm(forces))
    gone = int((forces == 0).all(axis=1).sum())
    held = all_forces > 0 and _as_constrained(atoms, forces)
    if (held and net > REMOVED[1]) or (0 < gone < len(atoms) and net > max(REMOVED[0], UNBALANCED * all_forces)):
        those = f"the forces on {gone} of {len(atoms)} atoms are exactly 0" if gone else "forces are 0 along some directions"
        raise Broken(f"{those}, yet all forces add up to {net:.2g} eV/Å: a constraint has taken away what DFT gave")
    if net > max(NOISE, UNBALANCED * all_forces):
        return ["the forces do not add up to 0, as those of atoms on one another do: look at them before you use them"]
    return []


def _as_constrained(atoms: Atoms, forces: Array) -> bool:
    """Whether the structure holds some atoms in their places, and the forces are as that leaves them."""
    held = [one for one in atoms.constraints if isinstance(one, (FixAtoms, FixCartesian, FixedLine, FixedPlane))]
    if not held:
        return False
    left = forces.copy()
    for one in held:
        one.adjust_forces(atoms, left)
    return np.allclose(left, forces, rtol=0, atol=1e-8)


def sound_geometry(atoms: Atoms, cutoff: float) -> Array:
    """The distance (Å) of each atom to its nearest neighbour, infinite beyond `cutoff`, of a structure that can be evaluated.

    Raises `Broken`.
    """
    if len(atoms) == 0:
        raise Broken("no atoms")
    for name, array in (("positions", atoms.positions), ("cell", atoms.cell.array)):
        if not np.isfinite(array).all():
            raise Broken(f"{name} has values that are no finite numbers")
    if unknown := sorted(set(atoms.symbols) - set(ELEMENTS)):
        raise Broken(f"{', '.join(unknown)}: no chemical element")
    vectors = atoms.cell.array[atoms.pbc]
    if len(vectors) and np.sqrt(abs(np.linalg.det(vectors @ vectors.T))) < 1e-6:
        raise Broken("periodic, but without a cell" if atoms.pbc.all() else "periodic along a direction without a cell vector")
    distances = nearest(atoms, cutoff)
    if distances.min() < CLOSEST:
        raise Broken(f"atoms are {distances.min():.3f} Å apart, closer than {CLOSEST} Å")
    return distances


def _checked_stress(given: Any) -> tuple[Array | None, str]:
    """A stress as (3, 3), or None and what is wrong with it."""
    if given is None:
        return None, ""
    try:
        stress = np.asarray(given, dtype=float)
    except (TypeError, ValueError):
        return None, "it is no numbers"
    if stress.size not in (6, 9):
        return None, f"it has {stress.size} values, expected 6 (Voigt) or 9"
    if not np.isfinite(stress).all():
        return None, "it has values that are no finite numbers"
    if not stress.any():
        return None, "all of it is exactly 0, as where none was calculated"
    if (largest := float(np.abs(stress).max())) > LARGEST_STRESS:
        return None, f"it has {largest:.3g} eV/Å^3, above {LARGEST_STRESS:g}: it is in another unit"
    stress = tensor(stress)
    if np.abs(stress - stress.T).max() > ASYMMETRY * np.abs(stress).max() + 1e-5:
        return None, "it is not symmetric"
    return (stress + stress.T) / 2, ""


def far_apart(count: int, read: int, cutoff: float, limit: float) -> list[str]:
    """What a user should know of many structures that are left out because an atom has no neighbour."""
    if count <= limit * read:
        return []
    return [
        f"{count} of {read} structures are left out because atoms of theirs have no neighbour within {cutoff:g} Å: long dimers "
        "and gases need a longer MLIP_PACE_BASIS_CUTOFF"
    ]


def _copy_key(atoms: Atoms, energy: float, forces: Array, distances: Array) -> bytes:
    """Equal for copies of a structure that are moved, turned, or have their atoms in another order: the energy, the volume, and
    of every atom the size of its force and the distance to its nearest neighbour (to 1e-4) are. Empty where forces are zero.
    """
    if not forces.any():
        return b""
    volume = atoms.cell.volume if atoms.pbc.all() else 0.0
    sizes = np.column_stack([np.linalg.norm(forces, axis=1), np.where(np.isinf(distances), 0.0, distances)])
    rounded = np.round(1e4 * sizes).astype(np.int64)
    order = np.lexsort((*rounded.T, atoms.numbers))
    whole = atoms.numbers[order].tobytes() + rounded[order].tobytes() + np.array([energy, round(volume, 2)]).tobytes()
    return hashlib.blake2b(whole, digest_size=16).digest()


def label_weights(atoms: Atoms, keys: Sequence[str]) -> dict[str, float]:
    """The weights that a structure has for its labels in the loss, by key. Raises `Broken` for what is no weight."""
    weights = {}
    for key in keys:
        if key in atoms.info:
            try:
                weights[key] = float(atoms.info[key])
            except (TypeError, ValueError):
                raise Broken(f"{key} is {atoms.info[key]!r}, no number") from None
            if not 0 <= weights[key] < np.inf:
                raise Broken(f"{key} is {weights[key]:g}; a number that is not negative is expected")
    return weights


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
