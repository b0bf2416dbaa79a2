"""The crystals of the data: the structure of lowest energy of each composition, relaxed with its cell, and its symmetry.

What is hot, strained or in a supercell in the data relaxes to a crystal or to none. Space groups and standard cells are
spglib's (A. Togo, K. Shinohara, I. Tanaka, Sci. Technol. Adv. Mater., Meth. 4, 2384822 (2024)).
Energies in eV/atom relative to the sum of E0, lengths in Å, angles in degrees.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import spglib
from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.optimize import LBFGS

from mlip_pace.arrays import Array
from mlip_pace.collect.cells import heights
from mlip_pace.collect.dataset import ATOMS, ENERGY, ENERGY_ATOMS, SOURCE, composition
from mlip_pace.probe.ground import is_bulk
from mlip_pace.run.stopping import raise_if_stopped

SAME_PLACE = 0.05  # Å: atoms this far from places of a symmetry may belong on them; the relaxation then says
AS_IT_IS = 5e-3  # Å: the same of structures that are as they are; a strain of half a percent is seen
FIRST, LAST = 5e-3, 1e-4  # eV/Å: forces on atoms, and on the cell, after the first relaxation and after that of the crystal
STEPS = 500  # of a relaxation
AWAY, RESTLESS = "it relaxes away", "it did not relax"
NEARLY = 0.1  # eV/Å; forces that are smaller at the end are no sign that a crystal falls apart
HIGHER = 1e-3  # eV/atom that the symmetric structure may be above the one that it was found in
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
    relaxed: Lattice
    energy: float  # of what it relaxed to, eV/atom
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


def lowest_of(frame: pd.DataFrame) -> tuple[list[Lowest], list[Lowest]]:
    """Of each composition of the data (columns of `dataset.py`) the bulk structure of lowest energy; and the structure of
    lowest energy of those that have none. Bulk elements come first, then compounds by the number of atoms in their formula; of
    the others those with the most structures.
    """
    cohesive = (frame[ENERGY] - frame[ENERGY_ATOMS]) / frame[ATOMS].map(len)
    found, without = list[Lowest](), list[tuple[int, Lowest]]()
    for name, alike in cohesive.groupby(frame[ATOMS].map(composition)):
        order = alike.sort_values(kind="stable").index
        bulk = next((n for n in order if is_bulk(frame[ATOMS][n])), None)
        n = order[0] if bulk is None else bulk
        lowest = Lowest(str(name), str(frame[SOURCE][n]), bare(frame[ATOMS][n]), float(cohesive[n]))
        if bulk is None:
            without.append((len(alike), lowest))
        else:
            found.append(lowest)
    found.sort(key=lambda one: (_formula_atoms(one.atoms), one.energy))
    return found, [lowest for _, lowest in sorted(without, key=lambda one: -one[0])]


def _formula_atoms(atoms: Atoms) -> int:
    return sum(atoms.symbols.formula.reduce()[0].count().values())


def crystal_of(lowest: Lowest, calculator: Any, e0: Mapping[str, float], deadline: float = math.inf) -> Crystal:
    """What a structure of the data relaxes to, its cell with it. Raises `LeftOutError`."""
    given = lowest.atoms
    first = relaxed(given, calculator, deadline, cell=True, fmax=FIRST)
    best, energy = first, cohesive(first, calculator, e0)
    if (symmetric := standard(first, primitive=True, within=SAME_PLACE)) is not None:
        best = relaxed(symmetric, calculator, deadline, cell=True, fmax=LAST)
        if cohesive(best, calculator, e0) > energy + HIGHER:  # its symmetry is lower than it looks
            best = relaxed(first, calculator, deadline, cell=True, fmax=LAST)
        energy = cohesive(best, calculator, e0)
    conventional = standard(best)
    lattice, small = Lattice.of(best), len(best) <= LARGEST_CELL
    is_crystal = small and (lattice.number > 1 or len(best) <= WITHOUT_SYMMETRY)
    cell = Cell.of(best if conventional is None else conventional)
    return Crystal(lowest.source, Lattice.of(given), lowest.energy, lattice, energy, cell, is_crystal)


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
