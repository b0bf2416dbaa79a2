"""Each step of GPAW comes back with its own cell, free energy, forces and stress, or is left out with a reason."""

import itertools
import re

import numpy as np
import pytest
from collect.damage import atoms_of, damaged, identity, only_frames_of, raw
from hypothesis import given, settings

from mlip_pace.collect.files import Unconverged
from mlip_pace.collect.gpaw import read_output

NUMBER = r"(-?\d+\.\d+)"
NAMES = ["al_vacancy_1.gpaw.txt", "h2.relax.gpaw.txt.gz", "al.cells.gpaw.txt.gz", "o2.gpaw.txt.gz"]


@pytest.mark.parametrize(("name", "steps"), list(zip(NAMES, [1, 5, 2, 1], strict=True)))
def test_labels_are_those_printed_for_the_step(name, steps):
    """Line by line: what was printed last before the end of a step."""
    text = raw(name)
    frames = list(read_output(text))
    blocks = text.split("\nPositions:\n")[1:]
    assert len(frames) == len(blocks) == text.count("Free energy:") == steps
    for atoms, block in zip(frames, blocks, strict=True):
        n = len(atoms)
        lines = block.splitlines()
        np.testing.assert_allclose(atoms.positions, [[float(x) for x in line.split()[2:5]] for line in lines[:n]])
        start = lines.index("Unit cell:") + 2
        axes = [line.split() for line in lines[start : start + 3]]
        np.testing.assert_allclose(atoms.cell, [[float(x) for x in words[3:6]] for words in axes])
        assert atoms.pbc.tolist() == [words[2] == "yes" for words in axes]
        assert atoms.calc.results["free_energy"] == float(re.search(rf"Free energy: +{NUMBER}", block)[1])
        start = lines.index("Forces in eV/Ang:") + 1
        forces = [[float(x) for x in line.split()[2:]] for line in lines[start : start + n]]
        np.testing.assert_allclose(atoms.calc.results["forces"], forces)
        if "Stress tensor:\n" in block:
            start = lines.index("Stress tensor:") + 1
            stress = [[float(x) for x in line.split()] for line in lines[start : start + 3]]
            np.testing.assert_allclose(atoms.get_stress(voigt=False), stress)


def test_energies_go_with_forces_along_a_relaxation():
    frames = list(read_output(raw("h2.relax.gpaw.txt.gz")))[1:]
    for before, after in itertools.pairwise(frames):
        work = ((before.get_forces() + after.get_forces()) / 2 * (after.positions - before.positions)).sum()
        assert after.get_potential_energy() - before.get_potential_energy() == pytest.approx(-work, rel=0.2)


def test_the_cell_of_each_step():
    small, large = read_output(raw("al.cells.gpaw.txt.gz"))
    assert large.get_volume() / small.get_volume() == pytest.approx(1.02**3)
    pressure = -(small.get_stress()[:3].mean() + large.get_stress()[:3].mean()) / 2
    difference = large.get_potential_energy() - small.get_potential_energy()
    assert difference == pytest.approx(-pressure * (large.get_volume() - small.get_volume()), rel=0.2)


def test_a_new_cell_that_is_not_printed_is_not_the_old_one():
    text = raw("al.cells.gpaw.txt.gz")
    first, second = read_output("Nothing".join(text.rsplit("Unit cell", 1)))
    assert not isinstance(first, str)
    assert second == "GPAW: no cell is printed for these positions"
    # Where only positions change, the cell may be printed once.
    text = raw("h2.relax.gpaw.txt.gz")
    frames = list(read_output(text.replace("Unit cell", "Nothing").replace("Nothing", "Unit cell", 1)))
    only_frames_of(list(read_output(text)), frames)
    assert len([frame for frame in frames if not isinstance(frame, str)]) == 5


def test_the_layouts_of_the_new_code_and_of_old_versions():
    text = raw("al_vacancy_1.gpaw.txt")
    (atoms,) = read_output(text)
    forces, stress = atoms.calc.results["forces"], atoms.get_stress(voigt=False)
    rows = [f"  [{x:10.4f}, {y:10.4f}, {z:10.4f}],  # Al {n}" for n, (x, y, z) in enumerate(forces)]
    new = re.sub(r"Forces in eV/Ang:\n(?:.*Al.*\n)+", "Forces: [  # eV/Ang\n" + "\n".join(rows) + "\n", text)
    new = new.replace("],  # Al 6", "]]  # Al 6")
    tensor = "".join(f"  [{x:13.6f}, {y:13.6f}, {z:13.6f}],\n" for x, y, z in stress)
    new = re.sub(r"Stress tensor:\n(?:.*\n){3}", "stress tensor: [  # eV/Ang^3\n" + tensor, new)
    assert new != text
    (same,) = read_output(new)
    np.testing.assert_allclose(same.calc.results["forces"], forces, atol=1e-4)
    np.testing.assert_allclose(same.calc.results["stress"], atoms.calc.results["stress"], atol=1e-6)
    old = re.sub(r"(\d\.\d{4})\d\d( +-?\d+\.\d{4})\d\d( +-?\d+\.\d{4})\d\d +\(.*\)", r"\1\2\3", text)
    old = old.replace("Unit cell:", "Unit Cell:").replace("periodic     x", "Periodic     X")
    old = old.replace("points  spacing\n", "Points  Spacing\n  -------------\n").replace("Free energy:", "Free Energy:")
    (same,) = read_output(old.replace("Extrapolated:", "Zero Kelvin: ").replace("Converged after", "Converged After"))
    np.testing.assert_allclose(same.positions, atoms.positions, atol=1e-4)
    assert same.calc.results["free_energy"] == atoms.calc.results["free_energy"]


