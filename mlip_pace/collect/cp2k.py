"""Reads what CP2K prints (ASE has no reader for its output): coordinates, cell, energy, forces, stress.

Forces need `FORCE_EVAL/PRINT/FORCES ON`, stress `PRINT/STRESS_TENSOR ON`. In molecular dynamics CP2K prints coordinates only
once; later steps are then reported as incomplete (extended XYZ made from the trajectory files serves better there).
CP2K: hartree, hartree/bohr, and a stress in GPa (bar in old versions) that is positive under compression, the opposite of ASE.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.units import Bohr, GPa, Hartree, bar

from mlip_pace.collect.files import Frame

_NUMBER = r"([-+]?\d[\d.]*(?:[EeDd][-+]?\d+)?)"


def read_output(lines: Iterable[str]) -> Iterator[Frame]:
    """A structure for each energy that CP2K printed; for one that is incomplete, the reason."""
    cell: dict[str, list[float]] = {}
    symbols: list[str] = []
    positions: list[list[float]] = []
    periodic = "XYZ"
    energy: float | None = None
    forces: list[list[float]] = []
    stress: list[list[float]] = []
    stress_unit, section = GPa, ""
    fresh = False

    def finished() -> Iterator[Frame]:
        nonlocal fresh
        if energy is None:
            return
        if not fresh:
            yield "CP2K printed no coordinates for this step"
        elif not forces:
            yield "CP2K printed no forces (FORCE_EVAL/PRINT/FORCES)"
        else:
            pbc = [axis in periodic for axis in "XYZ"]
            atoms = Atoms(symbols, positions, cell=[cell[v] for v in "abc"], pbc=pbc)
            results = {"energy": energy * Hartree, "forces": np.array(forces) * Hartree / Bohr}
            if stress:
                results["stress"] = -np.array(stress)[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]] * stress_unit
            atoms.calc = SinglePointCalculator(atoms, **results)
            yield atoms
        fresh = False

    for line in lines:
        words = line.split()
        if match := re.match(rf"\s*CELL\| Vector ([abc]) \[angstrom\]:\s+{_NUMBER}\s+{_NUMBER}\s+{_NUMBER}", line):
            cell[match[1]] = [float(x) for x in match.groups()[1:]]
        elif match := re.match(r"\s*CELL\| Periodicity\s+(\w+)", line):
            periodic = match[1]
        elif re.search(r"ATOMIC COORDINATES IN ANGSTROM", line, re.IGNORECASE):
            yield from finished()
            energy, forces, stress, symbols, positions, section, fresh = None, [], [], [], [], "coordinates", True
        elif match := re.match(rf"\s*ENERGY\| Total FORCE_EVAL.*:\s+{_NUMBER}", line):
            yield from finished()
            energy, forces, stress, section = float(match[1]), [], [], ""
        elif "ATOMIC FORCES in [a.u.]" in line:
            section = "forces"
        elif "SUM OF ATOMIC FORCES" in line:
            section = ""
        elif match := re.match(
            r"\s*STRESS\| Analytical stress tensor \[(\w+)\]|\s*STRESS\| Numerical stress tensor \[(\w+)\]", line
        ):
            stress_unit, stress = {"GPa": GPa, "bar": bar}[match[1] or match[2]], []
        elif len(stress) < 3 and (match := re.match(rf"\s*STRESS\|\s+[xyz]\s+{_NUMBER}\s+{_NUMBER}\s+{_NUMBER}\s*$", line)):
            stress.append([float(x) for x in match.groups()])
        elif section == "coordinates" and symbols and not words:
            section = ""
        elif section == "coordinates" and len(words) >= 7 and words[0].isdigit():
            symbols.append(words[2])
            positions.append([float(x) for x in words[4:7]])
        elif section == "forces" and len(words) == 6 and words[0].isdigit():
            forces.append([float(x) for x in words[3:6]])
    yield from finished()
