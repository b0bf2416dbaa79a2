"""VASP's vasprun.xml, without the electronic structure.

Each `<calculation>` is read by itself, and of it only what we need, so that what is broken or cut off elsewhere costs nothing.
Inside: electronic steps, then the structure, forces, stress and energy that they led to, then perhaps linear response with
electronic steps of its own. A file can hold several documents, one after the other (`cat` of the parts of a run): each has
atoms and settings of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from mlip_pace.arrays import Array
from mlip_pace.collect import vasp
from mlip_pace.collect.files import Frame
from mlip_pace.collect.vasp import MACHINE_LEARNED, TOLERANCE, Labels, Settings, frame, numbers, without_pressure

_OPEN, _CLOSE = b"<calculation>", b"</calculation>"
_ROW = re.compile(rb"<rc>\s*<c>([^<]*)</c>\s*<c>([^<]*)</c>(.*?)</rc>", re.DOTALL)
_CYCLE = re.compile(rb"<scstep>.*?</scstep>", re.DOTALL)
_TABLE = b'<varray name="forces"'
_DOCUMENT = re.compile(rb"<modeling>")
# What stands before the first step of a document, or behind its last one.
_BORDERS = (b"<atominfo>", b"<parameters>", b'name="initialpos"', b'name="finalpos"', b"</modeling>")
_CUT = "the file ends within this step"


class _Missing(Exception):
    """What a step does not have; says what."""


def read(content: bytes) -> Iterator[Frame]:
    """The ionic steps in order: all labels from the same `<calculation>`."""
    if not content.strip():
        yield "the file is empty"
        return
    for document in _documents(content):
        yield from _read(document)


def _documents(content: bytes) -> Iterator[bytes]:
    """What begins with `<modeling>`, each; and steps before the first of them, whose atoms and settings are lost."""
    starts = [match.start() for match in _DOCUMENT.finditer(content)]
    if not starts or _OPEN in content[: starts[0]]:
        starts.insert(0, 0)
    for start, end in zip(starts, [*starts[1:], len(content)], strict=True):
        yield content[start:end]


def _read(document: bytes) -> Iterator[Frame]:
    first = document.find(_OPEN) if _OPEN in document else len(document)
    header = document[:first]
    try:
        symbols, settings = _symbols(header), _settings(header)
        fixed = _fixed_cell(header, settings)
    except _Missing as missing:
        yield str(missing)
        return
    end = min((at for mark in _BORDERS if (at := document.find(mark, first)) >= 0), default=len(document))
    parts = list(_parts(document[:end]))
    strangers = sum(isinstance(part, int) for part in parts)
    if (strangers and b'name="ML_LMLFF"' not in header) or sum(part is None for part in parts) > 2:
        count = document.count(_OPEN)
        yield f"several processes wrote into this file at once (images?): its {count} steps cannot be told apart"
        return
    read = [_step(part, symbols, settings, fixed) if isinstance(part, bytes) else (_instead(part), None) for part in parts]
    # Dispersion corrections come after the electronic steps, and then in every ionic step.
    plain = any(added is not None and abs(added) < 1e-6 for _, added in read)
    for step, added in read:
        if plain and added is not None and abs(added) > TOLERANCE:
            yield f"its energy differs by {added:.6g} eV from that of its last electronic step"
        else:
            yield step
    if strays := document.count(_OPEN, end):
        yield f"{strays} {'step comes' if strays == 1 else 'steps come'} without the beginning of a run, and its atoms"
    if not read and not strays:
        yield "it has no ionic step: the job ended before the first one, or calculates none (GW, BSE)"


def _instead(part: int | None) -> str:
    if part is None:
        return "its part of the file is entangled with that of another step"
    return MACHINE_LEARNED.format("1 step" if part == 1 else f"{part} steps")


def _parts(content: bytes) -> Iterator[bytes | int | None]:
    """What is in each calculation, None for one that is not whole although another follows; and how many forces are outside."""
    here = content.find(_OPEN)
    if outside := content.count(_TABLE, 0, here if here >= 0 else None):
        yield outside
    while here >= 0:
        start = here + len(_OPEN)
        following, end = content.find(_OPEN, start), content.find(_CLOSE, start)
        until = following if following >= 0 else len(content)
        if end < 0 or end > until:
            yield None if following >= 0 else content[start:]
        else:
            yield None if _CLOSE in content[end + 1 : until] else content[start : end + len(_CLOSE)]
            if outside := content.count(_TABLE, end, until):
                yield outside
        here = following


def _step(part: bytes, symbols: list[str], settings: Settings, fixed: Array | None) -> tuple[Frame, float | None]:
    """A frame, and how much its energy (eV) is above that of its last electronic step; `fixed` is a cell that it must have."""
    before, structure, after = part.partition(b"<structure")
    if not structure:
        return _CUT if _CLOSE not in part else "no structure is printed for this step (GW, RPA?)", None
    if after.count(b"<structure") or after.count(_TABLE) > 1:
        return "its part of the file has more than one structure or table of forces", None
    cycles = before.count(b"<scstep>")
    after = _CYCLE.sub(b"", after)  # of linear response
    if not cycles and _TABLE in after:
        return MACHINE_LEARNED.format("a step") + ", or has no electronic steps", None
    try:
        geometry = _between(after, b">", b"</structure>", "a whole structure")
        cell = _array(geometry, b"basis")
        if fixed is not None and not np.allclose(cell, fixed, rtol=0, atol=1e-6):
            raise _Missing(f"its cell is not that of the run, in which it cannot change (ISIF={settings.isif})")
        fractions = _array(geometry, b"positions")
        energies = after[after.find(b"</structure>") :].partition(_TABLE)[2] or b""
        forces = _array(after, b"forces")
        block = _between(energies, b"<energy>", b"</energy>", "an energy")
        energy, last = _energy(block, b"e_fr_energy"), _last_energies(before)
        volume = abs(float(np.linalg.det(cell)))
        printed = re.search(rb'<i name="volume"\s*>\s*([-+.\dEe]+)', geometry)
        if printed and not np.isclose(float(printed[1]), volume, rtol=1e-4):
            raise _Missing("its cell has not the volume that is printed with it")
        try:
            tensor = _array(after, b"stress")
            symmetric = tensor.shape == (3, 3) and np.allclose(tensor, tensor.T, rtol=1e-3, atol=0.01)
            stress = tensor.reshape(9)[[0, 4, 8, 1, 5, 2]] if symmetric else None
        except (_Missing, ValueError):
            stress = None
        toten = without_pressure(energy, last and last[0], volume, settings)
        if toten is None:
            return "PSTRESS is set, and energy and enthalpy cannot be told apart", None
        zero = toten + last[1] if last else None
        labels = Labels(cycles, cell, fractions @ cell, forces, toten, zero, stress)
    except _Missing as missing:
        return str(missing), None
    except ValueError:
        return "its numbers are not all numbers", None
    return frame(symbols, labels, settings), toten - last[0] if last else None


def _fixed_cell(header: bytes, settings: Settings) -> Array | None:
    """The cell (Å) that all steps have, where it cannot change."""
    _, begins, initial = header.partition(b'<structure name="initialpos"')
    if not begins or settings.isif is None or settings.isif >= 3:
        return None
    try:
        return _array(initial, b"basis")
    except ValueError:
        raise _Missing("the cell at the beginning of the run is not all numbers") from None


def _between(text: bytes, start: bytes, end: bytes, name: str) -> bytes:
    _, found, rest = text.partition(start)
    inside, closed, _ = rest.partition(end)
    if not found or not closed:
        raise _Missing(f"{name} is not printed for this step" if b"<eigenvalues" in text else f"{_CUT}, before {name}")
    return inside


def _array(text: bytes, name: bytes) -> Array:
    """A `<varray>` with three columns."""
    inside = _between(text, b'<varray name="' + name + b'"', b"</varray>", f"its {name.decode()}")
    rows = re.findall(rb"<v>([^<]*)</v>", inside)
    if inside.count(b"<v>") != len(rows) or any(len(row.split()) != 3 for row in rows):
        raise _Missing(f"its {name.decode()} are not three numbers a row")
    return numbers(b" ".join(rows).split(), 3)


def _energy(text: bytes, name: bytes) -> float:
    match = re.search(rb'<i name="' + name + rb'"\s*>\s*([^<]*?)\s*</i>', text)
    if not match:
        raise _Missing("an energy is not printed for this step")
    return float(numbers([match[1]], 1)[0, 0])


def _last_energies(steps: bytes) -> tuple[float, float] | None:
    """TOTEN of the last electronic step, and what extrapolation to zero smearing adds to it; in eV.

    (In the energy of the ionic step the latter is wrong: a known fault of VASP.)
    """
    last = steps[steps.rfind(b"<scstep>") :]
    try:
        toten = _energy(last, b"e_fr_energy")
        return toten, _energy(last, b"e_0_energy") - toten
    except (_Missing, ValueError):
        return None


def _symbols(header: bytes) -> list[str]:
    atoms = re.search(rb'<array name="atoms"\s*>(.*?)</array>', header, re.DOTALL)
    types = re.search(rb'<array name="atomtypes"\s*>(.*?)</array>', header, re.DOTALL)
    if not atoms:
        raise _Missing("it has no list of atoms, or ends before it")
    potentials = []
    for _, _, rest in _ROW.findall(types[1] if types else b""):
        cells = re.findall(rb"<c>([^<]*)</c>", rest)
        potentials.append(cells[-1].decode("latin-1") if cells else "")
    symbols = []
    for symbol, kind, _ in _ROW.findall(atoms[1]):
        number = int(kind) if kind.strip().isdigit() else 0
        potential = potentials[number - 1] if 0 < number <= len(potentials) else ""
        symbols.append(vasp.element(symbol.decode("latin-1"), potential))
    count = re.search(rb"<atoms>\s*(\d+)\s*</atoms>", header)
    if not all(symbols) or (count and int(count[1]) != len(symbols)) or atoms[1].count(b"<rc>") != len(symbols):
        raise _Missing("its list of atoms is not whole, or names what is no element")
    return symbols


def _settings(header: bytes) -> Settings:
    """As VASP used them (`<parameters>`), or else as they were asked for (`<incar>`)."""
    places = [header[header.find(b"<parameters") :] if b"<parameters" in header else b"", header]

    def value(name: bytes) -> str | None:
        for place in places:
            if match := re.search(rb'<[iv] [^>]*name="' + name + rb'"[^>]*>\s*([^<]*?)\s*</[iv]>', place):
                return match[1].decode("latin-1")
        return None

    def whole(name: bytes) -> int | None:
        found = value(name)
        return int(found) if found and re.fullmatch(r"[-+]?\d+", found) else None

    pressure = value(b"PSTRESS") or "0"
    settings = Settings(whole(b"NELM"), whole(b"ICHARG"), whole(b"IALGO"), whole(b"ISIF"))
    try:
        shares = [float(share) for share in (value(b"VCA") or "").split()]
        fields = [float(word) for name in (b"EFIELD", b"EFIELD_PEAD") for word in (value(name) or "").split()]
        return replace(settings, pressure=float(pressure), mixed=any(share != 1 for share in shares), field=any(fields))
    except ValueError:
        raise _Missing("PSTRESS, VCA or EFIELD is no number") from None
