"""The section about crystals, for what the stage can come to."""

from dataclasses import asdict, replace

import numpy as np

from mlip_pace.physics.crystals import Cell, Crystal, Lattice
from mlip_pace.physics.dft import Data, Slab
from mlip_pace.physics.dynamics import Dynamics
from mlip_pace.physics.elastic import Elastic
from mlip_pace.physics.measure import Known, LeftOut, Moved, Physics
from mlip_pace.physics.phonons import Bands, Mode, Phonons
from mlip_pace.physics.volumes import Equation
from mlip_pace.report.crystals import crystals_section

LATTICE = Lattice((4.05, 4.05, 4.05), (90.0, 90.0, 90.0), 16.6, "Fm-3m", 225)
CRYSTAL = Crystal("run#3", Lattice((8.2, 8.1, 8.1), (90.0, 90.0, 90.0), 16.9, "P1", 1), -3.4, -3.4, LATTICE, -3.5, 0.02,
                  Cell(["Al"], np.eye(3).tolist(), [[0.0, 0.0, 0.0]]), True)  # fmt: skip
BANDS = Bands([0.0, 0.5, 1.0], [[0.0, -1.0, -1.5]] * 3, [(0.0, "G"), (1.0, "X")])
KNOWN = Known(
    CRYSTAL,
    Data(Equation(16.5, 77.0, 4.5), {"C11": 110.0}, 6, [Slab("run#9", (1, 1, 1), 12, 0.81, 0.79)], []),
    Equation(16.6, 75.0, 4.6),
    Elastic({"C11": 100.0, "C12": 120.0, "C44": 30.0}, np.full((6, 6), 75.0).tolist(), 113.3, 5.0, -20.0, False, 0.0),
    Phonons(108, [12.0] * 3, 9.5, [Mode((0.5, 0.0, 0.5), "X", -1.5)], 0.125, [], BANDS),
    dynamics=Dynamics(216, 1.0, 600.0, 0.5, 601.0, 2.1, 0.2, 1.0, 590.0, 2e-5, 1e-6),
)
LEFT_OUT = [LeftOut("Mg", "elastic", "no time"), LeftOut("AlMg", "elastic", "no time"), LeftOut("C", "crystal", "no bulk")]


def section(physics):
    return crystals_section({"physics": physics.as_dict(), "basis": {"shortest": {"Al-Al": 2.3}}})


def rows(found, title):
    (table,) = [table for table in found.tables if table.title == title]
    return table.rows


def test_everything_known_is_told_beside_dft():
    found = section(Physics({"Al": KNOWN}, LEFT_OUT))
    data, relaxed = rows(found, "Lattices")
    assert (data[1], data[2], relaxed[1], relaxed[2]) == ("data", "P1", "relaxed", "Fm-3m")
    ours, dft = rows(found, "Equations of state")
    assert ours == ["Al", "ACE + reference", "16.600", "75.0", "4.60"]
    assert dft == ["Al", "DFT, a series of volumes", "16.500", "77.0", "4.50"]
    ours, dft = rows(found, "Elastic constants, GPa")
    assert ours[2:] == ["C11 100.0, C12 120.0, C44 30.0", "113.3", "5.0", "broken: an eigenvalue is -20.0 GPa"]
    assert dft == ["Al", "DFT, 6 strained cells", "C11 110.0", "", "", ""]
    assert rows(found, "Phonons, THz") == [["Al", "9.50", "", "X (0.5, 0, 0.5): 1.50i", "12.5%", "108"]]
    assert rows(found, "Surfaces, J/m²") == [["Al", "(1 1 1)", "run#9", "0.790", "", "0.810"]]
    (run,) = rows(found, "Molecular dynamics: no two atoms come too close")
    assert run == ["Al", "216", "0.50 ps at 601 K", "2.10 (2.30 in the data)", "0.20", "1.00 ps at 590 K", "2.0e-05", "1.0e-06"]
    assert rows(found, "Left out") == [["elastic constants", "no time", "Mg, AlMg"], ["the crystal itself", "no bulk", "C"]]
    (panel,) = found.panels
    assert [layer.kind for layer in panel.layers] == ["line"] * 3 + ["mark"] * 2
    assert "Γ X" in panel.note


def test_what_was_not_measured_is_absent():
    assert "vacancies" not in Physics({"Al": KNOWN}).as_dict()["crystals"]["Al"]
    found = section(Physics({"Al": Known(CRYSTAL)}))
    assert [table.title for table in found.tables] == ["Lattices"]
    empty = section(Physics({}, LEFT_OUT[2:]))
    assert empty.text == ["No structure of the data was found to be a crystal."]
    assert crystals_section({}).text == []


def test_what_is_not_stable_is_a_warning():
    strain, phonons, drift, burst = Physics(
        {"Al": KNOWN}, [LeftOut("Mg", "dynamics", "after 100 fs …: it does not hold together")]
    ).warnings
    assert "Born" in strain
    assert "X (0.5, 0, 0.5): 1.50i THz" in phonons
    assert "2.0e-05 eV/atom/ps" in drift
    assert burst.startswith("Mg: after 100 fs")
    noisy = replace(KNOWN.dynamics, noise=1.1 * KNOWN.dynamics.nve * KNOWN.dynamics.drift)  # which makes such a slope
    assert Physics({"Al": Known(CRYSTAL, dynamics=noisy)}).warnings == []
    assert Physics({"Al": Known(CRYSTAL)}, LEFT_OUT).warnings == []


def test_of_many_that_burst_three_are_told_and_the_others_counted():
    burst = [LeftOut(f"C{n}", "dynamics", "after 2 fs …: it does not hold together") for n in range(1, 6)]
    assert Physics({}, burst[:3]).warnings == [f"C{n}: after 2 fs …: it does not hold together" for n in range(1, 4)]
    assert Physics({}, burst).warnings[3:] == ["2 more compositions do not hold together (physics.left_out)"]


def test_what_has_no_crystal_has_its_dynamics():
    found = section(Physics({}, [], {"H2O": Moved("water#7", replace(KNOWN.dynamics, drift=1e-7))}))
    (run,) = rows(found, "Molecular dynamics: no two atoms come too close")
    assert run[:2] == ["H2O, water#7", "216"]
    assert "as the data have it" in found.text[1]
    (drifts,) = Physics({}, [], {"H2O": Moved("water#7", KNOWN.dynamics)}).warnings
    assert drifts.startswith("the energy of H2O drifts by 2.0e-05")


def test_the_sidecar_has_all_of_it():
    told = Physics({"Al": KNOWN}, LEFT_OUT).as_dict()
    assert told["crystals"]["Al"]["crystal"] == asdict(CRYSTAL)
    assert told["left_out"][0] == {"composition": "Mg", "property": "elastic", "reason": "no time"}
