"""What CP2K prints for a step comes back together, in every layout, or is left out with a reason."""

import re

import numpy as np
import pytest
from ase.units import Bohr, GPa, Hartree, bar
from collect.damage import atoms_of, damaged, only_frames_of, raw
from hypothesis import given, settings

from mlip_pace.collect.cp2k import read_output
from mlip_pace.collect.files import Unconverged

NUMBER = r"(-?\d+\.\d+(?:E[-+]\d+)?)"
OUTER, MD, CELL = "h2.outer-scf.cp2k.out.gz", "h2.md.cp2k.out.gz", "h2.cell-opt.cp2k.out.gz"
WATER = "h2o.cp2k.out.gz"
NO_COORDINATES = "CP2K: no coordinates are printed for this step"


def numbers(pattern: str, text: str, columns: int) -> np.ndarray:
    """Every match of a pattern with `columns` numbers after it, as printed."""
    return np.array([[float(x) for x in m.groups()[-columns:]] for m in re.finditer(pattern + rf"\s+{NUMBER}" * columns, text)])


@pytest.mark.parametrize("name", [WATER, OUTER, MD, CELL])
def test_labels_are_those_printed_for_the_first_step(name):
    text = raw(name)
    atoms = atoms_of(next(read_output(text)))
    n = len(atoms)
    np.testing.assert_allclose(atoms.positions, numbers(r"\n +\d+ +\d+ +[HO] +\d+", text.split("ATOMIC COORDINATES")[1], 3)[:n])
    energy = numbers(r"Total FORCE_EVAL \( QS \) energy \[a.u.\]:", text, 1)[0, 0]
    assert atoms.calc.results["energy"] == pytest.approx(energy * Hartree, rel=1e-12)
    forces = numbers(r"\n +\d +\d +[HO]", text.split("ATOMIC FORCES")[1], 3)[:n]
    np.testing.assert_allclose(atoms.calc.results["forces"], forces * Hartree / Bohr)
    printed = numbers(r"STRESS\| +[xyz]", text, 3)[:3]
    np.testing.assert_allclose(atoms.get_stress(voigt=False), -printed * GPa, rtol=1e-9)


def test_the_sign_of_the_stress():
    """From physics: the stress of a molecule in a large cell is minus its virial, sum r_i F_i, by volume."""
    atoms = atoms_of(next(read_output(raw(WATER))))
    forces = atoms.calc.results["forces"]
    virial = atoms.positions.T @ (forces - forces.mean(axis=0))
    stress = atoms.get_stress(voigt=False)
    assert np.sign(stress[0, :2]) == pytest.approx(np.sign(-virial[0, :2]))
    np.testing.assert_allclose(stress[0, 1], -virial[0, 1] / atoms.get_volume(), rtol=0.2)


def test_the_cell_is_as_exact_as_its_lengths_and_angles():
    atoms = atoms_of(next(read_output(raw(CELL))))
    np.testing.assert_allclose(atoms.cell.cellpar(), [4.00037, 4.10041, 4.20043, 85.0, 95.0, 88.0], atol=2e-6)
    assert not np.triu(atoms.cell.array, 1).any()
    # The same one turned by 30 degrees about z: vectors as they are printed, lengths and angles as before.
    turn = np.array([[np.cos(0.5), np.sin(0.5), 0], [-np.sin(0.5), np.cos(0.5), 0], [0, 0, 1]])
    text = raw(CELL)
    for name, vector in zip("abc", atoms.cell.array @ turn, strict=True):
        text = re.sub(
            rf"(CELL\| Vector {name} \[angstrom\]:) +\S+ +\S+ +\S+", r"\1 " + " ".join(f"{x:.3f}" for x in vector), text
        )
    turned = atoms_of(next(read_output(text)))
    np.testing.assert_allclose(turned.cell.cellpar(), atoms.cell.cellpar(), atol=2e-6)
    np.testing.assert_allclose(turned.cell, atoms.cell.array @ turn, atol=1e-3)


