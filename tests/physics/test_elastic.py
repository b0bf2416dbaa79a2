"""Elastic constants against lattice sums of pair potentials, and against what is known of EMT and of made-up tensors."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.units import GPa
from pairs import lennard_jones, relaxed

from mlip_pace.arrays import VOIGT
from mlip_pace.physics import crystals, elastic

pytestmark = pytest.mark.usefixtures("one_thread")


def test_those_of_a_lennard_jones_crystal_are_the_lattice_sums():
    """Of a pair potential, where every atom is a centre of symmetry and nothing is pressed:
    C_ijkl = 1/(2V) Σ (φ'' - φ'/r) r_i r_j r_k r_l / r^2 (M. Born, K. Huang, Dynamical Theory of Crystal Lattices, 1954).
    """
    crystal, calculator, pairs = lennard_jones()
    r, pressure = pairs.r, pairs.first * pairs.r
    assert pressure.sum() == pytest.approx(0, abs=1e-3 * np.abs(pressure).sum())  # at rest
    weights = (pairs.second - pairs.first / r) / r**2
    tensor = np.einsum("n,ni,nj,nk,nl->ijkl", weights, *[pairs.points] * 4) / (2 * pairs.a**3 / 4) / GPa
    constants = elastic.elastic(crystal, calculator).constants
    assert constants["C11"] == pytest.approx(tensor[0, 0, 0, 0], rel=2e-3)
    assert constants["C12"] == pytest.approx(tensor[0, 0, 1, 1], rel=2e-3)
    assert constants["C44"] == pytest.approx(tensor[1, 2, 1, 2], rel=2e-3)
    assert constants["C12"] == pytest.approx(constants["C44"], rel=2e-3)  # Cauchy's relation


def test_a_strained_and_shaken_supercell_relaxes_to_its_crystal():
    atoms = bulk("Al", cubic=True).repeat(2)
    atoms.set_cell(atoms.cell * [1.01, 0.99, 1.02], scale_atoms=True)
    atoms.positions += np.random.default_rng(1).normal(0, 0.1, atoms.positions.shape)
    found = relaxed(atoms, EMT())
    assert (found.in_data.space_group, found.relaxed.space_group) == ("P1", "Fm-3m")
    assert found.is_crystal
    assert found.relaxed.lengths == pytest.approx([3.994] * 3, abs=2e-3)  # where ASE's EMT has its lowest energy
    assert len(found.primitive()) == 1
    assert len(found.atoms()) == 4


def test_what_relaxes_away_is_told():
    apart = Atoms("Cu4", np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]) * 4.4, cell=[4.4] * 3, pbc=True)
    with pytest.raises(crystals.LeftOutError, match=r"relaxes away: to 0\.[56]\d times its volume"):
        relaxed(apart, EMT())


@pytest.mark.parametrize(("symbol", "system"), [("Cu", "cubic"), ("Ti", "hexagonal")])
def test_what_is_independent_gives_all_of_the_matrix(symbol, system):
    """By the relations of the crystal systems (J. F. Nye, Physical Properties of Crystals, 1957)."""
    atoms, rng = bulk(symbol), np.random.default_rng(0)
    standard = crystals.standard(atoms, primitive=True)
    found = elastic.Elastic.of(rng.normal(100, 30, (3, 3, 3, 3)), system, crystals.rotations_of(standard))
    c, matrix = found.constants, np.array(found.matrix)
    full = np.zeros((6, 6))
    if system == "cubic":
        full[:3, :3] = c["C12"]
        np.fill_diagonal(full, [c["C11"]] * 3 + [c["C44"]] * 3)
        assert found.stable == (c["C11"] > abs(c["C12"]) and c["C44"] > 0 and c["C11"] + 2 * c["C12"] > 0)  # Born
    else:
        full[0, 1], full[0, 2], full[1, 2] = c["C12"], c["C13"], c["C13"]
        full += full.T
        np.fill_diagonal(full, [c["C11"], c["C11"], c["C33"], c["C44"], c["C44"], (c["C11"] - c["C12"]) / 2])
        born = c["C11"] > abs(c["C12"]) and 2 * c["C13"] ** 2 < c["C33"] * (c["C11"] + c["C12"]) and c["C44"] > 0
        assert found.stable == born  # F. Mouhat, F.-X. Coudert, Phys. Rev. B 90, 224104 (2014), eq. 10
    assert matrix == pytest.approx(full, abs=1e-3)


def test_a_tensor_without_symmetry_keeps_its_21_constants():
    random = np.random.default_rng(1).normal(size=(6, 6)) + 10 * np.eye(6)
    matrix, tensor = random + random.T, np.zeros((3, 3, 3, 3))
    for m, (i, j) in enumerate(zip(*VOIGT, strict=True)):
        for n, (k, l) in enumerate(zip(*VOIGT, strict=True)):  # noqa: E741 (the indices of a tensor)
            tensor[i, j, k, l] = tensor[j, i, k, l] = tensor[i, j, l, k] = tensor[j, i, l, k] = matrix[m, n]
    found = elastic.Elastic.of(tensor, "triclinic", np.eye(3)[None])
    assert np.array(found.matrix) == pytest.approx(matrix, abs=1e-4)
    assert len(found.constants) == 21
    assert found.asymmetry == pytest.approx(0, abs=1e-9)
