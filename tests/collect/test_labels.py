"""Which labels are taken: from one place, named where there is a choice, stress with the sign of physics."""

import numpy as np
import pytest
import written
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write
from ase.units import Bohr, GPa, Hartree, Ry, bar, kcal, kJ, mol
from collect.damage import raw
from conftest import labelled
from hypothesis import given, settings
from hypothesis import strategies as st

from mlip_pace import atoms_to_dataframe
from mlip_pace.collect import aims, dataset, espresso, outcar, vasprun
from mlip_pace.collect.audit import checked
from mlip_pace.collect.extxyz import Piece
from mlip_pace.collect.files import FIELD, InputFile
from mlip_pace.collect.labels import Broken, labels
from mlip_pace.collect.read import read_frames
from mlip_pace.errors import DataError
from mlip_pace.settings import DataSettings

AUTO = DataSettings.model_construct()


def keys(**named):
    return DataSettings.model_construct(**{f"{kind}_key": key for kind, key in named.items()})


def cell():
    return bulk("Al", cubic=True)


def collected(structures):
    """What became of structures."""
    rows = [(f"{n}", "one", atoms) for n, atoms in enumerate(structures)]
    return dataset.assemble([rows], None, dataset.Rules(AUTO))[1]


def with_sets(*prefixes, suffixes=("energy", "forces", "stress"), atoms=None):
    """A structure with a set of labels under each prefix; those of the n-th are all n."""
    atoms = cell() if atoms is None else atoms
    for n, prefix in enumerate(prefixes, 1):
        values = {"energy": float(n), "forces": np.full((len(atoms), 3), float(n)), "stress": np.full(6, float(n))}
        for kind in suffixes:
            (atoms.arrays if kind == "forces" else atoms.info)[prefix + kind] = values[kind]
    return atoms


PREFIXES = st.lists(st.sampled_from(["REF_", "dft_", "my_", "a", "PBE-", "TotalDft_"]), min_size=2, max_size=4, unique=True)


@settings(max_examples=100, deadline=None)
@given(prefixes=PREFIXES, data=st.data())
def test_labels_are_never_mixed(prefixes, data):
    """Whatever key the user names, energy, forces and stress are those of one place, or of the keys that are named."""
    atoms = with_sets(*prefixes)
    chosen = data.draw(st.sampled_from(prefixes))
    named = data.draw(st.sampled_from([{"energy"}, {"forces"}, {"energy", "forces"}, {"energy", "stress"}]))
    found = labels(atoms, keys(**{kind: chosen + kind for kind in named})).found
    number = prefixes.index(chosen) + 1
    assert found["energy"] == number
    assert (found["forces"] == number).all()
    assert (found["stress"] == number).all()


def test_without_names_a_calculator_comes_first_then_ref_then_dft():
    atoms = with_sets("dft_", "REF_", "other_")
    assert labels(atoms, AUTO).found["energy"] == 2
    atoms.calc = labelled(cell(), -14.0).calc
    assert labels(atoms, AUTO).found["energy"] == -14.0


def test_a_named_energy_without_forces_of_its_own_is_refused_and_the_setting_is_said():
    atoms = with_sets("", suffixes=("forces",))
    atoms.info["TotEnergy"] = -3.0
    with pytest.raises(Broken, match=r"'TotEnergy'.*MLIP_PACE_DATA_ENERGY_KEY=TotEnergy MLIP_PACE_DATA_FORCES_KEY=forces"):
        labels(atoms, AUTO)
    with pytest.raises(Broken, match=r"no forces beside 'TotEnergy'.*MLIP_PACE_DATA_FORCES_KEY=forces"):
        labels(atoms, keys(energy="TotEnergy"))
    assert labels(atoms, keys(energy="TotEnergy", forces="forces")).found["energy"] == -3.0


@pytest.mark.parametrize("key", ["dft_frc", "my_force", "grad_e", "vasp_forces"])
def test_forces_under_another_name_are_pointed_out(key):
    atoms = cell()
    atoms.info["energy"], atoms.arrays[key] = -3.0, np.ones((4, 3))
    with pytest.raises(Broken, match=rf"no forces; '{key}' may be what is missing: set .*MLIP_PACE_DATA_FORCES_KEY={key}"):
        labels(atoms, AUTO)