def test_later_steps_without_coordinates_are_named():
    for name in (MD, CELL):
        first, *others = read_output(raw(name))
        assert others == [NO_COORDINATES] * 2
        assert not isinstance(first, str)
    assert not atoms_of(next(read_output(raw(MD)))).pbc.any()


def test_a_new_cell_does_not_reach_back():
    first, second = read_output(raw("hard-cases/cp2k/cell-opt.out"))
    assert first.get_volume() == pytest.approx(54.872)
    assert second == NO_COORDINATES


@pytest.mark.parametrize("order", ["cell first", "coordinates first"])
def test_cell_and_coordinates_in_either_order(order):
    text = raw("hard-cases/cp2k/cell-opt.out")
    table = re.search(r" MODULE QUICKSTEP(?:.*\n)+?\n(?=\n| ENERGY)", text)[0].replace("1.350000", "1.450000")
    start, end = text.index(" CELL| Volume", 1000), text.rindex(" ENERGY|")
    second = text[start:end] + table if order == "cell first" else table + text[start:end]
    first, moved = read_output(text[:start] + second + text[end:])
    assert (first.get_volume(), moved.get_volume()) == pytest.approx((54.872, 74.088))
    assert (first.positions[1, 0], moved.positions[1, 0]) == pytest.approx((1.35, 1.45))
    # With coordinates alone, the cell of the step is not known.
    *_, alone = read_output(text[:start].replace("GLOBAL|", "") + " GLOBAL| Run type CELL_OPT\n" + table + text[end:])
    assert alone == "CP2K: no cell is printed for this step"


def test_the_layout_of_2025():
    (atoms,) = read_output(raw("hard-cases/cp2k/v2025.out"))
    np.testing.assert_allclose(atoms.calc.results["forces"][:, 0], [0.514221, -0.514221], atol=1e-6)
    np.testing.assert_allclose(atoms.calc.results["stress"], [-0.006242] * 3 + [0] * 3, atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new", "what", "factor"),
    [
        ("energy [hartree]  ", "energy (a.u.):  ", "energy", 1),
        ("energy [hartree]  ", "energy [eV]  ", "energy", 1 / Hartree),
        ("forces [hartree/bohr]", "forces [eV/angstrom]", "forces", Bohr / Hartree),
        ("forces [hartree/bohr]", "forces [eV*angstrom^-1]", "forces", Bohr / Hartree),
        ("stress tensor [GPa]", "stress tensor [bar]", "stress", bar / GPa),
        ("STRESS| Analytical stress tensor [GPa]", "STRESS TENSOR [GPa]", "stress", 1),
    ],
)
def test_units_are_those_in_brackets(old, new, what, factor):
    text = raw("hard-cases/cp2k/v2025.out")
    (before,), (after,) = read_output(text), read_output(text.replace(old, new))
    np.testing.assert_allclose(after.calc.results[what], np.asarray(before.calc.results[what]) * factor, rtol=1e-9)
    (reason,) = read_output(text.replace(old, old.replace("hartree", "parsec").replace("GPa", "parsec")))
    assert reason.startswith("CP2K: the unit parsec")


@pytest.mark.parametrize("name", ["hard-cases/cp2k/not-converged.out", WATER])
def test_what_did_not_converge_is_named(name):
    (frame,) = read_output(raw(name))
    assert isinstance(frame, Unconverged)
    assert frame.reason == "CP2K: the SCF did not converge"


