"""The sections about what was held out, from a sidecar made by hand."""

from mlip_pace.report.evidence import basis_section, validation_section


def errors(energy, forces):
    return {"energy_mae": energy, "energy_rmse": 2 * energy, "forces_mae": forces, "forces_rmse": 2 * forces}


def tried(cutoff, evidence, held_out, step):
    basis = {"cutoff": cutoff, "functions": 500, "log_evidence": evidence, "seconds": 1.0}
    return {**basis, "errors": held_out, "md_step_us_per_atom": step}


BASIS = {"cutoff": 6.0, "functions_at_most": 500, "structures": 50}


def test_what_was_tried_stands_beside_its_cost_and_what_was_taken_is_marked():
    found = [tried(6.0, 1100.4, errors(0.002, 0.05), 44.0), tried(5.0, 1000.0, errors(0.003, 0.06), 38.0)]
    section = basis_section({"basis": {**BASIS, "tried": [*found, tried(4.5, 900.0, None, None)]}})
    (table,) = section.tables
    assert table.rows == [
        ["4.5 Å, 500 functions", "900", "", "", ""],
        ["5 Å, 500 functions", "1000", "3.00", "0.0600", "38"],
        ["6 Å, 500 functions (taken)", "1100", "2.00", "0.0500", "44"],
    ]
    energy, forces = section.panels
    assert energy.layers[0].x == forces.layers[0].x == [38.0, 44.0]
    assert energy.layers[0].y == [3.0, 2.0]  # meV/atom
    assert forces.layers[0].y == [0.06, 0.05]
    assert (forces.layers[1].x, forces.layers[1].y) == ([44.0], [0.05])
    assert "Linear fits to 50 of the training structures" in section.text[0]


def test_without_a_search_there_is_nothing_to_say():
    section = basis_section({"basis": {**BASIS, "tried": []}})
    assert (section.text, section.panels, section.tables) == ([], [], [])


def test_whether_more_data_would_help():
    curve = [[25.0, errors(0.006, 0.10)], [50.0, errors(0.004, 0.08)], [87.5, errors(0.003, 0.06)]]
    validated = {"folds": 8, "errors": curve[-1][1], "learning_curve": curve}
    section = validation_section({"training": {"cross_validation": validated}})
    energy, forces = section.panels
    assert energy.layers[0].x == [25.0, 50.0, 87.5]
    assert energy.layers[0].y == [6.0, 4.0, 3.0]
    assert forces.layers[0].y == [0.1, 0.08, 0.06]
    assert "3.00 meV/atom and 0.0600 eV/Å (MAE)" in section.text[0]
    assert section.text[0].endswith("more data of the same kind would help.")
    curve[1][1]["forces_mae"] = 0.061
    assert validation_section({"training": {"cross_validation": validated}}).text[0].endswith("would hardly help.")
    assert validation_section({"training": {}}).text == []
