"""The stage: what is in the sidecar can be computed again, and what is left out has its reason."""

import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from conftest import labelled, mlip_pace

from mlip_pace import load_calculator
from mlip_pace.ace.calculator import PotentialCalculator
from mlip_pace.collect import dataset
from mlip_pace.physics import crystals, elastic, measure
from mlip_pace.physics.crystals import Cell
from mlip_pace.physics.measure import LeftOut
from mlip_pace.physics.volumes import Equation
from mlip_pace.publish.evaluate import Published
from mlip_pace.publish.potential import Potential, intact
from mlip_pace.run.compute import end_of_share
from mlip_pace.settings import PhysicsSettings

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def published(demo):
    """The published potential of the example data, and what `measure` says of structures with labels."""
    potential = Potential.load(demo / "potential.json")

    def measured(structures, seconds=60.0, properties="equation"):
        frame = pd.DataFrame(
            {
                dataset.ATOMS: [Atoms(a.numbers, a.positions, cell=a.cell, pbc=a.pbc) for a in structures],
                dataset.SOURCE: [f"made#{n}" for n in range(len(structures))],
                dataset.ENERGY: [a.get_potential_energy() for a in structures],
                dataset.ENERGY_ATOMS: 0.0,
                dataset.FORCES: [a.get_forces() for a in structures],
                "name": "",
            }
        )
        settings = PhysicsSettings(properties=properties)
        given = Published(potential.path, potential.reference, None)
        end = time.monotonic() + seconds
        return measure.measure(frame, given, potential.metadata["e0"]["energies"], settings, end, 2)

    return potential, measured


def test_what_the_sidecar_says_can_be_computed_again(demo):
    metadata = Potential.load(demo / "potential.json").metadata
    known, calculator = metadata["physics"]["crystals"], load_calculator(demo / "potential.json")
    assert {name: one["crystal"]["relaxed"]["space_group"] for name, one in known.items()} == {
        "Al": "Fm-3m", "Mg": "P6_3/mmc", "AlMg": "P-6m2", "Al3Mg": "Pm-3m", "AlMg3": "Pm-3m",
    }  # fmt: skip
    for one in known.values():
        conventional = Cell(**one["crystal"]["conventional"]).atoms()
        assert crystals.cohesive(conventional, calculator, metadata["e0"]["energies"]) == pytest.approx(
            one["crystal"]["energy"]
        )
        conventional.calc = calculator
        assert np.abs(conventional.get_forces()).max() < 2e-3
        assert np.abs(conventional.get_stress()).max() < 2e-5  # 3 MPa
    atoms = crystals.standard(Cell(**known["Mg"]["crystal"]["conventional"]).atoms(), primitive=True)
    again = elastic.Elastic.of(elastic.tensor_of(atoms, calculator), "hexagonal", crystals.rotations_of(atoms))
    assert again.constants == pytest.approx(known["Mg"]["elastic"]["constants"], rel=1e-3)
    assert set(metadata["physics"]["crystals"]["AlMg"]) == {"crystal", "data", "equation", "elastic", "phonons"}
    assert {(one["composition"], one["property"]) for one in metadata["physics"]["left_out"]} == {
        (name, what) for name in ("AlMg", "Al3Mg", "AlMg3") for what in ("vacancies", "surfaces")
    }


# B0 by PBE: K. Lejaeghere et al., Science 351, aad3000 (2016); elastic constants as measured near 0 K: C. Kittel, Introduction
# to Solid State Physics (114, 62, 32 GPa); the highest phonon as measured: R. Stedman, G. Nilsson, Phys. Rev. 145, 492 (1966).
def test_the_numbers_of_aluminium_are_those_one_knows_by_heart(demo):
    known = Potential.load(demo / "potential.json").metadata["physics"]["crystals"]["Al"]
    assert known["crystal"]["relaxed"]["lengths"] == pytest.approx([4.05] * 3, abs=0.03)
    assert known["equation"]["modulus"] == pytest.approx(77.6, rel=0.15)
    assert known["data"]["equation"]["modulus"] == pytest.approx(77.6, rel=0.2)
    assert known["elastic"]["bulk"] == pytest.approx(known["equation"]["modulus"], rel=0.05)
    for name, value in {"C11": 114, "C12": 62, "C44": 32}.items():
        assert known["elastic"]["constants"][name] == pytest.approx(value, rel=0.3), name
    assert known["elastic"]["stable"]
    assert known["phonons"]["highest"] == pytest.approx(9.6, rel=0.15)  # longitudinal, at X


