"""The reference potential: ZBL or Lennard-Jones, in exactly LAMMPS's functional forms.

ACE learns E_DFT - E0 - E_ref, so that the repulsion at short distances comes from physics, not from extrapolation.
Energies in eV, distances in Å, forces in eV/Å, stress in eV/Å^3 (tension positive, as ASE).

Both forms are switched off smoothly between `inner` (r1) and `outer` (r2): for r1 < r < r2 a cubic/quartic
S(r) = A/3 (r - r1)^3 + B/4 (r - r1)^4 + C is added, for r < r1 only C, so that energy, force and curvature vanish at r2:

    A = (-3 E'(r2) + (r2 - r1) E''(r2)) / (r2 - r1)^2
    B = ( 2 E'(r2) - (r2 - r1) E''(r2)) / (r2 - r1)^3
    C = -E(r2) + (r2 - r1)/2 E'(r2) - (r2 - r1)^2/12 E''(r2)

- `zbl`: J. F. Ziegler, J. P. Biersack, U. Littmark, The Stopping and Range of Ions in Matter (1985); LAMMPS `pair_style zbl`.
- `lj`: 4 ε ((σ/r)^12 - (σ/r)^6); LAMMPS `pair_style lj/gromacs`.

Automatic parameters: `outer` is 0.85 of the shortest bond length, `inner` half of `outer`. The bond length is the nearest
neighbour distance in the structure of lowest energy of each composition. For `lj`, σ puts the minimum at the bond length of
the pair (σ = d/2^(1/6)) and ε is the well depth that gives an fcc crystal the lowest energy of the data (E = -8.61 ε per atom,
Kittel, Introduction to Solid State Physics, ch. 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols

from mlip_pace.arrays import VOIGT, Array
from mlip_pace.collect import columns
from mlip_pace.collect.dataset import ATOMS, ENERGY, ENERGY_ATOMS, FORCES, SOURCE, SPLIT, STRESS
from mlip_pace.collect.geometry import composition
from mlip_pace.collect.neighbours import NEAR, neighbours
from mlip_pace.collect.split import TRAIN
from mlip_pace.errors import DataError
from mlip_pace.run import pool
from mlip_pace.run.pool import Workers
from mlip_pace.settings import ReferenceSettings

# e^2/(4 pi eps0) in eV Å, with the digits that LAMMPS has for `units metal` (force->qqr2e).
COULOMB = 14.399645
ZBL_PREFACTOR, ZBL_EXPONENT = 0.46850, 0.23
ZBL_C = np.array([0.02817, 0.28022, 0.50986, 0.18175])
ZBL_D = np.array([0.20162, 0.40290, 0.94229, 3.19980])

# What pacemaker accepts without changing the energies on its own (docs/design.md), eV/atom.
LOWEST_TARGET, HIGHEST_TARGET = -20.0, 250.0
CHUNK = 64  # structures that a worker takes at a time
VIRIAL = "virial"  # column of `delta`
LARGE_AT_BONDS = 0.1  # eV/atom: a tenth of a weak bond


def pair_name(first: str, second: str) -> str:
    """`Al-Mg` for either order of the two elements."""
    return "-".join(sorted((first, second)))


@dataclass(frozen=True)
class Reference:
    """A reference potential with every parameter fixed; `epsilon` (eV) and `sigma` (Å) by pair name, for `lj` only."""

    kind: str = "none"
    inner: float = 0.0
    outer: float = 0.0
    epsilon: dict[str, float] = field(default_factory=dict)
    sigma: dict[str, float] = field(default_factory=dict)

    @property
    def form(self) -> str:
        """LAMMPS's name of the functional form."""
        return {"zbl": "zbl", "lj": "lj/gromacs", "none": "none"}[self.kind]

    def as_dict(self) -> dict[str, Any]:
        """What the sidecar holds; `Reference.from_dict` reads it back."""
        if self.kind == "none":
            return {"kind": "none", "form": "none", "requires_overlay": False}
        return {**asdict(self), "form": self.form, "requires_overlay": True}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Reference:
        names = ("kind", "inner", "outer", "epsilon", "sigma")
        return cls(**{name: stored[name] for name in names if name in stored})

    def differing(self, other: Reference) -> dict[str, str]:
        """The settings, by name, that would make another reference of this one; pairs that only the other has do not count."""
        if other.kind == "none":
            return {} if self.kind == "none" else {"kind": "none"}
        found = {
            name: str(getattr(other, name))
            for name in ("kind", "inner", "outer")
            if getattr(self, name) != getattr(other, name)
        }
        for name in ("epsilon", "sigma"):
            mine, others = getattr(self, name), getattr(other, name)
            if other.kind == "lj" and mine != {pair: others.get(pair) for pair in mine}:
                found[name] = ",".join(f"{pair}:{others[pair]:.13g}" for pair in mine if pair in others)
        return found

    def pair(self, first: str, second: str, r: Array) -> tuple[Array, Array]:
        """Energy (eV) and its derivative (eV/Å) of one pair of atoms at the distances `r` (Å), any shape."""
        r = np.asarray(r, dtype=float)
        if self.kind == "none":
            return np.zeros_like(r), np.zeros_like(r)
        energy, slope, curvature = self._bare(first, second, np.array([self.outer]))
        width = self.outer - self.inner
        a = ((-3 * slope + width * curvature) / width**2).item()
        b = ((2 * slope - width * curvature) / width**3).item()
        c = (-energy + width / 2 * slope - width**2 / 12 * curvature).item()
        energy, slope, _ = self._bare(first, second, r)
        t = np.clip(r - self.inner, 0.0, None)
        inside = r < self.outer
        return (
            np.where(inside, energy + a / 3 * t**3 + b / 4 * t**4 + c, 0.0),
            np.where(inside, slope + a * t**2 + b * t**3, 0.0),
        )

    def _bare(self, first: str, second: str, r: Array) -> tuple[Array, Array, Array]:
        """Energy, first and second derivative without switching."""
        if self.kind == "zbl":
            zi, zj = atomic_numbers[first], atomic_numbers[second]
            screening = (zi**ZBL_EXPONENT + zj**ZBL_EXPONENT) / ZBL_PREFACTOR
            terms = ZBL_C * np.exp(-ZBL_D * screening * r[..., None])
            rates = -ZBL_D * screening
            phi, dphi, d2phi = terms.sum(-1), (terms * rates).sum(-1), (terms * rates**2).sum(-1)
            strength = zi * zj * COULOMB
            return (
                strength * phi / r,
                strength * (dphi - phi / r) / r,
                strength * (d2phi - 2 * dphi / r + 2 * phi / r**2) / r,
            )
        name = pair_name(first, second)
        epsilon, s6 = self.epsilon[name], (self.sigma[name] / r) ** 6
        return (
            4 * epsilon * (s6**2 - s6),
            -24 * epsilon * (2 * s6**2 - s6) / r,
            24 * epsilon * (26 * s6**2 - 7 * s6) / r**2,
        )

    def evaluate(self, atoms: Atoms) -> tuple[float, Array, Array | None]:
        """Energy (eV), forces (n, 3) in eV/Å, stress (3, 3) in eV/Å^3; no stress without a three-dimensional cell."""
        forces, virial, total = np.zeros((len(atoms), 3)), np.zeros((3, 3)), 0.0
        if self.kind != "none" and len(atoms):
            i, j, distance, vector = neighbours("ijdD", atoms, self.outer)
            numbers = atoms.numbers
            # Each bond is listed from both ends; the energy of one listing is half of the pair's.
            for zi, zj in {(int(zi), int(zj)) for zi, zj in zip(numbers[i], numbers[j], strict=True)}:
                bonds = (numbers[i] == zi) & (numbers[j] == zj)
                energy, slope = self.pair(chemical_symbols[zi], chemical_symbols[zj], distance[bonds])
                total += float(energy.sum()) / 2
                pull = (slope / distance[bonds])[:, None] * vector[bonds]
                np.add.at(forces, i[bonds], pull)
                virial += pull.T @ vector[bonds] / 2
        return total, forces, virial / atoms.get_volume() if atoms.cell.rank == 3 else None


