"""The reference potential is LAMMPS's own, is smooth, and comes off and on without a trace."""

import subprocess
from itertools import product

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import bulk
from conftest import labelled
from hypothesis import given, settings
from hypothesis import strategies as st

from mlip_pace import reference
from mlip_pace.collect import dataset
from mlip_pace.errors import DataError
from mlip_pace.reference import Reference
from mlip_pace.settings import ReferenceSettings

ELEMENTS = ["Al", "Mg"]
EPSILON = {"Al-Al": 0.31, "Al-Mg": 0.22, "Mg-Mg": 0.13}
SIGMA = {"Al-Al": 2.1, "Al-Mg": 2.3, "Mg-Mg": 2.6}
# The pressure of 1 eV/Å^3 in bar, with the digits that LAMMPS has for `units metal` (force->nktv2p).
BAR = 1.6021765e6


def potential(kind: str, outer: float = 3.3) -> Reference:
    return Reference(kind, 0.5 * outer, outer, *((EPSILON, SIGMA) if kind == "lj" else ()))


def rattled(atoms: Atoms, seed: int = 1, by: float = 0.15) -> Atoms:
    """Moved off every symmetry, with the cell in the lower triangular form that LAMMPS wants."""
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell.standard_form()[0] @ np.diag([1.0, 1.03, 0.98]), scale_atoms=True)
    atoms.rattle(by, seed=seed)
    return atoms


CELLS = {
    "one atom, many images": (rattled(bulk("Al", "fcc", a=4.05), by=0), 6.1),
    "primitive": (rattled(bulk("Mg", "hcp", a=3.2, c=5.2)), 4.0),
    "triclinic": (rattled(Atoms("Al3", np.eye(3) * 2.0, cell=[[4, 0, 0], [1.3, 3.5, 0], [-0.7, 1.1, 3.8]], pbc=True)), 5.2),
    "two elements": (rattled(bulk("AlMg", "rocksalt", a=5.2, cubic=True)), 3.3),
    "two elements, triclinic": (rattled(bulk("AlMg", "cesiumchloride", a=3.2) * (1, 2, 1)), 4.5),
}
KINDS = pytest.mark.parametrize("kind", ["zbl", "lj"])
ALL_CELLS = pytest.mark.parametrize("cell", CELLS)


