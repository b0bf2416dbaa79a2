"""Signs of wrong units and boundaries, of structures of many kinds."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, graphene, make_supercell, molecule
from ase.data import covalent_radii
from ase.units import Bohr
from hypothesis import given
from hypothesis import strategies as st

from mlip_pace.collect.audit import far_apart
from mlip_pace.collect.geometry import composition, seems_periodic, shares, too_long

CRYSTALS = [
    bulk("Si"), bulk("W"), bulk("Na"), bulk("Rb", "bcc", 5.59), bulk("Be"), bulk("Zn"), bulk("Ba"),
    bulk("NaCl", "rocksalt", 5.64), bulk("CsCl", "cesiumchloride", 4.12), bulk("MgO", "rocksalt", 4.21),
    bulk("SiC", "zincblende", 4.36),
]  # fmt: skip
OTHERS = [molecule(name) for name in ("H2O", "C6H6", "CH3CH2OH", "N2", "SiH4", "LiF")] + [fcc111("Pt", (1, 1, 3), vacuum=8)]


def boxed(atoms, size):
    """A molecule in a box, not periodic."""
    atoms = atoms.copy()
    atoms.set_cell(3 * [size])
    atoms.center()
    return atoms


@pytest.mark.parametrize("atoms", CRYSTALS + OTHERS, ids=lambda atoms: str(atoms.symbols))
def test_lengths_in_bohr_are_told_of_whatever_has_bonds(atoms):
    """Bonds of N2 are 0.77 of the covalent radii, the farthest from them in bohr that is still told is 1.35."""
    assert too_long([atoms]) == []
    longer = atoms.copy()
    longer.set_cell(atoms.cell / Bohr, scale_atoms=False)
    longer.positions /= Bohr
    (said,) = too_long([longer])
    assert "in bohr?" in said


def test_what_forms_no_bonds_is_no_sign_of_a_unit():
    assert too_long([bulk("Ar", "fcc", 5.26), Atoms("He2", [[0, 0, 0], [0, 0, 3.0]])]) == []
    assert too_long([Atoms("H")]) == []
    argon = bulk("Ar", "fcc", 5.26, cubic=True) * (2, 2, 2)
    argon.symbols[0] = "Na"  # 1.37 radii from its neighbours, which are none that it binds
    assert too_long([argon]) == []


@pytest.mark.parametrize("scale", [1.0, 1 / Bohr])
def test_the_shortest_of_bonds_is_the_one_that_counts_however_long_it_is(scale):
    """A molecule of hydrogen, 1.19 radii, between atoms of caesium, which are 1.0 radii apart."""
    atoms = bulk("Cs", "sc", 4.9, cubic=True)
    atoms += Atoms("H2", [[2.45, 2.45, 2.08], [2.45, 2.45, 2.82]])
    atoms.set_cell(atoms.cell * scale, scale_atoms=True)
    assert bool(too_long([atoms])) == (scale > 1)
    if said := too_long([atoms]):
        assert f"than {4.9 * scale / (2 * covalent_radii[55]):.2f} times" in said[0]


def test_shares_of_elements():
    found = shares([Atoms("Al3Mg"), Atoms("Mg"), Atoms("AlMgSi2")], ["Mg", "Al"])
    np.testing.assert_array_equal(found, [[0.25, 0.75], [1, 0], [0.25, 0.25]])
    assert shares([], ["Mg", "Al"]).shape == (0, 2)


def test_few_long_dimers_among_others_are_no_sign_of_a_unit():
    dimers = [Atoms("Si2", [[0, 0, 0], [0, 0, length]]) for length in np.arange(3.5, 5.0, 0.5)]
    assert too_long([*dimers, *4 * [bulk("Si")]]) == []


def test_a_curve_of_dissociation_is_no_sign_of_a_unit():
    assert too_long([Atoms("H2", [[0, 0, 0], [0, 0, length]]) for length in np.linspace(0.74, 5.0, 40)]) == []


@pytest.mark.parametrize("atoms", [*CRYSTALS[:1], *CRYSTALS[7:]], ids=lambda atoms: str(atoms.symbols))
@pytest.mark.parametrize("pbc", [(False, False, False), (True, True, False)])
def test_a_crystal_without_its_boundaries_is_told(atoms, pbc):
    large = make_supercell(atoms, 2 * np.eye(3))
    assert not seems_periodic(large)
    large.pbc = pbc
    assert seems_periodic(large)


@pytest.mark.parametrize("size", [6.0, 9.0, 15.0])
@pytest.mark.parametrize("name", ["H2O", "C6H6", "CH3CH2OH"])
def test_molecules_in_boxes_have_no_boundaries_to_miss(name, size):
    assert not seems_periodic(molecule(name))
    assert not seems_periodic(boxed(molecule(name), size))


def test_a_molecule_in_a_box_that_just_holds_it_is_not_periodic():
    """It would overlap with its images, in a cell that is full."""
    assert not seems_periodic(boxed(molecule("C6H6"), 5.0))


def test_slabs_and_sheets_with_a_vacuum_have_no_boundary_to_miss():
    assert not seems_periodic(fcc111("Pt", (2, 2, 4), vacuum=10))
    assert not seems_periodic(graphene(vacuum=10))


@given(count=st.integers(0, 100), read=st.integers(100, 1000))
def test_many_structures_without_neighbours_are_told(count, read):
    said = far_apart(count, read, 4.5, 0.05)
    assert bool(said) == (count > 0.05 * read)
    assert all(f"{count} of {read} structures" in one for one in said)


def test_a_composition_has_one_name():
    assert {composition(Atoms(formula)) for formula in ("Al3Mg", "MgAl3", "Al6Mg2", "AlMgAl2")} == {"Al3Mg"}
