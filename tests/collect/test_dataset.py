"""The audit, E0, the split."""

import re

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc100
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian, FixedLine, FixedPlane
from ase.io.trajectory import Trajectory
from conftest import RAW, labelled
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from mlip_pace import atoms_to_dataframe
from mlip_pace.collect import dataset
from mlip_pace.collect.files import find_files
from mlip_pace.collect.labels import labels
from mlip_pace.collect.split import split_by_group
from mlip_pace.errors import DataError
from mlip_pace.settings import DataSettings


def cell(scale=1.0, symbols="Al4"):
    atoms = bulk("Al", "fcc", 4.05 * scale, cubic=True)
    atoms.symbols = Atoms(symbols).symbols
    return atoms


def good(count=40):
    """Structures that nothing is wrong with."""
    return [labelled(cell(0.9 + 0.005 * n), -14.0 + 0.01 * n) for n in range(count)]


def with_results(atoms=None, **changes):
    atoms = labelled(cell(1.2) if atoms is None else atoms, -13.0)
    atoms.calc.results.update(changes)
    atoms.calc.results = {key: value for key, value in atoms.calc.results.items() if value is not None}
    return atoms


def close():
    atoms = cell(1.2)
    atoms.positions[1] = atoms.positions[0] + [0.3, 0, 0]
    return atoms


BROKEN = {
    "no forces": (with_results(forces=None), "no forces"),
    "no energy": (with_results(energy=None), "no energy"),
    "no labels": (cell(1.2), "no energy and forces"),
    "shape": (with_results(forces=np.zeros((3, 3))), "expected (4, 3)"),
    "21 values": (with_results(forces=np.zeros((7, 3))), "forces has 21 values"),
    "nan": (with_results(energy=np.nan), "energy is nan"),
    "inf": (with_results(forces=np.full((4, 3), np.inf)), "forces has values that are no finite numbers"),
    "explosion": (with_results(forces=np.full((4, 3), 1e4)), "above 1000"),
    "close": (labelled(close(), -1.0), "0.300 Å apart"),
    "no element": (labelled(cell(1.2, "X4"), -1.0), "X: no chemical element"),
    "empty": (labelled(Atoms(), 0.0), "no atoms"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_named_and_left_out(kind):
    atoms, reason = BROKEN[kind]
    frame = atoms_to_dataframe([*good(), atoms], test_fraction=0.0)
    assert len(frame) == 40
    (item,) = frame.attrs["left_out"]
    assert item["source"] == "atoms#40"
    assert reason in item["reason"]


def test_too_much_broken_is_refused_and_named():
    atoms, reason = BROKEN["shape"]
    with pytest.raises(DataError) as refused:
        atoms_to_dataframe([*good(10), atoms])
    assert refused.value.code == 65
    assert "1 of 11" in refused.value.message
    assert f"atoms#10: forces has 9 values in shape (3, 3), {reason}" in refused.value.message
    assert len(atoms_to_dataframe([*good(10), atoms], max_rejected=0.2)) == 10


def test_elements_that_were_not_asked_for_are_left_out_by_name():
    given_ = [(f"f#{n}", f"f#{n}", a) for n, a in enumerate([*good(10), labelled(cell(1.2, "Al3Mg"), -10.0)])]
    frame, summary = dataset.assemble([given_], None, dataset.Rules(DataSettings.model_construct(), ["Al"]))
    assert len(frame) == 10
    assert (summary.read, summary.used, summary.train + summary.test, summary.atoms) == (11, 10, 10, 40)
    assert summary.left_out == [{"source": "f#10", "reason": "Mg not in MLIP_PACE_BASIS_ELEMENTS=Al"}]
    with pytest.raises(DataError, match="Cu is in MLIP_PACE_BASIS_ELEMENTS but in no training structure"):
        dataset.assemble([given_], None, dataset.Rules(DataSettings.model_construct(), ["Al", "Mg", "Cu"]))


def test_duplicates_are_left_out_also_when_shifted_by_a_lattice_vector():
    shifted = good(1)[0]
    shifted.positions += shifted.cell[0] * 2
    other = labelled(good(1)[0], -13.0)
    frame = atoms_to_dataframe([*good(10), good(1)[0], labelled(shifted, -14.0), other], test_fraction=0.0)
    assert len(frame) == 10
    reasons = [item["reason"] for item in frame.attrs["left_out"]]
    assert reasons[:2] == ["the same structure as atoms#0"] * 2
    assert "their energies differ by 250 meV/atom" in reasons[2]


def computed(atoms):
    """Energy and forces of EMT, kept with the structure."""
    atoms.calc = EMT()
    labelled_ = atoms.copy()
    labelled_.calc = SinglePointCalculator(labelled_, energy=atoms.get_potential_energy(), forces=atoms.get_forces())
    return labelled_


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), by=st.sampled_from(["moved", "turned", "another order", "all"]))
def test_copies_that_are_moved_turned_or_in_another_order_are_left_out(seed, by):
    """Augmented data: an equivariant potential learns nothing of them, and a test set would hold what was trained on."""
    rng = np.random.default_rng(seed)
    structures = []
    for n in range(5):
        atoms = cell(1.0 + 0.01 * n, "Al3Cu")
        atoms.rattle(0.1, seed=seed + n)
        structures.append(computed(atoms))
    copy, forces = structures[2].copy(), structures[2].get_forces()
    if by in ("moved", "all"):
        copy.positions += rng.normal(size=3)
        copy.wrap()
    if by in ("turned", "all"):
        turn = Rotation.random(random_state=seed).as_matrix()
        copy.set_cell(copy.cell.array @ turn.T, scale_atoms=True)
        forces = forces @ turn.T
    order = rng.permutation(4) if by in ("another order", "all") else np.arange(4)
    copy = copy[order]
    copy.calc = SinglePointCalculator(copy, energy=structures[2].get_potential_energy(), forces=forces[order])
    frame = atoms_to_dataframe([*structures, copy], test_fraction=0.0)
    assert len(frame) == 5
    ((said,)) = (item["reason"] for item in frame.attrs["left_out"])
    assert said.startswith("the same structure as atoms#2")


