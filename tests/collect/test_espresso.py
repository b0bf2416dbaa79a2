"""Each step of pw.x comes back with the energy, forces and stress of its own coordinates, or is left out with a reason."""

import itertools
import re

import ase.io
import numpy as np
import pytest
from ase.units import Bohr, Ry
from collect.damage import atoms_of, damaged, identity, only_frames_of, raw
from conftest import RAW
from hypothesis import given, settings

from mlip_pace.collect.espresso import read_output
from mlip_pace.collect.extxyz import Piece
from mlip_pace.collect.files import Unconverged, find_files
from mlip_pace.collect.read import read_frames

NUMBER = r"(-?\d+\.\d+)"
RUNS = ["al.scf.pwo", "al.relax.pwo", "si.vc-relax.pwo.gz", "si.md.pwo.gz", "si.hybrid.pwo.gz", "si.not-met.pwo.gz"]


def by_hand(text: str) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """Energy (eV), forces (eV/Å) and stress (eV/Å^3, Voigt), line by line: the last energy before the forces."""
    steps, energy, lines = [], 0.0, text.splitlines()
    count = int(re.search(r"number of atoms/cell += +(\d+)", text)[1])
    for n, line in enumerate(lines):
        if line.lstrip().startswith("!"):
            energy = float(line.split("=")[1].split()[0]) * Ry
        elif "Forces acting on atoms" in line:
            steps.append([energy, [[float(x) for x in row.split("=")[1].split()] for row in lines[n + 2 : n + 2 + count]]])
        elif "total   stress" in line:
            (xx, xy, xz), (_, yy, yz), (_, _, zz) = ([float(x) for x in row.split()[:3]] for row in lines[n + 1 : n + 4])
            steps[-1].append([xx, yy, zz, yz, xz, xy])
    # pw.x prints a negative pressure under tension, and its tensor with the same sign.
    return [(e, np.array(f) * Ry / Bohr, -np.array(s) * Ry / Bohr**3) for e, f, s in steps]


