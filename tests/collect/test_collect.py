"""`mlip-pace collect DATA OUTPUT`: hard cases are right, what is written comes back to the last digit, the end says it all."""

import json
import subprocess
import sys
from dataclasses import replace

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc100, molecule
from ase.io import write
from ase.units import Bohr, Hartree
from conftest import EXAMPLES, RAW, environment, found, labelled
from hypothesis import given, settings
from hypothesis import strategies as st

from mlip_pace.collect import convert, dataset, output
from mlip_pace.collect.files import find_files
from mlip_pace.collect.frames import load_frame
from mlip_pace.errors import DataError, NoInputError, OutputError, SettingsError
from mlip_pace.settings import DataSettings

HARD = RAW / "hard-cases"
SUMMARY = {"files", "read", "used", "left_out", "keys", "e0", "e0_source", "warnings"}


def collect(data, path, **given_settings):
    """The command; its exit code and the last line of its log."""
    env = {k: v for k, v in environment(path).items() if not k.startswith("MLIP_PACE_")}
    env |= {f"MLIP_PACE_DATA_{name}": str(value) for name, value in given_settings.items()}
    command = [sys.executable, "-m", "mlip_pace.cli", "collect", str(data), str(path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    end = json.loads(done.stdout.splitlines()[-1])
    assert end["code"] == done.returncode, done.stdout + done.stderr
    assert set(end["summary"]) == SUMMARY, end
    return end


# From shared/data/hard-cases/expected.json: energies (eV) that belong to the forces, numbers of frames and of named ones.
CASES = {
    "qe-hybrid/hybrid.pwo": {"first_energy": -207.447},
    "qe-unread/hubbard.pwo": {"frames": 1},
    "aims-md/aims.out": {"energies": [-15800.0, -15800.4, -15800.6], "last_x": [1.30, 1.35, 1.40]},
    "aims-md/single/aims.out.gz": {"energies": [-15800.0]},
    "castep/dispersion.castep": {"energies": [-200.8]},
    "castep/tpsd.castep": {"energies": [-200.0, -200.1, -200.2]},
    "cp2k/cell-opt.out": {"frames": 1, "named": 1, "volume": 54.872},
    "cp2k/not-converged.out": {"frames": 0, "named": 1},
    "cp2k/v2025.out": {"frames": 1, "force": 0.01 * Hartree / Bohr, "stress": -0.006242},
    "db/grp.db": {"frames": 32, "groups": 4, "config_types": {"md"}},
    "db/kvp.db": {"frames": 32},
    "empty-vasprun": {"energies": [-10.84, -10.83]},
    "extxyz/two-labels.xyz": {"frames": 30, "warns": "'energy' is taken, 'REF_energy' is not"},
    "extxyz/three-labels.xyz": {
        "frames": 4,
        "stress": 0.02,
        "settings": {"ENERGY_KEY": "REF_energy", "FORCES_KEY": "REF_forces"},
    },
    "extxyz/isolated-without-forces.xyz": {"frames": 60, "e0": {"H": -13.6}},
    "extxyz/force.xyz": {"frames": 30},
    "four-elements/four.xyz": {"frames": 40},
    "left-handed/one-left-handed.xyz": {"frames": 40},
    "outcar/ml": {"energies": [-10.84, -10.83]},
    "outcar/nelm": {"frames": 0, "named": 2},
    "vasprun/nelm": {"frames": 0, "named": 1},
    "outcar/bz2": {"energies": [-10.84, -10.83]},
    **{f"pickle/{name}.pckl.gzip": {"frames": 30} for name in ("with-calc", "pandas-1.5", "category", "constraints")},
    "pickle/filtered.pckl.gzip": {"frames": 15},
}


@pytest.mark.parametrize("case", CASES)
def test_a_hard_case_is_right(tmp_path, case):
    right = CASES[case]
    end = collect(HARD / case, tmp_path / "out.xyz", **right.get("settings", {}))
    frames = ase.io.read(tmp_path / "out.xyz", index=":") if (tmp_path / "out.xyz").exists() else []
    energies = [atoms.get_potential_energy() for atoms in frames]
    named = [item["reason"] for item in end["summary"]["left_out"]]
    count = right.get("frames", len(right.get("energies", energies)))
    assert (end["code"], end["summary"]["used"], len(frames)) == (0 if count else 65, count, count), end
    assert all(named)
    if "named" in right:
        assert len(named) == right["named"], named
    if "energies" in right:
        assert energies == pytest.approx(right["energies"], abs=1e-6)
        assert all(atoms.pbc.all() for atoms in frames)
    if "first_energy" in right:
        assert energies[0] == pytest.approx(right["first_energy"], abs=1e-3)
    if "last_x" in right:
        assert [atoms.positions[-1, 0] for atoms in frames] == pytest.approx(right["last_x"])
    if "volume" in right:
        assert frames[0].get_volume() == pytest.approx(right["volume"], abs=1e-3)
    if "force" in right:
        assert np.abs(frames[0].get_forces()).max() == pytest.approx(right["force"], rel=1e-4)
    if "stress" in right:
        assert all(atoms.get_stress()[:3] == pytest.approx([right["stress"]] * 3, rel=1e-3) for atoms in frames)
    if "groups" in right:
        assert len({atoms.info["group"] for atoms in frames}) == right["groups"]
        assert {atoms.info["config_type"] for atoms in frames} == right["config_types"]
    for symbol, energy in right.get("e0", {}).items():
        assert end["summary"]["e0"][symbol] == energy
    if "warns" in right:
        assert any(right["warns"] in warning for warning in end["summary"]["warnings"])


def rules(**data):
    return dataset.Rules(DataSettings.model_construct(**data))


def converted(data, path, max_rejected=1.0, **settings_):
    summary = convert.Summary()
    convert.convert(str(data), path, rules(**settings_), max_rejected, summary)
    return summary


def as_they_are():
    return replace(rules(), as_they_are=True)


def rows_in(path):
    return found(dataset.structures_of(find_files(str(path))), as_they_are())


NUMBERS = st.floats(-1e3, 1e3, allow_subnormal=False)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=12)


@st.composite
def structures(draw):
    atoms = draw(
        st.sampled_from(
            [bulk("Al", cubic=True), molecule("H2O"), fcc100("Cu", (1, 1, 3), vacuum=4.0), bulk("NaCl", "rocksalt", 5.6)]
        )
    )
    atoms = atoms.copy()
    atoms.positions += draw(
        st.lists(st.floats(-0.1, 0.1), min_size=3 * len(atoms), max_size=3 * len(atoms)).map(np.array)
    ).reshape(-1, 3)
    forces = draw(st.lists(st.floats(-50, 50), min_size=3 * len(atoms), max_size=3 * len(atoms)).map(np.array)).reshape(-1, 3)
    results = {"stress": draw(st.lists(NUMBERS, min_size=6, max_size=6).map(np.array))} if draw(st.booleans()) else {}
    atoms = labelled(atoms, draw(NUMBERS), forces, **results)
    atoms.info.update(config_type=draw(TEXTS), group=draw(TEXTS))
    return atoms


@settings(max_examples=60, deadline=None)
@given(given_=st.lists(structures(), min_size=1, max_size=4), suffix=st.sampled_from([".xyz", ".extxyz", ".pckl.gzip"]))
def test_what_is_written_comes_back_to_the_last_digit(tmp_path_factory, given_, suffix):
    folder = tmp_path_factory.mktemp("again")
    structures = dataset.Found()
    structures.add([[(f"a#{n}", "g", atoms) for n, atoms in enumerate(given_)]], as_they_are(), dataset.Audit())
    frame = structures.frame().assign(**{dataset.ENERGY_ATOMS: 0.0})
    output.write(folder / f"out{suffix}", frame)
    given_rows = [row for _, row in frame.iterrows()]
    back = rows_in(folder / f"out{suffix}")
    assert [path.name for path in folder.iterdir()] == [f"out{suffix}"]
    assert len(back) == len(given_rows)
    for one, other in zip(given_rows, back, strict=True):
        for key in (dataset.ENERGY, dataset.GROUP, dataset.CONFIG_TYPE):
            assert other[key] == one[key]
        np.testing.assert_array_equal(other[dataset.FORCES], one[dataset.FORCES])
        assert (other[dataset.STRESS] is None) == (one[dataset.STRESS] is None)
        if one[dataset.STRESS] is not None:
            np.testing.assert_array_equal(other[dataset.STRESS], one[dataset.STRESS])
        ours, theirs = other[dataset.ATOMS], one[dataset.ATOMS]
        np.testing.assert_array_equal(ours.numbers, theirs.numbers)
        np.testing.assert_array_equal(ours.positions, theirs.positions)
        np.testing.assert_array_equal(ours.cell.array, theirs.cell.array)
        np.testing.assert_array_equal(ours.pbc, theirs.pbc)


def test_ase_and_pacemaker_read_the_same_numbers(tmp_path):
    about = converted(EXAMPLES, tmp_path / "out.xyz")
    converted(EXAMPLES, tmp_path / "out.pckl.gzip")
    frames, table = ase.io.read(tmp_path / "out.xyz", index=":"), load_frame(tmp_path / "out.pckl.gzip")
    assert {"ase_atoms", "energy", "forces", "energy_corrected"} <= set(table.columns)
    assert len(frames) == len(table) == about.used == about.read - len(about.left_out)
    given_ = {atoms.get_potential_energy(): atoms for atoms in ase.io.read(EXAMPLES, index=":")}
    for atoms, (_, row) in zip(frames, table.iterrows(), strict=True):
        theirs = given_[atoms.get_potential_energy()]
        assert row.energy == theirs.get_potential_energy()
        assert row.energy_corrected == pytest.approx(row.energy - sum(about.e0[symbol] for symbol in theirs.symbols))
        np.testing.assert_array_equal(atoms.get_forces(), theirs.get_forces())
        np.testing.assert_array_equal(row.forces, theirs.get_forces())
        assert atoms.info["source"].startswith("al-mg.extxyz#")
        assert atoms.info["config_type"] == theirs.info.get("config_type", "default")
        if "stress" in theirs.calc.results:
            np.testing.assert_allclose(atoms.get_stress(), theirs.get_stress(), rtol=1e-12)


def test_isolated_atoms_are_e0_which_the_summary_has(tmp_path):
    about = converted(EXAMPLES, tmp_path / "out.xyz")
    assert set(about.e0_source.values()) == {"isolated atom"}
    assert sum("its energy is E0" in item["reason"] for item in about.left_out) == 2
    (said,) = [warning for warning in about.warnings if "MLIP_PACE_DATA_E0=" in warning]
    e0 = dict(item.split(":") for item in said.split("MLIP_PACE_DATA_E0=")[1].split(","))
    again = converted(tmp_path / "out.xyz", tmp_path / "again.xyz", e0={key: float(value) for key, value in e0.items()})
    assert again.e0 == about.e0


def test_slabs_are_written_as_they_are(tmp_path):
    slab = labelled(fcc100("Al", (1, 1, 3), vacuum=3.0), -10.0, stress=np.arange(6.0))
    write(tmp_path / "slab.traj", slab)
    converted(tmp_path / "slab.traj", tmp_path / "out.xyz")
    back = ase.io.read(tmp_path / "out.xyz")
    assert back.pbc.tolist() == slab.pbc.tolist()
    np.testing.assert_array_equal(back.cell.array, slab.cell.array)
    np.testing.assert_array_equal(back.get_stress(), np.arange(6.0))


def test_whatever_fraction_is_broken_the_rest_is_written_unless_a_limit_is_asked_for(tmp_path):
    good = labelled(bulk("Al", cubic=True), -1.0)
    bad = [labelled(bulk("Al", cubic=True).repeat((n, 1, 1)), np.nan) for n in range(2, 8)]
    write(tmp_path / "a.traj", [good, *bad])
    end = collect(tmp_path / "a.traj", tmp_path / "out.xyz")
    assert (end["code"], end["summary"]["used"], len(end["summary"]["left_out"])) == (0, 1, 6)
    end = collect(tmp_path / "a.traj", tmp_path / "limited.xyz", MAX_REJECTED=0.5)
    assert (end["code"], len(end["summary"]["left_out"])) == (65, 6)
    assert not (tmp_path / "limited.xyz").exists()


@pytest.mark.parametrize(
    ("data", "name", "given_settings", "code"),
    [
        (EXAMPLES, "out.cif", {}, 64),
        (EXAMPLES, "out.xyz", {"ENERGY_KEYS": "x"}, 64),
        (EXAMPLES, "out.xyz", {"STRESS_KEY": "REF_stres"}, 65),
        ("missing", "out.xyz", {}, 66),
        (EXAMPLES, "missing/out.xyz", {}, 73),
        (HARD / "empty-vasprun" / "vasprun.xml", "out.xyz", {}, 65),
    ],
)
def test_every_end_has_a_summary_and_leaves_nothing_half_done(tmp_path, data, name, given_settings, code):
    end = collect(data, tmp_path / name, **given_settings)
    assert end["code"] == code
    assert end["message"]
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_that_could_run_code_ends_with_77(tmp_path):
    (tmp_path / "a.pckl").write_bytes(b"cos\nsystem\n(S'touch /tmp/x'\ntR.")
    assert collect(tmp_path, tmp_path / "out.xyz")["code"] == 77


def test_what_cannot_be_written_is_refused_and_output_is_not_its_own_input(tmp_path):
    with pytest.raises(SettingsError, match=r"out\.cif.*\.xyz, \.extxyz, \.pckl\.gzip"):
        converted(EXAMPLES, tmp_path / "out.cif")
    with pytest.raises(OutputError, match="is no folder"):
        converted(EXAMPLES, tmp_path / "a" / "out.xyz")
    write(tmp_path / "a.traj", labelled(bulk("Al", cubic=True), -1.0))
    for _ in range(2):
        assert converted(tmp_path, tmp_path / "out.xyz").files == 1
    with pytest.raises(NoInputError, match="OUTPUT itself"):
        converted(tmp_path / "out.xyz", tmp_path / "out.xyz")


def test_what_is_not_converged_is_left_out_by_name_or_kept_with_a_warning():
    from mlip_pace.collect.files import Unconverged

    atoms = [labelled(bulk("Al", "fcc", 4.0 + 0.01 * n, cubic=True), -14.0 + n) for n in range(20)]
    given_ = [(f"a#{n}", "g", a if n % 2 else Unconverged(a, "the SCF did not converge")) for n, a in enumerate(atoms)]
    frame, about = dataset.assemble([given_], None, rules(test_fraction=0.0))
    assert len(frame) == 10
    assert about.left_out == [{"source": f"a#{n}", "reason": "the SCF did not converge"} for n in range(0, 20, 2)]
    frame, about = dataset.assemble([given_], None, rules(test_fraction=0.0, unconverged="keep"))
    assert len(frame) == 20
    assert any("10 structures" in warning and "MLIP_PACE_DATA_UNCONVERGED=keep" in warning for warning in about.warnings)


def test_only_broken_structures_is_65_with_the_first_reasons(tmp_path):
    write(tmp_path / "a.traj", [Atoms("Al2", [(0, 0, 0), (0, 0, 2.5)])] * 3)
    with pytest.raises(DataError, match=r"no structure can be used\n  a.traj#0 and 2 more: no energy and forces"):
        converted(tmp_path, tmp_path / "out.xyz")
