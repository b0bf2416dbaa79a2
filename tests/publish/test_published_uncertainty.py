"""Uncertainties of a published potential: calculator, predictions, committee, ensembles; what cannot be had is said."""

import json

import numpy as np
import pytest
from ase.io import read
from conftest import EXAMPLES, mlip_pace
from test_predict import predict

from mlip_pace import load_calculator
from mlip_pace.ace import basis, uncertainty
from mlip_pace.ace.basis import BasisFile
from mlip_pace.ace.calculator import PotentialCalculator
from mlip_pace.errors import DataError
from mlip_pace.publish import committee
from mlip_pace.publish.potential import Potential, intact

SETTINGS = {"BASIS_FUNCTIONS": 30, "BASIS_BODY_ORDER": 3, "DATA_TEST_FRACTION": 0.3, "OUTPUT_COMMITTEE": 4}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    output = tmp_path_factory.mktemp("committee") / "out"
    code, events, _ = mlip_pace(output, **SETTINGS)
    assert code == 0, events
    return output


def test_the_calculator_and_predict_say_the_same(fitted, tmp_path):
    last = predict(fitted / "potential.json", EXAMPLES, tmp_path / "out.xyz")
    found = read(tmp_path / "out.xyz", ":")
    calculator = load_calculator(fitted / "potential.json", uncertainty=True)
    for n in (20, 60, 100):
        atoms = read(EXAMPLES, n)
        atoms.calc = calculator
        atoms.get_forces()
        assert calculator.results["energy_uncertainty"] == pytest.approx(found[n].info["energy_uncertainty"], rel=1e-6)
        np.testing.assert_allclose(calculator.results["forces_uncertainty"], found[n].arrays["forces_uncertainty"], atol=1e-7)
        assert calculator.get_property("energy_uncertainty", atoms) > 0
    errors = [abs(a.get_potential_energy() - a.info["dft_energy"]) for a in found]
    within = np.mean([error <= a.info["energy_uncertainty"] for error, a in zip(errors, found, strict=True)])
    assert last["summary"]["coverage"]["all"]["energy"]["0.68"] == pytest.approx(within)


def test_the_sidecar_says_what_the_intervals_covered_of_the_test_set(fitted):
    potential = intact(fitted / "potential.json")
    assert uncertainty.FILE in potential.metadata["files"]
    said = potential.metadata["uncertainty"]
    for covered in said["coverage"]["all"].values():  # of 30 small structures: far from certain what it is
        assert 0.2 < covered["0.68"] <= covered["0.9"] <= covered["0.95"] <= 1
    assert said["coverage"]["all"]["energy"]["0.95"] > 0.8
    assert said["calibration"]["structures"] == potential.metadata["dataset"]["train"]
    page = (fitted / "report.html").read_text()
    assert "forces_uncertainty" in page


def test_the_file_belongs_to_the_published_coefficients(fitted):
    """The covariance of the fit, from the design rows and the settings of the sidecar alone."""
    from mlip_pace.collect import columns
    from mlip_pace.train import linear

    potential = Potential.load(fitted / "potential.json")
    target = columns.load(fitted / "work" / "2-subtract" / "target")
    on = BasisFile(fitted / "potential.yaml")
    labelled = linear.labelled(target[target["split"] == "train"])
    kappa, lam = potential.metadata["training"]["kappa"], potential.metadata["training"]["linear_start"]["lambda"]
    rows = list(basis.expansion(on).rows((one.atoms for one in labelled), stress=True))
    weighted, wanted = [], []
    for one, (of_c, _) in zip(labelled, rows, strict=True):
        root = np.sqrt(one.weights(kappa))
        weighted.append(of_c[: len(one.target)] * root[:, None])
        wanted.append(one.target * root)
    x, y = np.concatenate(weighted), np.concatenate(wanted)
    matrix = x.T @ x + lam * np.diag(1 / basis.smoothness(on) ** 2)
    c = np.linalg.solve(matrix, x.T @ y)
    np.testing.assert_allclose(c, basis.function_coefficients(on), rtol=1e-5, atol=1e-8)
    noise = ((x @ c - y) ** 2).sum() / len(y)
    factor = uncertainty.load(fitted / uncertainty.FILE)
    new = rows[3][0]
    expected = np.sqrt(noise * np.einsum("ri,ri->r", new, np.linalg.solve(matrix, new.T).T))
    np.testing.assert_allclose(np.linalg.norm(new @ factor.T, axis=1), expected, rtol=2e-3, atol=1e-9)


def rattled():
    return next(atoms for atoms in read(EXAMPLES, ":") if atoms.info["config_type"] == "rattled")


