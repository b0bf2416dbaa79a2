"""FitSNAP's JSON: one structure a file, after a line of comment; its folder is its group, which becomes the config_type.

Cell vectors are rows. Stress is a pressure as LAMMPS has it, positive under compression: minus ASE's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.units import Bohr, GPa, Hartree, bar, kB, kcal, mol

from mlip_pace.collect.files import Frame, opened

# Of each quantity: the names of its units (without blanks and in lower case), in eV, Å, eV/Å, eV/Å^3.
UNITS: dict[str, dict[str, float]] = {
    "Energy": {"electronvolt": 1.0, "ev": 1.0, "hartree": Hartree, "kcal/mol": kcal / mol, "kelvin": kB},
    "Forces": {
        "electronvoltperangstrom": 1.0, "ev/angstrom": 1.0, "hartree/bohr": Hartree / Bohr, "hartreeperbohr": Hartree / Bohr,
        "kcal/mol/angstrom": kcal / mol,
    },
    "Stress": {"bar": bar, "kb": 1e3 * bar, "kbar": 1e3 * bar, "kilobar": 1e3 * bar, "gpa": GPa, "gigapascal": GPa},
    "Positions": {"angstrom": 1.0, "ang": 1.0, "bohr": Bohr},
    "Lattice": {"angstrom": 1.0, "ang": 1.0, "bohr": Bohr},
}  # fmt: skip
DEFAULT = {"Energy": "electronvolt", "Forces": "electronvoltperangstrom", "Stress": "bar", "Positions": "angstrom"}


def read(path: Path) -> Iterator[Frame]:
    """The structures of a file; for one that cannot be understood, the reason."""
    with opened(path) as file:
        text = file.read().decode("utf-8", errors="replace")
    if text.lstrip()[:1] == "#":
        text = text.partition("\n")[2]
    try:
        dataset = json.loads(text)["Dataset"]
        entries = dataset["Data"]
    except (ValueError, KeyError, TypeError):
        yield "is no whole FitSNAP JSON (an object `Dataset` with a list `Data`)"
        return
    for entry in entries:
        yield _structure({**dataset, **entry}, path.parent.name)


def _structure(entry: dict[str, Any], group: str) -> Atoms | str:
    values: dict[str, Any] = {}
    for name, units in UNITS.items():
        if entry.get(name) is None:
            continue
        unit = str(entry.get(f"{name}Style", DEFAULT.get(name, "angstrom"))).replace(" ", "").lower()
        if unit not in units:
            return f"{name} is in {unit!r}; known are {', '.join(units)}"
        try:
            values[name] = np.asarray(entry[name], dtype=float) * units[unit]
        except (TypeError, ValueError):
            return f"{name} is not an array of numbers"
    symbols = entry.get("AtomTypes") or []
    if missing := [name for name in ("Positions", "Lattice") if name not in values] + ([] if symbols else ["AtomTypes"]):
        return f"has no {', '.join(missing)}"
    if str(entry.get("AtomTypeStyle", "chemicalsymbol")).replace(" ", "").lower() != "chemicalsymbol":
        return f"AtomTypes are {entry['AtomTypeStyle']!r}, chemical symbols are expected"
    if values["Positions"].shape != (len(symbols), 3) or values["Lattice"].shape != (3, 3):
        return f"{len(symbols)} AtomTypes, Positions of shape {values['Positions'].shape}, Lattice of {values['Lattice'].shape}"
    try:
        atoms = Atoms(symbols, values["Positions"], cell=values["Lattice"], pbc=True)
    except (KeyError, ValueError, TypeError):
        return f"AtomTypes {sorted(set(map(str, symbols)))} are no chemical elements"
    results = {name.lower(): values[name] for name in ("Energy", "Forces") if name in values}
    if "Energy" in values and values["Energy"].size == 1:
        results["energy"] = values["Energy"].item()
    if "Stress" in values:
        results["stress"] = -values["Stress"]
    atoms.calc = SinglePointCalculator(atoms)
    atoms.calc.results = results
    atoms.info["config_type"] = group
    return atoms
