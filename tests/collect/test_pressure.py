"""Whether the data tell of pressure."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from mlip_pace.collect import pressure


def rattled(volumes, cell=lambda: bulk("Cu", cubic=True)):
    """The same cell with its atoms elsewhere, at volumes relative to its own."""
    rng, structures = np.random.default_rng(0), []
    for volume in volumes:
        atoms = cell()
        atoms.set_cell(atoms.cell.array * np.cbrt(volume), scale_atoms=True)
        atoms.positions += 0.05 * rng.normal(size=atoms.positions.shape)
        structures.append(atoms)
    return structures


def boxed():
    atoms = molecule("CH4")
    atoms.center(vacuum=6.0)
    atoms.pbc = True
    return atoms


@pytest.mark.parametrize(("structures", "stresses", "told"), [
    (rattled([1.0] * 5), False, True),
    (rattled([1.0, 1.0, 1.005]), False, True),
    (rattled([1.0] * 5), True, False),
    (rattled([0.97, 1.0, 1.03]), False, False),
    (rattled([1.0]), False, False),
    (rattled([1.0] * 3) + rattled([0.9, 1.1], lambda: bulk("Al")), False, False),
    (rattled([1.0] * 3, boxed), False, False),
    ([Atoms("Cu2", [[0, 0, 0], [0, 0, z]]) for z in (2.2, 2.4)], False, False),
], ids=["one volume", "nearly", "stresses", "several volumes", "one", "several of another", "a box", "dimers"])  # fmt: skip
def test_one_volume_without_stress_is_told(structures, stresses, told):
    said = pressure.unknown(structures, stresses)
    assert len(said) == told
    assert all(warning.startswith("all structures of Cu have one volume, and there is no stress to fit") for warning in said)