def test_other_structures_with_the_same_labels_are_no_copies():
    structures = good(8)
    for n, atoms in enumerate(structures):
        atoms.positions[0, 0] += 0.02 * n
        atoms.calc.results.update(energy=-13.0, forces=np.full((4, 3), 0.1))
    assert len(atoms_to_dataframe(structures, test_fraction=0.0)) == 8


def test_structures_that_are_alike_in_all_but_one_thing_are_no_copies():
    """Energy, volume, elements, and, where no atom is pushed, all that tells how atoms lie."""
    rng = np.random.default_rng(1)
    molecule = Atoms("AlCuAl", [[0, 0, 0], [2.6, 0, 0], [2.6, 2.7, 0]], cell=[12] * 3, pbc=True)
    forces = rng.normal(size=(3, 3))
    forces -= forces.mean(axis=0)
    turned = molecule.copy()
    turned.positions = turned.positions[:, [1, 2, 0]]
    other_box, other_elements = turned.copy(), turned.copy()
    other_box.set_cell([13] * 3)
    other_elements.symbols = "MgCuMg"

    def left(copy, energy, pushed):
        given = [labelled(molecule, -9.0, forces), labelled(copy, energy, pushed), labelled(cell(1.0), -14.0)]
        return len(atoms_to_dataframe(given, test_fraction=0.0))

    assert left(turned, -9.0, forces[:, [1, 2, 0]]) == 2
    assert left(turned, -9.1, forces[:, [1, 2, 0]]) == 3
    assert left(other_box, -9.0, forces) == 3
    assert left(other_elements, -9.0, forces) == 3
    layers = [bulk("Al", "fcc", 4.05), bulk("Al", "hcp", 4.05 / np.sqrt(2), c=4.05 / np.sqrt(2) * np.sqrt(8 / 3))]
    both = [labelled(layers[0] * (2, 1, 1), -7.0), labelled(layers[1], -7.0), labelled(cell(1.0), -14.0)]
    assert len(atoms_to_dataframe(both, test_fraction=0.0)) == 3


