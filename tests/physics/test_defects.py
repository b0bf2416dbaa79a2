"""Vacancies and surfaces against the counting of bonds."""

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from pairs import lennard_jones, relaxed

from mlip_pace.physics import defects
from mlip_pace.physics.crystals import LeftOutError

pytestmark = pytest.mark.usefixtures("one_thread")

JOULE = 16.02176634  # J/m^2 of 1 eV/Å^2


@pytest.fixture
def bonds():
    """fcc whose atoms are bound to their twelve nearest neighbours alone, by 0.4 eV each: crystal and calculator."""
    calculator = LennardJones(epsilon=0.4, sigma=2.5 / 2 ** (1 / 6), rc=3.0)
    calculator.parameters.update(ro=2.9, smooth=False)
    crystal = relaxed(bulk("Cu", "fcc", a=2.5 * np.sqrt(2), cubic=True), calculator)
    return crystal, calculator, crystal.energy / -6  # eV a bond


def test_a_vacancy_of_a_pair_potential_costs_the_cohesive_energy():
    crystal, calculator, _ = lennard_jones()
    (found,) = defects.vacancies(crystal, calculator)
    assert found.unrelaxed == pytest.approx(-crystal.energy, rel=1e-3)
    assert 0.95 * found.unrelaxed < found.energy < found.unrelaxed
    assert found.atoms == 108


def test_a_surface_costs_the_bonds_that_it_breaks(bonds):
    crystal, calculator, bond = bonds
    a = crystal.relaxed.lengths[0]
    # Half of the broken bonds of an atom, over its area: 4, 6 (one of them of the second layer) and 3 bonds.
    expected = {(1, 0, 0): 4 / a**2, (1, 1, 0): 3 * np.sqrt(2) / a**2, (1, 1, 1): 2 * np.sqrt(3) / a**2}
    for facet in defects.surfaces(crystal, calculator):
        assert facet.unrelaxed == pytest.approx(expected[facet.indices] * bond * JOULE, rel=1e-3), facet
        assert facet.energy <= facet.unrelaxed


def test_the_cut_is_where_fewest_bonds_break():
    """Of hcp (1 0 -1 0) and diamond (1 1 1) there are two: between layers that are near, and far from each other."""
    cell = bulk("Si", cubic=True)
    heights = []
    for slab in defects._cuts(cell, (1, 1, 1)):
        planes = np.unique(slab.positions[:, 2].round(3))
        heights.append(planes[1] - planes[0])
    assert sorted({round(height, 2) for height in heights}) == [0.78, 2.35]  # 1/(4 √3) and √3/4 of 5.43 Å
    found = {facet.indices: facet for facet in defects.surfaces(relaxed(bulk("Ag", "hcp", a=2.9, c=4.7), EMT()), EMT())}
    assert set(found) == {(0, 0, 1), (1, 0, 0)}
    assert 0 < found[0, 0, 1].energy < found[1, 0, 0].energy  # the densest


def test_of_compounds_there_is_no_one_number():
    with pytest.raises(LeftOutError, match="chemical potentials"):
        defects.vacancies(relaxed(bulk("CuAu", "cesiumchloride", a=3.1), EMT()), EMT())
