"""What is recognised in data whose labels are EMT's: it must be what EMT itself gives; and what is not there is absent."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.units import GPa
from pairs import relaxed

from mlip_pace.collect import dataset
from mlip_pace.physics import defects, dft, elastic, volumes

pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def copper():
    return relaxed(bulk("Cu", cubic=True), EMT())


def frame_of(structures, stress=False):
    rows = []
    for number, atoms in enumerate(structures):
        labelled = atoms.copy()
        labelled.calc = EMT()
        rows.append({dataset.ATOMS: atoms, dataset.SOURCE: f"made#{number}", dataset.ENERGY: labelled.get_potential_energy(),
                     dataset.ENERGY_ATOMS: 0.0, dataset.FORCES: labelled.get_forces(), "name": f"made#{number}"})  # fmt: skip
        if stress:
            rows[-1][dataset.STRESS] = labelled.get_stress(voigt=False)
    return pd.DataFrame(rows)


def strained(cell, which, sizes=(-0.02, -0.01, 0.01, 0.02)):
    """Cells with Green's strain η along Voigt components, or x and y (6): F = sqrt(1 + 2η)."""
    for component in which:
        for size in sizes:
            strain = np.zeros((3, 3))
            for i, j in [[(0, 0)], [(1, 1)], [(2, 2)], [(1, 2)], [(0, 2)], [(0, 1)], [(0, 0), (1, 1)]][component]:
                strain[i, j] = strain[j, i] = size
            values, vectors = np.linalg.eigh(np.eye(3) + 2 * strain)
            moved = cell.copy()
            moved.set_cell(cell.cell @ (vectors * np.sqrt(values)) @ vectors.T, scale_atoms=True)
            yield moved


def found_in(structures, stress=False):
    return dft.of_crystal(copper(), frame_of(structures, stress), EMT(), {})


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("stress", [False, True])
def test_elastic_constants_are_those_of_the_strained_cells(stress, turned):
    cell = copper().atoms().repeat(2)
    if turned:
        cell.rotate(35, (1, 2, 3), rotate_cell=True)
    found = found_in([cell, *strained(cell, range(7))], stress)
    assert found.strained == 28
    constants = elastic.elastic(copper(), EMT()).constants
    assert set(found.elastic) == set(constants)
    for name, value in constants.items():
        assert found.elastic[name] == pytest.approx(value, rel=0.02), name


@pytest.mark.parametrize("stress", [False, True])
def test_strained_cells_may_have_axes_of_their_own_and_any_measure_of_strain(stress):
    """F = 1 + ε, of which a shear lengthens the axes as well (by ε^2/2), each cell turned in its own way, as codes do."""
    cell, structures = copper().atoms(), []
    for number, (i, j, size) in enumerate(
        (*at, size) for at in zip(*np.triu_indices(3), strict=True) for size in (-0.01, -0.005, 0.005, 0.01)
    ):
        moved, deformation = cell.copy(), np.eye(3)
        deformation[i, j] += size / (1 + (i != j))
        deformation[j, i] += size / (1 + (i != j))
        moved.set_cell(cell.cell @ deformation, scale_atoms=True)
        moved.rotate(17 * number, (1, 2, 3), rotate_cell=True)
        structures.append(moved)
    found = found_in([cell, *structures], stress)
    constants = elastic.elastic(copper(), EMT()).constants
    assert set(found.elastic) == (set(constants) if stress else {"C11", "C44"})
    for name, value in found.elastic.items():
        assert value == pytest.approx(constants[name], rel=0.02), name


def test_labels_of_shear_with_the_wrong_sign_tell_no_constant():
    cell = copper().atoms()
    frame = frame_of([cell, *strained(cell, range(6))], stress=True)
    for stress in frame[dataset.STRESS]:
        stress[~np.eye(3, dtype=bool)] *= -1
    assert set(dft.of_crystal(copper(), frame, EMT(), {}).elastic) == {"C11", "C12"}


def test_what_strains_leave_open_is_absent():
    cell = copper().atoms()
    along_one_axis = found_in([cell, *strained(cell, [0])])
    assert set(along_one_axis.elastic) == {"C11"}
    assert set(found_in([cell, *strained(cell, range(6))]).elastic) == {"C11", "C44"}
    assert along_one_axis.elastic["C11"] == pytest.approx(172.6, rel=0.02)
    assert set(found_in([cell, *strained(cell, [4])]).elastic) == {"C44"}
    assert found_in([cell, *strained(cell, [0], [0.02])]).elastic is None  # without its opposite
    assert found_in([cell, *strained(cell, [4], [0.02])]).elastic.keys() == {"C44"}  # which a rotation makes
    assert found_in(list(strained(cell, [0]))).elastic is None  # without the crystal