def test_isolated_atoms_become_e0_and_lonely_ones_are_named():
    atom = labelled(Atoms("Al", cell=[20] * 3, pbc=True), -0.3)
    lonely = Atoms("Al3", [(0, 0, 0), (2.8, 0, 0), (12, 12, 12)], cell=[25] * 3, pbc=True)
    frame = atoms_to_dataframe([*good(), atom, labelled(lonely, -3.0)], test_fraction=0.0)
    assert len(frame) == 40
    assert frame.attrs["e0"] == {"Al": -0.3}
    assert frame.energy_atoms.tolist() == pytest.approx([-1.2] * 40)
    left, isolated = frame.attrs["left_out"]
    assert "E0 of Al" in isolated["reason"]
    assert left == {"source": "atoms#41", "reason": "1 of 3 atoms have no neighbour within 5.0 Å"}


def test_e0_by_least_squares_beside_a_known_one():
    structures = [
        labelled(cell(0.9 + 0.01 * n, symbols), -2.0 * symbols.count("Al") * 1.0)
        for n, symbols in enumerate(["AlAlAlAl", "AlAlAlMg", "AlAlMgMg", "AlMgMgMg"] * 5)
    ]
    for atoms in structures:
        atoms.calc.results["energy"] = -2.0 * list(atoms.symbols).count("Al") - 0.5 * list(atoms.symbols).count("Mg")
    atom = labelled(Atoms("Al"), -2.0)
    assert atoms_to_dataframe([*structures, atom]).attrs["e0"] == pytest.approx({"Al": -2.0, "Mg": -0.5})
    assert atoms_to_dataframe(structures).attrs["e0"] == pytest.approx({"Al": -2.0, "Mg": -0.5})
    assert atoms_to_dataframe(structures, e0={"Al": -1.0, "Mg": -3.0}).attrs["e0"] == {"Al": -1.0, "Mg": -3.0}
    assert atoms_to_dataframe(structures, e0="none").attrs["e0"] == {"Al": 0.0, "Mg": 0.0}
    with pytest.raises(DataError, match="no value for Mg"):
        atoms_to_dataframe(structures, e0={"Al": -1.0})


def bare(energy_key, forces_key, energy=-14.0):
    atoms = cell(1.1)
    atoms.info[energy_key] = energy
    atoms.arrays[forces_key] = np.zeros((4, 3))
    return atoms


@pytest.mark.parametrize("prefix", ["REF_", "ref_", "dft_", "DFT_"])
def test_labels_under_the_usual_keys_are_found(prefix):
    frame = atoms_to_dataframe([*good(), bare(f"{prefix}energy", f"{prefix}forces", -9.0)], test_fraction=0.0)
    assert frame.energy_dft.iloc[-1] == -9.0


def test_keys_that_the_user_names_come_first():
    atoms = labelled(cell(1.1), -14.0)
    atoms.info["my_energy"], atoms.arrays["my_forces"] = -9.0, np.ones((4, 3))
    keys = DataSettings.model_construct(energy_key="my_energy", forces_key="my_forces")
    found, used, _ = labels(atoms, keys)
    assert found["energy"] == -9.0
    assert found["forces"].sum() == 12
    assert used.startswith("energy=my_energy forces=my_forces")


def test_energy_and_forces_come_from_the_same_place():
    atoms = bare("REF_energy", "REF_forces", -9.0)
    atoms.calc = labelled(cell(), -14.0).calc
    del atoms.calc.results["forces"]
    assert labels(atoms, DataSettings.model_construct())[0]["energy"] == -9.0


def test_the_free_energy_is_preferred():
    atoms = with_results(energy=-14.0, free_energy=-14.1)
    assert labels(atoms, DataSettings.model_construct())[0]["energy"] == -14.1


def test_a_slab_becomes_periodic_with_vacuum_and_keeps_its_virial():
    slab = fcc100("Al", (1, 1, 3), vacuum=3.0)
    frame = atoms_to_dataframe([*good(), with_results(slab, stress=np.arange(6.0))], test_fraction=0.0)
    ours = frame.ase_atoms.iloc[-1]
    assert ours.pbc.all()
    assert ours.cell.lengths()[2] - np.ptp(ours.positions[:, 2]) >= 2 * 5.0 - 1e-9
    virial = np.arange(6.0)[0] * slab.cell.volume
    assert frame.stress_dft.iloc[-1][0, 0] * ours.cell.volume == pytest.approx(virial)
    assert frame.stress_dft.iloc[-1][1, 2] * ours.cell.volume == pytest.approx(3.0 * slab.cell.volume)


