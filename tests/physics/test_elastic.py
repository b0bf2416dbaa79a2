"""Elastic constants against lattice sums of pair potentials, and against what is known of EMT and of made-up tensors."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.units import GPa
from threadpoolctl import threadpool_limits

from mlip_pace.arrays import VOIGT
from mlip_pace.physics import crystals, elastic
from mlip_pace.physics.crystals import Lowest


@pytest.fixture(autouse=True)
def one_thread():
    """As the stage has it: these matrices are small."""
    with threadpool_limits(1):
        yield


def relaxed(atoms, calculator, name="A"):
    return crystals.crystal_of(Lowest(name, "made", atoms, 0.0), calculator, {})


def test_those_of_a_lennard_jones_crystal_are_the_lattice_sums():
    """Of a pair potential, where every atom is a centre of symmetry and nothing is pressed:
    C_ijkl = 1/(2V) Σ (φ'' - φ'/r) r_i r_j r_k r_l / r^2 (M. Born, K. Huang, Dynamical Theory of Crystal Lattices, 1954).
    """
    epsilon, sigma, cutoff = 0.4, 2.5, 9.0
    found = relaxed(bulk("Cu", "fcc", a=3.9, cubic=True), LennardJones(epsilon=epsilon, sigma=sigma, rc=cutoff, smooth=False))
    a = found.relaxed.lengths[0]
    grid = np.array(np.meshgrid(*[np.arange(-6, 7)] * 3)).reshape(3, -1).T * a
    points = np.concatenate([grid + a * np.array(shift) for shift in ((0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0))])
    r = np.linalg.norm(points, axis=1)
    points, r = points[(r > 0.1) & (r < cutoff)], r[(r > 0.1) & (r < cutoff)]
    first = 4 * epsilon * (-12 * sigma**12 / r**13 + 6 * sigma**6 / r**7)
    second = 4 * epsilon * (156 * sigma**12 / r**14 - 42 * sigma**6 / r**8)
    assert (first * r).sum() == pytest.approx(0, abs=1e-3 * np.abs(first * r).sum())  # at rest
    tensor = np.einsum("n,ni,nj,nk,nl->ijkl", (second - first / r) / r**2, *[points] * 4) / (2 * a**3 / 4) / GPa
    constants = elastic.elastic(found, LennardJones(epsilon=epsilon, sigma=sigma, rc=cutoff)).constants
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
    with pytest.raises(crystals.LeftOutError, match=r"relaxes to 0\.\d\d times its volume"):
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
