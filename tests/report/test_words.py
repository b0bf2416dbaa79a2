"""What the sections say in words and tables, for metadata made by hand and for a real run."""

import re

import numpy as np
import pandas as pd
import pytest
from ase import Atoms

from mlip_pace.report import accuracy, learning, worst

ERRORS = {"energy_rmse": 0.004, "energy_mae": 0.003, "forces_rmse": 0.2, "forces_mae": 0.1, "n_structures": 5, "n_atoms": 10}
WITH_STRESS = ERRORS | {"stress_rmse": 0.01, "stress_mae": 0.005}
LINEAR = {"lambda": 1e-6, "log_evidence": 1.0}
BFGS = [{"iterations": 3}]


@pytest.mark.parametrize(
    ("errors", "linear_start", "attempts", "said"),
    [
        ({"train": ERRORS}, LINEAR, [], ""),
        ({"train": WITH_STRESS}, LINEAR, [], "Stress is fitted with a small weight."),
        ({"train": WITH_STRESS}, LINEAR, [{"iterations": 0}], "Stress is fitted with a small weight."),
        ({"train": WITH_STRESS}, LINEAR, BFGS, "by the linear start; pacemaker's optimizer"),
        ({"train": WITH_STRESS}, {}, BFGS, "not fitted: pacemaker's optimizers"),
        ({"train": ERRORS, "test": WITH_STRESS}, LINEAR, [], "not fitted: no structure"),
    ],
)
def test_stress_is_called_fitted_where_it_is(errors, linear_start, attempts, said):
    found = accuracy.told_of_stress({"errors": errors, "training": {"linear_start": linear_start, "attempts": attempts}})
    assert said in found
    assert bool(found) == bool(said)


def test_stress_that_was_left_out_is_called_so():
    training = {"linear_start": LINEAR, "attempts": [], "stress_left_out": True}
    assert "compared, not fitted: it does not go with" in accuracy.told_of_stress(
        {"errors": {"train": WITH_STRESS}, "training": training}
    )


def test_the_table_of_errors_is_in_the_units_of_its_headers():
    row = accuracy.error_row("test", WITH_STRESS)
    assert accuracy.ERROR_HEADERS == ["set", "structures", "atoms", "energy, meV/atom", "forces, eV/Å", "stress, GPa"]
    assert row == ["test", "5", "10", "3.00 / 4.00", "0.1000 / 0.2000", "0.80 / 1.60"]  # 1 eV/Å^3 = 160.2 GPa
    assert accuracy.error_row("test", ERRORS)[-1] == ""


def predictions():
    """Three structures: one well predicted, one with a wrong energy (+0.2 eV), one with a wrong force (0.7 eV/Å)."""
    atoms = Atoms("H2", [(0, 0, 0), (0, 0, 1)])
    still = np.zeros((2, 3))
    rows = []
    for n, (energy, force) in enumerate([(0.0, 0.0), (0.2, 0.1), (-0.1, 0.7)]):
        pushed = still.copy()
        pushed[1] = [0.0, force * 0.6, force * 0.8]
        rows.append({"ase_atoms": atoms, "name": f"number {n}", "source": f"data.xyz#{n}", "config_type": "dimer",
                     "subset": ["train", "left_out", "test"][n], "energy_dft": -1.0, "energy_pred": -1.0 + energy,
                     "energy_atoms": 0.0, "forces_dft": still, "forces_pred": pushed})  # fmt: skip
    return pd.DataFrame(rows)


def test_the_worst_are_sorted_by_size_with_their_sign():
    by_energy, by_force = worst.worst_section(predictions()).tables
    assert [row[0] for row in by_energy.rows] == ["number 1", "number 2", "number 0"]
    assert by_energy.rows[0] == ["number 1", "data.xyz", "1", "not chosen", "dimer", "2", "+100.00", "0.100"]
    assert by_energy.rows[1][-2:] == ["-50.00", "0.700"]
    assert [row[0] for row in by_force.rows] == ["number 2", "number 1", "number 0"]


def test_only_what_the_audit_refused_is_called_left_out(trained, tmp_path):
    page = (trained / "report.html").read_text()
    text = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    assert re.findall(r"[^<>]*left out[^<>]*", text, re.IGNORECASE) == ["Left out of the data (2)"]
    assert "not chosen" in text
    (tmp_path / "grades.json").write_text('{"data.xyz#1": 0.05}')
    (tmp_path / "chosen.json").write_text('{"data.xyz#0": 2.0}')
    metadata = {"selection": {"chosen": 1, "given": 2, "method": "doptimal", "reason": "1 were asked for"}}
    section = learning.selection_section(metadata, predictions(), tmp_path)
    assert "1 of 2 training structures were chosen (doptimal: 1 were asked for)" in section.text[0]
    chosen, grades = section.panels
    assert [(layer.label, layer.x) for layer in chosen.layers] == [("chosen", [1.0]), ("not chosen", [1.0])]
    assert grades.xlabel.startswith("grade")
    assert grades.layers[0].x == [0.05]
    assert grades.layers[0].y == [100.0]  # meV/atom


def test_atoms_out_of_reach_of_each_other_have_no_place_in_a_figure_by_distance():
    apart = predictions()
    apart["ase_atoms"] = [Atoms("H2", [(0, 0, 0), (0, 0, 20)])] * len(apart)
    assert [panel.name for panel in accuracy.where_section(apart).panels] == ["error-by-force"]
    assert [panel.name for panel in accuracy.where_section(predictions()).panels] == ["error-by-distance", "error-by-force"]