def test_many_members_of_a_committee_differ_by_sigma_without_its_floor(fitted):
    potential = Potential.load(fitted / "potential.json")
    calibration, factor = potential.calibration, uncertainty.load(fitted / uncertainty.FILE)
    on = BasisFile(fitted / "potential.yaml")
    asked = committee.Asked(4000, 1, {}, {})
    drawn = committee.members(basis.function_coefficients(on), factor, calibration, asked)
    ((rows, _),) = basis.expansion(on).rows([rattled()])
    _, forces = potential.uncertainty()(rattled())
    variance = forces.ravel() ** 2 - calibration.forces.floor**2
    there = variance > 1e-4 * calibration.forces.floor**2
    assert there.any()
    np.testing.assert_allclose((rows[1:] @ drawn.T).var(axis=1)[there], variance[there], rtol=0.1)


def test_the_committee_is_published_and_differs_as_it_was_drawn(fitted):
    potential = intact(fitted / "potential.json")
    files = [f"committee-{n}.yace" for n in range(1, 5)]
    assert set(files) <= set(potential.metadata["files"])
    calibration, factor = potential.calibration, uncertainty.load(fitted / uncertainty.FILE)
    on, atoms = BasisFile(fitted / "potential.yaml"), rattled()
    seed = potential.metadata["settings"]["TRAINING_SEED"]["value"]
    drawn = committee.members(basis.function_coefficients(on), factor, calibration, committee.Asked(4, seed, {}, {}))
    ((rows, _),) = basis.expansion(on).rows([atoms])
    energy, forces, _ = PotentialCalculator(potential.path, potential.reference).predict(atoms)
    for name, c in zip(files, drawn, strict=True):
        member = PotentialCalculator(fitted / name, potential.reference).predict(atoms)
        moved = rows @ (c - basis.function_coefficients(on))
        assert member[0] - energy == pytest.approx(moved[0], abs=1e-5)
        np.testing.assert_allclose((member[1] - forces).ravel(), moved[1:], atol=1e-5)


def test_another_committee_needs_no_other_fit(fitted):
    before = json.loads((fitted / "work" / "5-train" / "done.json").read_text())
    code, _, last = mlip_pace(fitted, **{**SETTINGS, "OUTPUT_COMMITTEE": 2})
    assert (code, "OVERWRITE" in last["hint"]) == (78, True)
    code, _, _ = mlip_pace(fitted, **{**SETTINGS, "OUTPUT_COMMITTEE": 2, "OUTPUT_OVERWRITE": 1})
    assert code == 0
    assert json.loads((fitted / "work" / "5-train" / "done.json").read_text()) == before
    assert sorted(path.name for path in fitted.glob("committee-*")) == ["committee-1.yace", "committee-2.yace"]
    assert len(list((fitted / "previous-1").glob("committee-*.yace"))) == 4
    assert intact(fitted / "potential.json") is not None


def test_an_ensemble_is_predicted_together(fitted, tmp_path):
    other = tmp_path / "other"
    assert mlip_pace(other, **{**SETTINGS, "OUTPUT_COMMITTEE": 0, "TRAINING_SEED": 7})[0] == 0
    import subprocess
    import sys

    sidecars = [fitted / "potential.json", other / "potential.json"]
    command = [sys.executable, "-m", "mlip_pace.cli", "predict", *sidecars, EXAMPLES, tmp_path / "both.xyz"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    for n, sidecar in enumerate(sidecars):
        predict(sidecar, EXAMPLES, tmp_path / f"{n}.xyz")
    one, two, both = (read(tmp_path / f"{name}.xyz", "70") for name in ("0", "1", "both"))
    energies = [a.get_potential_energy() for a in (one, two)]
    assert both.get_potential_energy() == pytest.approx(np.mean(energies), abs=1e-6)
    assert both.info["energy_spread"] == pytest.approx(np.std(energies, ddof=1), abs=1e-6)
    np.testing.assert_allclose(both.get_forces(), (one.get_forces() + two.get_forces()) / 2, atol=1e-6)
    np.testing.assert_allclose(
        both.arrays["forces_spread"], np.abs(one.get_forces() - two.get_forces()) / np.sqrt(2), atol=1e-6
    )
    sigmas = [a.info["energy_uncertainty"] for a in (one, two)]
    assert both.info["energy_uncertainty"] == pytest.approx(np.sqrt(np.mean(np.square(sigmas))), rel=1e-5)


def test_a_fit_of_pacemaker_says_that_it_has_none(trained, tmp_path):
    said = Potential.load(trained / "potential.json").metadata["uncertainty"]
    assert "pacemaker" in said["absent"]
    assert not (trained / uncertainty.FILE).exists()
    with pytest.raises(DataError, match="pacemaker"):
        load_calculator(trained / "potential.json", uncertainty=True)
    last = predict(trained / "potential.json", EXAMPLES, tmp_path / "out.xyz")
    assert "coverage" not in last["summary"]
    assert "energy_uncertainty" not in read(tmp_path / "out.xyz", "0").info
    assert "pacemaker" in (trained / "report.html").read_text()
