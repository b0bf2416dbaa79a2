"""What a step of molecular dynamics costs: energy and forces of ACE alone, in µs an atom, on one core.

By pyace's recursive evaluator, the code that LAMMPS's `pair_style pace recursive` is made from, without the neighbour list.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from ase import Atoms

from mlip_pace.ace.evaluators import calculator_of
from mlip_pace.collect.dataset import ATOMS, ENERGY, ENERGY_ATOMS, SOURCE

ATOMS_ENOUGH = 200  # so that what each call costs by itself does not count
TIMES = 5  # the shortest of them is what it takes where nothing else runs


@dataclass(frozen=True)
class Cost:
    """What a step costs, and what that was measured with."""

    md_step_us_per_atom: float
    atoms: int
    structure: str  # its source
    evaluator: str = "recursive"


def md_step(potential: Path, frame: pd.DataFrame) -> Cost | None:
    """Time a step in the periodic structure of lowest energy, repeated until it is large enough.

    Parameters
    ----------
    potential
        A `.yace` file.
    frame
        Structures with the columns of `dataset.py`.

    Returns
    -------
    Cost | None
        None where no structure is periodic.
    """
    periodic = frame[[bool(atoms.pbc.all()) for atoms in frame[ATOMS]]]
    if periodic.empty:
        return None
    bound = (periodic[ENERGY] - periodic[ENERGY_ATOMS]) / periodic[ATOMS].map(len)
    lowest = periodic.loc[bound.astype(float).idxmin()]
    atoms = repeated(lowest[ATOMS])
    calculator = calculator_of(potential)
    environment, seconds = calculator.get_atomic_env(atoms), []
    for _ in range(TIMES):
        begin = time.perf_counter()
        calculator.ace.compute(environment, compute_projections=False)
        seconds.append(time.perf_counter() - begin)
    return Cost(float(f"{1e6 * min(seconds) / len(atoms):.3g}"), len(atoms), str(lowest[SOURCE]))


def repeated(atoms: Atoms) -> Atoms:
    """A periodic structure, doubled along its shortest edge until it has `ATOMS_ENOUGH` atoms."""
    atoms = atoms.copy()
    while len(atoms) < ATOMS_ENOUGH:
        times = np.ones(3, dtype=int)
        times[np.argmin(atoms.cell.lengths())] = 2
        atoms = atoms.repeat(times)
    return atoms
