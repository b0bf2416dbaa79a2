"""LAMMPS text dumps, which is where `pace/extrapolation` leaves structures. No labels are taken from them.

Elements come from the column `element`; without it atom type n is the nth of the potential's elements, the order of
`potential.lammps`. Lengths in Å (`units metal` or `real`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path

from ase.io import read as read_ase

from mlip_pace.collect.dataset import Structure
from mlip_pace.collect.files import Frame, in_one_line, opened
from mlip_pace.collect.frames import bare

BEGINS = (b"ITEM: UNITS", b"ITEM: TIME")  # and TIMESTEP: of a frame
UNITS = ("metal", "real")  # lengths in Å


def is_dump(path: Path) -> bool:
    """Whether a file begins as a dump does, be it compressed."""
    try:
        with opened(path) as file:
            return file.read(max(map(len, BEGINS))).startswith(BEGINS)
    except (OSError, EOFError):
        return False


def names_elements(path: Path) -> bool:
    """Whether the dump has a column `element`."""
    with opened(path) as file:
        for line in file:
            if line.startswith(b"ITEM: ATOMS"):
                return b"element" in line.split()
    return False


def read(path: Path, name: str, elements: Sequence[str]) -> Iterator[Structure]:
    """Every frame of a dump; for one that cannot be read, the reason: the last of a run that was killed may be cut."""
    for number, text in enumerate(_frames(path)):
        yield f"{name}#{number}", name, _structure(text, elements)


def _structure(text: str, elements: Sequence[str]) -> Frame:
    try:
        (atoms,) = read_ase(StringIO(text), index=":", format="lammps-dump-text", specorder=list(elements))
    except Exception as error:  # ASE's reader raises whatever a broken file makes it stumble over
        if (highest := _highest_type(text)) > len(elements):
            return f"has atoms of type {highest}, but the potential has {len(elements)} elements; a column `element` names them"
        return f"cannot be read as a LAMMPS dump: it is cut, or not as one is ({in_one_line(error)})"
    lines = text.splitlines()
    if "ITEM: UNITS" in lines and (units := lines[lines.index("ITEM: UNITS") + 1].strip()) not in UNITS:
        return f"has units {units}; with lengths in Å are {' and '.join(UNITS)}"
    if len(atoms) != int(lines[lines.index("ITEM: NUMBER OF ATOMS") + 1]) or not text.endswith("\n"):
        return "is cut: atoms, or digits of the last one, are missing"
    return bare(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)


def _highest_type(text: str) -> int:
    """The highest atom type of a frame without elements, of the lines that have one."""
    columns, _, rows = text.partition("ITEM: ATOMS ")[2].partition("\n")
    names = columns.split()
    if "type" not in names or "element" in names:
        return 0
    whole = (words for line in rows.splitlines() if len(words := line.split()) == len(names))
    types = (words[names.index("type")] for words in whole)
    return max((int(one) for one in types if one.isdecimal()), default=0)


def _frames(path: Path) -> Iterator[str]:
    """The text of each frame: it begins with its units, its time or its number, whichever is first."""
    lines, items = list[str](), set[bytes]()
    with opened(path) as file:
        for line in file:
            if line.startswith(b"ITEM: "):
                item = line.split()[1]
                if line.startswith(BEGINS) and (b"ATOMS" in items or item in items):
                    yield "".join(lines)
                    lines, items = [], set()
                items.add(item)
            lines.append(line.decode(errors="replace"))
    yield "".join(lines)