def test_a_correction_for_dispersion_goes_with_its_forces():
    text = raw("h2.vdw.gpaw.txt.gz")
    (bare,) = read_output(text)
    forces = "\nForces in eV/Ang:\n  0 H     0.00000    0.00000    1.25000\n  1 H     0.00000    0.00000   -1.25000\n"
    (atoms,) = read_output(f"{text}\nvdWTkatchenko09prl\nvdW correction: -0.0123\nEnergy:         -5.84\n{forces}")
    assert atoms.calc.results["free_energy"] == pytest.approx(bare.calc.results["free_energy"] - 0.0123)
    assert atoms.calc.results["forces"][0, 2] == 1.25


def test_what_did_not_converge_is_named():
    assert list(read_output(raw("h2.not-converged.gpaw.txt.gz"))) == ["GPAW: the SCF did not converge"]


def test_a_fixed_density_is_named():
    text = raw("si.bands.gpaw.txt.gz")
    assert list(read_output(text)) == ["GPAW: no forces are printed"]
    (frame,) = read_output(
        text.replace("\nTiming:", "\nForces in eV/Ang:\n  0 Si 0.0 0.0 0.0\n  1 Si 0.0 0.0 0.0\n\nTiming:", 1)
    )
    assert isinstance(frame, Unconverged)
    assert "fixed" in frame.reason


@pytest.mark.parametrize(
    ("pattern", "new", "reason"),
    [
        (r" 3 Al ", " 3 Xx ", "Xx: no chemical element"),
        (r" 3 Al ", " 4 Al ", "the positions cannot be read"),
        (r"1\. axis:", "7. axis:", "the cell cannot be read"),
        (r"Free energy:", "Nothing:", "the run ended within the SCF"),
        (r"Free energy: +", "Free energy: *", "*-25.263992 is no energy"),
        (r"Forces in eV/Ang:", "Forces:", "no forces are printed"),
        (r"Stress tensor:\n", "Stress tensor:\nNaN\n", "the stress cannot be read"),
        (r"iter:   2", "", "iterations of the SCF are missing"),
        (r"(?=Free energy:)", "Legendre-transformed energies\n", "the number of electrons follows an electrode potential"),
    ],
)
def test_what_cannot_be_read_is_named(pattern, new, reason):
    text, count = re.subn(pattern, new, raw("al_vacancy_1.gpaw.txt"))
    assert count
    assert list(read_output(text)) == [f"GPAW: {reason}"]


def test_several_runs_in_a_file():
    text, other = raw("h2.relax.gpaw.txt.gz"), raw("o2.gpaw.txt.gz")
    killed = text[: text.rindex("Converged after")]
    frames = list(read_output(killed + other + text))
    assert frames[4] == "GPAW: the run ended within the SCF"
    assert len(frames) == 11
    only_frames_of([frame for t in (text, other) for frame in read_output(t)], frames)


TEXTS = [raw(name) for name in NAMES]
ORIGINALS = [frame for text in TEXTS for frame in read_output(text)]


@settings(deadline=None)
@given(damaged(TEXTS))
def test_damage_gives_frames_of_the_file_or_reasons(text):
    only_frames_of(ORIGINALS, [atoms_of(frame) if isinstance(frame, Unconverged) else frame for frame in read_output(text)])


@pytest.mark.parametrize("place", [r"^iter: +4 ", "^Converged after", "^Free energy:"])
def test_an_energy_on_the_positions_of_the_step_before_is_named(place):
    """From a place in the SCF of a step to the next one's energy."""
    text = raw("h2.relax.gpaw.txt.gz")
    whole = [identity(frame) for frame in read_output(text) if not isinstance(frame, str)]
    starts = [match.start() for match in re.finditer(place, text, re.MULTILINE)]
    energies = [match.start() for match in re.finditer("^Free energy:", text, re.MULTILINE)]
    for one in starts:
        for other in energies:
            if other > one:
                frames = list(read_output(text[:one] + text[other:]))
                assert all(isinstance(frame, str) or identity(frame) in whole for frame in frames)
