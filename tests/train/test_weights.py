"""Weights of the loss and κ, against values made by hand; what pacemaker is given of them."""

import gzip
import pickle

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from conftest import EXAMPLES
from ruamel.yaml import YAML

from mlip_pace import reference
from mlip_pace.ace import basis
from mlip_pace.collect import dataset
from mlip_pace.collect.files import find_files
from mlip_pace.errors import DataError, SettingsError
from mlip_pace.reference import Reference
from mlip_pace.run.compute import Compute
from mlip_pace.settings import BasisSettings, DataSettings, ProbeSettings, ReferenceSettings, TrainingSettings
from mlip_pace.train import fit, linear
from mlip_pace.train.pacemaker import PacemakerRunner
from mlip_pace.train.weights import loss_weights, refuse_unknown, warnings


def two_dimers():
    """Energies to fit of 0 and 4 eV, 0 and 2 eV/atom; forces of 1 and 3 eV/Å on every atom."""
    pull = np.array([[1.0, 0, 0], [-1.0, 0, 0]])
    return pd.DataFrame(
        {
            dataset.ATOMS: [Atoms("Al2", [(0, 0, 0), (2.5, 0, 0)])] * 2,
            dataset.SOURCE: ["a#0", "b#0"],
            dataset.NAME: ["a#0", "b#0"],
            dataset.SPLIT: "train",
            "energy_corrected": [0.0, 4.0],
            "forces": [pull, 3 * pull],
        }
    )


def test_weights_of_the_choice_are_weights_of_the_loss():
    frame = two_dimers().assign(**{dataset.WEIGHT: [1.0, 3.0]})
    weights = loss_weights(frame, TrainingSettings())
    np.testing.assert_allclose(weights.energy, [0.25, 0.75])
    np.testing.assert_allclose(np.concatenate(weights.forces), [0.125, 0.125, 0.375, 0.375])
    one, other = linear.labelled(frame)
    # (1 - κ) w_E / N² for the energy, κ w_F for each component of a force.
    np.testing.assert_allclose(one.weights(0.1), [0.9 * 0.25 / 4, *[0.1 * 0.125] * 6])
    np.testing.assert_allclose(other.weights(0.1), [0.9 * 0.75 / 4, *[0.1 * 0.375] * 6])


def test_weights_of_a_user_are_weights_of_the_loss():
    """By config_type, of one label alone, and of structures in the data; κ is 0.1, the dimers have 2 atoms and 6 components."""
    frame = two_dimers().assign(
        **{dataset.CONFIG_TYPE: ["Surface (111)", "bulk"], "virial": [np.ones(6)] * 2, "forces_weight": [1.0, 4.0]}
    )
    training = TrainingSettings(weights={"Surface (111)": 3, "bulk:energy": 9, "bulk:stress": 0.5})
    weights = loss_weights(frame, training)
    np.testing.assert_allclose(weights.energy, [3 / 12, 9 / 12])
    np.testing.assert_allclose(np.concatenate(weights.forces), [3 / 14, 3 / 14, 4 / 14, 4 / 14])
    np.testing.assert_allclose(weights.virial, [3 / 12, 0.5 / 12])
    _, bulk = linear.labelled(frame, training)
    virial = linear.STRESS * 0.1 * (0.5 / 12) / 4
    np.testing.assert_allclose(bulk.weights(0.1), [0.9 * 0.75 / 4, *[0.1 * 4 / 14] * 6, *[virial] * 6])


def test_a_weight_of_what_is_not_there_is_refused():
    frame = two_dimers().assign(**{dataset.CONFIG_TYPE: ["Surface", "bulk"]})
    refuse_unknown(frame, {"Surface": 2, "bulk:forces": 0})
    for name in ("surface", "bulk:force", "energy", "Surface:energy:x"):
        with pytest.raises(SettingsError, match="no training structure has the config_type"):
            refuse_unknown(frame, {name: 2})
    with pytest.raises(DataError, match="all weights of the energies or of the forces are zero"):
        loss_weights(frame, TrainingSettings(weights={"Surface": 0, "bulk:energy": 0}))


