"""The files of a potential: the B-basis (`.yaml`) with its coefficients, and the `.yace` made of it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from mlip_pace.ace.basis import Basis, BasisFile, basis_set, new_basis_set
from mlip_pace.arrays import Array
from mlip_pace.errors import ToolError


def write_linear(target: Path, basis: Basis, coefficients: Array, radial: Array | None = None) -> None:
    """Write a B-basis file with these coefficients (functions,) in the first density and zeros in the others.

    `radial` are the coefficients of the radial functions, if they are to be other than those of `basis`.
    """
    built = new_basis_set(basis)
    values = np.array(built.all_coeffs)
    count = len(built.crad_coeffs)
    if radial is not None:
        values[:count] = radial
    densities = np.zeros((len(coefficients), (len(values) - count) // len(coefficients)))
    densities[:, 0] = coefficients
    values[count:] = densities.ravel()
    built.all_coeffs = values
    part = target.with_name(f".{target.stem}.part.yaml")
    built.to_BBasisConfiguration().save(str(part))
    part.replace(target)


def convert(potential: Path, target: Path, e0: dict[str, float]) -> None:
    """Write the `.yace` of a B-basis file, with the atomic energies `e0` (eV) in its `E0` line."""
    part = target.with_name(f".{target.name}.part")
    built = basis_set(BasisFile(potential))
    built.to_ACECTildeBasisSet().save_yaml(str(part))
    text = part.read_text()
    values = ", ".join(repr(float(e0.get(symbol, 0.0))) for symbol in built.elements_name)
    text, count = re.subn(r"^E0:.*$", f"E0: [{values}]", text, count=1, flags=re.MULTILINE)
    if count != 1:
        raise ToolError(f"{target.name} has no line E0", "python-ace writes another format than the one this version knows")
    part.write_text(text)
    part.replace(target)