def test_other_properties_of_the_same_potential_are_no_other_result(tmp_path):
    assert mlip_pace(tmp_path)[0] == 0
    first = (tmp_path / "potential.json").read_bytes()
    assert "physics" not in Potential.load(tmp_path / "potential.json").metadata
    code, events, _ = mlip_pace(tmp_path, PHYSICS_PROPERTIES="equation")
    assert code == 0
    skipped = {e["stage"] for e in events if e.get("message") == "unchanged, not run again"}
    assert skipped == {"collect", "subtract", "basis", "select", "train", "evaluate"}
    assert (tmp_path / "previous-1" / "potential.json").read_bytes() == first
    metadata = intact(tmp_path / "potential.json").metadata
    assert "equation" in metadata["physics"]["crystals"]["Al"]
    assert metadata["seconds"]["physics"] > 0
    assert isinstance(metadata["errors"]["test"]["n_structures"], int)  # as it was, though it comes from a file
    code, events, _ = mlip_pace(tmp_path, PHYSICS_PROPERTIES="equation")
    assert any("already published" in e["message"] for e in events)


class OffCentre(Calculator):
    """Two atoms: caesium chloride whose second atom has two places, 0.02 Å to either side of the middle, 0.01 eV deep."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012 (ASE's interface)

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        one, other = atoms.get_scaled_positions(wrap=False)
        apart = other - one - 0.5
        x, y, z = (apart - np.round(apart)) @ atoms.cell.array
        a, b = 0.02 / 0.02**2, 0.01 / 0.02**4
        slope = np.array([2 * a * x, 2 * a * y, -2 * a * z + 4 * b * z**3])
        energy = -6.0 + a * (x**2 + y**2 - z**2) + b * z**4
        self.results = {"energy": energy, "forces": np.array([slope, -slope]), "stress": np.zeros(6)}


def test_what_is_a_little_off_the_places_of_a_symmetry_stays_there_if_that_is_lower():
    given = Atoms("CsCl", cell=4 * np.eye(3), scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5 + 0.015 / 4]], pbc=True)
    found = crystals.crystal_of(crystals.Lowest("CsCl", "x", given, -3.0, -3.0), OffCentre(), {})
    assert found.energy == pytest.approx(-3.005, abs=1e-5)
    assert found.relaxed.space_group == "P4mm"
    for cell in (found.atoms(), found.primitive()):
        assert crystals.cohesive(cell, OffCentre(), {}) == pytest.approx(found.energy, abs=1e-5)


@pytest.mark.parametrize(
    ("energy", "volume", "reason", "said"),
    [
        (-3.2, 18.0, "", []),
        (-3.31, 18.0, "", ["Al relaxes to 0.31 eV/atom below the lowest energy that the data have of it"]),
        (-2.9, 18.9, "", ["Al relaxes to a volume that is +18% of that in the data"]),
        (-2.9, 13.5, "", ["Al relaxes to a volume that is -16% of that in the data"]),
        (-3.0, 16.0, "it did not relax after 500 steps: there are forces of 5 eV/Å", ["Mg: it did not relax after 500 steps"]),
        (-3.0, 16.0, "it is not quite at rest after 500 steps: there are forces of 0.03 eV/Å", []),
        (-3.0, 16.0, "it relaxes away: to 1.35 times its volume and beyond", ["Mg: it relaxes away: to 1.35 times"]),
        (-3.0, 16.0, "it is no crystal", []),
    ],
)
def test_a_crystal_that_falls_apart_as_it_relaxes_is_told(energy, volume, reason, said):
    """Which has -3 eV/atom and 16 Å^3/atom in the data."""
    lattices = [replace(crystals.Lattice.of(bulk("Al")), volume=one) for one in (16.0, volume)]
    cell = crystals.crystal_of(crystals.Lowest("Al", "x", bulk("Al"), -3.0, -3.0), EMT(), {}).conventional
    crystal = crystals.Crystal("x", lattices[0], -2.9, -3.0, lattices[1], energy, 0.02, cell, True)
    left_out = [LeftOut("Mg", "crystal", reason)] if reason else []
    warnings = measure.Physics({"Al": measure.Known(crystal)}, left_out).warnings
    assert len(warnings) == len(said)
    assert all(warning.startswith(words) for warning, words in zip(warnings, said, strict=True))


def test_the_crystal_is_found_where_only_a_cell_with_an_interstitial_is_cold(published):
    """It is in the data once, hot, and so higher than the interstitial."""
    potential, measured = published
    calculator = PotentialCalculator(potential.path, potential.reference)

    def at_rest(atoms):
        return labelled(atoms, float(calculator.predict(atoms)[0]))

    perfect = bulk("Al", cubic=True).repeat(2)
    defect, hot = perfect + Atoms("Al", [[0.0, 0.0, 2.025]]), perfect.copy()
    hot.positions += 0.25 * np.random.default_rng(1).normal(size=hot.positions.shape)
    defect, hot = at_rest(defect), at_rest(hot)
    assert defect.get_potential_energy() / len(defect) < hot.get_potential_energy() / len(hot)
    crystal = measured([defect, hot]).crystals["Al"].crystal
    assert (crystal.source, crystal.relaxed.space_group, len(crystal.conventional.symbols)) == ("made#1", "Fm-3m", 4)
    assert crystal.lowest_dft < crystal.energy_dft


@pytest.mark.parametrize(("make", "group", "sites"), [
    (lambda: bulk("Cu", cubic=True).repeat(2)[1:], "Fm-3m", 4), (lambda: bulk("Cu", cubic=True).repeat(3)[2:], "Fm-3m", 4),
], ids=["one vacancy", "two"])  # fmt: skip
def test_vacancies_of_an_element_are_filled(make, group, sites):
    """Where the data have no perfect crystal at all."""
    crystal = crystals.crystal_of(crystals.Lowest("Cu", "x", make(), -3.5, -3.5), EMT(), {})
    assert (crystal.relaxed.space_group, len(crystal.conventional.symbols)) == (group, sites)
    assert crystals.filled(bulk("Cu").repeat(3)) is None  # the largest gap of a perfect crystal is no vacancy
    assert crystals.filled(bulk("NaCl", "rocksalt", a=5.6).repeat(3)[1:]) is None


def test_rough_elasticity_and_a_cell_that_changes_its_shape_are_told():
    cell = crystals.crystal_of(crystals.Lowest("Al", "x", bulk("Al"), -3.0, -3.0), EMT(), {})
    stiffness = np.diag([60.0, 60, 60, 30, 30, 30]) + 40 * np.pad(np.ones((3, 3)), (0, 3))  # Voigt's bulk modulus: 60 GPa
    elastic_ = elastic.Elastic({}, stiffness.tolist(), 60.0, 30.0, 30.0, True, 0.0)

    def told(slope, modulus, distortion=0.0):
        known = measure.Known(replace(cell, distortion=distortion), None, Equation(16.0, modulus, slope), elastic_)
        return measure.Physics({"Al": known}).warnings

    assert told(4.5, 60.0) == told(2.0, 66.0) == []
    (said,) = told(-4.5, 60.0)
    assert said.startswith("Al has B0' = -4.5 by its equation of state")
    (said,) = told(4.5, 80.0)
    assert said.startswith("Al has a bulk modulus of 80 GPa by its equation of state and of 60 by its elastic constants")
    (said,) = told(4.5, 60.0, 0.12)
    assert said == "Al relaxes to a cell of another shape than in the data: its stretches differ by 12%"


def test_molecules_and_what_is_no_crystal_are_told(published):
    _, measured = published
    dimer = labelled(Atoms("Al2", [[0, 0, 0], [0, 0, 2.5]]), -5.0)
    found = measured([dimer])
    assert (found.crystals, found.left_out) == ({}, [LeftOut("Al", "crystal", "no structure of it in the data is bulk")])
    slab = fcc111("Al", (1, 1, 3), vacuum=6.0)
    slab.pbc = True  # as slabs are after the audit
    assert measured([labelled(slab, -11.0)]).crystals == {}
    rng = np.random.default_rng(3)
    glass = bulk("Al", cubic=True).repeat(2)
    glass.positions += rng.uniform(-1.2, 1.2, glass.positions.shape)
    found = measured([labelled(glass, -100.0)])
    if found.crystals:  # it may have found its way to the crystal
        assert found.crystals["Al"].crystal.is_crystal == (found.crystals["Al"].equation is not None)
    assert found.crystals or found.left_out


def test_what_has_no_crystal_is_moved(published):
    """From the structure of lowest energy of the compositions with the most structures."""
    _, measured = published
    dimers = [labelled(Atoms("Al2", [[0, 0, 0], [0, 0, 2.5 + 0.1 * n]]), -5.0 - n) for n in range(3)]
    chains = [labelled(Atoms(f"Al{n}Mg", [[0, 0, 2.7 * k] for k in range(n + 1)]), -3.0 * n) for n in range(1, 8)]
    alone = labelled(Atoms("Mg"), 0.0)
    assert measured(dimers).others == {}  # not asked for
    found = measured([*chains, *dimers, alone], properties="dynamics")
    told = {one.composition: one.reason for one in found.left_out if one.property == "dynamics"}
    assert found.others.keys() | told.keys() == {"Al", "AlMg", *(f"Al{n}Mg" for n in range(2, 8))}
    assert {name for name, why in told.items() if why == "6 are looked at"} == {"Al7Mg", "AlMg"}
    for name, moved in found.others.items():
        assert moved.dynamics.temperature == 300.0
        assert moved.source.startswith("made#"), name
        assert found.as_dict()["others"][name]["dynamics"]["atoms"] == moved.dynamics.atoms


def test_what_there_is_no_time_for_is_named(published):
    _, measured = published
    atoms = labelled(bulk("Al"), -3.7)
    found = measured([atoms], seconds=0.0)
    assert (found.crystals, found.left_out) == ({}, [LeftOut("Al", "crystal", "there was no time for it")])


def test_an_error_of_a_library_is_a_reason_and_no_end(published, monkeypatch):
    _, measured = published

    def broken(*_):
        raise ZeroDivisionError("of a library")

    monkeypatch.setitem(measure.MEASURES, "equation", broken)
    (said,) = measured([labelled(bulk("Al"), -3.7)]).left_out
    assert said == LeftOut("Al", "equation", "ZeroDivisionError: of a library")


@pytest.mark.parametrize(("spent", "share", "last", "seconds"), [
    (10.0, 0.2, np.inf, 30.0),  # half a minute in any case
    (1000.0, 0.2, np.inf, 250.0),  # a fifth of 1250
    (1000.0, 0.2, 50.0, 50.0),  # what is left
    (10.0, 0.2, 90.0, 20.0),  # a fifth of the 100 that a time limit leaves
    (1000.0, 1.0, np.inf, np.inf),
])  # fmt: skip
def test_the_time_is_a_share_of_the_job(spent, share, last, seconds):
    now = time.monotonic()
    found = end_of_share(share, now - spent, now + last, measure.LEAST) - now
    assert found == pytest.approx(seconds, abs=0.5)


def test_without_phonopy_all_but_phonons_is_there(published, monkeypatch):
    _, measured = published
    monkeypatch.setitem(sys.modules, "phonopy", None)
    found = measured([labelled(bulk("Al"), -3.7)], properties=["equation", "phonons"])
    assert found.crystals["Al"].equation is not None
    (said,) = found.left_out
    assert said.property == "phonons"
    assert "phonopy" in said.reason
