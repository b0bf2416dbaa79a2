"""A committee for LAMMPS: potentials whose coefficients are drawn from the posterior of the fit.

Each has c + a F^T z with normal z (`ace/uncertainty.py`; a is that of forces): the standard deviation of many of them is a s, σ
without its floor. A molecular dynamics with the published potential asks them how far their forces differ. Radial functions,
reference and E0 are those of the published potential; the core of each is settled anew.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlip_pace.ace import basis, core, uncertainty
from mlip_pace.ace.basis import BasisFile
from mlip_pace.ace.files import convert, write_linear
from mlip_pace.ace.uncertainty import Calibration
from mlip_pace.arrays import Array
from mlip_pace.reference import Reference

PATTERN = "committee-*.yace"


@dataclass(frozen=True)
class Asked:
    """How many members, the seed that they are drawn with, E0 (eV), and the shortest distances (Å) of all pairs."""

    members: int
    seed: int
    e0: dict[str, float]
    shortest: dict[str, float]


NOT_ASKED = Asked(0, 0, {}, {})


def draw(folder: Path, fitted: Path, reference: Reference, calibration: Calibration, asked: Asked) -> None:
    """Write `committee-1.yace`, … of the fit in the folder `fitted` into `folder`."""
    on = BasisFile(fitted / "potential.yaml")
    drawn = members(basis.function_coefficients(on), uncertainty.load(fitted / uncertainty.FILE), calibration, asked)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for number, coefficients in enumerate(drawn, 1):
            member = Path(scratch) / f"{number}.yaml"
            write_linear(member, on, coefficients)
            core.settle(member, reference, asked.shortest)
            convert(member, folder / PATTERN.replace("*", str(number)), asked.e0)


def members(coefficients: Array, factor: Array, calibration: Calibration, asked: Asked) -> Array:
    """The coefficients of each member: (members, functions)."""
    z = np.random.default_rng(asked.seed).normal(size=(asked.members, len(coefficients)))
    return coefficients + calibration.forces.slope * z @ factor
