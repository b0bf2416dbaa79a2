"""Molecular dynamics: what a good potential keeps, and what a crystal does that does not hold together."""

import time

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT
from matscipy.neighbours import neighbour_list
from pairs import relaxed

from mlip_pace.physics import dynamics
from mlip_pace.physics.crystals import LeftOutError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(dynamics, "ATOMS", 100)
    monkeypatch.setattr(dynamics, "NVT", 0.4)
    monkeypatch.setattr(dynamics, "NVE", 0.4)


def test_energy_is_conserved_and_the_temperature_kept():
    found = dynamics.dynamics(relaxed(bulk("Cu", cubic=True), EMT()), EMT())
    assert (found.atoms, found.nvt, found.nve) == (108, 0.4, 0.4)
    assert found.nvt_temperature == pytest.approx(600, abs=90)  # it varies by 600 / sqrt(3/2 * 108)
    assert found.nve_temperature == pytest.approx(600, abs=90)
    assert abs(found.drift) < 1e-5
    assert 0 < found.noise < 1e-3
    assert 1.8 < found.closest < 2.5
    assert 0.05 < found.displacement < 0.4


class WithHole(EMT):
    """EMT with a hole of DEPTH eV for each pair that is nearer than REACH Å; the crystal has 2.54."""

    DEPTH, REACH = 40.0, 2.3

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        i, r, vectors = neighbour_list("idD", atoms, self.REACH)
        within = 1 - (r / self.REACH) ** 2
        self.results["energy"] -= self.DEPTH * (within**2).sum() / 2
        self.results["free_energy"] = self.results["energy"]
        pull = (4 * self.DEPTH * within / self.REACH**2)[:, None] * vectors
        np.add.at(self.results["forces"], i, pull)


def test_what_does_not_hold_together_is_told():
    with pytest.raises(LeftOutError, match=r"after 0\.\d\d ps at 600 K two atoms are \d\.\d\d Å apart"):
        dynamics.dynamics(relaxed(bulk("Cu", cubic=True), EMT()), WithHole())


def test_runs_are_short_where_time_is(monkeypatch):
    crystal = relaxed(bulk("Cu", cubic=True), EMT())
    with pytest.raises(LeftOutError, match="no time"):
        dynamics.dynamics(crystal, EMT(), time.monotonic())
    begin = time.monotonic()
    monkeypatch.setattr(dynamics, "NVE", 400.0)
    found = dynamics.dynamics(crystal, EMT(), begin + 15)
    assert dynamics.LEAST <= found.nve < 300


@pytest.mark.parametrize(("symbol", "atoms"), [("Cu", 256), ("Mo", 250), ("Si", 216)])
def test_the_cell_is_nearly_a_cube_of_216_atoms(symbol, atoms, monkeypatch):
    monkeypatch.undo()
    assert len(dynamics.supercell(bulk(symbol, cubic=True))) == atoms