@pytest.mark.parametrize("key", ["TotEnergy", "E_tot", "energies", "total_energy", "vasp_energy", "e"])
def test_an_energy_under_another_name_is_pointed_out(key):
    atoms = cell()
    atoms.info[key], atoms.arrays["forces"] = -3.0, np.ones((4, 3))
    with pytest.raises(Broken, match=rf"no energy; '{key}' may be what is missing: set MLIP_PACE_DATA_ENERGY_KEY={key}"):
        labels(atoms, AUTO)


def test_what_a_potential_predicted_is_not_taken_for_dft_in_silence():
    atoms = with_sets("dft_")
    atoms.calc = labelled(cell(), -14.0).calc
    atoms.info |= {"energy_uncertainty": 0.1, "max_gamma": 1.2}
    atoms.arrays["forces_uncertainty"] = np.ones((4, 3))
    found, said, (note,) = labels(atoms, AUTO)
    assert (found["energy"], said.split()[0]) == (atoms.info["dft_energy"], "energy=dft_energy")
    assert "'energy' is not" in note
    asked = labels(atoms, keys(energy="energy"))
    assert asked.found["energy"] == -14.0
    assert asked.keys.startswith("energy=energy forces=forces")
    for key in ("dft_energy", "dft_stress"):
        atoms.info.pop(key, None)
    found, _, notes = labels(atoms, AUTO)
    assert found["energy"] == -14.0
    assert any("`mlip-pace predict` writes them: is it DFT's?" in note for note in notes)


def test_of_several_that_may_be_the_energy_none_is_proposed():
    """As in a set of NOMAD's, where the first is zero. In one of water's the only one is called like its method, not energy."""
    atoms = cell()
    atoms.info |= {"nomad_potential_energy": 0.0, "nomad_total_energy": -3.2}
    with pytest.raises(
        Broken, match=r"'nomad_potential_energy' and 'nomad_total_energy' may .*_ENERGY_KEY names the one to take$"
    ):
        labels(atoms, AUTO)
    atoms = cell()
    atoms.info |= {"Emp2": -3.2, "number": 7, "name": "a"}
    atoms.arrays["force"] = np.ones((4, 3))
    with pytest.raises(
        Broken, match=r"no energy; 'Emp2' may .* set MLIP_PACE_DATA_ENERGY_KEY=Emp2 MLIP_PACE_DATA_FORCES_KEY=force$"
    ):
        labels(atoms, AUTO)


@pytest.mark.parametrize(
    ("energy", "forces"), [("energy", "force"), ("Energy", "Forces"), ("dft_energy", "dft_force"), ("energy_dft", "forces_dft")]
)
def test_the_same_word_in_the_singular_or_with_a_capital_is_understood(energy, forces):
    atoms = cell()
    atoms.info[energy], atoms.arrays[forces] = -3.0, np.ones((4, 3))
    found, said, notes = labels(atoms, AUTO)
    assert (found["energy"], found["forces"].sum(), said, notes) == (-3.0, 12.0, f"energy={energy} forces={forces}", ())


def test_two_sets_that_differ_are_a_choice_that_is_stated_and_a_setting_makes():
    frame, about = dataset.assemble(
        [[(f"a#{n}", "g", with_sets("REF_", "dft_", atoms=bulk("Al", "fcc", 4 + n / 100, cubic=True))) for n in range(9)]],
        None, dataset.Rules(DataSettings.model_construct(test_fraction=0.0)),
    )  # fmt: skip
    (warning,) = [text for text in about.warnings if "two sets" in text]
    assert "'REF_energy' is taken, 'dft_energy' is not; MLIP_PACE_DATA_ENERGY_KEY" in warning
    assert "(a#0 and 8 more)" in warning
    assert (frame.energy_dft == 1).all()
    assert labels(with_sets("REF_", "dft_"), keys(energy="dft_energy")).notes == ()
    same = with_sets("REF_")
    same.info["dft_energy"], same.arrays["dft_forces"] = 1.0, np.ones((4, 3))
    assert labels(same, AUTO).notes == ()


