"""What is said of errors, against values made by hand."""

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from conftest import mlip_pace

from mlip_pace.collect import dataset
from mlip_pace.publish import evaluate
from mlip_pace.publish.potential import Potential


def frame():
    """Energies of -1 and -3 eV/atom relative to free atoms: spread 1. Force components of ±1 and 0 eV/Å: RMS 0.577."""
    pull = np.array([[1.0, 0, 0], [-1.0, 0, 0]])
    return pd.DataFrame(
        {
            dataset.ATOMS: [Atoms("Al2", [(0, 0, 0), (2.5, 0, 0)])] * 2,
            dataset.ENERGY: [-12.0, -16.0],
            dataset.ENERGY_ATOMS: [-10.0, -10.0],
            dataset.FORCES: [pull, -pull],
        }
    )


@pytest.mark.parametrize(
    ("energy", "forces", "said"),
    [(0.9, 0.5, []), (1.1, 0.5, ["energy"]), (0.9, 0.6, ["forces"]), (9.9, 35.4, ["energy", "forces"])],
)
def test_errors_beyond_the_spread_are_worse_than_nothing(energy, forces, said):
    found = evaluate.worse_than_nothing(frame(), {"energy_rmse": energy, "forces_rmse": forces})
    assert [sentence.split()[0] for sentence in found] == said


@pytest.mark.parametrize(
    ("energy", "forces", "said"),
    [(0.9, 0.5, []), (0.91, 0.5, ["energy"]), (0.5, 0.53, ["forces"]), (1.1, 0.6, []), (0.95, 0.57, ["energy", "forces"])],
)
def test_what_is_hardly_better_than_nothing_is_told(energy, forces, said):
    """Above nine tenths of the spread; what is beyond it is told otherwise."""
    found = evaluate.little_learned(frame(), {"energy_rmse": energy, "forces_rmse": forces})
    assert [sentence.split("nothing of the ")[1].split(":")[0] for sentence in found] == said


def test_copies_of_one_structure_are_no_reproach():
    one = frame().iloc[[0, 0]].assign(**{dataset.FORCES: [np.zeros((2, 3))] * 2})
    assert evaluate.worse_than_nothing(one, {"energy_rmse": 1e-4, "forces_rmse": 1e-3}) == []


def predicted(energies, forces, kinds):
    """Structures of two atoms with errors of energy (eV/atom) and of each force component (eV/Å)."""
    many = pd.concat([frame().iloc[:1]] * len(energies), ignore_index=True)
    return many.assign(
        energy_pred=[-12.0 + 2 * gap for gap in energies],
        forces_pred=[one + gap for one, gap in zip(many[dataset.FORCES], forces, strict=True)],
        **{dataset.SOURCE: [f"a.xyz#{n}" for n in range(len(many))], dataset.CONFIG_TYPE: kinds},
    )


def test_errors_of_each_label_by_hand():
    """Of energies for each atom, of force components, of the six numbers of a stress where both it and its prediction are."""
    many = predicted([0.1, -0.3], [0.2, 0.4], ["bulk", "bulk"])
    stress, other = np.eye(3), np.eye(3) + 0.01 * np.array([[3.0, 0, 0], [0, 0, 0], [0, 0, 3.0]])
    many = many.assign(**{dataset.STRESS: [stress, None], "stress_pred": [other, other]})
    found = evaluate.errors(many)
    assert (found["n_structures"], found["n_atoms"]) == (2, 4)
    assert found["energy_mae"] == pytest.approx(0.2)
    assert found["energy_rmse"] == pytest.approx(np.sqrt(0.05))
    assert found["forces_mae"] == pytest.approx(0.3)
    assert found["forces_rmse"] == pytest.approx(np.sqrt(0.1))
    assert found["stress_mae"] == pytest.approx(0.01)
    assert found["stress_rmse"] == pytest.approx(0.03 / np.sqrt(3))
    assert not {"stress_mae", "stress_rmse"} & set(evaluate.errors(many.iloc[1:]))


def test_what_has_most_of_the_errors_is_named():
    kinds = ["gas"] * 4 + ["bulk"] * 36
    even = predicted([0.01] * 40, [0.1] * 40, kinds)
    assert evaluate.ruled_by_few(even) == []
    one = predicted([0.01] * 39 + [0.1], [0.1] * 40, kinds)
    assert evaluate.ruled_by_few(one) == ["a.xyz#39 has 72% of the squared errors of energies: look at its labels"]
    (said,) = evaluate.ruled_by_few(predicted([0.01] * 40, [1.0] * 4 + [0.1] * 36, kinds))
    assert said.startswith("config_type gas, 10% of the training structures, has 92% of the squared errors of forces")
    assert evaluate.ruled_by_few(one.iloc[-10:]) == []  # of so few one may well have most


def test_test_errors_many_times_those_of_training_are_said():
    train = {"energy_mae": 0.002, "forces_mae": 0.05}
    for energy, forces, said in ((0.007, 0.19, []), (0.02, 0.06, ["energy"]), (0.003, 0.5, ["forces"])):
        found = evaluate.beyond_training({"train": train, "test": {"energy_mae": energy, "forces_mae": forces}})
        assert [sentence.split()[1] for sentence in found] == said
    tiny = {"energy_mae": 1e-6, "forces_mae": 1e-5}
    assert evaluate.beyond_training({"train": tiny, "test": {"energy_mae": 1e-3, "forces_mae": 1e-2}}) == []
    assert evaluate.beyond_training({"train": train}) == []


def test_a_fit_that_is_worse_than_nothing_is_no_success(tmp_path):
    """pacemaker from zero, stopped after one iteration: it does not even know the mean energy. Published, marked, not 0."""
    code, events, last = mlip_pace(tmp_path, TRAINING_START="zero", TRAINING_MAX_EPOCHS=1)
    assert code == 82, events[-3:]
    assert "worse than none" in last["message"]
    metadata = Potential.load(tmp_path / "potential.json").metadata
    assert metadata["worse_than_nothing"]
    assert metadata["selection"]["method"] == "none"
    assert "MLIP_PACE_SELECTION_METHOD" not in last["hint"]
    assert set(metadata["worse_than_nothing"]) <= set(metadata["warnings"])
    assert mlip_pace(tmp_path, TRAINING_START="zero", TRAINING_MAX_EPOCHS=1)[0] == 82  # also when it is there already
