"""The crystals of the data: structures of the lowest energy of each composition, relaxed with their cells, and their symmetry.

The lowest energy may be that of a cold cell with a vacancy, where the data have the perfect crystal only hot. So the lowest one
of each number of atoms is relaxed, vacancies of elements are filled, and what is then lowest for the potential is the crystal.
What is hot, strained or in a supercell relaxes to a crystal or to none. Space groups and standard cells are spglib's (A. Togo,
K. Shinohara, I. Tanaka, Sci. Technol. Adv. Mater., Meth. 4, 2384822 (2024)).
Energies in eV/atom relative to the sum of E0, lengths in Å, angles in degrees.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
import spglib
from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.optimize import LBFGS

from mlip_pace.arrays import Array
from mlip_pace.collect.cells import emptiest, heights, is_bulk
from mlip_pace.collect.dataset import ATOMS, ENERGY, ENERGY_ATOMS, SOURCE
from mlip_pace.collect.geometry import composition
from mlip_pace.collect.neighbours import nearest
from mlip_pace.run.stopping import raise_if_stopped

SAME_PLACE = 0.05  # Å: atoms this far from places of a symmetry may belong on them; the relaxation then says
AS_IT_IS = 5e-3  # Å: the same of structures that are as they are; a strain of half a percent is seen
FIRST, LAST = 5e-3, 1e-4  # eV/Å: forces on atoms, and on the cell, after the first relaxation and after that of the crystal
STEPS = 500  # of a relaxation
AWAY, RESTLESS = "it relaxes away", "it did not relax"
NEARLY = 0.1  # eV/Å; forces that are smaller at the end are no sign that a crystal falls apart
HIGHER = 1e-3  # eV/atom that the symmetric structure may be above the one that it was found in
CANDIDATES = 3  # structures of a composition that are relaxed
HEAT = 1.0  # eV/atom that they are above the lowest, at most: solids at 3000 K have 0.8
VACANCIES = 4  # that are filled at most: a foam would take in atoms without end
LEAST_WITH_VACANCY = 15  # atoms of a supercell of an element that may have one
LONGEST_BOND, NEARLY_A_BOND = 6.0, 0.85  # Å; of the shortest distance, that the place of a vacancy is away from all atoms
VOLUMES = 0.6, 1.6  # of a structure, that it may relax to
LARGEST_CELL, WITHOUT_SYMMETRY = 60, 16  # atoms of the primitive cell of what counts as a crystal; of one that has no symmetry


class LeftOutError(Exception):
    """A property that cannot be had, with the reason in words."""


@dataclass(frozen=True)
class Cell:
    """A structure as numbers: symbols, cell vectors (3, 3) in Å, positions (n, 3) relative to them."""

    symbols: list[str]
    cell: list[list[float]]
    positions: list[list[float]]

    @classmethod
    def of(cls, atoms: Atoms) -> Cell:
        return cls(list(atoms.symbols), atoms.cell.array.tolist(), atoms.get_scaled_positions().tolist())

    def atoms(self) -> Atoms:
        return Atoms(self.symbols, cell=self.cell, scaled_positions=self.positions, pbc=True)


@dataclass(frozen=True)
class Lattice:
    """The conventional cell: a, b, c (Å), α, β, γ (degrees), volume (Å^3/atom) and space group."""

    lengths: tuple[float, float, float]
    angles: tuple[float, float, float]
    volume: float
    space_group: str
    number: int

    @classmethod
    def of(cls, atoms: Atoms, within: float = AS_IT_IS) -> Lattice:
        found = standard(atoms, within=within)
        conventional = atoms if found is None else found
        a, b, c, alpha, beta, gamma = conventional.cell.cellpar().tolist()
        name, number = group_of(atoms, within)
        return cls((a, b, c), (alpha, beta, gamma), float(atoms.cell.volume) / len(atoms), name, number)


@dataclass(frozen=True)
class Crystal:
    """The structure of lowest energy of a composition: as it is in the data, and relaxed by the potential."""

    source: str  # which structure of the data
    in_data: Lattice
    energy_dft: float  # of that, eV/atom
    lowest_dft: float  # of all of its composition, eV/atom
    relaxed: Lattice
    energy: float  # of what it relaxed to, eV/atom
    distortion: float  # as it relaxed: the largest over the smallest stretch of its cell, less one
    conventional: Cell
    is_crystal: bool  # else it is a large cell without symmetry, of which the rest is not computed

    def atoms(self) -> Atoms:
        """The conventional cell."""
        return self.conventional.atoms()

    def primitive(self) -> Atoms:
        """The primitive cell, with the axes of the conventional one."""
        found = standard(self.atoms(), primitive=True)
        return self.atoms() if found is None else found

    @property
    def elements(self) -> list[str]:
        return sorted(set(self.conventional.symbols))

    @property
    def system(self) -> str:
        """The crystal system."""
        number = self.relaxed.number
        limits = {"triclinic": 2, "monoclinic": 15, "orthorhombic": 74, "tetragonal": 142, "trigonal": 167, "hexagonal": 194}
        return next((name for name, last in limits.items() if number <= last), "cubic")


@dataclass(frozen=True)
class Lowest:
    """The structure of lowest energy of a composition in the data, the bulk one where there is one."""

    composition: str
    source: str
    atoms: Atoms
    energy: float  # eV/atom
    lowest_dft: float  # of all that are bulk of the composition, eV/atom


def lowest_of(frame: pd.DataFrame) -> tuple[list[list[Lowest]], list[Lowest]]:
    """Of each composition of the data (columns of `dataset.py`) the bulk structures of lowest energy, each with another number
    of atoms, the lowest first; and of the compositions that have no bulk one the structure of lowest energy. Elements come
    first, then compounds by the number of atoms in their formula; of those without bulk the ones with the most structures.
    """
    sizes = frame[ATOMS].map(len)
    cohesive = (frame[ENERGY] - frame[ENERGY_ATOMS]) / sizes
    found, without = list[list[Lowest]](), list[tuple[int, Lowest]]()
    for name, alike in cohesive.groupby(frame[ATOMS].map(composition)):
        if several := _candidates(frame, alike, sizes):
            found.append([Lowest(str(name), *one, several[0][2]) for one in several])
        else:
            without.append((len(alike), Lowest(str(name), *_found(frame, alike, alike.idxmin()), float(alike.min()))))
    found.sort(key=lambda several: (_formula_atoms(several[0].atoms), several[0].energy))
    return found, [one for _, one in sorted(without, key=lambda one: -one[0])]


def _candidates(frame: pd.DataFrame, alike: Any, sizes: Any) -> list[tuple[str, Atoms, float]]:
    """The bulk structures of lowest energy of one composition (energies `alike`), each with another number of atoms."""
    found = list[tuple[str, Atoms, float]]()
    for _, same in sorted(alike.groupby(sizes[alike.index]), key=lambda one: float(one[1].min())):
        if found and (len(found) == CANDIDATES or same.min() > found[0][2] + HEAT):
            break
        n = next((n for n in same.sort_values(kind="stable").index if is_bulk(frame[ATOMS][n])), None)
        if n is not None:
            found.append(_found(frame, alike, n))
    found.sort(key=lambda one: one[2])
    return [one for one in found if one[2] <= found[0][2] + HEAT]


def _found(frame: pd.DataFrame, energies: Any, n: Any) -> tuple[str, Atoms, float]:
    return str(frame[SOURCE][n]), bare(frame[ATOMS][n]), float(energies[n])


def preferred(crystals: Sequence[Crystal]) -> Crystal:
    """The first, unless another is lower for the potential."""
    return reduce(lambda best, other: other if other.energy < best.energy - HIGHER else best, crystals)


def _formula_atoms(atoms: Atoms) -> int:
    return sum(atoms.symbols.formula.reduce()[0].count().values())


def crystal_of(lowest: Lowest, calculator: Any, e0: Mapping[str, float], deadline: float = math.inf) -> Crystal:
    """What a structure of the data relaxes to, its cell with it. Raises `LeftOutError`."""
    given = lowest.atoms
    first = relaxed(given, calculator, deadline, cell=True, fmax=FIRST)
    best, energy = _settled(first, calculator, e0, deadline)
    with suppress(LeftOutError):  # then it stays as it is
        for _ in range(VACANCIES):
            if (fuller := filled(best)) is None:
                break
            other, below = _settled(relaxed(fuller, calculator, deadline, cell=True, fmax=FIRST), calculator, e0, deadline)
            if below > energy - HIGHER:
                break
            best, energy = other, below
    conventional = standard(best)
    lattice, small = Lattice.of(best), len(best) <= LARGEST_CELL
    is_crystal = small and (lattice.number > 1 or len(best) <= WITHOUT_SYMMETRY)
    cell = Cell.of(best if conventional is None else conventional)
    return Crystal(
        lowest.source, Lattice.of(given), lowest.energy, lowest.lowest_dft, lattice, energy, _distortion(given, first), cell,
        is_crystal)  # fmt: skip


def _settled(first: Atoms, calculator: Any, e0: Mapping[str, float], deadline: float) -> tuple[Atoms, float]:
    """What nearly relaxed atoms relax to, with the symmetry that they nearly have if that is not higher, and its energy."""
    best, energy = first, cohesive(first, calculator, e0)
    if (symmetric := standard(first, primitive=True, within=SAME_PLACE)) is not None:
        best = relaxed(symmetric, calculator, deadline, cell=True, fmax=LAST)
        if cohesive(best, calculator, e0) > energy + HIGHER:  # its symmetry is lower than it looks
            best = relaxed(first, calculator, deadline, cell=True, fmax=LAST)
        energy = cohesive(best, calculator, e0)
    return best, energy


def filled(atoms: Atoms) -> Atoms | None:
    """The supercell of an element with one more atom where it is emptiest, if that may be a vacancy."""
    if len(atoms) < LEAST_WITH_VACANCY or len(set(atoms.symbols)) > 1:
        return None
    place, _ = emptiest(atoms)
    fuller: Atoms = atoms + Atoms(atoms.symbols[:1], [place], cell=atoms.cell, pbc=True)
    bond = float(nearest(atoms, LONGEST_BOND).min())
    return fuller if nearest(fuller, 2 * bond)[-1] > NEARLY_A_BOND * bond else None


def _distortion(before: Atoms, after: Atoms) -> float:
    """How much the shape of a cell has changed: the largest over the smallest stretch, less one."""
    stretches = np.linalg.svd(np.linalg.solve(before.cell.array, after.cell.array), compute_uv=False)
    return float(stretches[0] / stretches[-1]) - 1


def relaxed(atoms: Atoms, calculator: Any, deadline: float = math.inf, cell: bool = False, fmax: float = LAST) -> Atoms:
    """The structure with forces below `fmax` (eV/Å), in its cell or with it. Raises `LeftOutError`."""
    moved = bare(atoms)
    moved.calc = calculator
    target = FrechetCellFilter(moved) if cell else moved
    optimizer = LBFGS(target, logfile=None, maxstep=0.1)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "logm result may be inaccurate", RuntimeWarning)  # by 1e-12, of the filter
        for converged in optimizer.irun(fmax=fmax, steps=STEPS):
            in_time(deadline)
            ratio = float(moved.cell.volume / atoms.cell.volume)
            if not VOLUMES[0] < ratio < VOLUMES[1]:
                raise LeftOutError(f"{AWAY}: to {ratio:.2f} times its volume and beyond")
            if converged:
                return bare(moved)
    force = float(np.abs(moved.get_forces()).max())
    said = RESTLESS if force > NEARLY else "it is not quite at rest"
    raise LeftOutError(f"{said} after {STEPS} steps: there are forces of {force:.2g} eV/Å, at {ratio:.2f} times its volume")


def in_time(deadline: float) -> None:
    """Raise `LeftOutError` after the deadline (of time.monotonic), and `SignalError` after a signal."""
    raise_if_stopped()
    if time.monotonic() > deadline:
        raise LeftOutError("there was no time for it")


def cohesive(atoms: Atoms, calculator: Any, e0: Mapping[str, float]) -> float:
    """Energy relative to the sum of E0, eV/atom."""
    return (energy_of(atoms, calculator) - sum(e0.get(symbol, 0.0) for symbol in atoms.symbols)) / len(atoms)


def energy_of(atoms: Atoms, calculator: Any) -> float:
    """eV."""
    calculator.calculate(atoms, ["energy"], ["positions", "cell", "numbers"])
    return float(calculator.results["energy"])


def bare(atoms: Atoms) -> Atoms:
    """Without calculator, constraints and whatever else a structure may carry."""
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def standard(atoms: Atoms, primitive: bool = False, within: float = AS_IT_IS) -> Atoms | None:
    """The standard cell of the crystal, idealized; none where spglib finds none."""
    found = spglib.standardize_cell(_as_tuple(atoms), to_primitive=primitive, no_idealize=False, symprec=within)
    if found is None:
        return None
    lattice, positions, numbers = found
    return Atoms(numbers, cell=lattice, scaled_positions=positions, pbc=True)


def group_of(atoms: Atoms, within: float = AS_IT_IS) -> tuple[str, int]:
    """The space group: its symbol and number."""
    found = symmetry_of(atoms, within)
    return ("P1", 1) if found is None else (str(found.international), int(found.number))


def rotations_of(atoms: Atoms) -> Array:
    """The rotations of the point group, about Cartesian axes: (n, 3, 3)."""
    found = symmetry_of(atoms)
    if found is None:
        return np.eye(3)[None]
    cell = atoms.cell.array.T
    return np.array([cell @ rotation @ np.linalg.inv(cell) for rotation in found.rotations])


def symmetry_of(atoms: Atoms, within: float = AS_IT_IS) -> Any:
    """spglib's dataset of a structure whose atoms are `within` (Å) of the places of its symmetry; none if it finds none."""
    return spglib.get_symmetry_dataset(_as_tuple(atoms), symprec=within)


def _as_tuple(atoms: Atoms) -> tuple[Any, Any, Any]:
    return atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers


def repeated(atoms: Atoms, least: float) -> Atoms:
    """The supercell whose faces are at least so far apart (Å)."""
    counts = tuple(int(n) for n in np.ceil(least / heights(atoms) - 1e-6))
    larger: Atoms = atoms.repeat(counts)
    return larger
