"""Cells of any shape: the same structure gives the same energy, forces and stress, whatever vectors span its lattice."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.spacegroup import crystal
from hypothesis import given, settings
from hypothesis import strategies as st

from mlip_pace import load_calculator
from mlip_pace.collect.audit import fully_periodic
from mlip_pace.collect.cells import SKEWED, compact, is_bulk

# Integer matrices of determinant ±1: other vectors of the same lattice.
shears = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(-40, 40)), max_size=4)
signs = st.tuples(*[st.sampled_from((1, -1))] * 3)


def transformation(steps, mirrored):
    matrix = np.diag(mirrored)
    for row, other, times in steps:
        if row != other:
            matrix[row] += times * matrix[other]
    return matrix


def aluminium(symbols="Al4", size=1.0):
    atoms = bulk("Al", a=4.05 * size, cubic=True)
    atoms.symbols = symbols
    atoms.rattle(0.05, seed=1)
    return atoms


STRUCTURES = {
    "crystal": aluminium(),
    "alloy": aluminium("AlMgAlMg"),
    "tiny": bulk("Al", a=3.9),
    "large": aluminium() * (3, 2, 1),
}


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(STRUCTURES)), steps=shears, mirrored=signs)
def test_any_vectors_of_a_lattice_become_sound_ones_of_the_same(name, steps, mirrored):
    atoms = STRUCTURES[name]
    cell = transformation(steps, mirrored) @ atoms.cell.array
    sound = compact(Atoms(atoms.numbers, atoms.positions, cell=cell, pbc=True))
    assert np.linalg.det(sound.cell.array) == pytest.approx(atoms.get_volume(), rel=1e-6)
    assert np.prod(sound.cell.lengths()) <= SKEWED * sound.get_volume()
    np.testing.assert_array_equal(sound.positions, atoms.positions)
    inside = sound.cell.array @ np.linalg.inv(atoms.cell.array)
    np.testing.assert_allclose(inside, np.round(inside), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(STRUCTURES)), steps=shears, mirrored=signs)
def test_what_is_calculated_does_not_depend_on_the_vectors(demo, name, steps, mirrored):
    calculator = load_calculator(demo / "potential.json")
    results = []
    for matrix in (np.eye(3), transformation(steps, mirrored)):
        atoms = STRUCTURES[name].copy()
        atoms.set_cell(matrix @ atoms.cell.array)
        atoms.calc = calculator
        results.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-6)  # vectors 40 times as long have lost digits


def slab():
    return fcc111("Al", (2, 1, 3), a=4.05, vacuum=None)


def wire():
    return Atoms("Al2Mg", [(0, 0, 0), (0, 2.5, 2.0), (2.4, 0, 2.1)], cell=[0, 0, 4.1], pbc=(False, False, True))


def mirrored(atoms):
    atoms.set_cell(atoms.cell.array * [[1], [1], [-1]])
    return atoms


def skewed(atoms):
    atoms.set_cell(np.array([[1, 30, 0], [0, 1, 0], [0, 0, 1]]) @ atoms.cell.array)
    return atoms


@pytest.mark.parametrize(
    ("atoms", "alike"),
    [
        (slab(), slab()),
        (skewed(slab()), slab()),
        (wire(), wire()),
        (mirrored(wire()), wire()),
        (Atoms("Al3", molecule("O3").positions * 2), Atoms("Al3", molecule("O3").positions * 2)),
        (Atoms("Al2", [(0, 0, 0), (0, 0, 2.8)], cell=-10 * np.eye(3)), Atoms("Al2", [(0, 0, 0), (0, 0, 2.8)])),
        (Atoms("Al2", [(0, 0, 0), (0, 0, 2.8)], cell=[9, 0, 0]), Atoms("Al2", [(0, 0, 0), (0, 0, 2.8)])),
        (Atoms("Al"), Atoms("Al", cell=[30, 30, 30])),
    ],
    ids=["slab", "skewed slab", "wire", "mirrored wire", "molecule", "in a left-handed box", "in a flat box", "atom"],
)
def test_slabs_wires_and_molecules_are_calculated_as_they_are(demo, atoms, alike):
    """By the calculator as by what the job makes of them: a cell with vacuum."""
    calculator = load_calculator(demo / "potential.json")
    energies, forces = [], []
    for one in (atoms, alike, fully_periodic(atoms, calculator.cutoff)[0]):
        one = one.copy()
        one.calc = calculator
        energies.append(one.get_potential_energy())
        forces.append(one.get_forces())
    np.testing.assert_allclose(energies, energies[0], atol=1e-8)
    np.testing.assert_allclose(forces[1], forces[0], atol=1e-8)
    np.testing.assert_allclose(forces[2], forces[0], atol=1e-8)


def molecules(name, vacuum):
    atoms = molecule(name)
    atoms.center(vacuum=vacuum)
    atoms.pbc = True
    return atoms


def slab_with(gap):
    slab = fcc111("Al", (1, 1, 4), vacuum=gap / 2)
    slab.pbc = True
    return slab


# Cells as measured, from R. W. G. Wyckoff, Crystal Structures (1963).
CALCITE = crystal(
    ["Ca", "C", "O"], [(0, 0, 0), (0, 0, 0.25), (0.2568, 0, 0.25)], spacegroup=167, cellpar=[4.99, 4.99, 17.06, 90, 90, 120]
)
DRY_ICE = crystal(["C", "O"], [(0, 0, 0), (0.1185, 0.1185, 0.1185)], spacegroup=205, cellpar=[5.624] * 3 + [90] * 3)
BRUCITE = crystal(["Mg", "O", "H"], [(0, 0, 0), (1 / 3, 2 / 3, 0.22), (1 / 3, 2 / 3, 0.43)], spacegroup=164,
                  cellpar=[3.142, 3.142, 4.766, 90, 90, 120])  # fmt: skip
SODALITE = crystal(["Si", "O"], [(0.25, 0.5, 0), (0.1464, 0.1464, 0.5)], spacegroup=229, cellpar=[8.83] * 3 + [90] * 3)
VACANCY = bulk("Si", cubic=True).repeat(2)[1:]


@pytest.mark.parametrize(("atoms", "dense"), [
    (bulk("Al"), True), (bulk("Si"), True), (bulk("Cs"), True), (bulk("Xe"), True), (CALCITE, True), (DRY_ICE, True),
    (BRUCITE, True), (VACANCY, True), (SODALITE, False), (molecules("C60", 1.6), False), (molecules("CH3CH2OH", 2.4), False),
    (molecules("H2", 1.7), True), (molecules("H2", 3.0), False), (slab_with(7.5), False), (molecule("H2O"), False),
], ids=lambda one: one.get_chemical_formula() if isinstance(one, Atoms) else str(one))  # fmt: skip
def test_bulk_is_what_has_no_void_whatever_its_bonds(atoms, dense):
    """Also with bonds of 1 Å in a cell of large ions."""
    assert is_bulk(atoms) is dense