@pytest.mark.parametrize(
    ("key", "value"), [("vir", np.ones(9)), ("dft_stress", np.ones(6)), ("TotEnergy", 7.0), ("my_forces", np.ones((4, 3)))]
)
def test_a_key_that_looks_like_a_label_and_is_not_used_is_said_with_its_setting(key, value):
    atoms = with_sets("REF_", suffixes=("energy", "forces"))
    (atoms.arrays if np.shape(value) == (4, 3) else atoms.info)[key] = value * 2
    (note,) = labels(atoms, AUTO).notes
    assert note.startswith(repr(key))
    assert f"_KEY={key}" in note


def test_what_is_no_label_is_not_spoken_of():
    atoms = with_sets("REF_")
    atoms.info.update(energy_per_atom=3.0, temperature=300.0, name="energy", step=5, config_type="md", degree=2.0)
    atoms.arrays["magmoms"] = np.ones(4)
    assert labels(atoms, AUTO).notes == ()


STRAINED = cell()
STRAIN = np.array([[0.02, 0.01, 0.0], [0.01, -0.03, 0.02], [0.0, 0.02, 0.01]])
STRAINED.set_cell(STRAINED.cell @ (np.eye(3) + STRAIN), scale_atoms=True)
STRAINED.calc = EMT()


def energy_at(strain):
    atoms = STRAINED.copy()
    atoms.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
    atoms.calc = EMT()
    return atoms.get_potential_energy()


def stress_by_differences():
    """dE/dε / V (eV/Å^3): tension positive, from energies alone."""
    result = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            strain = np.zeros((3, 3))
            strain[i, j] += 1e-5
            strain[j, i] += 1e-5
            result[i, j] = (energy_at(strain / 2) - energy_at(-strain / 2)) / 2e-5
    return result / STRAINED.get_volume()


@pytest.mark.parametrize("numbers", [6, 9])
@pytest.mark.parametrize("key", ["stress", "REF_stress", "virial", "virials", "REF_virial", "dft_virials"])
def test_stress_and_virial_have_the_sign_of_physics_in_six_or_nine_numbers(tmp_path, key, numbers):
    stress = STRAINED.get_stress(voigt=numbers == 6)
    value = -STRAINED.get_volume() * stress if "virial" in key else stress
    prefix = key.rpartition("_")[0] + "_" if "_" in key else ""
    atoms = with_sets(prefix, suffixes=("energy", "forces"), atoms=Atoms(STRAINED))
    atoms.calc = None
    atoms.info[key] = value
    for given_ in (atoms, through_a_file(tmp_path, atoms)):
        found, said, _ = labels(given_, AUTO)
        assert f"stress={key}" in said
        ours = checked(given_, found, None, 5.0).stress
        np.testing.assert_allclose(ours, STRAINED.get_stress(voigt=False), atol=1e-8)
        np.testing.assert_allclose(ours, stress_by_differences(), atol=1e-6)


def through_a_file(tmp_path, atoms):
    write(tmp_path / "a.xyz", atoms, format="extxyz")
    (frame,) = read_frames(Piece(InputFile(tmp_path / "a.xyz", "a.xyz", "extxyz")))
    return frame


@pytest.mark.parametrize(
    ("stress", "flaw"),
    [
        (np.zeros(5), "it has 5 values"),
        (np.zeros(6), "exactly 0"),
        (np.full(6, 29530.0), "another unit"),
        (np.zeros(9), "exactly 0"),
        (np.full(6, np.nan), "no finite numbers"),
        (np.arange(9.0), "not symmetric"),
        ("one", "no numbers"),
    ],
)
def test_a_flawed_stress_costs_the_stress_and_not_the_structure(stress, flaw):
    atoms = labelled(cell(), -14.0)
    atoms.info["stress"] = stress
    others = [labelled(bulk("Al", "fcc", 4 + n / 50, cubic=True), -1.0) for n in range(9)]
    given_ = [(f"a#{n}", "g", a) for n, a in enumerate([atoms, *others])]
    frame, about = dataset.assemble([given_], None, dataset.Rules(DataSettings.model_construct(test_fraction=0.0)))
    assert (len(frame), "stress_dft" in frame) == (10, False)
    assert any(flaw in warning and "a#0" in warning for warning in about.warnings)