def test_inner_loops_need_not_converge_where_outer_ones_do():
    text = raw(OUTER)
    assert "outer SCF loop converged" in text
    inner = text.replace("*** SCF run converged in", "*** WARNING :: SCF run NOT converged", 1)
    assert not isinstance(next(read_output(inner)), Unconverged)
    (frame,) = read_output(text.replace("outer SCF loop converged in", "outer SCF loop FAILED to converge after"))
    assert isinstance(frame, Unconverged)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("FORCE_EVAL ( QS )", "FORCE_EVAL ( FIST )", "the energy is that of FIST, not of DFT"),
        (" SCF PARAMETERS", " xTB| Parameter file\n SCF PARAMETERS", "the energy is that of xTB, not of DFT"),
        ("Run type    ", "Run type RT_PROPAGATION\n", "electrons move (RT_PROPAGATION) and are not in their ground state"),
    ],
)
def test_what_is_not_of_dft_is_named(old, new, reason):
    text = raw(OUTER)
    assert old in text
    (frame,) = read_output(text.replace(old, new))
    assert isinstance(frame, Unconverged)
    assert frame.reason == f"CP2K: {reason}"


def test_parts_of_an_energy_are_named():
    text = raw("hard-cases/cp2k/v2025.out")
    energy = re.search(r" ENERGY\|.*\n", text)[0]
    assert (
        list(read_output(text.replace(energy, energy + energy.replace("QS", "QMMM"))))
        == ["CP2K: the energy is put together from several parts (QMMM, QS)"] * 2
    )


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (" 1 H     1 ", " 1 H     2 ", "the elements cannot be read"),
        ("1.0000   1.0079\n", "0.0000   1.0079\n", "there are ghost atoms"),
        ("ATOMIC FORCES in", "NOTHING in", "no forces are printed (FORCE_EVAL/PRINT/FORCES)"),
        ("|a| =     4.000370", "|a| =     4.100370", "the cell cannot be read"),
        ("SUM OF ATOMIC FORCES    ", "SUM OF ATOMIC FORCES   1.00000000  ", "the forces do not add up to their sum"),
        ("STRESS|      y", "STRESS|      y   ****", "the stress cannot be read"),
        ("ENERGY| Total", "ENERGY| All", "the run ended before its first energy"),
    ],
)
def test_what_cannot_be_read_is_named(old, new, reason):
    text = raw(OUTER)
    assert old in text
    assert list(read_output(text.replace(old, new))) == [f"CP2K: {reason}"]


def test_several_runs_in_a_file():
    text = raw(OUTER)
    killed = text[: text.index("ENERGY| Total")]
    frames = list(read_output(text + killed + text))
    assert frames[1] == "CP2K: the run ended before its first energy"
    assert len(frames) == 3
    only_frames_of([frames[0]], [frames[2]])


TEXTS = [raw(name) for name in (WATER, OUTER, MD, CELL)]
ORIGINALS = [frame for text in TEXTS for frame in read_output(text)]


@settings(deadline=None)
@given(damaged(TEXTS, longest=400))
def test_damage_gives_frames_of_the_file_or_reasons(text):
    only_frames_of(ORIGINALS, list(read_output(text)))


def test_coordinates_are_known_whatever_module_prints_them():
    """SIRIUS is a module with a slash in its name."""
    text = raw("h2o.cp2k.out.gz")
    other = text.replace("MODULE QUICKSTEP:", "MODULE PWDFT/SIRIUS:")
    assert other != text
    (one,), (same,) = (list(map(atoms_of, read_output(given))) for given in (text, other))
    assert one == same
    assert one.calc.results["energy"] == same.calc.results["energy"]


@pytest.mark.parametrize("name", ["h2.md.cp2k.out.gz", "h2.cell-opt.cp2k.out.gz"])
@pytest.mark.parametrize(
    "place", ["SCF WAVEFUNCTION OPTIMIZATION", r"^ +2 \w+/Diag\.", r"\*\*\* SCF run converged", r"^ *ENERGY\|"]
)
def test_a_lost_step_gives_the_next_one_not_the_first_ones_coordinates(name, place):
    """From a place of the first step to the same place of a later one."""
    text = raw(name)
    first, second, third = [match.start() for match in re.finditer(place, text, re.MULTILINE)][:3]
    for later in (second, third):
        frames = list(read_output(text[:first] + text[later:]))
        assert frames
        assert all(isinstance(frame, str) for frame in frames)
