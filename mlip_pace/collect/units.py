"""Units that a file names, in those of this program: eV and Å."""

from __future__ import annotations

import math
import re

from ase import units

ANGSTROM = ("å", "a", "ang", "angstrom", "angstroms")  # what Å is called
# Of energy, length and pressure, and amounts that an energy may be for; in lower case.
_KNOWN = {
    "ev": units.eV, "mev": units.eV / 1000, "hartree": units.Hartree, "ha": units.Hartree, "eh": units.Hartree,
    "ry": units.Rydberg, "rydberg": units.Rydberg, "kcal": units.kcal, "kj": units.kJ, "mol": units.mol,
    **dict.fromkeys(ANGSTROM, 1.0), "bohr": units.Bohr, "nm": units.nm,
    "gpa": units.GPa, "mpa": units.GPa / 1e3, "kbar": units.GPa / 10, "bar": units.bar, "pa": units.Pascal,
}  # fmt: skip
_ATOMIC = {
    "energy": units.Hartree,
    "forces": units.Hartree / units.Bohr,
    "stress": units.Hartree / units.Bohr**3,
    "length": units.Bohr,
}


def in_ours(unit: str, kind: str) -> float:
    """What one of a unit, such as `kcal/mol/Ang` or `eV/A^3`, is in eV, eV/Å, eV/Å^3 or Å.

    `kind` (energy, forces, stress, length) says what is meant by `a.u.`. Raises `ValueError` for a unit that is not known.
    """
    if unit.strip().lower() in ("au", "a.u.", "atomic"):
        return _ATOMIC[kind]
    factors = []
    for n, part in enumerate(unit.strip().lower().split("/")):
        match = re.fullmatch(r"\s*(\D+?)\s*(?:\^|\*\*)?(\d?)\s*", part)
        if match is None or match[1] not in _KNOWN:
            raise ValueError(f"{unit!r} is no unit that is known")
        power = int(match[2] or 1)
        factors.append(_KNOWN[match[1]] ** (-power if n else power))
    return math.prod(factors)
