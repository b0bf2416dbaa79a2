"""Extrapolation grades: those of pyace, and what is told where they say little."""

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.io import read
from conftest import EXAMPLES

from mlip_pace.ace import activeset
from mlip_pace.ace.activeset import Grader
from mlip_pace.ace.evaluators import calculator_of
from mlip_pace.collect.audit import fully_periodic
from mlip_pace.collect.dataset import ATOMS
from mlip_pace.publish import grades


@pytest.fixture
def grader(demo):
    return Grader.of(demo)


def test_grades_are_those_of_pyace(demo, grader):
    calculator = calculator_of(demo / "potential.yaml")
    calculator.compute_projections = True
    calculator.set_active_set(str(demo / activeset.FILE))
    rng = np.random.default_rng(0)
    slab, molecule = fcc111("Al", (2, 2, 3), vacuum=6.0), Atoms("AlMg2", [[0, 0, 0], [2.8, 0, 0], [0, 2.9, 0]])
    structures = [*read(EXAMPLES, "::9"), bulk("Mg").repeat(2), slab, molecule]
    for atoms in structures:
        atoms.positions += 0.1 * rng.normal(size=atoms.positions.shape)
    sound = [fully_periodic(atoms, grader.expansion.cutoff)[0] for atoms in structures]
    for atoms, found in zip(sound, grader.of_many(sound), strict=True):
        calculator.calculate(atoms)
        assert found == pytest.approx(np.array(calculator.results["gamma"]), rel=1e-6)


def test_without_an_active_set_there_is_no_grader(tmp_path):
    assert Grader.of(tmp_path) is None


def frame(structures):
    return pd.DataFrame({ATOMS: structures})


def test_test_structures_like_the_data_are_not_spoken_of(grader):
    train = read(EXAMPLES, ":")
    found = grades.of_test(frame(train[::7]), frame(train), grader, 2)
    assert found.structures == len(train[::7])
    assert 0.5 < found.median <= found.largest
    assert found.atoms_per_function["Al"] == sum((a.symbols == "Al").sum() for a in train) / len(grader.inverses["Al"])
    assert (found.extrapolating, found.warnings) == (0, [])


@pytest.mark.parametrize(("train", "why"), [
    (1, "there are few training atoms for each function (0."),
    (400, "they are unlike the training data"),
])  # fmt: skip
def test_high_grades_of_the_test_set_are_told_with_the_reason(grader, train, why):
    squeezed = bulk("AlMg", "cesiumchloride", a=2.3)
    data = [bulk("AlMg", "cesiumchloride", a=3.4).repeat(3)] * train
    (said,) = grades.of_test(frame([squeezed] * 2), frame(data), grader, 1).warnings
    assert said.startswith("2 of 2 test structures have an extrapolation grade above 5 (the largest: ")
    assert why in said
