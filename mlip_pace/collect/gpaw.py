"""GPAW: its text output, of 0.9 to 26, one run or several in a file, in the layouts of the old and the new code.

GPAW prints positions before the SCF, the cell with them where it may have changed, then the energy, forces and stress (eV, Å;
ASE's sign). The energy that belongs to the forces is the free energy, not the one extrapolated to zero smearing that ASE reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_numbers

from mlip_pace.collect.files import Frame, Unconverged
from mlip_pace.collect.runs import Unreadable, before_the_first, runs

_REAL = r"([-+]?\d+\.\d+)"
_THREE = rf" +{_REAL} +{_REAL} +{_REAL}"
_LIST = rf" *\[ *{_REAL}, *{_REAL}, *{_REAL}\][,\]]"  # as the new code prints vectors
_FLAGS = re.MULTILINE | re.IGNORECASE
_RUN = re.compile(r"^ *\|__ \|  _\|___\|_____\|", re.MULTILINE)
_POSITIONS = re.compile(r"^Positions: *\n", _FLAGS)
_CELL = re.compile(r"^Unit cell: *\n.*periodic.*\n(?: *-+ *\n)?", _FLAGS)
_FREE = re.compile(r"^Free energy: *(\S+) *\n(?:Extrapolated|Zero Kelvin): *\S+ *\n", _FLAGS)
_FORCES = re.compile(r"^(?:Forces in eV/Ang: *|forces: \[ +# eV/Ang *)\n", _FLAGS)
_STRESS = re.compile(r"^stress tensor:(?: *| \[ +# eV/Ang\^3 *)\n", _FLAGS)
_VDW = re.compile(r"^vdW correction: *(\S+) *\n", re.MULTILINE)


def read_output(text: str) -> Iterator[Frame]:
    """A structure for each set of positions; for one that is incomplete or does not fit, the reason."""
    if lost := before_the_first(text, _RUN, "[Ff]orces(?: in eV/Ang)?:"):
        yield f"GPAW: {lost}"
    for run in runs(text, _RUN):
        yield from _read_run(run)


def _read_run(text: str) -> Iterator[Frame]:
    cuts = [match.start() for match in _POSITIONS.finditer(text)]
    if not cuts:
        yield "GPAW: the run ended before its first positions"
    cell = _NO_CELL
    before = ""
    for begin, end in zip(cuts, [*cuts, len(text)][1:], strict=True):
        piece = text[begin:end]
        if re.search(r"^System changes:.*\bcell\b", before, re.MULTILINE):
            cell = _NO_CELL
        before = piece
        try:
            if found := _CELL.search(piece):
                cell = _NO_CELL
                cell = _cell(piece[found.end() :])
            yield _frame(piece, *cell)
        except Unreadable as reason:
            yield f"GPAW: {reason}"


_NO_CELL: tuple[Any, list[bool]] = (None, [])


def _rows(text: str, pattern: str, count: int | None = None) -> list[tuple[str, ...]]:
    """The lines from the first one on that match the pattern up to their end, up to `count`."""
    rows: list[tuple[str, ...]] = []
    for line in text.splitlines(keepends=True)[:count]:
        match = re.fullmatch(pattern + r"\s*\n", line)
        if not match:
            break
        rows.append(match.groups())
    return rows


def _numbers(rows: list[tuple[str, ...]]) -> Any:
    """(n, 3); a number that was cut off has fewer digits than the others."""
    if len({len(x.partition(".")[2]) for row in rows for x in row}) > 1:
        raise Unreadable("a table is cut off")
    return np.array([[float(x) for x in row] for row in rows])


def _cell(text: str) -> tuple[Any, list[bool]]:
    """The vectors in Å, and whether each of them is periodic."""
    rows = _rows(text, rf" *(\d)\. axis: +(yes|no){_THREE} +\d+ +[\d.]+", 3)
    if [n for n, *_ in rows] != ["1", "2", "3"]:
        raise Unreadable("the cell cannot be read")
    cell = _numbers([row[2:] for row in rows])
    lengths = re.search(rf"^ *Lengths:{_THREE} *\n", text, _FLAGS)
    if lengths and abs(np.linalg.norm(cell, axis=1) - [float(x) for x in lengths.groups()]).max() > 1e-5:
        raise Unreadable("the lengths of the cell are not those of its vectors")
    return cell, [periodic == "yes" for _, periodic, *_ in rows]


def _frame(piece: str, cell: Any, pbc: list[bool]) -> Frame:
    rows = _rows(piece.partition("\n")[2], rf" *(\d+) +(\S+){_THREE}(?: +\([^()]*\))?")
    after = piece.splitlines()[len(rows) + 1 : len(rows) + 2]
    if not rows or [int(n) for n, *_ in rows] != list(range(len(rows))) or any(line.strip() for line in after):
        raise Unreadable("the positions cannot be read")
    symbols = [symbol.title() for _, symbol, *_ in rows]
    if unknown := sorted({symbol for symbol in symbols if symbol not in atomic_numbers or symbol == "X"}):
        raise Unreadable(f"{', '.join(unknown)}: no chemical element")
    if cell is None:
        raise Unreadable("no cell is printed for these positions")
    energies = list(_FREE.finditer(piece))
    if "Did not converge" in piece:
        raise Unreadable("the SCF did not converge")
    if not energies:
        raise Unreadable("the run ended within the SCF")
    if len(_CELL.findall(piece)) > 1:
        raise Unreadable("there is more than one cell for the same positions")
    _whole(piece[: energies[0].start()], energies[0][0])
    if "Legendre-transformed energies" in piece:
        raise Unreadable("the number of electrons follows an electrode potential")
    if len(energies) > 1:
        raise Unreadable("there is more than one energy for the same positions")
    results = piece[energies[0].end() :]
    labels: dict[str, Any] = {"energy": _float(energies[0][1])}
    vdw = _VDW.search(results)
    if vdw:  # with the forces that follow; the stress is still that without it
        labels["energy"] += _float(vdw[1])
        results = results[vdw.end() :]
    labels["free_energy"] = labels["energy"]
    forces = [match.end() for match in _FORCES.finditer(results)]
    if len(forces) > 1:
        raise Unreadable("there is more than one set of forces for the same positions")
    if forces:
        labels["forces"] = _forces(results[forces[0] :], symbols)
    elif len(symbols) > 1:
        raise Unreadable("no forces are printed")
    if (found := _STRESS.search(results)) and not vdw:
        labels["stress"] = _stress(results[found.end() :])
    atoms = Atoms(symbols, _numbers([row[2:5] for row in rows]), cell=cell, pbc=pbc)
    atoms.calc = SinglePointCalculator(atoms, **labels)
    if _density_is_fixed(piece[: energies[0].start()]):
        return Unconverged(atoms, "GPAW: the density is fixed, as for a band structure, and not self-consistent")
    return atoms


def _whole(scf: str, energies: str) -> None:
    """Raises `Unreadable` if iterations are missing, as in files of which a part is lost; `energies` come behind them."""
    numbers = [int(n) for n in re.findall(r"^[# ]*iter: +(\d+) ", scf, re.MULTILINE)]
    last = re.search(r"^(?:Converged after|SCF steps:|scf_steps:) +(\d+)", scf, _FLAGS)
    if numbers != list(range(1, len(numbers) + 1)) or (last and numbers and int(last[1]) != numbers[-1]):
        raise Unreadable("iterations of the SCF are missing")
    if numbers and not last:
        raise Unreadable("the end of the SCF is missing")
    # Of the layout whose first column is the energy, as extrapolated to zero smearing.
    rows = re.findall(rf"^[# ]*iter: +\d+ +[\d:]+ +{_REAL}c? ", scf, re.MULTILINE) if "log10-change" in scf else []
    if rows and all(abs(float(rows[-1]) - float(x)) > 2e-5 for x in re.findall(rf"{_REAL} *\n", energies)):
        raise Unreadable("its energy is not that of the last iteration of its SCF")


def _float(text: str) -> float:
    if not re.fullmatch(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?", text):
        raise Unreadable(f"{text} is no energy")
    return float(text)


def _forces(text: str, symbols: list[str]) -> Any:
    """(n, 3) in eV/Å."""
    rows = _rows(text, rf" *(\d+) +(\S+){_THREE}")
    rows = rows or [(n, symbol, *xyz) for *xyz, symbol, n in _rows(text, _LIST + r" +# (\S+) +(\d+)")]
    if [(int(n), symbol.title()) for n, symbol, *_ in rows] != list(enumerate(symbols)):
        raise Unreadable(f"the forces cannot be read: {len(symbols)} are expected")
    return _numbers([row[2:] for row in rows])


def _stress(text: str) -> Any:
    """(6,) in eV/Å^3."""
    rows = _rows(text, _THREE, 3) or _rows(text, _LIST, 3)
    tensor = _numbers(rows)
    if tensor.shape != (3, 3) or abs(tensor - tensor.T).max() > 1e-5 + 1e-3 * abs(tensor).max():
        raise Unreadable("the stress cannot be read")
    return tensor[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


def _density_is_fixed(scf: str) -> bool:
    """Whether the column of the change of density stays empty."""
    if "Fixing the initial density" in scf:
        return True
    header = re.search(r"^.*energy +eigst +dens\b", scf, re.MULTILINE)
    lines = re.findall(r"^[# ]*iter: .*", scf, re.MULTILINE)
    if not header or len(lines) < 2:
        return False
    return not any(re.search(r"\d", line[len(header[0]) - 6 : len(header[0]) + 1]) for line in lines)
