"""CP2K: what it prints, 2.5 to 2026: coordinates, cell, energy, forces, stress.

Forces need `FORCE_EVAL/PRINT/FORCES ON`, stress `PRINT/STRESS_TENSOR ON`. CP2K prints coordinates at the beginning of a run
only, so later steps of molecular dynamics and of an optimization are left out by name (extended XYZ made from the trajectory
files serves better there). Coordinates and cell stand before the energy of their step, forces and stress behind it.
CP2K: hartree, hartree/bohr, or the unit in brackets; a stress in GPa (bar in some versions) that is positive under
compression, the opposite of ASE. The energy of a smeared calculation includes -TS, as its forces do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.cell import Cell
from ase.data import atomic_numbers
from ase.units import Bohr, GPa, Hartree, Ry, bar, kcal, kJ, mol

from mlip_pace.collect.files import Frame, Unconverged
from mlip_pace.collect.runs import Unreadable, before_the_first, runs

_REAL = r"([-+]?\d+\.\d*(?:[EeDd][-+]?\d+)?)"
_THREE = rf" +{_REAL} +{_REAL} +{_REAL}"
_RUN = re.compile(r"^ *CP2K\| version string", re.MULTILINE)
_ENERGY = re.compile(r"^ *ENERGY\| Total FORCE_EVAL \( (\w+) +\) energy [\[(](.+?)[\])]:? +(\S+) *\n", re.MULTILINE)
_FREE = re.compile(r"^ *ENERGY\| Total FORCE_EVAL \( \w+ +\) free energy \[.+?\]:? +(\S+) *\n", re.MULTILINE)
_COORDINATES = re.compile(r"^ *MODULE ([\w/]+): +ATOMIC COORDINATES IN (\w+) *\n", re.MULTILINE | re.IGNORECASE)
_CELL = re.compile(r"(?:^ *CELL\| (?:Volume|Vector|Angle) .*\n)+", re.MULTILINE)
_FORCES = re.compile(r"^ *(?:ATOMIC FORCES in|FORCES\| Atomic forces) \[(.+?)\] *\n", re.MULTILINE)
_STRESS = re.compile(
    r"^ *(?:STRESS\| (?:Analytical|Numerical) stress tensor|(?:NUMERICAL )?STRESS TENSOR) \[(.+?)\]", re.MULTILINE
)
# What begins the next step: forces and stress behind it are not of this energy.
_NEXT = re.compile(
    r"SCF WAVEFUNCTION OPTIMIZATION|SCF run|ATOMIC COORDINATES IN|CELL\| Vector|MD\| Step|STEP NUMBER", re.IGNORECASE
)
# What is printed behind an energy: between coordinates and an energy, one is missing.
_RESULTS = re.compile(r"ATOMIC FORCES|FORCES\||STRESS\||STRESS TENSOR|MD_INI\||INITIAL POTENTIAL ENERGY|OPT\| Step|at step =")
_SCF = re.compile(r"^ *Step +Update method .*\n", re.MULTILINE)
# Energy, and how much it changed; a line search (OT LS) does not print that.
_ITERATION = re.compile(r"^ +(\d+) +[A-Z][\w.]*[ /].* ([-+]?\d+\.\d{6,})(?: +([-+]?\d\.\d+E[-+]\d+))? *$", re.MULTILINE)
_LAST = re.compile(r"SCF run NOT converged|(?:SCF run converged in|Leaving inner SCF loop after reaching) +(\d+) ")
# Numbers of steps, behind the energy of each: the first one, which has coordinates, is no step of molecular dynamics.
_STEP = re.compile(
    r"^ *(?:-+ +Informations at step = +|(OPTIMIZATION STEP: +|OPT\| Step number +)|(STEP NUMBER +=? +|MD\| Step number +))"
    r"(\d+)\b",
    re.MULTILINE,
)
_VARIABLE = re.compile(r"GLOBAL\| Run type +CELL_OPT|Ensemble type +(?:NPT|NPE)", re.IGNORECASE)

_ENERGIES = {"a.u.": Hartree, "hartree": Hartree, "ev": 1.0, "ry": Ry, "kcalmol": kcal / mol, "kjmol": kJ / mol}
_LENGTHS = {"bohr": Bohr, "angstrom": 1.0}
_PRESSURES = {"gpa": GPa, "mpa": GPa / 1e3, "pa": GPa / 1e9, "kbar": 1e3 * bar, "bar": bar, "atm": 1.01325 * bar}


@dataclass(frozen=True)
class _Geometry:
    """What is in force at an energy; `lost` says why it is not known."""

    atoms: Atoms | None = None  # positions, without a cell
    cell: Any = None
    pbc: tuple[bool, bool, bool] = (True, True, True)
    lost: str = "no coordinates are printed for this step"


def read_output(text: str) -> Iterator[Frame]:
    """A structure for each energy that CP2K printed; for one that is incomplete or does not fit, the reason."""
    if lost := before_the_first(text, _RUN, r"ENERGY\| Total FORCE_EVAL"):
        yield f"CP2K: {lost}"
    for run in runs(text, _RUN):
        yield from _read_run(run)


def _read_run(text: str) -> Iterator[Frame]:
    energies = list(_ENERGY.finditer(text))
    if not energies:
        yield "CP2K: the run ended before its first energy"
        return
    parts = {match[1] for match in energies}
    variable = _VARIABLE.search(text) is not None or len(set(re.findall(r"^ *CELL\| Volume.*", text, re.MULTILINE))) > 1
    method = _other_method(text, parts)
    geometry = _Geometry()
    for n, energy in enumerate(energies):
        before = text[energies[n - 1].end() if n else 0 : energy.start()]
        behind = text[energy.end() : energies[n + 1].start() if n + 1 < len(energies) else len(text)]
        try:
            geometry = _moved(before, geometry, variable)
            if (not parts <= {"QS", "SIRIUS"} and len(parts) > 1) or parts & {"MIXED", "QMMM", "QMMMX", "EMBED"}:
                raise Unreadable(f"the energy is put together from several parts ({', '.join(sorted(parts))})")
            if geometry.lost:
                raise Unreadable(geometry.lost)
            _whole(before, energy, _SCF.search(text) is not None)
            if step := _STEP.search(behind):
                first = 0 if step[2] is None and step[1] is None else 1 if step[1] else -1
                if int(step[3]) > first:
                    raise Unreadable("steps are missing between its coordinates and its energy")
            atoms = _labelled(geometry, energy, behind[: found.start()] if (found := _NEXT.search(behind)) else behind)
            reason = "the SCF did not converge" if _failed(before) else method
            yield Unconverged(atoms, f"CP2K: {reason}") if reason else atoms
        except Unreadable as reason:
            yield f"CP2K: {reason}"


def _whole(before: str, energy: re.Match[str], iterates: bool) -> None:
    """Raises `Unreadable` if the SCF before an energy is not all there: each iteration goes on from the one before."""
    begins = [match.end() for match in _SCF.finditer(before)]
    if iterates and not begins:
        raise Unreadable("the SCF of this energy is missing")
    last = 0.0
    for begin, end in zip(begins, [*begins[1:], len(before)][: len(begins)], strict=True):
        table = before[begin:end]
        ends = _LAST.search(table)
        rows = _ITERATION.findall(table[: ends.start()] if ends else "")
        if [int(n) for n, *_ in rows] != list(range(1, len(rows) + 1)) or not ends or (ends[1] and int(ends[1]) != len(rows)):
            raise Unreadable("iterations of the SCF are missing")
        for number, value, change in rows:
            # Three digits of the change are printed. The first SCF of a step begins at 0, one of an outer loop where it was.
            since = [last, 0.0] if number == "1" else [last]
            if change and all(abs(_float(value) - one - _float(change)) > 0.006 * abs(_float(change)) + 1e-9 for one in since):
                raise Unreadable("iterations of the SCF are missing")
            last = _float(value) if change else last


def _failed(before: str) -> bool:
    """Whether the last SCF before an energy did not converge; with an outer loop, inner ones may end early."""
    inner, outer = (re.findall(rf"{loop} (converged|NOT converged|FAILED)", before) for loop in ("SCF run", "outer SCF loop"))
    return bool((outer or inner or ["converged"])[-1] != "converged")


def _other_method(text: str, parts: set[str]) -> str:
    """Why the energies of a run are not those of DFT's ground state, or nothing."""
    if other := sorted(parts - {"QS", "SIRIUS"}):
        return f"the energy is that of {other[0]}, not of DFT"
    if approximation := re.search(r"^ *(xTB|DFTB)\| ", text, re.MULTILINE | re.IGNORECASE):
        return f"the energy is that of {approximation[1]}, not of DFT"
    if dynamics := re.search(r"GLOBAL\| Run type +(RT_PROPAGATION|EHRENFEST_DYN)", text):
        return f"electrons move ({dynamics[1]}) and are not in their ground state"
    return ""