def lammps(folder, atoms: Atoms, ref: Reference):
    """Energy of each atom (eV), forces (eV/Å) and stress (eV/Å^3, tension positive), by `lmp` with our lines less ACE."""
    commands = reference.lammps_commands(ref, ELEMENTS, "potential.yace")
    overlay = "\n".join(line.replace(" pace recursive", "") for line in commands if not line.startswith("pair_coeff * * pace"))
    (ax, _, _), (bx, by, _), (cx, cy, cz) = atoms.cell.array
    number = "{:.17g}".format
    rows = [
        " ".join([str(n), str(ELEMENTS.index(atom.symbol) + 1), *map(number, atom.position)]) for n, atom in enumerate(atoms, 1)
    ]
    (folder / "data").write_text(
        f"structure\n\n{len(atoms)} atoms\n{len(ELEMENTS)} atom types\n0 {number(ax)} xlo xhi\n0 {number(by)} ylo yhi\n"
        f"0 {number(cz)} zlo zhi\n{number(bx)} {number(cx)} {number(cy)} xy xz yz\n\nMasses\n\n1 1.0\n2 1.0\n\nAtoms\n\n"
        + "\n".join(rows)
        + "\n"
    )
    (folder / "in.lammps").write_text(
        f"units metal\nboundary {'p p p' if atoms.pbc.all() else 'f f f'}\nbox tilt large\nread_data data\n{overlay}\n"
        "compute energy all pe/atom\nthermo_style custom pe pxx pyy pzz pyz pxz pxy\nthermo_modify norm no format float %.16g\n"
        "dump forces all custom 1 forces id fx fy fz c_energy\n"
        "dump_modify forces sort id format float %.16g\nrun 0\n"
    )
    run = subprocess.run(
        ["lmp", "-in", "in.lammps", "-log", "none", "-nocite"], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    thermo = next(lines[n + 1] for n, line in enumerate(lines) if line.split()[:2] == ["PotEng", "Pxx"])
    energy, *pressure = map(float, thermo.split())
    dumped = np.loadtxt(folder / "forces", skiprows=9, ndmin=2)
    np.testing.assert_allclose(dumped[:, 4].sum(), energy, rtol=1e-10, atol=1e-10)
    return dumped[:, 4], dumped[:, 1:4], -np.array(pressure)[[[0, 5, 4], [5, 1, 3], [4, 3, 2]]] / BAR


def assert_agree(ours, theirs):
    """To 1e-8 of each number; where terms cancel, to 1e-12 of the largest or of 1 (eV, Å)."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=max(1e-12 * np.abs(theirs).max(), 1e-12))


@KINDS
@pytest.mark.parametrize("pair", [("Al", "Al"), ("Al", "Mg"), ("Mg", "Al"), ("Mg", "Mg")])
def test_lammps_agrees_on_dimers(tmp_path, kind, pair):
    ref = potential(kind)
    r = np.array([*np.linspace(0.5, 3.2, 19), ref.inner, 3.299, 3.301, 4.5])
    place = np.arange(len(r)) * 20.0 + 5
    both = [[(5, y, 5), (5 + distance, y, 5)] for y, distance in zip(place, r, strict=True)]
    many = Atoms(list(pair) * len(r), np.reshape(both, (-1, 3)), cell=[20, place[-1] + 10, 10])
    energies, forces, _ = lammps(tmp_path, many, ref)
    exact = many.positions[1::2, 0] - many.positions[::2, 0]
    energy, slope = ref.pair(*pair, exact)
    assert_agree(energy, energies.reshape(-1, 2).sum(axis=1))
    assert_agree(slope, forces[::2, 0])
    assert_agree(-slope, forces[1::2, 0])
    assert (energy[r > ref.outer] == 0).all()
    total, ours, _ = ref.evaluate(many)
    assert_agree(total, energies.sum())
    assert_agree(ours, forces)


@KINDS
@ALL_CELLS
def test_lammps_agrees_on_energy_forces_and_stress(tmp_path, kind, cell):
    atoms, outer = CELLS[cell]
    ref = potential(kind, outer)
    ours, theirs = ref.evaluate(atoms), lammps(tmp_path, atoms, ref)
    assert abs(ours[0]) > 1e-3, "the cell is too sparse to test anything"
    assert_agree(ours[0], theirs[0].sum())
    assert_agree(ours[1], theirs[1])
    assert_agree(ours[2], theirs[2])


@KINDS
@ALL_CELLS
def test_forces_are_the_derivative_of_the_energy(kind, cell):
    atoms, outer = CELLS[cell]
    ref, step = potential(kind, outer), 1e-4
    numeric = np.zeros((len(atoms), 3))
    for index in np.ndindex(numeric.shape):
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[index] += sign * step
            numeric[index] -= sign * ref.evaluate(moved)[0] / (2 * step)
    np.testing.assert_allclose(ref.evaluate(atoms)[1], numeric, rtol=1e-5, atol=1e-5)


@KINDS
@ALL_CELLS
def test_stress_is_the_derivative_by_strain(kind, cell):
    atoms, outer = CELLS[cell]
    ref, step = potential(kind, outer), 1e-5
    numeric = np.zeros((3, 3))
    for index in np.ndindex(3, 3):
        for sign in (1, -1):
            strain = np.eye(3)
            strain[index] += sign * step
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            numeric[index] += sign * ref.evaluate(strained)[0] / (2 * step) / atoms.get_volume()
    np.testing.assert_allclose(ref.evaluate(atoms)[2], numeric, rtol=1e-5, atol=1e-7)


@KINDS
def test_energy_force_and_curvature_vanish_at_outer(kind):
    ref = potential(kind)
    energy, slope = ref.pair("Al", "Mg", ref.outer - np.array([0.02, 0.01]))
    # What starts with the third power: 8 times less energy and 4 times less force at half the distance.
    assert energy[0] / energy[1] == pytest.approx(8, rel=0.05)
    assert slope[0] / slope[1] == pytest.approx(4, rel=0.05)
    assert ref.pair("Al", "Mg", np.array([ref.outer, ref.outer + 1])) == (pytest.approx([0, 0]), pytest.approx([0, 0]))


def test_none_is_nothing():
    energy, forces, stress = Reference().evaluate(CELLS["primitive"][0])
    assert energy == 0
    assert not forces.any()
    assert not stress.any()
    assert reference.lammps_commands(Reference(), ["Al"], "p.yace") == ["pair_style pace recursive", "pair_coeff * * p.yace Al"]


def test_a_molecule_needs_no_cell():
    energy, forces, stress = potential("zbl").evaluate(Atoms("Al2", [(0, 0, 0), (0, 0, 2.0)]))
    expected, slope = potential("zbl").pair("Al", "Al", np.array(2.0))
    assert energy == pytest.approx(float(expected))
    assert forces[:, 2] == pytest.approx([float(slope), -float(slope)])
    assert stress is None


@KINDS
def test_the_sidecar_holds_every_parameter(kind):
    assert Reference.from_dict(potential(kind).as_dict()) == potential(kind)


@KINDS
def test_adding_the_reference_to_the_delta_gives_dft(al_mg, kind):
    frame = dataset.atoms_to_dataframe(al_mg)
    ref = potential(kind, 2.4)
    target = reference.delta(ref, frame)
    assert "energy" not in target, "pacemaker would undo the subtraction"
    for _, row in target.iterrows():
        energy, forces, _ = ref.evaluate(row.ase_atoms)
        assert row.energy_corrected + row.energy_atoms + energy == pytest.approx(row.energy_dft, abs=1e-12)
        np.testing.assert_allclose(row.forces + forces, row.forces_dft, atol=1e-12)
    assert (target.energy_corrected - (frame.energy_dft - frame.energy_atoms)).abs().max() > 0.1


def frame_of(*structures: Atoms):
    return dataset.atoms_to_dataframe(list(structures), e0="none", test_fraction=0)


def fcc(a: float, energy: float, symbol: str = "Al") -> Atoms:
    return labelled(bulk(symbol, "fcc", a=a), energy)


@KINDS
def test_automatic_radii_follow_the_lowest_structure(kind):
    frame = frame_of(fcc(3.4, -2.0), fcc(4.0, -3.7), fcc(4.4, -3.5), fcc(4.6, -1.5, "Mg"), fcc(4.2, -1.2, "Mg"))
    ref = reference.choose(ReferenceSettings(kind=kind), frame, 5.0)
    assert ref.outer == pytest.approx(0.85 * 4.0 / 2**0.5, abs=1e-6)
    assert ref.inner == pytest.approx(ref.outer / 2, abs=1e-6)
    if kind == "lj":  # the minimum of the pair is at its bond length
        assert ref.sigma["Mg-Mg"] * 2 ** (1 / 6) == pytest.approx(4.6 / 2**0.5, abs=1e-5)
        assert ref.epsilon["Al-Mg"] == pytest.approx(3.7 / 8.61, abs=1e-6)


def test_bond_lengths_do_not_depend_on_the_order_of_atoms():
    low, high = bulk("AlMg", "cesiumchloride", a=3.3), bulk("AlMg", "cesiumchloride", a=2.9)
    same = reference.bond_lengths(frame_of(labelled(low, -6), labelled(high, -5)), 5.0)
    assert reference.bond_lengths(frame_of(labelled(low, -6), labelled(high[::-1], -5)), 5.0) == same


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"inner": 3.0}, "inner radius 3.0 Å is not below"),
        ({"kind": "lj", "epsilon": {"Al-Al": 0.1}}, "EPSILON has no value for Al-Mg, Mg-Mg"),
        ({"kind": "lj", "sigma": {"Al-Mg": 2.0, "Al-Al": 2.0}}, "SIGMA has no value for Mg-Mg"),
    ],
)
def test_parameters_that_contradict_are_refused(given, message):
    with pytest.raises(DataError, match=message):
        reference.choose(ReferenceSettings(**given), frame_of(fcc(4.0, -3.7), fcc(4.6, -1.5, "Mg")), 5.0)


def test_without_bonds_outer_must_be_given():
    frame = frame_of(fcc(4.0, -3.7), fcc(4.1, -3.6))
    with pytest.raises(DataError, match="no two atoms are closer than the cutoff of 2"):
        reference.choose(ReferenceSettings(), frame, 2.0)
    assert reference.choose(ReferenceSettings(outer=2.0), frame, 2.0).outer == 2.0


@pytest.mark.parametrize("energy", [-20.1, 250.1])
def test_energies_that_pacemaker_would_change_are_refused(energy):
    frame = frame_of(fcc(4.0, -3.7), fcc(4.1, energy))
    with pytest.raises(DataError, match=r"atoms#1.*eV/atom are left") as refused:
        reference.delta(Reference(), frame)
    assert refused.value.code == 65
    assert len(reference.delta(Reference(), frame_of(fcc(4.0, -19.9), fcc(4.1, 249.9)))) == 2


def test_the_virial_to_fit_is_that_of_the_rest_and_none_without_a_cell():
    """A stress label of a molecule in the void means nothing."""
    crystal, molecule = bulk("Al", cubic=True), Atoms("Al2", [(0, 0, 0), (0, 0, 2.0)])
    stress = np.diag([1.0, 2.0, 3.0])
    frames = pd.DataFrame({dataset.ATOMS: [crystal, molecule, crystal], dataset.ENERGY: 0.0, dataset.ENERGY_ATOMS: 0.0})
    frames[dataset.FORCES] = [np.zeros((len(atoms), 3)) for atoms in frames[dataset.ATOMS]]
    frames[dataset.STRESS] = pd.Series([stress, stress, None], dtype=object)
    target = reference.delta(Reference("zbl", 1.5, 3.0), frames)
    _, _, of_reference = Reference("zbl", 1.5, 3.0).evaluate(crystal)
    expected = crystal.get_volume() * (np.array([1, 2, 3, 0, 0, 0]) - of_reference[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]])
    np.testing.assert_allclose(target.virial[0], expected)
    assert target.virial[1] is None
    assert target.virial[2] is None


@pytest.mark.parametrize(("outer", "said"), [("auto", False), (3.2, True)])
def test_a_reference_that_acts_at_bonds_is_warned_of(al_mg, outer, said):
    """Al and Mg have bonds of 2.8 to 3.2 Å; by itself the reference ends below them."""
    rows = [{"ase_atoms": a, "energy_dft": a.get_potential_energy(), "forces_dft": a.get_forces()} for a in al_mg[2:40]]
    frames = pd.DataFrame(rows).assign(energy_atoms=0.0, split="train", source="x")
    _, subtracted = reference.subtracted_from(frames, ReferenceSettings(outer=outer), 5.0)
    assert (subtracted.at_bonds > 0.1) == said
    assert any("at bond lengths" in warning for warning in subtracted.warnings) == said


@pytest.mark.parametrize("energy", [0.0, -3.0])
def test_placeholders_are_nothing_to_learn(energy):
    """As all files of a set of displaced supercells had them: energies and forces of 0."""
    frames = frame_of(*(labelled(bulk("Al", a=4.0 + 0.01 * n), energy) for n in range(4)))
    with pytest.raises(DataError, match="nothing is left for ACE to learn"):
        reference.delta(Reference(), frames.assign(energy_atoms=energy))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 9),
    edge=st.floats(3.0, 9.0),
    cutoff=st.sampled_from([2.017, 2.919, 3.313, 4.571, 6.917]),
)
def test_the_shortest_distance_of_each_pair_is_that_of_all_images(seed, count, edge, cutoff):
    """Against all distances between atoms and their images, near ones and far ones."""
    rng = np.random.default_rng(seed)
    several = [
        Atoms(rng.choice(["Al", "Mg", "O"], count), edge * rng.random((count, 3)), cell=3 * [edge], pbc=True) for _ in range(2)
    ]
    expected = {}
    shifts = edge * np.array(list(product(range(-3, 4), repeat=3)))
    for atoms in several:
        for i, j in product(range(count), repeat=2):
            distances = np.linalg.norm(atoms.positions[j] + shifts - atoms.positions[i], axis=1)
            pair = reference.pair_name(atoms.symbols[i], atoms.symbols[j])
            near = distances[(distances > 0) & (distances < cutoff)]
            expected[pair] = min([*near, expected.get(pair, np.inf)])
    expected = {pair: distance for pair, distance in expected.items() if np.isfinite(distance)}
    assert reference.shortest_distances(several, cutoff) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("here", "there", "settings"),
    [
        (Reference("zbl", 1.0, 2.0), Reference("zbl", 1.0, 2.0), {}),
        (Reference("zbl", 1.0, 2.0), Reference("zbl", 1.0, 2.1), {"outer": "2.1"}),
        (Reference("zbl", 1.0, 2.0), Reference(), {"kind": "none"}),
        (Reference(), Reference("zbl", 1.0, 2.0), {"kind": "zbl", "inner": "1.0", "outer": "2.0"}),
        (
            Reference("lj", 1.0, 2.0, {"Al-Al": 0.1}, {"Al-Al": 2.5}),
            Reference("lj", 1.0, 2.0, {"Al-Al": 0.1, "Al-Mg": 0.2}, {"Al-Al": 2.5, "Al-Mg": 2.6}),
            {},
        ),
        (
            Reference("lj", 1.0, 2.0, {"Al-Al": 0.1}, {"Al-Al": 2.5}),
            Reference("lj", 1.0, 2.0, {"Al-Al": 0.1, "Al-Mg": 0.2}, {"Al-Al": 2.4, "Al-Mg": 2.6}),
            {"sigma": "Al-Al:2.4"},
        ),
    ],
)
def test_what_makes_another_reference_of_one_is_told(here, there, settings):
    """Pairs of elements that the data do not have make no difference."""
    assert here.differing(there) == settings