def test_structures_beyond_the_limits_are_left_out_by_name():
    strong = with_results(forces=np.full((4, 3), 3.0))
    frame = atoms_to_dataframe([*good(), strong], max_force=5.0, test_fraction=0.0)
    assert "beyond MLIP_PACE_DATA_MAX_FORCE=5" in frame.attrs["left_out"][0]["reason"]
    frame = atoms_to_dataframe(good(), max_energy=0.05, test_fraction=0.0)
    assert (frame.energy_dft / 4).max() <= -3.5 + 0.05 + 1e-12
    assert len(frame) + len(frame.attrs["left_out"]) == 40


@settings(max_examples=40, deadline=None)
@given(
    groups=st.lists(st.integers(0, 12), min_size=4, max_size=40),
    fraction=st.floats(0, 0.5),
    seed=st.integers(0, 9),
    data=st.data(),
)
def test_the_split_keeps_groups_together_whatever_their_order(groups, fraction, seed, data):
    import pandas as pd

    symbols = ["AlMg" if n % 3 else "Al2" for n in groups]
    frame = pd.DataFrame({"group": [f"g{n}" for n in groups], "ase_atoms": [Atoms(s) for s in symbols]})
    split = split_by_group(list(frame[dataset.GROUP]), list(frame[dataset.ATOMS]), fraction, seed)
    sides = pd.DataFrame({"group": frame.group, "split": split}).groupby("group").split.nunique()
    assert (sides == 1).all()
    kept = {s for atoms, side in zip(frame.ase_atoms, split, strict=True) if side == "train" for s in atoms.symbols}
    assert kept == {s for atoms in frame.ase_atoms for s in atoms.symbols}
    if fraction == 0:
        assert set(split) == {"train"}
    order = data.draw(st.permutations(range(len(groups))))
    shuffled = frame.iloc[order]
    again = split_by_group(list(shuffled[dataset.GROUP]), list(shuffled[dataset.ATOMS]), fraction, seed)
    assert again == [split[n] for n in order]


def test_structures_that_are_tested_are_not_trained_on():
    train = [(f"a#{n}", f"a#{n}", a) for n, a in enumerate(good(10))]
    test = [(f"b#{n}", f"b#{n}", a) for n, a in enumerate([good(1)[0], *2 * [labelled(cell(1.3), -12.0)]])]
    frame, summary = dataset.assemble([train], [test], dataset.Rules(DataSettings.model_construct()))
    assert (frame.split == "test").sum() == 1
    assert summary.left_out == [
        {"source": "test:b#0", "reason": "the same structure as a#0 of the training data"},
        {"source": "test:b#2", "reason": "the same structure as test:b#1"},
    ]


def test_a_run_whose_labels_do_not_go_together_is_named(tmp_path):
    """A relaxation of pw.x in which one energy has been changed by hand: 0.3 Ry more than the forces allow."""
    text = (RAW / "al.relax.pwo").read_text()
    energies = re.findall(r"^!    total energy              = +(\S+) Ry", text, re.MULTILINE)
    (tmp_path / "sound.pwo").write_text(text)
    (tmp_path / "wrong.pwo").write_text(text.replace(energies[1], f"{float(energies[1]) + 0.3:.8f}"))
    said = {}
    for name in ("sound.pwo", "wrong.pwo"):
        pieces = dataset.structures_of(find_files(str(tmp_path / name)))
        _, about = dataset.assemble(pieces, None, dataset.Rules(DataSettings.model_construct(test_fraction=0.0)))
        said[name] = [warning for warning in about.warnings if "do not go together" in warning]
    assert said["sound.pwo"] == []
    (warning,) = said["wrong.pwo"]
    assert "wrong.pwo#0" in warning
    assert "between frames 0 and 1" in warning


