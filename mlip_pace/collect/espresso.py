"""Quantum ESPRESSO: the text output of pw.x, 4.0 to 7.5, one run or several in a file.

Coordinates that pw.x prints belong to the SCF that follows them, so a run is cut where it prints coordinates, and every piece
is one step: its coordinates, its SCF, its forces and its stress. A step whose parts do not fit each other is left out by name.
pw.x: Ry, Ry/bohr, and a stress in Ry/bohr^3 that is positive under compression, the opposite of ASE. The energy of the last `!`
(of a hybrid functional `!!`) is the free energy F = E - TS, which belongs to the forces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_numbers
from ase.units import Bohr, Ry

from mlip_pace.collect.files import FIELD, NOTE, Frame, Unconverged
from mlip_pace.collect.runs import Unreadable, before_the_first, runs

_REAL = r"([-+]?\d*\.\d+(?:[EeDd][-+]?\d+)?)"
_THREE = rf" *{_REAL} *{_REAL} *{_REAL}"  # f14.8 leaves no space before -100.12345678
_RUN = re.compile(r"^ *Program PWSCF +v", re.MULTILINE)
_COORDINATES = re.compile(r"^(?:CELL_PARAMETERS|ATOMIC_POSITIONS)\b", re.MULTILINE)
_ENERGY = re.compile(r"^ *(!{0,2}) *total energy +=(.*?)Ry *$", re.MULTILINE)
_FORCES = re.compile(r"^ *Forces acting on atoms \(.*Ry/au\): *\n", re.MULTILINE)
_STRESS = re.compile(r"^ *total +stress +\(Ry/bohr\*\*3\).*P= *(\S+) *\n((?:.*\n){3})", re.MULTILINE)
# How many steps the optimizer, or molecular dynamics, counts: printed after the forces of a step.
_FINAL = "A final scf calculation at the relaxed structure"  # of a relaxation of the cell, whose basis was that of the first
_COUNT = re.compile(
    r"(?:number of scf cycles += *|Entering Dynamics[:;] +(?:iteration|it) += *|bfgs (?:converged in|failed after) +)(\d+)"
)
_LABELS = "species"
_VOLUME = 1e-3  # relative; axes are printed with 6 decimals
_ROUNDED = 2e-6, 1e-5  # of the total force: Ry/bohr, printed with 6 decimals; and of one that is large, as a fraction


@dataclass(frozen=True)
class _Run:
    """What pw.x says once, at the beginning of a run."""

    alat: float  # Å
    count: int  # of atoms
    pseudopotentials: dict[str, str]  # the element that each species' file names
    threshold: float  # Ry, for the SCF; infinite if it was not printed
    potentiostat: bool  # the number of electrons follows an electrode potential
    field: bool  # an electric field from outside: lelfield, or tefield with an amplitude (not a dipole correction alone)
    constrained: bool  # distances or angles are held
    free: Any = None  # (n, 3), False where the user holds fixed a component of an atom; None if no step says it


def read_output(text: str) -> Iterator[Frame]:
    """A structure for each set of coordinates that has an SCF; for one that is incomplete or does not fit, the reason."""
    if lost := before_the_first(text, _RUN, "Forces acting on atoms"):
        yield f"pw.x: {lost}"
    for run in runs(text, _RUN):
        yield from _read_run(run)


def _read_run(text: str) -> Iterator[Frame]:
    begin = max(text.find("crystal axes:"), 0)  # some versions print the first coordinates twice
    starts = [0, *(match.start() for match in _COORDINATES.finditer(text, begin))]
    pieces = [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    try:
        run = _header(pieces[0])
        run = replace(run, free=_free(pieces, run.count))
        cell = _axes(pieces[0], run)
    except Unreadable as reason:
        yield f"pw.x: {reason}"
        return
    atoms, lost = _first(pieces[0], cell, run)
    if re.search(r"NEW-OLD atomic charge|charge density extrapolation", pieces[0]):
        lost = "the coordinates of this step are missing"  # it is not the first: its density begins with that of others
    frames: list[Frame] = []
    new: Any = None  # a cell that waits for the positions that go with it
    count, variable = 0, _cell_varies(text, begin)
    # Where the relaxation converged, these are the coordinates of its last step; else they are new.
    final = text.find("Begin final coordinates", text.find("bfgs converged")) if "bfgs converged" in text else -1
    for start, before_it, piece in zip(starts, ["", *pieces], pieces, strict=False):
        try:
            if piece.startswith("CELL_PARAMETERS"):
                new, lost = _cell(piece, run.alat), "a new cell has no positions"
                _has_volume(new, before_it)
            elif piece.startswith("ATOMIC_POSITIONS"):
                if new is None and variable:
                    raise Unreadable("the cell of these positions is not printed")
                cell, new, lost = cell if new is None else new, None, ""
                atoms = _moved(piece, atoms, cell, run)
                last = frames[-1] if 0 <= final < start and frames else None
                if isinstance(last, Atoms) and not _alike(last, atoms, 1e-4):
                    frames[-1] = "pw.x: the final coordinates are not those of the last step: something is missing"
            frame = _frame(piece, atoms, run)
        except Unreadable as reason:
            if _COORDINATES.match(piece):
                new, lost = None, str(reason)
            frame = f"pw.x: {reason}"
        if frame is None:
            continue
        frames.append(f"pw.x: {lost}" if lost else frame)
        if match := _COUNT.search(piece):
            before, count = count, int(match[1])
            continued = before == 0 and ("restart" in text.lower() or "from file used" in text)
            if count != before + 1 and not continued and not isinstance(frames[-1], str):
                frames[-1] = f"pw.x: steps are missing: step {count} comes after step {before}"
    match frames[-2:]:
        case [Atoms() as one, Atoms() as other] if _FINAL in text and _alike(one, other, 1e-6):
            frames[-2] = "pw.x: its SCF was done again, in the basis of its own cell"
    yield from frames or ["pw.x: the run ended before its first SCF"]


def _alike(one: Atoms, other: Atoms, tolerance: float) -> bool:
    """Whether both are the same structure, to a tolerance in Å."""
    places = ((one.positions, other.positions), (one.cell.array, other.cell.array))
    return all(np.allclose(here, there, rtol=0, atol=tolerance) for here, there in places)


def _free(pieces: list[str], count: int) -> Any:
    """Which components of the atoms are free (n, 3), as it stands behind the positions of a step; None if none has any."""
    for piece in pieces[1:]:
        lines = piece.splitlines()[1 : count + 1]
        rows = [re.fullmatch(rf" *\S+{_THREE}((?: +[01]){{3}})? *", line) for line in lines]
        if piece.startswith("ATOMIC_POSITIONS") and len(rows) == count and all(rows):
            return np.array([(row[4] or "1 1 1").split() for row in rows if row]) == "1"
    return None


def _cell_varies(text: str, begin: int) -> bool:
    """Whether every step has a cell of its own; the final coordinates have one even where it is fixed."""
    steps = text[begin:].partition("Begin final coordinates")[0]
    moved = re.search("^CELL_PARAMETERS|new unit-cell volume", steps, re.MULTILINE)
    return moved is not None or "press convergence thresh" in text


def _number(text: str, pattern: str, what: str) -> float:
    match = re.search(pattern + rf" *{_REAL}(?=\s)", text)
    if not match:
        raise Unreadable(f"{what} cannot be read")
    return _float(match[1])


def _float(text: str) -> float:
    return float(text.replace("D", "E").replace("d", "e"))


def _rows(text: str, pattern: str, count: int, what: str) -> list[tuple[str, ...]]:
    """The first `count` lines, which must match the pattern up to their end; a number that was cut off has fewer digits."""
    lines = [line for line in text.splitlines(keepends=True)[: count + 2] if line.strip()][:count]
    matches = [re.fullmatch(pattern + r"\s*\n", line) for line in lines]
    rows = [match.groups() for match in matches if match]
    if len(rows) < count or len({len(x.partition(".")[2]) for row in rows for x in row[-3:]}) > 1:
        raise Unreadable(f"{what} cannot be read: {count} lines are expected")
    return rows


def _header(text: str) -> _Run:
    alat = _number(text, r"lattice parameter \((?:alat|a_0)\) +=", "the lattice parameter")
    precise = _number(text, r"celldm\(1\)=", "the lattice parameter")
    if abs(alat - precise) > 1e-4:
        raise Unreadable("the lattice parameter cannot be read")
    count = re.search(r"number of atoms/cell +=\s*(\d+)", text)
    if not count:
        raise Unreadable("the number of atoms cannot be read")
    # RISM has other thresholds; the one of the SCF follows the cutoffs.
    after = r"charge density cutoff .*\n(?: *cutoff for Fock .*\n)?"
    threshold = re.search(after + rf" *(?:scf )?convergence threshold += +{_REAL}", text)
    table = text.partition("atomic species   valence")[2].partition("\n\n")[0]
    return _Run(
        Bohr * precise,
        int(count[1]),
        dict(re.findall(r"^ *(\S+) +[\d.]+ +[\d.]+ +([A-Za-z]*) *\(", table, re.MULTILINE)),
        _float(threshold[1]) if threshold else np.inf,
        re.search(r"FCP \w+ is activated", text) is not None,
        re.search(r"Using Berry phase electric field|E field amplitude \[Ha a\.u\.\] *: *-?[\d.]*[1-9]", text) is not None,
        "constrain" in text.lower(),
    )


def _axes(text: str, run: _Run) -> Any:
    """The cell that the run begins with, in Å."""
    axes = re.search("crystal axes:.*\n" + "".join(rf" *a\({i}\) = \({_THREE} \) *\n" for i in (1, 2, 3)), text)
    if not axes:
        raise Unreadable("the cell cannot be read")
    cell = np.array([_float(x) for x in axes.groups()]).reshape(3, 3) * run.alat
    volume = _number(text, r"unit-cell volume +=", "the volume") * Bohr**3
    if abs(abs(np.linalg.det(cell)) - volume) > _VOLUME * volume:
        raise Unreadable("the volume is not that of the cell")
    return cell


def _first(text: str, cell: Any, run: _Run) -> tuple[Atoms, str]:
    """The atoms that the run begins with, or none and the reason: later steps print their own."""
    tables = [match.end() for match in re.finditer(r"site n\. +atom +positions \((?:alat|a_0) units\) *\n", text)]
    again = re.search(r"site n\. +atom +positions \(cryst\. coord\.\) *\n", text)
    row = rf" *[\d*]+ +(\S+) +tau\( *[\d*]+\) = \({_THREE} +\)"
    try:
        if len(tables) > 1:
            raise Unreadable("the first positions are not the only ones")
        rows = _rows(text[tables[0] :] if tables else "", row, run.count, "the first positions")
        symbols = [_element(label, run) for label, *_ in rows]
        positions = np.array([[_float(x) for x in xyz] for _, *xyz in rows]) * run.alat
        if again:
            crystal = np.array(
                [[_float(x) for x in xyz] for _, *xyz in _rows(text[again.end() :], row, run.count, "positions")]
            )
            if abs(crystal @ cell - positions).max() > 1e-4:
                raise Unreadable("the first positions are not those of the cell")
    except Unreadable as reason:
        return Atoms(), str(reason)
    atoms = Atoms(symbols, positions, cell=cell, pbc=True)
    atoms.info[_LABELS] = [label for label, *_ in rows]
    return atoms, ""


def _element(label: str, run: _Run) -> str:
    """That of the pseudopotential if its file names one, else that in the label of the species (`Fe1`, `C_h`)."""
    if label not in run.pseudopotentials:
        raise Unreadable(f"the table of species has no {label}, or is missing")
    letters = re.sub("[^A-Za-z].*", "", label)
    for one in (run.pseudopotentials[label].title(), letters[:2].title(), letters[:1].title()):
        if one != "X" and one in atomic_numbers:
            return one
    raise Unreadable(f"the species {label} is no chemical element")


def _cell(piece: str, alat: float) -> Any:
    """The three vectors in Å."""
    match = re.match(rf"CELL_PARAMETERS *\((alat|bohr|angstrom)(?:= *{_REAL})?\) *\n", piece)
    if not match:
        raise Unreadable("the unit of a cell cannot be read")
    rows = _rows(piece[match.end() :], _THREE, 3, "a cell")
    unit = {"alat": _float(match[2]) * Bohr if match[2] else alat, "bohr": Bohr, "angstrom": 1.0}[match[1]]
    return np.array([[_float(x) for x in row] for row in rows]) * unit


def _has_volume(cell: Any, before: str) -> None:
    """Raises `Unreadable` if a new cell has not the volume that is printed before it."""
    printed = re.search(rf"new unit-cell volume += *{_REAL} a\.u\.\^3", before)
    if printed and abs(abs(np.linalg.det(cell)) / Bohr**3 / _float(printed[1]) - 1) > _VOLUME:
        raise Unreadable("the volume is not that of the cell")


def _moved(piece: str, before: Atoms, cell: Any, run: _Run) -> Atoms:
    """The atoms at the positions that the piece begins with: those of `before`, if it is known, in the same order."""
    match = re.match(r"ATOMIC_POSITIONS *\((alat|bohr|angstrom|crystal)\) *\n", piece)
    if not match:
        raise Unreadable("the unit of positions cannot be read")
    rows = _rows(piece[match.end() :], rf" *(\S+){_THREE}(?:(?: +[01]){{3}})?", run.count, "positions")
    labels = [label for label, *_ in rows]
    if before and labels != before.info[_LABELS]:
        raise Unreadable("positions are not those of the same atoms")
    atoms = Atoms([_element(label, run) for label in labels], cell=cell, pbc=True)
    atoms.info[_LABELS] = labels
    numbers = np.array([[_float(x) for x in xyz] for _, *xyz in rows])
    if match[1] == "crystal":
        atoms.set_scaled_positions(numbers)
    else:
        atoms.positions = numbers * {"alat": run.alat, "bohr": Bohr, "angstrom": 1.0}[match[1]]
    return atoms


def _frame(piece: str, atoms: Atoms, run: _Run) -> Frame | None:
    """What the piece says of the atoms; nothing if it has no calculation: the last coordinates are printed twice."""
    energies = [(match.start(), match[1], match[2]) for match in _ENERGY.finditer(piece)]
    forces = [match.end() for match in _FORCES.finditer(piece)]
    if not energies and not forces:
        if "Band Structure Calculation" in piece:
            return "pw.x: a band structure calculation is not self-consistent and has no energy"
        return "pw.x: the run ended within the SCF" if "Self-consistent Calculation" in piece else None
    failed = "convergence NOT achieved" in piece
    hybrid = "EXX: now go back" in piece or any(mark == "!!" for _, mark, _ in energies)
    final = [(at, value) for at, mark, value in energies if mark == "!!"] if hybrid else _converged(piece)
    if failed and not final:
        if len(re.findall(r"^ *iteration # ", piece, re.MULTILINE)) > len(energies):
            raise Unreadable("iterations of the SCF are missing")
        final = [(at, value) for at, _, value in energies[-1:]]
    if len(final) > 1 or len(forces) > 1:
        raise Unreadable("there is more than one result for the same coordinates")
    if not final:
        raise Unreadable("the run ended within the SCF")
    _whole(piece, hybrid)
    at, energy = final[0]
    if not re.fullmatch(rf" *{_REAL} *", energy):
        raise Unreadable("the energy cannot be read")
    labels: dict[str, Any] = {"energy": _float(energy) * Ry, "free_energy": _float(energy) * Ry}
    if forces:
        if forces[0] < at:
            raise Unreadable("the forces come before the energy")
        labels["forces"] = _forces(piece[forces[0] :], atoms, run) * Ry / Bohr
    elif len(atoms) > 1 and not failed:
        raise Unreadable("no forces are printed (tprnfor = .true.)")
    stress = _stress(piece[at:])
    if stress is not None:
        labels["stress"] = stress
    atoms = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
    atoms.calc = SinglePointCalculator(atoms, **labels)
    if run.field:
        atoms.info[NOTE] = FIELD
    accuracy = re.search(rf"estimated scf accuracy +< +{_REAL} Ry", piece[at:])
    if failed:
        return Unconverged(atoms, "pw.x: the SCF did not converge")
    if accuracy and not hybrid and _float(accuracy[1]) > 1.06 * run.threshold:
        reason = f"pw.x: the SCF stopped at {accuracy[1]} Ry, above its threshold of {run.threshold:.1e} Ry (scf_must_converge)"
        return Unconverged(atoms, reason)
    if run.potentiostat:
        return Unconverged(atoms, "pw.x: the charge of the cell follows an electrode potential (FCP)")
    return atoms


def _converged(piece: str) -> list[tuple[int, str]]:
    """Where the energy at the end of each SCF is, and its text: an `!` can also stand after every iteration (iprint)."""
    ends = [match.end() for match in re.finditer("End of self-consistent calculation", piece)]
    found = [
        next((match for match in _ENERGY.finditer(piece, begin, end) if match[1]), None)
        for begin, end in zip(ends, [*ends, len(piece)][1:], strict=True)
    ]
    return [(match.start(), match[2]) for match in found if match]


def _whole(piece: str, hybrid: bool) -> None:
    """Raises `Unreadable` if iterations are missing, as in files of which a part is lost."""
    cycles = piece.split("Self-consistent Calculation")[1:]
    ends = "End of self-consistent calculation" if hybrid else "\n!"
    if any(ends not in cycle and "convergence NOT achieved" not in cycle for cycle in cycles[:-1]):
        raise Unreadable("an SCF begins within another: what is between them is missing")
    for cycle in cycles:
        numbers = [int(n) for n in re.findall(r"^ *iteration # *(\d+) ", cycle, re.MULTILINE)]
        end = cycle.partition("End of self-consistent calculation")[2]
        last = re.search(r"convergence has been achieved in +(\d+) iterations", end)
        if numbers != list(range(numbers[0], numbers[0] + len(numbers)) if numbers else []):
            raise Unreadable("iterations of the SCF are missing")
        # Where the magnetization is constrained, the last one is counted and not printed.
        if last and numbers and not hybrid and int(last[1]) not in (numbers[-1], numbers[-1] + 1):
            raise Unreadable("iterations of the SCF are missing")


def _forces(text: str, atoms: Atoms, run: _Run) -> Any:
    """(n, 3) in Ry/bohr; what follows them are the parts that they consist of."""
    row = rf" *atom +([\d*]+) +type +[\d*]+ +force = {_THREE}"
    rows = _rows(text[max(text.find("     atom "), 0) :], row, len(atoms), "the forces")  # notes may come before them
    if [n for n, *_ in rows if "*" not in n] != [str(n + 1) for n in range(len(atoms)) if "*" not in rows[n][0]]:
        raise Unreadable("the forces are not in the order of the atoms")
    forces = np.array([[_float(x) for x in xyz] for _, *xyz in rows]).reshape(-1, 3)
    if match := re.search(rf"Total force = *{_REAL}", text):
        total, small = _float(match[1]), _ROUNDED[0] + _ROUNDED[1] * _float(match[1])
        # Those on atoms that the user holds fixed are printed, but do not count for the total; nor do those of constraints.
        known = run.free is not None and len(atoms) == run.count
        counted = np.linalg.norm(forces[run.free] if known else forces)
        if total > counted + small or (total < counted - small and known and not run.constrained):
            raise Unreadable("the forces do not add up to the total force")
    return forces


def _stress(text: str) -> Any:
    """(6,) in eV/Å^3, in ASE's order and sign; None if there is none, or only that of a layer (ESM)."""
    if not re.search("Computing stress|entering subroutine stress", text):
        return None
    found = _STRESS.search(text)
    if not found:
        if re.search(r"stress.*not (?:yet )?(?:implemented|available)", text, re.IGNORECASE):
            return None
        raise Unreadable("the stress cannot be read")
    rows = _rows(found[2], _THREE + r"(?:\s*(?:[-\d.]+|\*+)){3}", 3, "the stress")
    tensor = np.array([[_float(x) for x in row] for row in rows])
    if not tensor[2].any() and tensor.any():
        return None
    if abs(tensor - tensor.T).max() > 2e-7 + 1e-4 * abs(tensor).max():
        raise Unreadable("the stress is not symmetric")
    return -tensor[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]] * Ry / Bohr**3
