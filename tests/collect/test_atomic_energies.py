"""E0: of isolated atoms, else by least squares, and sensible where the compositions do not tell it."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from conftest import labelled
from hypothesis import given, settings
from hypothesis import strategies as st

from mlip_pace.collect.atomic_energies import FITTED, ISOLATED, SHARED, atomic_energies, of_several_setups, warnings

# Total energies (eV) of free atoms with all electrons, about.
FREE = {"H": -13.6, "C": -1030.0, "O": -2040.0, "Si": -7870.0, "Al": -6590.0, "Mg": -5440.0}


def of(formulas, bound=-3.0, scatter=0.1, free=FREE):
    """Structures and their energies (eV): free atoms, a binding energy per atom, scatter per atom."""
    rng = np.random.default_rng(1)
    structures = [Atoms(formula) for formula in formulas]
    energies = [sum(free[s] for s in a.symbols) + len(a) * (bound + scatter * rng.normal()) for a in structures]
    return structures, np.array(energies)


def test_water_alone_does_not_give_hydrogen_a_third_of_its_energy():
    e0, source = atomic_energies(*of(["H2O"] * 20 + ["H4O2"] * 20), {}, "auto")
    assert set(source.values()) == {SHARED}
    assert -30 < e0["H"] < 0
    assert e0["O"] == pytest.approx(FREE["O"], rel=0.02)
    assert 2 * e0["H"] + e0["O"] == pytest.approx(2 * FREE["H"] + FREE["O"] - 9, abs=0.5)
    (said,) = warnings(e0, source, [], [])
    assert "H, O" in said
    assert "MLIP_PACE_DATA_E0" in said


def test_with_an_isolated_atom_the_other_is_told():
    e0, source = atomic_energies(*of(["H2O"] * 20), {"H": FREE["H"]}, "auto")
    assert source == {"H": ISOLATED, "O": FITTED}
    assert e0["H"] == FREE["H"]
    assert e0["O"] == pytest.approx(FREE["O"] - 9, abs=0.5)


def test_compositions_that_hardly_differ_do_not_tell_either():
    """A proton more or less in water: by the algebra E0(H) takes up the scatter of all the others, times some hundred."""
    e0, source = atomic_energies(*of(["H64O32"] * 30 + ["H65O32"] * 3, scatter=0.3), {}, "auto")
    assert -40 < e0["H"] < 20
    assert source == {"H": SHARED, "O": SHARED}


def test_a_dopant_that_the_data_tell_is_fitted():
    e0, source = atomic_energies(*of(["Al4"] * 5 + ["Al3Mg", "Al2Mg2", "Mg4"] * 3), {}, "auto")
    assert set(source.values()) == {FITTED}
    assert e0 == pytest.approx({"Al": FREE["Al"] - 3, "Mg": FREE["Mg"] - 3}, abs=0.5)


FORMULAS = ["H2O", "CO2", "CH4", "C2H6O", "H2", "O2", "SiO2", "SiH4", "C2", "Si2", "CO", "MgO", "Al2O3", "AlMg", "Mg2"]


@settings(max_examples=150, deadline=None)
@given(
    formulas=st.lists(st.sampled_from(FORMULAS), min_size=1, max_size=12),
    bound=st.floats(-8, 1),
    known=st.booleans(),
    valence=st.booleans(),
)
def test_no_composition_makes_an_energy_that_no_atom_can_have(formulas, bound, known, valence):
    """With all electrons, and with the few eV of a projector-augmented calculation."""
    free = dict.fromkeys(FREE, -1.0) if valence else FREE
    structures, energies = of(formulas, bound, free=free)
    isolated = {"H": free["H"]} if known and any("H" in a.symbols for a in structures) else {}
    e0, source = atomic_energies(structures, energies, isolated, "auto")
    assert set(e0) == set(source) == {symbol for atoms in structures for symbol in atoms.symbols}
    for symbol, energy in e0.items():
        most = max(abs(energy_) for energy_, a in zip(energies, structures, strict=True) if symbol in a.symbols)
        assert abs(energy) <= 1.5 * most + 50, (symbol, energy, formulas)
    if "H" in e0 and not valence:
        assert abs(e0["H"]) < 150, (e0, formulas)
    # What all structures have of each composition is described as well as by any E0.
    counts = np.array([[a.symbols.search(s).size for s in e0] for a in structures], dtype=float)
    best = counts @ np.linalg.lstsq(counts, energies, rcond=None)[0] - energies
    ours = counts @ np.array(list(e0.values())) - energies
    if not isolated and set(source.values()) != {FITTED}:
        assert np.abs(ours).max() <= np.abs(best).max() + 60


def test_a_run_on_water_ends_with_sense(tmp_path):
    from mlip_pace import atoms_to_dataframe

    water = []
    for n in range(20):
        atoms = molecule("H2O")
        atoms.rattle(0.02, seed=n)
        water.append(labelled(atoms, -2078.5 + 0.01 * n))
    assert -30 < atoms_to_dataframe(water).attrs["e0"]["H"] < 0


def test_what_least_squares_leave_of_the_binding_is_said():
    """Free atoms at -1000 eV in cells bound by 3.5 and 4 eV/atom: least squares see E0 of -1003.8 and hardly any binding."""
    structures = [Atoms("Si2"), Atoms("Si4")]
    energies = np.array([2 * -1003.5, 4 * -1004.0])
    e0, source = atomic_energies(structures, energies, {}, "auto")
    (said,) = warnings(e0, source, structures, energies)
    assert "E0 of Si by least squares" in said
    assert "the lowest is -0.10 eV/atom" in said  # E0 = (2 * 2007 + 4 * 4016) / 20 = -1003.9 eV
    assert warnings(*atomic_energies(structures, energies, {"Si": -1000.0}, "auto"), structures, energies) == []


def test_energies_of_two_setups_are_told():
    """As of two pseudopotentials, in one folder."""
    cells = [bulk("Cu").repeat((1, 1, n)) for n in (1, 2, 3, 1)]
    energies = np.array([-70.0, -141.0, -9.0 * 3, -8.5])
    still = [np.zeros((len(atoms), 3)) for atoms in cells]
    (said,) = of_several_setups(cells, energies, still)
    assert said.startswith("energies of Cu are 61 eV/atom apart (2 structures up to -70.00 eV/atom, 2 from -9.00 on)")
    assert of_several_setups(cells, np.array([-8.0, -7.0, -3.0, 4.0]) * [1, 2, 3, 1], still) == []
    pushed = [*still[:2], still[2] + 40.0, still[3] + 40.0]  # as in a dimer at 0.5 Å
    assert of_several_setups(cells, energies, pushed) == []
    other = Atoms("Cu2Zr", [[0, 0, 0], [0, 0, 2], [0, 2, 0]])
    assert of_several_setups([cells[0], other], np.array([-8.0, -300.0]), [np.zeros((1, 3)), np.zeros((3, 3))]) == []