def _float(text: str) -> float:
    try:
        return float(text.replace("D", "E").replace("d", "e"))
    except ValueError:
        raise Unreadable(f"{text} is no number") from None


def _unit(units: dict[str, float], name: str) -> float:
    if name.lower() not in units:
        raise Unreadable(f"the unit {name} is not known")
    return units[name.lower()]


def _numbers(rows: list[tuple[str, ...]]) -> Any:
    """(n, 3); a number that was cut off has fewer digits than the others."""
    if len({len(x.partition(".")[2]) for row in rows for x in row}) > 1:
        raise Unreadable("a table is cut off")
    return np.array([[_float(x) for x in row] for row in rows])


def _rows(text: str, pattern: str) -> list[tuple[str, ...]]:
    """The lines that match the pattern up to their end, from the first one on, without a gap."""
    rows: list[tuple[str, ...]] = []
    for line in text.splitlines(keepends=True):
        match = re.fullmatch(pattern + r"\s*\n", line)
        if match:
            rows.append(match.groups())
        elif rows:
            break
    return rows


def _moved(text: str, before: _Geometry, variable: bool) -> _Geometry:
    """The geometry after the text before an energy. Raises `Unreadable`."""
    tables = [(match[2], _rows(text[match.end() :], _SITE)) for match in _COORDINATES.finditer(text)]
    cells = [_cell(match[0]) for match in _CELL.finditer(text)]
    pbc = before.pbc
    found = dict(re.findall(r"^ *(\w+)\| Periodicity +(XYZ|XY|XZ|YZ|X|Y|Z|NONE) *\n", text, re.MULTILINE))
    # Older versions print that of the electrostatics only.
    periodic = next((found[of] for of in ("CELL", "CELL_TOP", "CELL_REF", "POISSON") if of in found), None)
    if periodic:
        pbc = (("X" in periodic), ("Y" in periodic), ("Z" in periodic))
    cell = cells[-1] if cells else before.cell
    if not tables:
        return _Geometry(None, cell, pbc)
    lost = ""
    if any(rows != tables[0][1] for _, rows in tables):
        lost = "there are several sets of coordinates for one energy"
    elif any(abs(other - cell).max() > 1e-6 for other in cells):
        lost = "there are several cells for one energy"
    elif _RESULTS.search(text[list(_COORDINATES.finditer(text))[-1].end() :]):
        lost = "an energy is missing"
    elif cell is None or (variable and not cells):
        lost = "no cell is printed for this step"
    return _Geometry(_atoms(*tables[-1], text), cell, pbc, lost)


