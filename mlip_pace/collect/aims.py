"""FHI-aims: its standard output.

A frame is a self-consistency cycle with its "Total energy uncorrected", which comes with the forces. In a relaxation its
atoms are those printed since the frame before ("Updated atomic structure", at first "Input geometry"); in molecular dynamics
those printed after it ("as used in the preceding time step"). The cell is printed at the beginning and then only where it
changes.

Energy: the "Electronic free energy", which the forces are the derivative of. Forces in eV/Å, stress in eV/Å^3 with ASE's sign.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_numbers
from ase.geometry import find_mic

from mlip_pace.arrays import Array
from mlip_pace.collect.files import FIELD, NOTE, Frame, Unconverged
from mlip_pace.collect.runs import before_the_first, runs

_RUN = re.compile(r"^.*Invoking FHI-aims", re.MULTILINE)
_FLOAT = r"([-+]?\d+\.\d+(?:[EeDd][-+]?\d+)?)"
_THREE = rf" +{_FLOAT} +{_FLOAT} +{_FLOAT}"
_INPUT_ATOM = re.compile(rf"^ *\| +\d+: Species +(\S+){_THREE} *$")
_INPUT_CELL = re.compile(rf"^ *\|{_THREE} *$")
_ATOM = re.compile(rf"^ *atom{_THREE} +(\S+) *$")
_VECTOR = re.compile(rf"^ *lattice_vector{_THREE} *$")
_FORCE = re.compile(rf"^ *\| +(\d+){_THREE} *$")
_STRESS = re.compile(rf"^ *\| +[xyz]{_THREE} +\|")
_COMPACT = re.compile(rf"^ *\| (Total energy corrected|Electronic free energy) +: +{_FLOAT} eV\b")
_BEGINS = re.compile(rf"^ *\| Total energy uncorrected +: +{_FLOAT} eV\b")
_ITERATION = re.compile(rf"^ *\| Electronic free energy +: +{_FLOAT} Ha +{_FLOAT} eV")
_COUNTED = re.compile(r"^ *(?:SCF +(\d+) :|Begin self-consistency iteration # +(\d+))")
_NUMBER = re.compile(r"^ *(?:\| Time step number +:|(Relaxation) step number) +(\d+)")
_FIELD = re.compile(r"Homogeneous external field: Initial settings.*?[1-9]\d*E")
_CONSTRAINED = re.compile(r"Found relaxation constraint for atom")
_ADDED = re.compile(r"^ *many_body_dispersion|\bMBD\b", re.MULTILINE)  # to the energy, after the last iteration


@dataclass(frozen=True)
class _Geometry:
    """Å; `cell` is None where none is printed."""

    symbols: list[str]
    positions: Array
    cell: Array | None


@dataclass
class _Step:
    energies: dict[str, float]  # eV
    before: list[_Geometry | None]  # printed since the step before; None for what is not whole
    converged: bool
    last: float | None  # free energy of the last iteration, eV
    stress: Array | None
    forces: Array | str | None = None  # or what is wrong with them
    after: list[_Geometry | None] = field(default_factory=list)  # printed as those of this step
    number: int | None = None  # as printed after it
    first: int | None = None  # what `number` begins with
    flaw: str = ""


def read(content: bytes) -> Iterator[Frame]:
    """The steps of all runs in the file, in their order."""
    text = content.decode("latin-1")
    said = bool(lost := before_the_first(text, _RUN, "Total energy uncorrected"))
    if lost:
        yield lost
    for run in runs(text, _RUN):
        for frame in _run(run.splitlines()):
            said = True
            yield frame
    if not said:
        yield "it holds no energy: the job ended before its first one, or is no calculation with FHI-aims"


def _run(lines: list[str]) -> Iterator[Frame]:
    steps, cut = _steps(lines)
    head = "\n".join(lines[:5000])
    constrained, added = bool(_CONSTRAINED.search(head)), bool(_ADDED.search(head))
    integration = "hermodynamic integration" in head
    field = bool(_FIELD.search(head)) and "External electric field switched off" not in head
    for one, other in pairwise(steps):
        if one.number is not None and other.number is not None and other.number != one.number + 1:
            one.flaw = other.flaw = f"step {one.number} is followed by {other.number}: what is between them is missing"
    if steps and steps[0].first is not None and steps[0].number != steps[0].first:
        steps[0].flaw = f"the first step is called {steps[0].number}: something is missing"
    if any(step.number is not None and step.first is None for step in steps):  # molecular dynamics
        for step in steps:
            if step.after and step.number is None:
                step.flaw = (
                    step.flaw or "the atoms that come after it are not said to be its own: it has no number, others have"
                )
    cell, known = None, False  # whether it is told that there is one, or none
    atoms = next((g.symbols for step in steps for g in (*step.before, *step.after) if g), [])
    changes = any(g and g.cell is not None for step in steps[1:] for g in step.before)
    for n, step in enumerate(steps):
        if n and changes and any(g and g.cell is None for g in step.before):
            step.flaw = step.flaw or "the cell changes in this run, and that of this step is not printed"
        if any(g and g.symbols != atoms for g in (*step.before, *step.after)):
            step.flaw = step.flaw or "its atoms are not those of the run: it is of another"
        step.last = None if added else step.last
        told = [g for g in (*step.before, *step.after) if g and g.cell is not None]
        known = known or bool(told) or (n == 0 and any(step.before))
        if not known:
            step.flaw = step.flaw or "whether there is a cell is not told, or its table is broken"
        cell = told[0].cell if told else cell
        if integration:
            yield "its energies are those of a thermodynamic integration"
            continue
        frame = _frame(step, cell, constrained)
        if field and isinstance(frame, Atoms):
            frame.info[NOTE] = FIELD
        yield frame
    if cut:
        yield "the file ends within a self-consistency cycle"


def _steps(lines: list[str]) -> tuple[list[_Step], bool]:
    """The steps of a run, and whether it ends before it has the energy of its last cycle."""
    steps: list[_Step] = []
    before: list[_Geometry | None] = []
    last, stress, converged, begun, labels = None, None, False, False, False
    iteration, flaw = 0, ""
    for n, line in enumerate(lines):
        if match := _BEGINS.match(line):
            steps.append(_Step({"uncorrected": _number(match[1])}, before, converged, last, stress, flaw=flaw))
            iteration, flaw = 0, ""
            before, last, stress, converged, begun, labels = [], None, None, False, False, True
        elif match := _COMPACT.match(line):
            name = match[1].removeprefix("Total energy ")
            if labels and steps:
                steps[-1].energies.setdefault(name, _number(match[2]))
            elif steps and abs(steps[-1].energies.get(name, np.inf) - _number(match[2])) > 1e-5:
                steps[-1].flaw = "its energy is printed twice, with different values: something is missing or mixed in"
        elif match := _COUNTED.match(line):
            number = int(match[1] or match[2])
            if number != iteration + 1:
                flaw = f"iteration {iteration} is followed by {number}: something is missing or mixed in"
            iteration = number
        elif match := _ITERATION.match(line):
            last = _number(match[2])
        elif "Total atomic forces" in line and labels:
            steps[-1].forces = _forces(line, lines[n + 1 :])
            labels = False
        elif "Begin self-consistency loop" in line:
            last, stress, converged, begun, labels = None, None, False, True, False
            iteration, flaw = 0, ""
        elif "Self-consistency cycle converged" in line:
            converged = True
        elif "Analytical stress tensor - Symmetrized" in line:
            stress = _stress(lines[n + 1 : n + 12])
        elif "Numerical stress tensor" in line and steps and steps[-1].stress is None:
            steps[-1].stress = _stress(lines[n + 1 : n + 12])
        elif "Input geometry:" in line:
            before.append(_input(lines[n + 1 :]))
        elif "as used in the preceding time step" in line or "Final atomic structure:" in line:
            if steps:
                steps[-1].after.append(_printed(lines[n + 1 :]))
        elif "Updated atomic structure:" in line:
            before.append(_printed(lines[n + 1 :]))
        elif (match := _NUMBER.match(line)) and steps:
            if steps[-1].number is not None:
                steps[-1].flaw = "it is called two steps: what is between them is missing"
            steps[-1].number, steps[-1].first = int(match[2]), 1 if match[1] else None
    return steps, begun


def _frame(step: _Step, cell: Array | None, constrained: bool) -> Frame:
    if step.flaw:
        return step.flaw
    geometries = step.after or step.before
    if not geometries:
        return "its atoms are not printed"
    if any(g is None for g in (*step.before, *step.after)):
        return "a table of its atoms is broken, or the file ends within it"
    known = [g for g in (*step.after, *step.before) if g is not None]
    if any(not _same(known[0], other, cell) for other in known[1:]):
        return "its atoms are printed in several ways"
    symbols, positions = known[0].symbols, known[0].positions
    energies = step.energies
    if "Electronic free energy" in energies:
        free = energies["Electronic free energy"]
    elif "corrected" in energies:  # which is halfway between the energy and the free energy
        free = 2 * energies["corrected"] - energies["uncorrected"]
    else:
        return "its free energy is not printed"
    if step.last is not None and abs(step.last - free) > 1e-4:
        return f"its energy, {free:.6f} eV, is not that of its last iteration"
    results: dict[str, Any] = {"energy": energies.get("corrected", free), "free_energy": free}
    if step.forces is not None:
        if isinstance(step.forces, str):
            return step.forces
        if len(step.forces) != len(symbols):
            return f"forces of {len(step.forces)} atoms are printed, and there are {len(symbols)}"
        if constrained:
            return "the relaxation is constrained, and its forces are not those of the energy"
        results["forces"] = step.forces
    if step.stress is not None and cell is not None:
        results["stress"] = step.stress
    atoms = Atoms(symbols, positions=positions, cell=cell, pbc=cell is not None)
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms if step.converged else Unconverged(atoms, "not converged: FHI-aims does not say that its cycle converged")


def _same(one: _Geometry, other: _Geometry, cell: Array | None) -> bool:
    """Whether two geometries are the same, apart from multiples of lattice vectors and rounding."""
    cells = [g.cell for g in (one, other) if g.cell is not None]
    if one.symbols != other.symbols or (len(cells) == 2 and not np.allclose(cells[0], cells[1], atol=1e-3)):
        return False
    away = one.positions - other.positions
    if cell is not None:
        away = find_mic(away, cell)[0]
    return bool(np.abs(away).max() < 1e-3)


def _input(lines: list[str]) -> _Geometry | None:
    """The table that comes after "Input geometry:"."""
    vectors, symbols, positions, open_ = [], [], [], False
    for line in lines:
        open_ = open_ or "No unit cell" in line
        if match := _INPUT_ATOM.match(line):
            symbols.append(match[1])
            positions.append([_number(x) for x in match.groups()[1:]])
        elif symbols:
            break
        elif match := _INPUT_CELL.match(line):
            vectors.append([_number(x) for x in match.groups()])
        elif not re.match(r"^ *\| *(Unit cell:|Atomic structure:|Atom +x|No unit cell)", line):
            break
    return _geometry(symbols, positions, vectors) if vectors or open_ else None


def _printed(lines: list[str]) -> _Geometry | None:
    """A table of `atom`, `velocity` and perhaps `lattice_vector` lines."""
    vectors, symbols, positions = [], [], []
    whole = False
    for line in lines[1:]:
        if match := _ATOM.match(line):
            symbols.append(match[4])
            positions.append([_number(x) for x in match.groups()[:3]])
        elif match := _VECTOR.match(line):
            vectors.append([_number(x) for x in match.groups()])
        elif not re.match(r"^ *(velocity|constrain_relaxation|initial_moment|initial_charge|#|$)", line):
            whole = not re.match(r"^ *(atom|lattice_vector) ", line)
            break
    return _geometry(symbols, positions, vectors) if whole else None


def _geometry(symbols: list[str], positions: list[list[float]], vectors: list[list[float]]) -> _Geometry | None:
    elements = [re.sub(r"[^A-Za-z].*", "", symbol) for symbol in symbols]  # species may be called `Si_tight`
    if not elements or any(element not in atomic_numbers for element in elements) or len(vectors) not in (0, 3):
        return None
    return _Geometry(elements, np.array(positions), np.array(vectors) if vectors else None)


def _forces(heading: str, lines: list[str]) -> Array | str:
    """(n, 3), or what is wrong with them."""
    if "[eV/Ang]" not in heading:
        return "its forces are not in eV/Ang"
    rows: list[list[float]] = []
    for line in lines:
        match = _FORCE.match(line)
        if not match:
            if re.match(r"^ *\| +\d", line) or not rows:
                return "its table of forces is broken"
            break
        if int(match[1]) != len(rows) + 1:
            return "a row of its forces is missing"
        rows.append([_number(x) for x in match.groups()[1:]])
    else:
        return "the file ends within its forces"
    return np.array(rows)


def _stress(lines: list[str]) -> Array | None:
    """(6,) in ASE's order; none if it is not as we know it."""
    rows = [[_number(x) for x in match.groups()] for line in lines if (match := _STRESS.match(line))]
    pressure = next((m for line in lines if (m := re.search(rf"Pressure: +{_FLOAT} +\[eV/A\*\*3\]", line))), None)
    if len(rows) != 3 or not pressure:
        return None
    tensor = np.array(rows)
    # The sign is told by the pressure.
    if not np.isclose(-np.trace(tensor) / 3, _number(pressure[1]), atol=1e-6, rtol=1e-3):
        return None
    return tensor[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


def _number(word: str) -> float:
    return float(re.sub("[Dd]", "E", word))
