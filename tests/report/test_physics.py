"""Dimers and equations of state in the report."""

import numpy as np
import pandas as pd
import pytest
from ase.build import bulk

from mlip_pace.ace.calculator import PotentialCalculator
from mlip_pace.collect import dataset
from mlip_pace.publish.potential import Potential
from mlip_pace.report import physics


def test_of_many_pairs_the_first_are_shown_and_the_others_counted(demo, monkeypatch):
    potential = Potential.load(demo / "potential.json")
    every = physics.dimer_section(potential, demo / "potential.yace", 5.0)
    assert [panel.name for panel in every.panels] == ["dimer-Al-Al", "dimer-Al-Mg", "dimer-Mg-Mg"]
    assert len(every.text) == 1
    monkeypatch.setattr(physics, "MOST_DIMERS", 2)
    some = physics.dimer_section(potential, demo / "potential.yace", 5.0)
    assert some.panels == every.panels[:2]
    assert some.text[1] == "The first 2 of 3 pairs of elements."


@pytest.mark.parametrize(("volumes", "there"), [(np.linspace(0.9, 1.1, 7), True), (np.linspace(1.05, 1.2, 7), False)])
def test_volumes_without_a_minimum_are_said_to_have_none(demo, volumes, there):
    potential = Potential.load(demo / "potential.json")
    calculator, rows = PotentialCalculator(potential.path, potential.reference), []
    for n, volume in enumerate(volumes):
        atoms = bulk("Al", cubic=True)
        atoms.set_cell(atoms.cell.array * np.cbrt(volume), scale_atoms=True)
        rows.append({dataset.ATOMS: atoms, dataset.SOURCE: f"made#{n}", "name": f"made#{n}", dataset.ENERGY_ATOMS: 0.0,
                     dataset.ENERGY: float(calculator.predict(atoms)[0]), dataset.FORCES: np.zeros((4, 3))})  # fmt: skip
    section = physics.volume_section(potential, pd.DataFrame(rows), calculator)
    ((_, *told),) = section.tables[0].rows
    assert (told == ["no minimum here", ""] * 2) is not there
    assert len(section.panels) == 1