def lowest_of_compositions(frames: pd.DataFrame) -> list[Any]:
    """Index labels of the structures with the lowest energy per atom of each composition; of equal ones, the first."""
    energy = frames[ENERGY] / frames[ATOMS].map(len)
    return list(energy.groupby(frames[ATOMS].map(composition)).idxmin())


def bond_lengths(frames: pd.DataFrame, cutoff: float) -> dict[str, float]:
    """Nearest-neighbour distance (Å) of each element pair in the lowest-energy structures of the compositions."""
    return shortest_distances(frames[ATOMS][lowest_of_compositions(frames)], cutoff)


def shortest_distances(structures: Iterable[Atoms], cutoff: float) -> dict[str, float]:
    """Shortest distance (Å) of each element pair within `cutoff` (Å) over all structures, by pair name."""
    return _shortest_of(_shortest_in(atoms, cutoff) for atoms in structures)


def _shortest_in(atoms: Atoms, cutoff: float) -> dict[str, float]:
    pairs = list(combinations_with_replacement(np.unique(atoms.numbers), 2))
    shortest: dict[str, float] = {}
    for reach in (min(NEAR, cutoff), cutoff):
        i, j, distance = neighbours("ijd", atoms, reach)
        for zi, zj in pairs:
            between = distance[(atoms.numbers[i] == zi) & (atoms.numbers[j] == zj)]
            if len(between):
                shortest[pair_name(chemical_symbols[zi], chemical_symbols[zj])] = float(between.min())
        if len(shortest) == len(pairs):
            break
    return shortest