@pytest.mark.parametrize("name", RUNS)
def test_labels_are_those_printed_for_the_step(name):
    text = raw(name)
    frames = [atoms_of(frame) for frame in read_output(text)]
    printed = by_hand(text)
    assert len(frames) == len(printed) == text.count("Forces acting on atoms")
    for atoms, (energy, forces, stress) in zip(frames, printed, strict=True):
        assert atoms.calc.results["energy"] == atoms.calc.results["free_energy"] == pytest.approx(energy, rel=1e-9)
        np.testing.assert_allclose(atoms.calc.results["forces"], forces, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(atoms.calc.results["stress"], stress, rtol=1e-9, atol=1e-12)
        assert atoms.pbc.all()


@pytest.mark.parametrize("name", ["al.relax.pwo", "si.vc-relax.pwo.gz", "si.md.pwo.gz"])
def test_coordinates_are_those_printed_before_the_step(name):
    text = raw(name)
    frames = list(read_output(text))
    blocks = re.findall(r"ATOMIC_POSITIONS \((\w+)\)\n((?:\w+ .*\n)+)", text)
    cells = re.findall(r"CELL_PARAMETERS \(angstrom\)\n((?:.*\n){3})", text)
    alat = float(re.search(rf"celldm\(1\)= +{NUMBER}", text)[1]) * Bohr
    first = [[float(x) for x in m] for m in re.findall(rf"tau\(.*\) = \( +{NUMBER} +{NUMBER} +{NUMBER}", text)]
    np.testing.assert_allclose(frames[0].positions, np.array(first) * alat, atol=1e-6)
    for n, atoms in enumerate(frames[1:]):
        unit, lines = blocks[n]
        positions = np.array([[float(x) for x in line.split()[1:4]] for line in lines.splitlines()])
        if cells:
            np.testing.assert_allclose(
                atoms.cell, [[float(x) for x in row.split()] for row in cells[n].splitlines()], atol=1e-8
            )
        else:
            np.testing.assert_array_equal(atoms.cell, frames[0].cell)
        np.testing.assert_allclose(
            atoms.get_scaled_positions(wrap=False) if unit == "crystal" else atoms.positions, positions, atol=1e-8
        )
    assert len({atoms.positions.tobytes() for atoms in frames}) == len(frames)


@pytest.mark.parametrize("name", ["al.scf.pwo", "al.relax.pwo", "si.vc-relax.pwo.gz", "si.md.pwo.gz"])
def test_ase_reads_the_same_where_it_is_right(name):
    ours, theirs = list(read_output(raw(name))), ase.io.read(RAW / name, ":", format="espresso-out")
    for one, other in zip(ours, theirs, strict=True):
        assert list(one.symbols) == list(other.symbols)
        np.testing.assert_allclose(one.cell, other.cell, atol=1e-5)
        np.testing.assert_allclose(one.positions, other.positions, atol=1e-5)
        assert one.calc.results["energy"] == pytest.approx(other.get_potential_energy(), rel=1e-6)
        np.testing.assert_allclose(one.calc.results["forces"], other.get_forces(), atol=1e-5)
        np.testing.assert_allclose(one.calc.results["stress"], other.get_stress(), atol=1e-6)


def test_along_molecular_dynamics_energies_go_with_forces():
    """-F dr to second order: labels of the wrong step, a wrong sign or a wrong unit would not."""
    frames = list(read_output(raw("si.md.pwo.gz")))
    for before, after in itertools.pairwise(frames):
        work = ((before.calc.results["forces"] + after.calc.results["forces"]) / 2 * (after.positions - before.positions)).sum()
        assert after.calc.results["energy"] - before.calc.results["energy"] == pytest.approx(-work, rel=0.05)


def test_energies_go_with_stress_where_the_cell_changes():
    frames = list(read_output(raw("si.vc-relax.pwo.gz")))[:2]
    strain = np.linalg.solve(frames[0].cell, frames[1].cell) - np.eye(3)
    stress = sum(atoms.get_stress(voigt=False) * atoms.get_volume() for atoms in frames) / 2
    moved = frames[1].positions - frames[0].positions @ (np.eye(3) + strain)
    forces = sum(atoms.get_forces() for atoms in frames) / 2
    work = (stress * (strain + strain.T) / 2).sum() - (forces * moved).sum()
    assert frames[1].get_potential_energy() - frames[0].get_potential_energy() == pytest.approx(work, rel=0.25)


def test_the_relaxed_cell_has_the_energy_of_its_own_basis():
    text = raw("si.vc-relax.pwo.gz")
    text = text[: text.rindex("CELL_PARAMETERS")]
    coordinates, last = text[text.rindex("CELL_PARAMETERS") :].split("     Self-consistent Calculation")
    assert "-15.61660409" in last
    mark = "\n     A final scf calculation at the relaxed structure.\n\n     Self-consistent Calculation"
    again = last[: last.index("     number of scf cycles")].replace("-15.61660409", "-15.61670409")
    *before, relaxed, final = read_output(text + coordinates + mark + again)
    assert [frame.calc.results["energy"] for frame in before] == [
        frame.calc.results["energy"] for frame in list(read_output(text))[:-1]
    ]
    assert relaxed == "pw.x: its SCF was done again, in the basis of its own cell"
    assert final.calc.results["energy"] == pytest.approx(-15.61670409 * Ry)


def test_the_energy_of_a_hybrid_functional_is_that_at_the_end():
    text = raw("hard-cases/qe-hybrid/hybrid.pwo")
    frames = list(read_output(text))
    assert frames[0].calc.results["energy"] == pytest.approx(-207.447, abs=1e-3)
    final = [float(e) * Ry for e in re.findall(rf"!!   total energy +=\s+{NUMBER}", text)]
    assert [atoms.calc.results["energy"] for atoms in frames] == pytest.approx(final)
    (real,) = read_output(raw("si.hybrid.pwo.gz"))
    last = re.findall(rf"^!!   total energy +=\s+{NUMBER}", raw("si.hybrid.pwo.gz"), re.MULTILINE)[-1]
    assert real.calc.results["energy"] == pytest.approx(float(last) * Ry)
    assert (
        list(read_output(text.replace("!!   total energy", "     total energy"))) == ["pw.x: the run ended within the SCF"] * 4
    )


def test_occupations_and_other_output_are_no_obstacle():
    (atoms,) = read_output(raw("hard-cases/qe-unread/hubbard.pwo"))
    assert {"energy", "forces", "stress"} <= set(atoms.calc.results)


def test_an_energy_after_every_iteration_is_not_taken():
    text = raw("si.every-iteration.pwo.gz")
    (atoms,) = read_output(text)
    energies = re.findall(rf"^!    total energy +=\s+{NUMBER}", text, re.MULTILINE)
    assert len(energies) > 3
    assert atoms.calc.results["energy"] == pytest.approx(float(energies[-1]) * Ry)
    cut = text[: text.index("End of self-consistent calculation")]
    assert list(read_output(cut)) == ["pw.x: the run ended within the SCF"]


@pytest.mark.parametrize(
    ("name", "reason"), [("si.not-converged.pwo.gz", "did not converge"), ("si.not-met.pwo.gz", "scf_must_converge")]
)
def test_what_did_not_converge_is_named(name, reason):
    (frame,) = read_output(raw(name))
    assert isinstance(frame, Unconverged)
    assert reason in frame.reason
    assert frame.atoms.calc.results["energy"] < 0


def test_a_band_structure_is_named():
    assert list(read_output(raw("si.nscf.pwo.gz"))) == [
        "pw.x: a band structure calculation is not self-consistent and has no energy"
    ]


def test_an_electrode_potential_is_named():
    text = raw("al.scf.pwo").replace("bravais-lattice", ">>>> FCP Relaxation is activated <<<<<\n     bravais-lattice")
    (frame,) = read_output(text)
    assert isinstance(frame, Unconverged)
    assert "FCP" in frame.reason


def test_line_ends_of_windows(tmp_path):
    (tmp_path / "al.pwo").write_bytes(raw("al.relax.pwo").replace("\n", "\r\n").encode())
    (file,) = find_files(str(tmp_path))
    only_frames_of(list(read_output(raw("al.relax.pwo"))), frames := list(read_frames(Piece(file))))
    assert len(frames) == 4


def test_several_runs_in_a_file():
    text = raw("al.relax.pwo")
    assert len(list(read_output(text + raw("si.md.pwo.gz") + text))) == 12
    # A run that was killed in its second SCF, and the one that was started after it.
    killed = text[: text.index("iteration #  3", text.index("ATOMIC_POSITIONS"))]
    first, reason, *others = read_output(killed + text)
    assert reason == "pw.x: the run ended within the SCF"
    assert len(others) == 4
    only_frames_of(others, [first])


@pytest.mark.parametrize(
    ("species", "file", "symbol"),
    [("Al1", "Al", "Al"), ("AL", "al", "Al"), ("al_x", "", "Al"), ("X1", "Al", "Al"), ("CO", "C ", "C"), ("H", "hy", "H")],
)
def test_elements_are_those_of_the_pseudopotentials(species, file, symbol):
    text = re.sub(r"Al( +tau\()", rf"{species}\1", raw("al.scf.pwo"))
    text = re.sub(r"Al( +3\.00 +26\.98\d+ +)Al\(", rf"{species}\1{file}(", text)
    (atoms,) = read_output(text)
    assert set(atoms.symbols) == {symbol}


def test_no_element_is_named():
    """Nor is it guessed from a label of which the output does not say what it is."""
    text = re.sub(r"Al( +tau\()", r"X1\1", raw("al.scf.pwo"))
    assert list(read_output(text)) == ["pw.x: the table of species has no X1, or is missing"]
    named = re.sub(r"Al( +3\.00 +26\.98\d+ +)Al\(", r"X1\1 (", text)
    assert list(read_output(named)) == ["pw.x: the species X1 is no chemical element"]
    without = raw("al.scf.pwo").replace("atomic species   valence", "")
    assert list(read_output(without)) == ["pw.x: the table of species has no Al, or is missing"]


def test_the_last_step_of_a_relaxation_is_the_one_that_is_counted():
    """Steps from the second to the last are lost, but for the results of the last."""
    text = raw("al.relax.pwo")
    *_, last = itertools.accumulate(text.split("Forces acting"), lambda before, after: before + "Forces acting" + after)
    steps = [match.start() for match in re.finditer("Forces acting", last)]
    first, *reasons = read_output(last[: steps[1]] + last[steps[-1] :])
    only_frames_of(list(read_output(text)), [first])
    assert len(reasons) == 1
    assert "step 4 comes after step 1" in reasons[0]
    # The final coordinates are those of the last step.
    *_, its_own, next_ones = re.findall(r"ATOMIC_POSITIONS .*\n(?:Al .*\n)+", text)
    text = text[: text.rindex("number of scf cycles")] + "bfgs converged in   4 scf cycles and   3 bfgs steps\n"
    for final, sound in ((its_own, True), (next_ones, False)):
        frames = list(read_output(f"{text}Begin final coordinates\n\n{final}End final coordinates\n"))
        assert len(frames) == 4
        assert sound or frames[-1] == "pw.x: the final coordinates are not those of the last step: something is missing"
        only_frames_of(list(read_output(text)), frames)
        assert isinstance(frames[-1], str) != sound


@pytest.mark.parametrize("constrained", [False, True])
def test_the_total_force_is_less_where_distances_are_held(constrained):
    text = re.sub(r"(?<=Total force = )( +\d+\.\d+)", lambda match: f"{0.9 * float(match[1]):12.6f}", raw("al.relax.pwo"))
    if constrained:
        text = text.replace("     bravais-lattice index", "     1 constrained distance\n     bravais-lattice index", 1)
    found = [frame for frame in read_output(text) if not isinstance(frame, str)]
    assert bool(found) == constrained


@pytest.mark.parametrize("component", ["whole", "fixed"])
def test_forces_are_those_that_the_total_force_is_of(component):
    """All of them, or of the components that are free: a digit that is lost shows."""
    text = raw("al.relax.pwo")
    forces = [
        np.array([[float(x) for x in row.split("=")[1].split()] for row in re.findall("force = .*", part)])
        for part in [step.partition("Total force")[0] for step in text.split("Forces acting on atoms")[1:]]
    ]
    if component == "fixed":
        text = re.sub(r"^(Al +(?: *-?\d+\.\d+){3}) *$", r"\1   0   1   1", text, flags=re.MULTILINE)
        for found in forces:
            total = np.linalg.norm(found[: len(found), 1:])
            text = re.sub(r"Total force = +\d+\.\d+ ", f"Total force : {total:11.6f} ", text, count=1)
        text = text.replace("Total force :", "Total force =")
    assert all(not isinstance(frame, str) for frame in read_output(text))
    assert len(forces) == 4
    last = text.rindex("Forces acting")
    at = text.index("force =", last)
    line = text[at : text.index("\n", at)]
    other = re.sub(r"(\d)(\d{4})$", lambda match: str((int(match[1]) + 5) % 10) + match[2], line)
    *_, reason = read_output(text[:at] + other + text[at + len(line) :])
    assert reason == "pw.x: the forces do not add up to the total force"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("force =    -0.00228159", "force = **************", "the forces cannot be read: 4 lines are expected"),
        ("Total force =", "Total force =     9.000000 #", "the forces do not add up to the total force"),
        ("-16.74705234", "****", "the energy cannot be read"),
        ("unit-cell volume          =", "unit-cell volume          =     400.0000 #", "the volume is not that of the cell"),
        ("(Ry/bohr**3)                   (kbar)", "(Ry/bohr)", "the stress cannot be read"),
        ("Forces acting on atoms", "Nothing on atoms", "no forces are printed (tprnfor = .true.)"),
    ],
)
def test_what_cannot_be_read_is_named(old, new, reason):
    text = raw("al.scf.pwo")
    assert old in text
    assert list(read_output(text.replace(old, new))) == [f"pw.x: {reason}"]