_SITE = rf" *(\d+) +\d+ +([A-Za-z]{{1,2}}) +(\d+){_THREE} +([\d.]+) +[\d.]+"


def _atoms(unit: str, rows: list[tuple[str, ...]], text: str) -> Atoms:
    count = re.search(r"^ +- Atoms: +(\d+) *\n", text, re.MULTILINE)
    if [int(n) for n, *_ in rows] != [n + 1 for n in range(int(count[1]) if count else max(len(rows), 1))]:
        raise Unreadable("the coordinates cannot be read")
    symbols = [symbol.title() for _, symbol, *_ in rows]
    if [atomic_numbers.get(symbol) for symbol in symbols] != [int(number) for _, _, number, *_ in rows]:
        raise Unreadable("the elements cannot be read")
    if any(float(charge) == 0 for *_, charge in rows):
        raise Unreadable("there are ghost atoms")
    return Atoms(symbols, _numbers([row[3:6] for row in rows]) * _unit(_LENGTHS, unit))


def _cell(text: str) -> Any:
    """The vectors in Å: printed to 0.001, with the lengths and angles, which newer versions print with more digits."""
    vectors, lengths = [], []
    lines = [line for line in text.splitlines() if "CELL| Vector" in line]
    for name, line in zip("abc", lines, strict=False):
        match = re.fullmatch(rf" *CELL\| Vector {name} \[(\w+)\]:{_THREE} +\|{name}\| = +{_REAL} *", line, re.IGNORECASE)
        if not match:
            raise Unreadable("the cell cannot be read")
        unit = _unit(_LENGTHS, match[1])
        vectors.append([_float(x) * unit for x in match.groups()[1:4]])
        lengths.append(_float(match[5]) * unit)
    printed = np.array(vectors)
    if len(lines) != 3 or abs(np.linalg.norm(printed, axis=1) - lengths).max() > 2e-3:
        raise Unreadable("the cell cannot be read")
    digits = [len(x.rpartition(".")[2]) for x in re.findall(_REAL, lines[0])]
    angles = [float(x) for x in re.findall(r"^ *CELL\| Angle \(.,.\), \w+ +\[degree\]: +([\d.]+) *\n", text, re.MULTILINE)[:3]]
    if digits[-1] <= digits[0]:
        return printed
    if len(angles) < 3:
        raise Unreadable("the cell cannot be read")
    exact = Cell.fromcellpar([*lengths, *angles]).array
    if abs(exact - printed).max() < 1e-3:
        return exact  # as CP2K itself turns a cell that is given by lengths and angles
    # The rotation (and reflection) that takes the exact cell closest to the printed one.
    left, _, right = np.linalg.svd(exact.T @ printed)
    turned = exact @ left @ right
    if abs(turned - printed).max() > 2e-3:
        raise Unreadable("the lengths and angles are not those of the cell's vectors")
    return turned