def pulled(symbols="Cu8", seed=0):
    """A crystal out of order with the forces of a potential."""
    atoms = bulk("Cu", cubic=True).repeat((2, 1, 1))
    atoms.symbols = symbols
    atoms.rattle(0.1, seed=seed)
    calculator = EMT()
    calculator.calculate(atoms, ["energy", "forces"])
    return atoms, calculator.results["energy"], calculator.results["forces"]


def others():
    return [labelled(*pulled(seed=n)) for n in range(1, 4)]


def became(*structures):
    found = dataset.assemble([[(f"{n}", "one", atoms) for n, atoms in enumerate(structures)]], None, LENIENT)[1]
    return [item["reason"] for item in found.left_out], found.warnings


LENIENT = dataset.Rules(DataSettings.model_construct(max_rejected=1.0))
CONSTRAINTS = {
    "atoms": FixAtoms([0, 1, 2]),
    "one": FixAtoms([5]),
    "directions": FixCartesian([0, 3], (True, False, True)),
    "planes": FixedPlane([1, 2], (0, 0, 1)),
    "lines": FixedLine([1, 2], (1, 1, 0)),
}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_forces_that_a_constraint_has_changed_are_not_taken(name):
    """By name where the file says that atoms are held, or whole forces are missing; the same forces unchanged are sound."""
    atoms, energy, forces = pulled()
    left = forces.copy()
    CONSTRAINTS[name].adjust_forces(atoms, left)
    raw, changed, plain = labelled(atoms, energy, forces), labelled(atoms, energy, left), labelled(atoms, energy, left)
    for held in (raw, changed):
        held.set_constraint(CONSTRAINTS[name])
    assert became(raw, *others())[0] == []
    (reason,) = became(changed, *others())[0]
    assert "a constraint has taken away what DFT gave" in reason
    if name in ("atoms", "one"):
        (reason,) = became(plain, *others())[0]
        assert f"the forces on {len(CONSTRAINTS[name].index)} of 8 atoms are exactly 0" in reason


def test_forces_of_zero_by_symmetry_are_sound():
    """Of a crystal's held atoms, of one between two others, of all atoms."""
    held = labelled(bulk("Cu", cubic=True), -1.0, np.zeros((4, 3)))
    held.set_constraint(FixAtoms([0, 1]))
    line = labelled(Atoms("OCO", [[0, 0, -1.2], [0, 0, 0], [0, 0, 1.2]]), -20.0, [[0, 0, -0.5], [0, 0, 0], [0, 0, 0.5]])
    line.set_constraint(FixAtoms([1]))
    reasons, warnings = became(held, line, *others())
    assert reasons == []
    assert not [warning for warning in warnings if "do not add up" in warning]


def test_forces_that_do_not_add_up_are_told_and_noise_is_not():
    atoms, energy, forces = pulled()
    noisy = labelled(atoms, energy, forces + np.array([0.01, 0, 0]))
    assert not [w for w in became(noisy, *others())[1] if "do not add up" in w]
    odd, energy, forces = pulled(seed=5)
    forces[0] += [0, 0, 3.0]
    assert [w for w in became(labelled(odd, energy, forces), *others())[1] if "do not add up to 0" in w]


def of_a_trajectory(path, structures):
    with Trajectory(str(path), "w") as file:
        for atoms in structures:
            file.write(atoms)
    pieces = dataset.structures_of(find_files(str(path)))
    return dataset.assemble(pieces, None, dataset.Rules(DataSettings.model_construct()))


def test_a_trajectory_of_one_run_has_no_test_set_and_says_why(tmp_path):
    _, about = of_a_trajectory(tmp_path / "run.traj", good(12))
    (said,) = [warning for warning in about.warnings if "no test structures" in warning]
    assert "all are of one calculation (run.traj)" in said


def test_frames_with_other_atoms_are_of_another_calculation(tmp_path):
    """A .traj may be a collection: no run changes its atoms."""
    others = [labelled(cell(0.9 + 0.01 * n, "Al4").repeat((1, 1, 2)), -28.0 + 0.01 * n) for n in range(4)]
    frame, about = of_a_trajectory(tmp_path / "several.traj", [*good(8)[:4], *others, *good(8)[4:]])
    assert sorted(frame["group"].value_counts().items()) == [("several.traj", 4), ("several.traj#4", 4), ("several.traj#8", 4)]
    assert about.test == 4