def _shortest_of(several: Iterable[dict[str, float]]) -> dict[str, float]:
    shortest: dict[str, float] = {}
    for distances in several:
        shortest |= {pair: min(distance, shortest.get(pair, np.inf)) for pair, distance in distances.items()}
    return dict(sorted(shortest.items()))


def choose(settings: ReferenceSettings, frames: pd.DataFrame, cutoff: float) -> Reference:
    """The reference potential for these structures, automatic parameters filled in (module docstring says how).

    `frames` has `ase_atoms`, `energy_dft` (eV) and `energy_atoms` (eV, the sum of E0); `cutoff` (Å) bounds the search for
    bonds. Raises `DataError` if the settings contradict each other or no bond is found.
    """
    if settings.kind == "none":
        return Reference()
    bonds = bond_lengths(frames, cutoff)
    if not bonds and "auto" in (settings.outer, settings.sigma if settings.kind == "lj" else None):
        raise DataError(
            f"no two atoms are closer than the cutoff of {cutoff} Å, so the reference potential has no bond length to go by",
            "set MLIP_PACE_REFERENCE_OUTER, or MLIP_PACE_REFERENCE_KIND=none, or check the units of the positions",
        )
    # Rounded, so that the file for LAMMPS names the very same numbers.
    outer = round(0.85 * min(bonds.values()), 6) if settings.outer == "auto" else settings.outer
    inner = round(0.5 * outer, 6) if settings.inner == "auto" else settings.inner
    if inner >= outer:
        raise DataError(
            f"the reference's inner radius {inner} Å is not below its outer radius {outer:.3f} Å (0.85 of the shortest bond)",
            "set MLIP_PACE_REFERENCE_OUTER too, or leave MLIP_PACE_REFERENCE_INNER out",
        )
    if settings.kind == "zbl":
        return Reference("zbl", inner, outer)
    elements = sorted({symbol for atoms in frames[ATOMS] for symbol in atoms.symbols})
    pairs = [pair_name(*pair) for pair in combinations_with_replacement(elements, 2)]
    cohesive = max(0.0, -float(((frames[ENERGY] - frames[ENERGY_ATOMS]) / frames[ATOMS].map(len)).min()))
    shortest = min(bonds.values(), default=0.0)
    automatic_sigma = {pair: round(bonds.get(pair, shortest) / 2 ** (1 / 6), 6) for pair in pairs}
    return Reference(
        "lj",
        inner,
        outer,
        _by_pair("EPSILON", settings.epsilon, dict.fromkeys(pairs, round(cohesive / 8.61, 6) or 0.1)),
        _by_pair("SIGMA", settings.sigma, automatic_sigma),
    )


def _by_pair(name: str, given: str | float | dict[str, float], automatic: dict[str, float]) -> dict[str, float]:
    if given == "auto":
        return automatic
    if not isinstance(given, dict):
        return dict.fromkeys(automatic, float(given))
    missing = sorted(set(automatic) - set(given))
    if missing:
        raise DataError(
            f"MLIP_PACE_REFERENCE_{name} has no value for {', '.join(missing)}", "give one for every pair of elements"
        )
    return {pair: given[pair] for pair in automatic}