def test_atoms_that_are_not_at_rest_do_not_count():
    shaken = copper().atoms().repeat(2)
    shaken.rattle(0.02, seed=1)
    found = found_in([shaken, *strained(shaken, range(6))])
    assert (found.elastic, found.strained, found.equation) == (None, 0, None)


def test_a_series_of_volumes_gives_the_equation_of_state():
    cell = copper().atoms()
    series = []
    for volume in np.linspace(0.94, 1.06, 7):
        series.append(cell.copy())
        series[-1].set_cell(cell.cell * np.cbrt(volume), scale_atoms=True)
    found, known = found_in(series).equation, volumes.of_crystal(copper(), EMT())
    assert found.volume == pytest.approx(known.volume, rel=1e-4)
    assert found.modulus == pytest.approx(known.modulus, rel=5e-3)
    assert found_in([relaxed_hcp()] * 7).equation is None


@cache
def relaxed_hcp():
    return relaxed(bulk("Cu", "hcp", a=2.5, c=4.1), EMT()).atoms()


def test_another_crystal_is_not_the_same():
    assert dft.is_same(bulk("Cu", a=3.6), copper())
    assert dft.is_same(bulk("Cu", a=3.7).repeat((2, 1, 3)), copper())
    for other in (bulk("Cu", "bcc", a=2.85), relaxed_hcp(), bulk("Cu", "sc", a=2.3), bulk("Cu", a=4.4)):
        assert not dft.is_same(other, copper())


def test_a_vacancy_and_slabs_are_recognised():
    from mlip_pace.physics.crystals import relaxed as at_rest

    cell = copper().atoms()
    without = cell.repeat(2)
    del without[5]
    without = at_rest(without, EMT(), fmax=0.01)
    without.rotate(20, (0, 1, 2), rotate_cell=True)
    a = copper().relaxed.lengths[0]
    ours = fcc111("Cu", (1, 2, 6), a=a, vacuum=6.0, orthogonal=True)
    ours.pbc = True
    slab = at_rest(ours, EMT(), fmax=0.02)
    other_axis = slab[:]
    other_axis.set_cell(slab.cell[[2, 0, 1]])  # the same slab, its normal along the first vector
    hot = ours.copy()
    hot.rattle(0.1, seed=2)
    found = found_in([cell, without, slab, other_axis, hot])
    (hole,) = found.vacancies
    assert (hole.source, hole.atoms) == ("made#1", 32)
    assert hole.dft == pytest.approx(hole.potential, abs=1e-3) == pytest.approx(1.22, abs=0.05)
    assert [one.source for one in found.slabs] == ["made#2", "made#3"]
    (facet,) = [one for one in defects.surfaces(copper(), EMT()) if one.indices == (1, 1, 1)]
    for one in found.slabs:
        assert one.indices == (1, 1, 1)
        assert one.dft == pytest.approx(facet.energy, rel=0.02)
        assert one.dft == pytest.approx(one.potential, rel=1e-3)


def test_nothing_is_seen_in_what_is_not_the_crystal():
    rng = np.random.default_rng(0)
    liquid = copper().atoms().repeat(2)
    liquid.positions = rng.uniform(0, 7.2, liquid.positions.shape)
    found = found_in([liquid])
    assert (found.equation, found.elastic, found.slabs, found.vacancies) == (None, None, [], [])


def test_stresses_are_those_of_tension():
    """Pulled along x, the stress there is positive: C11 is, too."""
    cell = copper().atoms()
    frame = frame_of([cell, *strained(cell, [0])], stress=True)
    pulled = frame[dataset.STRESS][4]
    assert pulled[0, 0] / GPa == pytest.approx(0.02 * 172.6, rel=0.2)
    assert dft.of_crystal(copper(), frame, EMT(), {}).elastic["C12"] == pytest.approx(115.4, rel=0.02)


def test_a_constant_in_which_energies_and_stresses_do_not_agree_is_absent():
    cell = copper().atoms()
    frame = frame_of([cell, *strained(cell, range(6))], stress=True)
    for stress in frame[dataset.STRESS]:
        stress[[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]] *= -1  # as if shear had the other sign
    assert set(dft.of_crystal(copper(), frame, EMT(), {}).elastic) == {"C11", "C12"}