def test_a_virial_without_a_volume_is_no_stress():
    atoms = with_sets("", suffixes=("energy", "forces"), atoms=Atoms("Al2", [(0, 0, 0), (0, 0, 2.5)]))
    atoms.info["virial"] = np.ones(9)
    assert checked(atoms, labels(atoms, AUTO).found, None, 5.0).stress is None


def test_a_named_stress_that_no_structure_has_is_refused():
    with pytest.raises(DataError, match=r"'REF_stres' \(MLIP_PACE_DATA_STRESS_KEY\)"):
        atoms_to_dataframe(
            [with_sets("REF_", atoms=bulk("Al", "fcc", 4 + n / 50, cubic=True)) for n in range(9)], stress_key="REF_stres"
        )


def test_a_stress_is_left_where_it_is_if_none_is_wanted():
    assert "stress" not in labels(with_sets("REF_"), keys(stress="none")).found


def test_energies_minus_e0_are_said_to_be_that():
    atoms = with_sets("", suffixes=("forces",))
    atoms.info["energy_corrected"] = -3.0
    found, said, (note,) = labels(atoms, AUTO)
    assert (found["energy"], said) == (-3.0, "energy=energy_corrected forces=forces")
    assert "MLIP_PACE_DATA_E0=none" in note


@pytest.mark.parametrize("unit", [1.0, 160.21766208, -1.0])
@pytest.mark.parametrize("numbers", [6, 9])
def test_a_stress_that_contradicts_the_virial_beside_it_is_not_used(unit, numbers):
    """Of the other sign, or in another unit: GPa."""
    atoms = with_sets("", suffixes=("energy", "forces"))
    stress = np.array([0.03, 0.02, 0.01, 1e-3, 0, 0])
    full = np.array([0.03, 0, 0, 0, 0.02, 1e-3, 0, 1e-3, 0.01])
    atoms.info["stress"] = unit * (stress if numbers == 6 else full)
    atoms.info["virial"] = -full * atoms.get_volume()
    found, used, notes = labels(atoms, AUTO)
    assert ("stress" in found) == ("stress=stress" in used) == (unit == 1)
    assert any("'stress' is not minus 'virial' over the volume" in note for note in notes) == (unit != 1)
    for key in ("stress", "virial"):  # a user who knows better
        found, _, notes = labels(atoms, keys(stress=key))
        np.testing.assert_allclose(found["stress"], atoms.info["stress"] if key == "stress" else full)


def test_energies_of_two_kinds_are_told(tmp_path):
    structures = [with_sets("", suffixes=("energy", "forces")) for _ in range(4)]
    for n, atoms in enumerate(structures):
        atoms.positions[0, 0] += 0.01 * n
        if n < 3:
            atoms.info["free_energy"] = atoms.info["energy"] - 0.5
    assert not any("two kinds" in warning for warning in collected(structures[:3]).warnings)
    (warning,) = (warning for warning in collected(structures).warnings if "two kinds" in warning)
    assert "of 3 structures" in warning
    assert "of 1, which have no other" in warning


@pytest.mark.parametrize(("symbols", "energy"), [("C2H6O", -97079.92), ("H2", -74.0)])
def test_an_energy_that_no_electrons_have_is_in_another_unit(symbols, energy):
    atoms = Atoms(symbols, np.arange(3 * len(Atoms(symbols))).reshape(-1, 3))
    with pytest.raises(Broken, match="another unit"):
        checked(atoms, {"energy": energy, "forces": np.zeros((len(atoms), 3))}, None, 5.0)


@pytest.mark.parametrize(
    ("symbols", "energy"), [("C2H6O", -4212.0), ("H2", -31.7), ("U", -763900.0), ("Au", -517900.0), ("He", -79.0)]
)
def test_energies_of_all_electrons_are_energies(symbols, energy):
    atoms = Atoms(symbols, np.arange(3 * len(Atoms(symbols))).reshape(-1, 3))
    assert checked(atoms, {"energy": energy, "forces": np.zeros((len(atoms), 3))}, None, 5.0).energy == energy


def test_an_energy_of_zero_is_told():
    atoms = with_sets("", suffixes=("energy", "forces"))
    assert not labels(atoms, AUTO).notes
    atoms.info["energy"] = 0.0
    (note,) = labels(atoms, AUTO).notes
    assert "placeholder" in note