def delta(reference: Reference, frames: pd.DataFrame, workers: Workers = 1) -> pd.DataFrame:
    """`frames` with what is left for ACE to learn: `energy_corrected` (eV), `forces` (n, 3) eV/Å, and, where there are
    a stress and a cell, `virial` (6,), volume times stress (eV) in Voigt's order.

    Raises `DataError` where nothing is left, or more than pacemaker takes without changing it by itself.
    """
    rest = columns.GrowingFrame(["forces", VIRIAL])
    stresses = frames[STRESS] if STRESS in frames else [None] * len(frames)
    parts = pool.parallel_map(partial(_evaluate, reference), pool.chunks(frames[ATOMS].array, CHUNK), workers)
    labels = zip(frames[ATOMS], frames[ENERGY] - frames[ENERGY_ATOMS], frames[FORCES], stresses, strict=True)
    for (atoms, energy, forces, stress), (of_reference, pull, tension) in zip(labels, chain.from_iterable(parts), strict=True):
        virial = None if stress is None or tension is None else atoms.get_volume() * (stress - tension)[VOIGT]
        rest.append({"energy_corrected": energy - of_reference, "forces": forces - pull, VIRIAL: virial})
    target = frames.join(rest.frame().set_index(frames.index))
    if STRESS not in frames:
        target = target.drop(columns=VIRIAL)
    if not target.energy_corrected.any() and not target.forces.map(np.any).any():
        raise DataError(
            "nothing is left for ACE to learn: all forces are 0, and all energies those of free atoms and reference",
            "are the labels placeholders? MLIP_PACE_DATA_ENERGY_KEY and _FORCES_KEY name those to take",
        )
    per_atom = target.energy_corrected / frames[ATOMS].map(len)
    for extreme, row in ((per_atom.min(), per_atom.idxmin()), (per_atom.max(), per_atom.idxmax())):
        if not LOWEST_TARGET <= extreme <= HIGHEST_TARGET:
            raise DataError(
                f"{frames[SOURCE][row]}: {extreme:.4g} eV/atom are left for ACE to learn, which is outside "
                f"{LOWEST_TARGET:g}…{HIGHEST_TARGET:g}",
                "check MLIP_PACE_DATA_E0 (isolated atoms in the data, or auto), the units of the energies and, for lj, that "
                "its wall is not inside the data; MLIP_PACE_DATA_MAX_ENERGY leaves high energies out",
            )
    return target


def _evaluate(reference: Reference, structures: Sequence[Atoms]) -> list[tuple[float, Array, Array | None]]:
    return [reference.evaluate(atoms) for atoms in structures]


def size_at_bonds(reference: Reference, frames: pd.DataFrame) -> float:
    """Largest |E_ref| (eV/atom) in the lowest-energy structures: should be small, bonds are ACE's business."""
    lowest = frames[ATOMS][lowest_of_compositions(frames)]
    return max(abs(reference.evaluate(atoms)[0]) / len(atoms) for atoms in lowest)


@dataclass(frozen=True)
class Subtracted:
    """What was subtracted, and what the training structures are like where it acts."""

    reference: Reference
    at_bonds: float  # largest |E_ref| in the lowest-energy structures, eV/atom
    shortest: dict[str, float]  # Å, shortest training distance of each pair of elements that meets
    warnings: list[str]


def subtract(
    folder: Path, frames: pd.DataFrame, settings: ReferenceSettings, cutoff: float, workers: Workers = 1
) -> Subtracted:  # fmt: skip
    """The stage: write `target`."""
    target, subtracted = subtracted_from(frames, settings, cutoff, workers)
    columns.save(target, folder / "target")
    return subtracted


def subtracted_from(
    frames: pd.DataFrame, settings: ReferenceSettings, cutoff: float, workers: Workers = 1
) -> tuple[pd.DataFrame, Subtracted]:  # fmt: skip
    """The `delta` of all structures, by the reference that suits those to train on. Raises `DataError`."""
    train = frames[frames[SPLIT] == TRAIN]
    reference = choose(settings, train, cutoff)
    target = delta(reference, frames, workers)
    chunks = pool.chunks(train[ATOMS].array, CHUNK)
    shortest = _shortest_of(pool.parallel_map(partial(shortest_distances, cutoff=cutoff), chunks, workers))
    warnings = []
    if (size := size_at_bonds(reference, train)) > LARGE_AT_BONDS:
        warnings.append(
            f"the reference potential is {size:.3g} eV/atom at bond lengths; it should act only below them: lower "
            f"MLIP_PACE_REFERENCE_OUTER (now {reference.outer:g} Å)"
        )
    return target, Subtracted(reference, size, shortest, warnings)


def lammps_commands(reference: Reference, elements: list[str], potential: str) -> list[str]:
    """`pair_style` and `pair_coeff` lines of ACE + reference; atom types are the elements in the given order."""
    names = " ".join(elements)
    if reference.kind == "none":
        return ["pair_style pace recursive", f"pair_coeff * * {potential} {names}"]
    lines = [
        f"pair_style hybrid/overlay pace recursive {reference.form} {reference.inner:.10g} {reference.outer:.10g}",
        f"pair_coeff * * pace {potential} {names}",
    ]
    for (i, first), (j, second) in combinations_with_replacement(enumerate(elements, 1), 2):
        if reference.kind == "zbl":
            parameters = f"{atomic_numbers[first]} {atomic_numbers[second]}"
        else:
            name = pair_name(first, second)
            parameters = f"{reference.epsilon[name]:.10g} {reference.sigma[name]:.10g}"
        lines.append(f"pair_coeff {i} {j} {reference.form} {parameters}")
    return lines
