"""Molecular dynamics: what a good potential keeps, and what a crystal does that does not hold together."""

import time

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
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


@pytest.mark.parametrize(("hot", "how"), [
    (dynamics.HOT, r"the atoms have become \d+ K hot"),
    (np.inf, r"two atoms are \d\.\d\d Å apart"),
])  # fmt: skip
def test_what_does_not_hold_together_is_told(hot, how, monkeypatch):
    monkeypatch.setattr(dynamics, "HOT", hot)
    with pytest.raises(LeftOutError, match=rf"after \d+ fs at 600 K {how}: it does not hold together"):
        dynamics.dynamics(relaxed(bulk("Cu", cubic=True), EMT()), WithHole())


@pytest.mark.parametrize("make", [
    lambda: Atoms("Cu4", [[0, 0, 0], [2.3, 0, 0], [1.15, 2, 0], [1.15, 0.7, 1.9]]),
    lambda: fcc111("Cu", (2, 2, 3), vacuum=6.0),
], ids=["cluster", "slab"])  # fmt: skip
def test_a_structure_moves_as_it_is(make):
    found = dynamics.of_structure(make(), EMT())
    assert found.atoms == len(make())
    assert (found.temperature, found.nvt, found.nve) == (300.0, 0.4, 0.4)
    assert abs(found.drift) < 1e-5
    assert 1.8 < found.closest < 2.6


class Bursting(EMT):
    """EMT whose forces are too large, by a factor: energy comes from nowhere."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results["forces"] = self.results["forces"] * self.factor


@pytest.mark.parametrize(("factor", "how"), [
    (-5.0, r"the atoms have become \d+ K hot"),
    (-1e5, r"an atom moves by \S+ Å within 1 fs"),
    (np.nan, "an atom moves by nan Å within 1 fs"),
])  # fmt: skip
def test_what_bursts_is_told_at_once(factor, how):
    """Before a neighbour list of atoms far from each other takes all memory."""
    atoms = Atoms("Cu4", [[0, 0, 0], [2.3, 0, 0], [1.15, 2, 0], [1.15, 0.7, 1.9]])
    with pytest.raises(LeftOutError, match=rf"after \S+ fs at 300 K {how}: it does not hold together"):
        dynamics.of_structure(atoms, Bursting(factor))


def test_a_structure_that_says_nothing_is_left_out():
    with pytest.raises(LeftOutError, match="no two of its atoms are within 6 Å"):
        dynamics.of_structure(Atoms("Cu2", [[0, 0, 0], [0, 0, 7]]), EMT())
    with pytest.raises(LeftOutError, match="more than 500 atoms"):
        dynamics.of_structure(bulk("Cu", cubic=True).repeat(6), EMT())


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
