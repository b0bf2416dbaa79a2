"""`mlip-pace predict` and `mlip-pace check` as a user runs them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from conftest import EXAMPLES, mlip_pace

from mlip_pace import load_calculator


def predict(potential, data, output):
    command = [sys.executable, "-m", "mlip_pace.cli", "predict", str(potential), str(data), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["code"] == done.returncode, done.stdout + done.stderr
    return last


def test_predictions_are_those_of_the_calculator_with_errors_and_grades(trained, tmp_path):
    last = predict(trained / "potential.json", EXAMPLES, tmp_path / "predicted.xyz")
    found, given = read(tmp_path / "predicted.xyz", ":"), read(EXAMPLES, ":")
    assert [a.info["source"] for a in found] == [f"al-mg.extxyz#{n}" for n in range(len(given))]
    calculator = load_calculator(trained / "potential.json")
    for n in (5, 50, 99):
        atoms = given[n].copy()
        atoms.calc = calculator
        assert found[n].get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
        np.testing.assert_allclose(found[n].get_forces(), atoms.get_forces(), atol=1e-6)
        np.testing.assert_allclose(found[n].get_stress(), atoms.get_stress(), atol=1e-6)
        assert found[n].info["dft_energy"] == pytest.approx(given[n].get_potential_energy(), abs=1e-6)
        assert found[n].info["max_gamma"] == pytest.approx(found[n].arrays["gamma"].max())
    errors = [(a.get_potential_energy() - a.info["dft_energy"]) / len(a) for a in found]
    assert last["summary"]["errors"]["energy_mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-4)
    assert last["summary"]["structures"] == len(given)


def test_structures_without_labels_and_far_from_the_data(trained, tmp_path):
    atoms = read(EXAMPLES, "50")
    atoms.calc = None
    squeezed = atoms.copy()
    squeezed.set_cell(atoms.cell * 0.7, scale_atoms=True)
    write(tmp_path / "new.xyz", [atoms, squeezed], format="extxyz")
    last = predict(trained / "potential.json", tmp_path / "new.xyz", tmp_path / "out.xyz")
    assert "errors" not in last["summary"]
    assert last["summary"]["extrapolating"] == 1
    near, far = read(tmp_path / "out.xyz", ":")
    assert near.info["max_gamma"] < 5 < far.info["max_gamma"]
    assert "dft_energy" not in near.info


def test_what_predict_refuses(trained, tmp_path):
    (tmp_path / "cu.xyz").write_text("1\n\nCu 0 0 0\n")
    last = predict(trained / "potential.json", tmp_path / "cu.xyz", tmp_path / "out.xyz")
    assert last["code"] == 65
    assert "cu.xyz#0" in last["message"]
    assert "Cu" in last["message"]
    assert not (tmp_path / "out.xyz").exists()
    assert predict(trained / "potential.json", tmp_path / "no.xyz", tmp_path / "out.xyz")["code"] == 66
    assert predict(tmp_path / "cu.xyz", EXAMPLES, tmp_path / "out.xyz")["code"] == 65


def test_labels_are_not_replaced_and_what_cannot_be_evaluated_is_named(trained, tmp_path):
    data, flat = tmp_path / "data.xyz", bulk("Al")
    flat.cell[2] = flat.cell[0] + flat.cell[1]
    squeezed, lost, one = Atoms("Al2", [(0, 0, 0), (0, 0, 1.5)]), Atoms("Al2", [(0, 0, 0), (0, 0, np.nan)]), read(EXAMPLES, 50)
    write(data, [one, flat, lost, Atoms("Al2", np.zeros((2, 3))), squeezed], format="extxyz")
    before = data.read_bytes()
    last = predict(trained / "potential.json", data, data)
    assert last["code"] == 73
    assert data.read_bytes() == before
    summary = predict(trained / "potential.json", data, tmp_path / "out.xyz")["summary"]
    assert [one["source"] for one in summary["unreadable"]] == ["data.xyz#1", "data.xyz#2", "data.xyz#3"]
    assert summary["structures"] == 2
    assert summary["too_close"] == 1  # grade and σ do not tell of it
    assert "Al-Al 1.50 Å apart" in summary["closest"]


def check(output, **settings):
    code, events, last = mlip_pace(output, command="check", **settings)
    return code, events, last


def test_labels_that_are_not_compared_are_told(trained, tmp_path):
    """An energy without forces, as scans of dihedral angles have."""
    scan = [Atoms("Al2", [(0, 0, 0), (0, 0, 2.6 + 0.1 * n)]) for n in range(3)]
    for n, atoms in enumerate(scan[:2]):
        atoms.calc = SinglePointCalculator(atoms, energy=-5.0 + n)
    write(tmp_path / "scan.traj", scan)
    summary = predict(trained / "potential.json", tmp_path / "scan.traj", tmp_path / "out.xyz")["summary"]
    assert (summary["not_compared"], "errors" in summary) == (2, False)
    assert summary["why_not_compared"].startswith("scan.traj#0: no forces")


def test_labels_on_another_scale_are_told_with_the_error_that_is_left(trained, al_mg, tmp_path):
    """Those of another program or pseudopotential; errors of the same size that are none of a scale are not."""

    def of(shifts):
        shifted = [atoms.copy() for atoms in al_mg]
        for atoms, old in zip(shifted, al_mg, strict=True):
            energy = old.get_potential_energy() + sum(shifts[symbol] for symbol in atoms.symbols)
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=old.get_forces())
        write(tmp_path / "labels.xyz", shifted)
        return predict(trained / "potential.json", tmp_path / "labels.xyz", tmp_path / "out.xyz")

    plain, moved = of({"Al": 0.0, "Mg": 0.0}), of({"Al": -1500.0, "Mg": 40.0})
    assert "energy_mae_but_for_e0" not in plain["summary"]
    assert moved["summary"]["errors"]["energy_mae"] > 30
    assert moved["summary"]["energy_mae_but_for_e0"] == pytest.approx(plain["summary"]["errors"]["energy_mae"], rel=0.3)


def test_check_says_the_plan(tmp_path):
    from conftest import environment

    command = [sys.executable, "-m", "mlip_pace.cli", "check", "--json"]
    env = environment(tmp_path / "out", TRAINING_MAX_EPOCHS=30)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    plan = json.loads(done.stdout.splitlines()[-1])["plan"]
    assert (plan["read"], plan["train"], plan["test"]) == (103, 91, 10)
    assert plan["functions"] == {"Al": 20, "Mg": 20}
    assert plan["seconds"]["training"] > plan["seconds"]["linear_start"] > 0
    assert 0 < plan["memory"]["needed"] < plan["memory"]["available"]
    assert "maxiter: 30" in plan["input_yaml"]
    assert len(plan["left_out"]) == 2
    assert not (tmp_path / "out").exists()


def test_check_reports_every_refusal_at_once(tmp_path):
    (tmp_path / "file").touch()
    code, _, last = check(tmp_path / "file" / "out", data="/nowhere", RUN_DEVICE="gpu", TRAINING_START="/no/start.yaml")
    assert code == 66
    for words in ("/nowhere does not exist", "/no/start.yaml", "cannot be written by uid", "no NVIDIA GPU"):
        assert words in last["message"]


def test_check_refuses_what_run_would(trained):
    code, _, last = check(trained, TRAINING_KAPPA=0.5)
    assert code == 78
    assert "MLIP_PACE_OUTPUT_OVERWRITE" in last["hint"]