def test_few_structures_that_rule_the_fit_are_warned_of():
    frame = pd.concat([two_dimers()] * 30, ignore_index=True).assign(**{dataset.CONFIG_TYPE: ["one", *["other"] * 59]})
    assert warnings(loss_weights(frame, TrainingSettings())) == []
    (said,) = warnings(loss_weights(frame, TrainingSettings(weights={"one": 1000})))
    assert "the weights of the 60 training structures are as good as those of 1.1" in said


@pytest.mark.parametrize("to_chosen", [True, False])
def test_the_stage_trains_on_what_was_chosen_with_its_weights(to_chosen):
    task = fit.Task(two_dimers(), {"b#0": 2.5}, to_chosen, basis.Section({}), Reference(), {}, {}, ProbeSettings())
    train, last = task.train(), task.everything()
    assert list(train[dataset.SOURCE]) == ["b#0"]
    assert list(train[dataset.WEIGHT]) == [2.5]
    assert list(last[dataset.SOURCE]) == (["b#0"] if to_chosen else ["a#0", "b#0"])
    assert to_chosen or dataset.WEIGHT not in last


@pytest.fixture(scope="module")
def aluminium():
    """Some structures of the example, ready to be fitted, and a basis."""
    files = dataset.structures_of(find_files(str(EXAMPLES)))
    frames, about = dataset.assemble(files, None, dataset.Rules(DataSettings(test_fraction=0.0), ["Al"]))
    target, subtracted = reference.subtracted_from(frames.iloc[:20].reset_index(drop=True), ReferenceSettings(), 5.0)
    return target, basis.section(BasisSettings(functions=8, body_order=3), about.elements, subtracted.shortest)


def test_pacemaker_is_given_weights_optimizer_and_ladder(tmp_path, aluminium):
    """The real pacemaker with L-BFGS-B on a ladder: what it was given, and that it says so itself."""
    target, section = aluminium
    weights = np.linspace(1, 4, len(target))
    settings = TrainingSettings(start="zero", optimizer="L-BFGS-B", ladder_step="4", max_epochs=2, display_step=1)
    runner = PacemakerRunner(tmp_path, section, settings, compute=Compute(threads=1))
    done = runner.train(target.assign(**{dataset.WEIGHT: weights}))
    assert done.potential.exists()
    with gzip.open(tmp_path / "attempt-1" / "train.pckl.gzip") as file:
        given = pickle.load(file)
    np.testing.assert_allclose(given["w_energy"], weights / weights.sum())
    assert "energy" not in given
    made = YAML(typ="safe", pure=True).load((tmp_path / "attempt-1" / "input.yaml").read_text())
    assert made["fit"]["optimizer"] == "L-BFGS-B"
    assert "STOP: TOTAL NO. OF ITERATIONS REACHED LIMIT" in (tmp_path / "attempt-1" / "log.txt").read_text()  # L-BFGS-B's words
    steps = {line.split()[0] for line in (tmp_path / "attempt-1" / "metrics.txt").read_text().splitlines()[1:]}
    assert len(steps) == 2  # 8 functions, 4 at a time
    (record,) = runner.records()
    assert record["iterations"] > 0


def test_the_runner_chooses_structures(tmp_path, aluminium):
    target, section = aluminium
    chosen = pd.read_pickle(PacemakerRunner(tmp_path, section).select_active_set(target, 7), compression="gzip")
    assert len(chosen) == 7
    assert set(chosen[dataset.SOURCE]) < set(target[dataset.SOURCE])
    assert (chosen[dataset.WEIGHT] > 0).all()
    assert {"ase_atoms", "energy_corrected", "forces"} <= set(chosen)