def test_a_broken_step_costs_that_step_only():
    text = raw("al.relax.pwo")
    second = text.index("Forces acting", text.index("Forces acting") + 1)
    frames = list(read_output(text[:second] + text[second:].replace("force =", "force =  *******", 1)))
    assert [isinstance(frame, str) for frame in frames] == [False, True, False, False]
    only_frames_of(list(read_output(text)), frames)


def test_half_an_output_says_so():
    text = raw("al.relax.pwo")
    assert list(read_output(text[: text.index("!    total energy")])) == ["pw.x: the run ended within the SCF"]
    assert list(read_output(text[: text.index("Self-consistent Calc")])) == ["pw.x: the run ended before its first SCF"]


def test_a_lost_step_does_not_leave_its_coordinates_to_the_next():
    """From the first SCF to the last, and from the first cell to the second positions."""
    text = raw("al.relax.pwo")
    starts = [match.start() for match in re.finditer("Self-consistent Calculation", text)]
    frames = list(read_output(text[: starts[0]] + text[starts[2] :]))
    assert frames[0] == "pw.x: steps are missing: step 3 comes after step 0"
    text = raw("si.vc-relax.pwo.gz")
    cells = [match.start() for match in re.finditer("CELL_PARAMETERS", text)]
    second = text.index("ATOMIC_POSITIONS", cells[1])
    _, reason, *_ = read_output(text[: cells[0]] + text[second:])
    assert reason == "pw.x: the cell of these positions is not printed"