@pytest.mark.parametrize(("name", "told"), [
    ("emt", True), ("macecalculator", True), ("tpcalculator", True), ("chgnet", True), ("a potential of next year", True),
    ("vasp", False), ("espresso", False), ("gpaw", False), ("unknown", False), ("sumcalculator", False), ("cp2k", False),
])  # fmt: skip
def test_labels_of_a_potential_are_told(name, told, tmp_path):
    """As a trajectory names its calculator: of what is no DFT program known here."""
    atoms = labelled(cell(), -13.0)
    atoms.calc.name = name
    write(tmp_path / "a.traj", atoms)
    (frame,) = read_frames(Piece(InputFile(tmp_path / "a.traj", "a.traj", "traj")))
    assert any(f"the labels are those of {name!r}" in note for note in labels(frame, AUTO).notes) is told


def test_what_is_per_atom_or_a_tolerance_is_not_proposed_as_the_energy():
    atoms = cell()
    atoms.info |= {"energy_per_atom": -3.4, "elec_energy_tol": 1e-6, "dft_formation_energy_per_atom_in_eV": -0.3}
    atoms.arrays["forces"] = np.zeros((len(atoms), 3))
    with pytest.raises(Broken) as raised:
        labels(atoms, AUTO)
    assert "may be what is missing" not in str(raised.value)
    atoms.info["energy"] = -13.6
    assert labels(atoms, AUTO).notes == ()


@pytest.mark.parametrize("key", ["volume", "cell_volume", "temperature", "pressure", "band_gap"])
def test_a_number_that_is_called_otherwise_is_not_proposed_as_the_energy(key):
    atoms = with_sets("", suffixes=("forces",))
    atoms.info[key] = 66.4
    with pytest.raises(Broken) as refused:
        labels(atoms, AUTO)
    assert key not in str(refused.value)


def test_a_single_atom_needs_no_forces():
    atom = Atoms("H", info={"REF_energy": -13.6})
    found = labels(atom, AUTO).found
    assert checked(atom, found, None, 5.0).forces.tolist() == [[0, 0, 0]]
    with pytest.raises(Broken, match="no forces"):
        labels(Atoms("H2", [(0, 0, 0), (0, 0, 0.74)], info={"REF_energy": -31.0}), AUTO)


@pytest.mark.parametrize("prefix", ["w_", "weight_", "Weight_of_"])
def test_weights_of_labels_are_no_labels(prefix):
    """pacemaker's `w_energy` and `w_forces`, say: neither taken nor spoken of."""
    atoms = with_sets("", prefix)
    found = labels(atoms, AUTO)
    assert found.found["energy"] == 1.0
    assert found.notes == ()
    with pytest.raises(Broken):
        labels(with_sets(prefix), AUTO)


@pytest.mark.parametrize(
    ("kind", "unit", "factor"),
    [
        ("energy", "Hartree", Hartree),
        ("energy", "kcal/mol", kcal / mol),
        ("energy", "kJ/mol", kJ / mol),
        ("energy", "Ry", Ry),
        ("energy", "meV", 1e-3),
        ("energy", "a.u.", Hartree),
        ("forces", "hartree/bohr", Hartree / Bohr),
        ("forces", "kcal/mol/Ang", kcal / mol),
        ("forces", "Ry/Bohr", Ry / Bohr),
        ("forces", "au", Hartree / Bohr),
        ("stress", "GPa", GPa),
        ("stress", "kbar", 1e3 * bar),
        ("stress", "eV/A^3", 1.0),
        ("stress", "Hartree/Bohr**3", Hartree / Bohr**3),
    ],
)
@pytest.mark.parametrize("prefix", ["", "REF_"])
@pytest.mark.parametrize("join", ["-unit", "_unit", "_units"])
def test_a_label_is_converted_from_the_unit_that_is_named(kind, unit, factor, prefix, join):
    atoms = with_sets(prefix)
    before = labels(atoms.copy(), AUTO)
    atoms.info[prefix + kind + join] = unit
    after = labels(atoms, AUTO)
    for label, value in before.found.items():
        np.testing.assert_allclose(after.found[label], np.multiply(value, factor if label == kind else 1), rtol=1e-12)
    assert after.keys == before.keys
    told = [f"labels are converted as the file says: {prefix + kind!r} from {unit}"] if factor != 1 else []
    assert list(after.notes) == [*before.notes, *told]


