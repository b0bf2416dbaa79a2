"""VASP's OUTCAR.

Read in parts, one for each ionic step N, from its first `Iteration N(1)` on: electronic steps, stress, cell, positions and
forces, and TOTEN. What a part says must hang together (electronic steps that count up from 1; TOTEN that is the one of the last
of them, unless a dispersion correction comes between), and the parts must follow each other; so a file from which something is
missing, or into which two runs wrote, cannot give one step the labels of another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np

from mlip_pace.arrays import Array
from mlip_pace.collect import vasp
from mlip_pace.collect.files import Frame
from mlip_pace.collect.vasp import MACHINE_LEARNED, TOLERANCE, Labels, Settings, frame, numbers

# Where a run begins: within a line, if the file of the run before was cut off there. Other lines name versions, too.
_RUN = re.compile(r"vasp\.\d+\.\d\S* .*\b(?:build|complex|gamma|serial)")
_ITERATION = re.compile(r"-+ Iteration +(\d+)\( *(\d+)\)")
_DECIMAL = re.compile(r"-?\d*\.\d+")  # also without a blank in between: VASP prints in fixed columns
_LAST = re.compile(r"^ +free energy +TOTEN += *(\S+) eV")  # of an electronic step
_TOTEN = re.compile(r"^ +free  energy +TOTEN += *(\S+) eV")
_ZERO = re.compile(r"energy\(sigma->0\) *= *(\S+)")
# What is added to the energy after the last electronic step: dispersion, as several versions call it, and dipoles.
_ADDED = re.compile(r"Edisp \(eV\)|[Ee]stimated vdW energy \(eV\)|adding dipol energy to TOTEN")
_ELECTRONS = re.compile(r"^ *number of electron +(-?\d+\.\d+)")  # those of an electronic step
_NELECT = re.compile(r"^ *NELECT *= +(\d+\.\d+)")
_WHOLE = re.compile(r"^ *(NELM|ICHARG|IALGO|ISIF) *= *(-?\d+)\b")
_NAMES = {"TITEL": "=", "VRHFIN": "=", "POTCAR:": "POTCAR:"}  # lines that name the kinds of atoms in their order
_CELL, _FORCES, _LEARNED = "direct lattice vectors", "TOTAL-FORCE (eV", "(ML)"


class _Broken(Exception):
    """What is wrong with a step."""


@dataclass(frozen=True)
class _Step:
    run: int  # several can be in one file
    number: int
    frame: Frame
    learned: int  # machine-learned steps after it


def read(content: bytes) -> Iterator[Frame]:
    """The ionic steps in order, each once."""
    lines = content.decode("latin-1").split("\n")
    symbols: list[str] = []
    settings, cell, electrons, steps, run = Settings(), None, None, [], 0
    for part in _parts(lines):
        learned = sum(_FORCES in line and _LEARNED in line for line in part)
        start = _ITERATION.search(part[0])
        if start is None:  # the head of a run
            symbols, settings, cell, run = _symbols(part), _settings(part), _last_cell(part), run + 1
            electrons = next((float(match[1]) for line in part if (match := _NELECT.match(line))), None)
            steps.append(_Step(run, 0, "", learned))
        else:
            stranger = _other_electrons(part, electrons)
            steps.append(_Step(run, int(start[1]), stranger or _step(part, symbols, settings, cell), learned))
    said = False
    for before, here, after in zip([None, *steps], steps, [*steps[1:], None]):  # noqa: B905, one longer by design
        if here.number:
            said = True
            yield next((gap for pair in ((before, here), (here, after)) if (gap := _gap(*pair))), here.frame)
        if here.learned:
            said = True
            yield MACHINE_LEARNED.format("1 step" if here.learned == 1 else f"{here.learned} steps")
    if not said:
        yield "the file ends before the first ionic step" if symbols else "it has no ionic step, or is no OUTCAR"


def _gap(one: _Step | None, other: _Step | None) -> str:
    if one is None or other is None or one.run != other.run or one.number == 0 or other.number == one.number + 1:
        return ""
    if one.learned and other.number > one.number:
        return ""
    return f"ionic step {one.number} is followed by {other.number}: what is between them is missing"


def _parts(lines: Iterable[str]) -> Iterator[list[str]]:
    """The head of a run, then each ionic step with all that follows before the next one.

    Linear response iterates, too, with numbers of its own, between the labels of an ionic step and its `LOOP+`.
    """
    part: list[str] = []
    number = 0
    seen: set[str] = set()
    for line in _lines(lines):
        starts = False
        if "Iteration" in line and (match := _ITERATION.search(line)):
            following = int(match[1])
            if seen >= {"forces", "energy"}:
                starts = following == number + 1 and match[2] == "1" and "response" not in seen
                seen.add("response")
            else:
                starts = following != number
            if starts:
                number, seen = following, set()
        elif "LOOP+" in line:
            seen = set()
        elif _FORCES in line and _LEARNED not in line:
            seen.add("forces")
        elif "TOTEN" in line and _TOTEN.match(line):
            seen.add("energy")
        elif "vasp." in line and _RUN.match(line.lstrip()):
            starts, number, seen = True, 0, set()
        if starts and part:
            yield part
            part = []
        part.append(line)
    if part:
        yield part


def _other_electrons(part: list[str], electrons: float | None) -> str:
    """Why the step is not one of a run with that many electrons (NELECT), whose elements it has; or nothing."""
    # The first can be those of free atoms; the last differ by as much as 0.005 in public files.
    found = [match[1] for line in part if "electron" in line and (match := _ELECTRONS.match(line))]
    if electrons is None or not found or abs(float(found[-1]) - electrons) < 0.1:
        return ""
    return f"it has {found[-1]} electrons and the run NELECT={electrons:g}: of another run, or with an electrode potential"


def _lines(lines: Iterable[str]) -> Iterator[str]:
    """The lines, and one that begins with each run."""
    for line in lines:
        if "vasp." in line and (match := _RUN.search(line)) and line[: match.start()].strip():
            yield line[: match.start()]
            yield line[match.start() :]
        else:
            yield line


def _step(part: list[str], symbols: list[str], settings: Settings, cell: Array | None) -> Frame:
    """The frame of an ionic step; `cell` (Å) is that of the head, which need not be printed again where it cannot change."""
    if not symbols:
        return "its elements are not in the file, or not all of them"
    try:
        labels, converged = _labels(part, len(symbols), settings, cell)
    except _Broken as broken:
        return str(broken)
    except ValueError:
        return "its numbers are not all numbers"
    return frame(symbols, labels, settings, "" if converged else "not converged: VASP says that EDIFF was not reached")


def _labels(part: list[str], count: int, settings: Settings, cell: Array | None) -> tuple[Labels, bool]:
    """What is printed for an ionic step of that many atoms, and whether VASP lets it pass as converged."""
    cycles, converged, corrected = 0, True, False
    last = stress = table = energy = zero = own = volume = None
    for n, line in enumerate(part):
        if table is not None and energy is not None and zero is not None:
            break
        if match := _ITERATION.search(line) if "Iteration" in line else None:
            cycles, last = cycles + 1, None
            if int(match[2]) != cycles:
                raise _Broken(f"electronic step {match[2]} is where {cycles} should be: something is missing or mixed in")
        elif match := _LAST.match(line) if "TOTEN" in line else None:
            last = float(match[1])
        elif match := _TOTEN.match(line) if "TOTEN" in line else None:
            energy = float(numbers([match[1]], 1)[0, 0])
        elif energy is not None and (match := _ZERO.search(line)):
            zero = float(match[1])
        elif "EDIFF was not reached" in line:
            converged = False
        elif _ADDED.search(line):
            corrected = True
        elif line.startswith("  in kB"):
            words = _columns(line.partition("kB")[2]) or _DECIMAL.findall(line)
            stress = numbers(words, 6)[0] if len(words) == 6 else None
        elif "volume of cell" in line:
            volume = _DECIMAL.search(line)
        elif _CELL in line and "position" not in line:
            own = _cell(part[n + 1 : n + 4])
        elif _FORCES in line and _LEARNED in line:
            break
        elif _FORCES in line:
            table = _table(part[n + 1 : n + count + 3], count, "FORCE-w/o vdW" in line)
    tables = sum(_FORCES in line and _LEARNED not in line for line in part)
    if tables > 1 or sum("TOTEN" in line and bool(_TOTEN.match(line)) for line in part) > 1:
        raise _Broken("more than one table of forces or energy is printed for it: something is missing or mixed in")
    if table is None:
        raise _Broken("no forces are printed for this step: NWRITE is low, or the file ends within it")
    if energy is None:
        raise _Broken("no energy is printed for this step")
    if own is None and settings.isif is not None and settings.isif < 3:
        own = cell
    if own is None:
        raise _Broken("no cell is printed for this step")
    if volume and not np.isclose(abs(np.linalg.det(own)), float(volume[0]), rtol=1e-4, atol=0.02):
        raise _Broken("its cell has not the volume that is printed with it")
    # Some versions do not print that of the last one. Dispersion and dipoles add less than 3 eV to an atom.
    if last is not None and abs(last - energy) > (3.0 * count if corrected else TOLERANCE):
        raise _Broken(f"its energy, {energy:.6f} eV, is not that of its last electronic step")
    return Labels(cycles, own, table[:, :3], table[:, 3:6], energy, zero, stress), converged


def _table(lines: list[str], count: int, more: bool) -> Array:
    """Positions and forces (count, 6), between lines of dashes; with `more`, further columns that we do not need."""
    if len(lines) != count + 2 or not all(line.strip().startswith("----") for line in (lines[0], lines[-1])):
        raise _Broken(f"its table of positions and forces has not the {count} rows of the atoms")
    words = []
    for line in lines[1:-1]:
        row = _DECIMAL.findall(line)
        if not (len(row) >= 6 if more else len(row) == 6 and not re.search(r"[^-\d.\s]", line)):
            raise _Broken("its table of positions and forces has a row that is not all numbers")
        words += row[:6]
    return numbers(words, 6)


def _columns(line: str) -> list[str]:
    """The numbers of a line in which all have as many decimals as the last; none if there is anything else in it.

    A number that fills its column stands without a blank behind the one before: `0.000000000113.517567000`.
    """
    last = re.search(r"\.(\d+)\s*$", line)
    number = rf"-?\d*\.\d{{{len(last[1])}}}" if last else ""
    return re.findall(number, line) if last and re.fullmatch(rf"(?:\s*{number})+\s*", line) else []


def _cell(lines: list[str]) -> Array:
    rows = [_columns(line)[:3] for line in lines]
    if len(rows) != 3 or any(len(row) != 3 for row in rows):
        raise _Broken("its cell is not three rows of three numbers")
    return numbers([word for row in rows for word in row], 3)


def _last_cell(head: list[str]) -> Array | None:
    """The cell at the beginning of a run; what comes after it is that of the run before, which the wave functions are of."""
    cell = None
    for n, line in enumerate(takewhile(lambda line: "old parameters found on file" not in line, head)):
        if _CELL in line and "position" not in line:
            try:
                cell = _cell(head[n + 1 : n + 4])
            except (_Broken, ValueError):
                cell = None
    return cell


def _symbols(head: list[str]) -> list[str]:
    """One for each atom; none if the file does not say it."""
    counts: list[str] = []
    for n, line in enumerate(head):
        if "ions per type" in line:  # ten in a line
            more = takewhile(lambda line: re.fullmatch(r"[\s\d]*\d\s*", line), head[n + 1 :])
            counts = " ".join([line.partition("=")[2], *more]).split()
            break
    after = {key: [line.partition(mark)[2] for line in head if line.lstrip().startswith(key)] for key, mark in _NAMES.items()}
    if not _same_potentials(head, len(counts)):
        return []
    potentials = after["POTCAR:"]  # once or twice each
    if potentials[: len(counts)] == potentials[len(counts) :]:
        potentials = potentials[: len(counts)]
    lists = [names for names in (*after.values(), potentials) if len(names) == len(counts)]
    elements = {tuple(vasp.element(name, name) for name in names) for names in lists}
    if not all(map(str.isdigit, counts)) or len(elements) != 1 or not all(kinds := elements.pop()):
        return []
    return [kind for kind, number in zip(kinds, counts, strict=True) for _ in range(int(number))]


def _same_potentials(head: list[str], kinds: int) -> bool:
    """Whether there are as many potentials, none of which has another mass and valence than in the table after them.

    If not, that is of another run. A user can set masses, and a core hole changes a valence.
    """
    differ = []
    for name in ("POMASS", "ZVAL"):
        own = [match[1] for line in head if "mass and valenz" in line and (match := re.search(rf"{name} *= *([\d.]+)", line))]
        table = next((re.findall(r" *\d+\.\d+", line) for line in head if re.match(rf" *{name} *= *[\d. ]+$", line)), [])
        if own and len(own) != kinds:
            return False
        if len(own) != len(table):
            return True
        differ.append(abs(np.array(own, dtype=float) - np.array(table, dtype=float)) > 0.01)
    return not np.logical_and(*differ).any()


def _settings(head: list[str]) -> Settings:
    found = {match[1]: int(match[2]) for line in head if (match := _WHOLE.match(line))}
    shares = [word for line in head if re.match(r" *VCA *=", line) for word in line.partition("=")[2].split()]
    settings = Settings(found.get("NELM"), found.get("ICHARG"), found.get("IALGO"), found.get("ISIF"))
    field = any(re.match(r" *EFIELD(_PEAD)? *=.*[1-9]", line) for line in head)
    return replace(settings, field=field, mixed=any(re.fullmatch(r"[\d.]+", w) and float(w) != 1 for w in shares))