def _labelled(geometry: _Geometry, energy: re.Match[str], behind: str) -> Atoms:
    """The atoms with what is printed behind their energy."""
    bare = geometry.atoms
    assert bare is not None
    # SIRIUS prints an energy without -TS and the free energy, to which the forces belong.
    value = free[1] if (free := _FREE.search(behind)) else energy[3]
    if not behind.strip():
        raise Unreadable("the run ended at its energy")
    labels: dict[str, Any] = {"energy": _float(value) * _unit(_ENERGIES, energy[2])}
    if not re.fullmatch(r"[-+]?\d+\.\d{6,}", value) or re.match(r" *\d+ *\n", behind):
        raise Unreadable("the energy is cut off")
    labels["free_energy"] = labels["energy"]
    if found := _FORCES.search(behind):
        labels["forces"] = _forces(behind[found.end() :], list(bare.symbols)) * _force_unit(found[1])
    elif len(bare) > 1:
        raise Unreadable("no forces are printed (FORCE_EVAL/PRINT/FORCES)")
    if found := _STRESS.search(behind):
        rows = _rows(behind[found.end() :], rf" *(?:STRESS\|)? +[xyzXYZ]{_THREE}")
        tensor = _numbers(rows[:3])
        if tensor.shape != (3, 3) or abs(tensor - tensor.T).max() > 1e-3 * (1 + abs(tensor).max()):
            raise Unreadable("the stress cannot be read")
        labels["stress"] = -tensor[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]] * _unit(_PRESSURES, found[1])
    atoms = Atoms(bare.numbers, bare.positions, cell=geometry.cell, pbc=geometry.pbc)
    atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def _force_unit(name: str) -> float:
    match = re.fullmatch(r"(\w+)(?:/(\w+)|\*(\w+)\^-1)", name)
    if name.lower() == "a.u.":
        return Hartree / Bohr
    if not match:
        raise Unreadable(f"the unit {name} is not known")
    return _unit(_ENERGIES, match[1]) / _unit(_LENGTHS, match[2] or match[3])


def _forces(text: str, symbols: list[str]) -> Any:
    """(n, 3) as printed: by atom, kind and element, or behind `FORCES|` by atom and with their length."""
    rows = _rows(text, rf" *(\d+) +\d+ +([A-Za-z]{{1,2}}){_THREE}")
    if not rows:
        rows = [(n, "", *xyz) for n, *xyz in _rows(text, rf" *FORCES\| +(\d+){_THREE} +[\d.E+-]+")]
    if [int(n) for n, *_ in rows] != [n + 1 for n in range(len(symbols))]:
        raise Unreadable(f"the forces cannot be read: {len(symbols)} are expected")
    if any(symbol and symbol.title() != own for (_, symbol, *_), own in zip(rows, symbols, strict=True)):
        raise Unreadable("the forces are those of other elements")
    forces = _numbers([row[2:] for row in rows])
    total = re.search(rf"^ *(?:SUM OF ATOMIC FORCES|FORCES\| Sum){_THREE}", text, re.MULTILINE)
    if total and abs(forces.sum(axis=0) - [_float(x) for x in total.groups()]).max() > 1e-6 * (1 + len(symbols)):
        raise Unreadable("the forces do not add up to their sum")
    return forces
