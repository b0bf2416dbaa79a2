"""Shared by the tests: where the real data is, and structures with labels."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read

ROOT = Path(__file__).parents[1]
RAW = ROOT / "tests" / "raw"
EXAMPLES = ROOT / "examples" / "al-mg.extxyz"


def beside(name: str) -> Path:
    """Data beside the project, which must not be copied into it; without it, the test is skipped."""
    path = ROOT.parent / "shared" / "data" / name
    if not path.exists():
        pytest.skip(f"{path} is not there (data beside the project)")
    return path


def labelled(atoms: Atoms, energy: float, forces=None, **results) -> Atoms:
    """A copy of `atoms` with an energy (eV) and forces (eV/Å; zero, if none are given) as a calculator's results."""
    atoms = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    atoms.calc = SinglePointCalculator(atoms)
    atoms.calc.results = {"energy": energy, "forces": np.zeros((len(atoms), 3)) if forces is None else forces, **results}
    return atoms


@pytest.fixture
def al_mg() -> list[Atoms]:
    """The example data: two isolated atoms, then Al, Mg and their compounds, labelled with PBE."""
    return read(EXAMPLES, index=":")
