"""CASTEP: its .castep file.

A frame is a self-consistent calculation: `Final energy` ends it, and the forces and the stress that come next are its own. Its
atoms are those printed since the `Final energy` before, and since the step of an optimisation began: between the two CASTEP can
print an earlier geometry, to which it goes back. So the energies at other cutoffs of the finite basis set correction are
no frames of their own, the path of a transition state search (of which CASTEP prints the energies only) is left out, and forces
that are printed once more at the end of an optimisation count once.

What says that nothing is missing between the parts of a frame: each electronic iteration says how much energy it gained, the
iterations of an optimisation are numbered, and a table names the steps within each of them.

Energy: the free energy (E-TS) where there is one, with the dispersion correction, without the finite basis set correction:
CASTEP prints that for some steps only, and it depends on the cell alone. Units are those that CASTEP prints by default;
others are refused.
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
from ase.units import GPa

from mlip_pace.arrays import Array
from mlip_pace.collect.files import Frame, Unconverged
from mlip_pace.collect.runs import before_the_first, runs

_RUN = re.compile(r"^.*(?:Welcome to.*CASTEP|CASTEP version)", re.MULTILINE)  # the latter of Materials Studio
_FLOAT = r"([-+]?\d+\.\d+(?:[Ee][-+]?\d+)?)"
_ENERGIES = {  # the better last
    "energy": re.compile(r"^Final energy(?:, E)? += *(\S+) +(\S+)"),
    "free": re.compile(r"^Final free energy \(E-TS\) += *(\S+) +(\S+)"),
    "corrected": re.compile(r"^Dispersion corrected final energy\*(?:, Ecor)? += *(\S+) +(\S+)"),
    "corrected free": re.compile(r"^Dispersion corrected final free energy\* \(Ecor-TS\) += *(\S+) +(\S+)"),
}
_VECTORS = re.compile(rf"^(?: +{_FLOAT}){{6}} *$")  # a real and a reciprocal one
_TABLE = re.compile(r"^ *\*+ ([A-Za-z ]*?)(Forces|Stress Tensor) \*+")
_ATOM = re.compile(rf"^ *x +([A-Z][a-z]?)(?::\S+)?(?: +\[[^]]*\])? +(\d+) +{_FLOAT} +{_FLOAT} +{_FLOAT} +x")
_FORCE = re.compile(rf"^ *\* +([A-Z][a-z]?)(?::\S+)?(?: +\[[^]]*\])? +(\d+) +{_FLOAT}(\S*) +{_FLOAT}(\S*) +{_FLOAT}(\S*) +\*")
_STRESS = re.compile(rf"^ *\* +[xyz] +{_FLOAT} +{_FLOAT} +{_FLOAT} +\*")
_PRESSURE = re.compile(rf"^ *\* +Pressure: +{_FLOAT} +\*")
_SCF = re.compile(rf"^ *(Initial|\d+) +{_FLOAT} (.*)<-- SCF")  # energy, Fermi energy of a metal, gain of energy per atom, time
_ITERATION = re.compile(r"(starting|improving|finished) (?:\w+ )?iteration +(\d+)", re.IGNORECASE)
_STEPS = re.compile(r"^ *(?:\w+: (starting|improving) iteration|Starting MD iteration)")  # where a new geometry comes next
_BACK = re.compile(r"^ *\w+: reverting to earlier configuration")  # its energy and forces are not printed again
_STEP = re.compile(
    r"^ *\| *(previous|trial step|line step|quad step) *\|.*<-- min"
)  # the last one is that of the energy before
_CONSTRAINTS = re.compile(r"Number of ionic constraints += +(\d+)")


@dataclass
class _Calculation:
    """What is printed of a self-consistent calculation. Lengths in Å, energies in eV, forces in eV/Å, stress in GPa."""

    number: int
    geometries: list[tuple[list[str], Array] | None]  # printed since its step began, with fractional coordinates
    cells: list[Array | None]
    iterations: list[tuple[int, float, float | None]]  # number, energy, and what it gained per atom over the one before
    metal: bool  # with a Fermi energy, so that the energy to take is the free energy
    energies: dict[str, float] = field(default_factory=dict)
    forces: dict[str, tuple[list[str], Array] | str] = field(default_factory=dict)  # by their name, or what is wrong with them
    stress: Array | None = None
    converged: bool = True
    flaw: str = ""


def read(content: bytes) -> Iterator[Frame]:
    """The calculations of all runs in the file, in their order."""
    text = content.decode("latin-1")
    said = bool(lost := before_the_first(text, _RUN, "^Final energy"))
    if lost:
        yield lost
    for run in runs(text, _RUN):
        for frame in _run(run.splitlines()):
            said = True
            yield frame
    if not said:
        yield "it holds no energy: the job ended before its first one, or is no calculation with CASTEP"


def _run(lines: list[str]) -> Iterator[Frame]:
    head = "\n".join(lines[:600])
    if "PairParams" in head:
        yield "its energies are those of a pair potential, not of DFT"
        return
    calculations, extra = _calculations(lines)
    if any("Mixture   Fractional coordinates of atoms" in line for line in lines):
        yield from ["its atoms are mixtures of elements (VCA)" for _ in calculations]
        return
    dispersion = bool(re.search(r"DFT\+D: Semi-empirical dispersion correction *: *on|Dispersion-correction scheme *:", head))
    constraints = max((int(n) for n in _CONSTRAINTS.findall(head)), default=0)
    changes = sum(len(one.cells) for one in calculations) > 1
    iterates = any(one.iterations for one in calculations)
    cell = None
    for one in calculations:
        if iterates and not one.iterations:
            one.flaw = one.flaw or "its electronic iterations are missing"
        if one.cells:
            cell = one.cells[-1]
        elif changes and one.number:
            one.flaw = one.flaw or "the cell changes in this run, and that of this step is not printed"
        yield _frame(one, cell, dispersion, constraints)
    yield from extra


def _calculations(lines: list[str]) -> tuple[list[_Calculation], list[str]]:
    """The calculations of a run, and what is wrong with forces that belong to none."""
    found: list[_Calculation] = []
    extra: list[str] = []
    geometries: list[Any] = []
    cells: list[Any] = []
    iterations: list[tuple[int, float, float | None]] = []
    converged, basis, flaw, iteration, steps, printed = True, False, "", 0, 0, 0
    continued = back = moved = metal = ended = False  # `moved`: a step has begun, whose energy is still to come
    for n, line in enumerate(lines):
        now = found[-1] if found else None
        if match := _SCF.match(line):
            number = 0 if match[1] == "Initial" else int(match[1])
            gain = re.fullmatch(rf"(?: +{_FLOAT})? +{_FLOAT} +{_FLOAT} *", match[3])
            metal = bool(gain and gain[1])
            iterations.append((number, float(match[2]), float(gain[2]) if gain and number else None))
        elif "Real Lattice" in line:
            if not back:
                cells.append(_cell(lines[n : n + 5]))
        elif "Fractional coordinates of atoms" in line:
            if not back:
                geometries.append(_geometry(lines[n + 1 :]))
        elif _BACK.match(line):
            back = True
        elif "not reached the groundstate" in line:
            converged = False
        elif "Calculating finite basis set correction" in line:
            basis = True
        elif re.search(r"^ *(?:continuation|Continuing)|reading model|Reading continuation", line, re.IGNORECASE):
            continued = True
        elif (match := _TABLE.match(line)) and match[2] == "Forces":
            table = _forces(lines[n + 1 :])
            if now is None or match[1] in now.forces or geometries or back or moved:
                if not ended and not _repeats(table, found):
                    extra.append("forces without an energy of their own are printed")
            else:
                now.forces[match[1]] = table
                if iterations or basis:
                    now.flaw = "an energy is missing between its own and its forces"
        elif match:
            if now is not None and not (geometries or back or moved) and now.stress is None:
                now.stress = _stress(lines[n + 1 : n + 14])
        elif match := next((m for pattern in _ENERGIES.values() if (m := pattern.match(line))), None):
            name = next(name for name, pattern in _ENERGIES.items() if pattern.match(line))
            if name == "energy":
                if basis and now is not None and not geometries and not now.forces:
                    geometries, cells = now.geometries, now.cells  # the same calculation at another cutoff
                    found.pop()
                flaw = flaw or _broken(iterations, geometries)
                now = _Calculation(len(found), geometries, cells, iterations, metal, converged=converged, flaw=flaw)
                found.append(now)
                geometries, cells, iterations, converged, flaw, back, moved = [], [], [], True, "", False, False
            if now is None or name in now.energies or match[2] != "eV" or not re.fullmatch(_FLOAT, match[1]):
                flaw = "an energy is no number of eV, or stands where none is expected"
                if now is not None:
                    now.flaw = flaw
            else:
                now.energies[name] = float(match[1])
        elif "Total energy corrected for finite basis set" in line:
            basis = False
        elif match := _STEP.match(line):
            printed = 0 if match[1] == "previous" else printed + 1
            if printed > steps and now is not None:
                now.flaw = f"a step of iteration {iteration} is missing"
        elif match := _ITERATION.search(line):
            if (iterations or basis) and now is not None and not moved:
                now.flaw = now.flaw or "an energy is missing between its own and the next step"
            if step := _STEPS.match(line):
                geometries, cells, iterations, back, moved, basis = [], [], [], False, True, False
                steps = steps + 1 if step[1] == "improving" else 1
            number = int(match[2])
            begins = match[1].lower() == "starting"
            if number != iteration and not (begins and number == iteration + 1) and not (continued and not iteration):
                flaw = f"iteration {iteration} is followed by {'' if begins else 'the end of '}{number}: something is missing"
                if now is not None:
                    now.flaw = flaw
            iteration = number
            # Behind the last step of molecular dynamics the atoms have moved on, and the stress can have another sign.
            ended = "finished MD" in line
            moved = moved or ended
    if found and basis and not moved:
        found[-1].flaw = found[-1].flaw or "the file ends within the finite basis set correction"
    return found, extra


def _frame(one: _Calculation, cell: Array | None, dispersion: bool, constraints: int) -> Frame:
    if one.flaw:
        return one.flaw
    if not one.geometries:
        return "its atoms are not printed, and may have moved"
    first = one.geometries[0]
    if first is None or any(g is None or g[0] != first[0] or not np.array_equal(g[1], first[1]) for g in one.geometries):
        return "its atoms are printed in several ways, or their table is broken"
    if cell is None or any(c is None or not np.array_equal(c, cell) for c in one.cells):
        return "its cell is printed in several ways, or broken, or not at all"
    if dispersion and not one.energies.keys() & {"corrected", "corrected free"}:
        return "its energy is printed without the dispersion correction"
    if one.metal and "free" not in one.energies:
        return "its free energy is missing"
    free = one.energies.get("free", one.energies["energy"])
    if one.iterations and abs(one.iterations[-1][1] - free) > 1e-4 + 1e-7 * abs(free):
        return f"its energy, {free:.6f} eV, is not that of its last iteration"
    names, fractions = first
    energy = one.energies[next(name for name in reversed(_ENERGIES) if name in one.energies)]
    results: dict[str, Any] = {"energy": energy, "free_energy": energy}
    if one.forces:
        name = min(one.forces, key=lambda name: ("Unconstrained" not in name, "Constrained" in name, name))
        table = one.forces[name]
        if isinstance(table, str):
            return table
        if table[0] != names:
            return "the atoms of its forces are not those of its coordinates"
        if name.startswith("Constrained") and constraints > 3:
            return "only constrained forces are printed, which are not the derivative of the energy"
        results["forces"] = table[1]
    if one.stress is not None:
        results["stress"] = one.stress * GPa
    atoms = Atoms([name.split()[0] for name in names], scaled_positions=fractions, cell=cell, pbc=True)
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms if one.converged else Unconverged(atoms, "not converged: CASTEP says that it has not reached the groundstate")


def _broken(iterations: list[tuple[int, float, float | None]], geometries: list[tuple[list[str], Array] | None]) -> str:
    """Why these are not the electronic iterations of one calculation, from its beginning on; or nothing."""
    count = len(geometries[-1][0]) if geometries and geometries[-1] else 0
    if iterations and iterations[0][0]:
        return "its first electronic iterations are missing"
    for (number, before, _), (following, energy, gain) in pairwise(iterations):
        if following != number + 1:
            return f"electronic iteration {number} is followed by {following}: something is missing or mixed in"
        # Energies are printed with nine digits, the gain with more.
        if gain is not None and count and abs(before - energy - count * gain) > 3e-8 * (abs(before) + abs(energy)):
            return f"electronic iteration {following} does not go on from the energy before: something is missing or mixed in"
    return ""


def _repeats(table: tuple[list[str], Array] | str, found: list[_Calculation]) -> bool:
    return not isinstance(table, str) and any(
        not isinstance(other, str) and other[0] == table[0] and np.array_equal(other[1], table[1])
        for one in found
        for other in one.forces.values()
    )


def _geometry(lines: list[str]) -> tuple[list[str], Array] | None:
    """Names like `Si 1` and fractional coordinates (n, 3) of the table whose heading comes before these lines."""
    names, rows = [], []
    for line in lines[2:]:
        if re.match(r"^ *xxxx", line):
            break
        match = _ATOM.match(line)
        if not match or match[1] not in atomic_numbers:
            return None
        names.append(f"{match[1]} {match[2]}")
        rows.append([float(x) for x in match.groups()[2:]])
    else:
        return None  # the file ends within the table
    return (names, np.array(rows)) if rows and len(set(names)) == len(names) else None


def _forces(lines: list[str]) -> tuple[list[str], Array] | str:
    """Names and forces (n, 3), or what is wrong with the table."""
    names, rows = [], []
    if not any("(eV/A)" in line for line in lines[:3]):
        return "its forces are not in eV/A"
    for line in lines[5:]:
        if re.match(r"^ *\*\*\*\*", line):
            break
        if re.fullmatch(r" *\* *\* *", line):
            continue
        match = _FORCE.match(line)
        if not match:
            return "its table of forces is broken"
        if match[4] or match[6] or match[8]:
            return "some components of its forces are constrained, and not those of the energy"
        names.append(f"{match[1]} {match[2]}")
        rows.append([float(match[n]) for n in (3, 5, 7)])
    else:
        return "the file ends within its forces"
    return (names, np.array(rows)) if rows else "its table of forces is empty"


def _stress(lines: list[str]) -> Array | None:
    """(6,) in ASE's order and sign, GPa; none if it is not as we know it."""
    rows = [[float(x) for x in match.groups()] for line in lines if (match := _STRESS.match(line))]
    pressure = next((float(match[1]) for line in lines if (match := _PRESSURE.match(line))), None)
    if len(rows) != 3 or pressure is None or not any("(GPa)" in line for line in lines):
        return None
    tensor = np.array(rows)
    # The sign is told by the pressure.
    if not np.isclose(-np.trace(tensor) / 3, pressure, atol=1e-3, rtol=1e-3):
        return None
    return tensor[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


def _cell(lines: list[str]) -> Array | None:
    if "Real Lattice(A)" not in lines[0]:
        return None
    rows = [[float(x) for x in line.split()[:3]] for line in lines[1:] if _VECTORS.match(line)]
    return np.array(rows) if len(rows) == 3 else None