TEXTS = [raw(name) for name in RUNS]
ORIGINALS = [frame for text in TEXTS for frame in read_output(text)]


@settings(deadline=None)
@given(damaged(TEXTS, longest=400))
def test_damage_gives_frames_of_the_file_or_reasons(text):
    only_frames_of(ORIGINALS, list(read_output(text)))


@pytest.mark.parametrize("place", ["iteration #  5", "End of self-consistent calculation"])
def test_a_lost_cell_gives_no_step_that_of_another(place):
    """From a place in the SCF of a step to the same place of the next one, whose cell was between them."""
    text = raw("si.vc-relax.pwo.gz")
    whole = [identity(frame) for frame in read_output(text)]
    places = [match.start() for match in re.finditer(place, text)]
    for one, other in itertools.pairwise(places):
        frames = list(read_output(text[:one] + text[other:]))
        assert all(isinstance(frame, str) or identity(frame) in whole for frame in frames)


def test_a_new_cell_has_the_volume_that_is_printed_with_it():
    text = raw("si.vc-relax.pwo.gz")
    frames = list(read_output(text.replace("new unit-cell volume =    276.9", "new unit-cell volume =    279.9")))
    reasons = [frame for frame in frames if isinstance(frame, str)]
    assert reasons == ["pw.x: the volume is not that of the cell", "pw.x: the cell of these positions is not printed"]
    assert len(frames) - len(reasons) == len(list(read_output(text))) - 1