def test_a_virial_is_an_energy_whose_unit_it_shares():
    atoms = with_sets("", suffixes=("energy", "forces"))
    atoms.info |= {"virial": np.eye(3).ravel(), "energy-unit": "Ry"}
    np.testing.assert_allclose(labels(atoms, AUTO).found["stress"], -Ry * np.eye(3).ravel() / atoms.cell.volume)


@pytest.mark.parametrize("key", ["length_unit", "pos-unit", "positions_units", "cell-unit", "distance_unit"])
def test_lengths_in_another_unit_are_refused(key):
    """The reader has taken them as Å."""
    atoms = with_sets("")
    before = labels(atoms.copy(), AUTO)
    atoms.info[key] = "Angstrom"
    assert labels(atoms, AUTO).keys == before.keys
    atoms.info[key] = "Bohr"
    with pytest.raises(Broken, match="lengths in Å are expected"):
        labels(atoms, AUTO)


@pytest.mark.parametrize("unit", ["nonsense", "eV/atom", "", "GPa/fortnight"])
def test_a_unit_that_is_not_known_is_refused(unit):
    atoms = with_sets("")
    atoms.info["energy_unit"] = unit
    with pytest.raises(Broken, match="no unit that is known"):
        labels(atoms, AUTO)


@pytest.mark.parametrize(("other", "value"), [("Energy", 7.5), ("force", np.ones((4, 3))), ("Forces", np.ones((4, 3)))])
def test_another_spelling_of_a_label_is_told_where_it_differs(other, value):
    atoms = labelled(cell(), -14.0)
    (atoms.arrays if np.ndim(value) else atoms.info)[other] = value
    found = labels(atoms, AUTO)
    assert float(found.found["energy"]) == -14.0
    np.testing.assert_array_equal(found.found["forces"], atoms.calc.results["forces"])
    assert [note for note in found.notes if note.startswith(f"{other!r} looks like")]
    (atoms.arrays if np.ndim(value) else atoms.info)[other] = atoms.calc.results[
        other.lower().removesuffix("s") + "s" * bool(np.ndim(value))
    ]
    assert not labels(atoms, AUTO).notes


RUN, PW = written.frames(2), raw("al.scf.pwo")
XML, OUTCAR, AIMS = (write(RUN) for write in (written.vasprun, written.outcar, written.aims))
FIELDS = {
    "pw.x, dipole correction": (espresso.read_output, PW, "     Self-consistent", "   Adding external electric field\n", False),
    "pw.x, tefield": (espresso.read_output, PW, "     Self-consistent", " E field amplitude [Ha a.u.]:   1.0000E-03\n", True),
    "pw.x, lelfield": (espresso.read_output, PW, "     Self-consistent", "     Using Berry phase electric field\n", True),
    "vasprun.xml, none": (vasprun.read, XML.encode(), b"  <i name", b'  <i name="EFIELD">   0.00000000</i>\n', False),
    "vasprun.xml": (vasprun.read, XML.encode(), b'  <i name="PSTRESS', b'  <i name="EFIELD">   0.05000000</i>\n', True),
    "OUTCAR": (outcar.read, OUTCAR.encode(), b"   ISIF", b"   EFIELD_PEAD=    0.0000    0.0000    0.0200\n", True),
    "FHI-aims, switched off": (
        aims.read, AIMS.encode(), b"  Input geo",
        b"  Homogeneous external field: Initial settings   0.0E+00  0.1E-02\n  External electric field switched off\n", False,
    ),
    "FHI-aims": (
        aims.read, AIMS.encode(), b"  Input geo", b"  Homogeneous external field: Initial settings   0.0E+00  0.1E-02\n", True
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_an_external_electric_field_is_told(name):
    """What atoms do without one is not what the labels say. A dipole correction is no field from outside."""
    reader, text, before, line, told = FIELDS[name]
    assert before in text
    found = list(reader(text.replace(before, line + before, 1)))
    assert found
    assert all((FIELD in labels(atoms, AUTO).notes) == told for atoms in found)
