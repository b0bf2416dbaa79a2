"""Databases, FitSNAP's JSON, DeePMD's folders, compressed files: their metadata and units."""

import bz2
import gzip
import json
import lzma
import re
import shutil
import sqlite3
from contextlib import closing

import ase.db
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write
from ase.units import Bohr, GPa, Hartree, bar
from conftest import EXAMPLES, RAW, found, labelled
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlip_pace.collect import audit, dataset, extxyz
from mlip_pace.collect.extxyz import Piece
from mlip_pace.collect.files import InputFile, find_files, format_of
from mlip_pace.collect.labels import Broken, labels
from mlip_pace.collect.read import read_frames
from mlip_pace.errors import NoInputError
from mlip_pace.settings import DataSettings

KEYS = DataSettings.model_construct()


def read(path):
    return [frame for file in find_files(str(path)) for frame in read_frames(Piece(file))]


def labels_of(atoms):
    return audit.checked(atoms, labels(atoms, KEYS).found, None, 5.0)


def strained(n=0):
    """A crystal with energy, forces and stress of a potential."""
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(atoms.cell @ (np.eye(3) + [[0.01 * n, 0.02, 0], [0.02, -0.01, 0], [0, 0, 0.03]]), scale_atoms=True)  # noqa: RUF005
    atoms.rattle(0.05, seed=n)
    calculator = EMT()
    atoms.calc = calculator
    return labelled(atoms, atoms.get_potential_energy(), atoms.get_forces(), stress=atoms.get_stress())


def same(one, other, tolerance=1e-9):
    np.testing.assert_allclose(one.positions, other.positions, atol=tolerance)
    np.testing.assert_allclose(one.cell.array, other.cell.array, atol=tolerance)
    for ours, theirs in zip(labels_of(one)[:3], labels_of(other)[:3], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance)


@pytest.mark.parametrize("name", ["a.db", "a.json", "a.db.gz", "a.json.xz"])
def test_a_database_has_its_labels_and_metadata_in_pairs_and_data(tmp_path, name):
    plain = tmp_path / name.removesuffix(".gz").removesuffix(".xz")
    with ase.db.connect(str(plain)) as database:
        for n in range(4):
            atoms = strained(n)
            pairs = {"group": f"g{n // 2}", "config_type": "md", "dft_energy": atoms.get_potential_energy()}
            data = {"dft_forces": atoms.get_forces(), "dft_stress": atoms.get_stress(), "note": "free text"}
            database.write(Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True), key_value_pairs=pairs, data=data)
    if plain.name != name:
        compress(plain, tmp_path / name)
    back = read(tmp_path)
    assert len(back) == 4
    for n, atoms in enumerate(back):
        same(atoms, strained(n))
        assert (atoms.info["group"], atoms.info["config_type"]) == (f"g{n // 2}", "md")


OPENERS = {".gz": gzip.open, ".gzip": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def compress(path, packed):
    with OPENERS[packed.suffix](packed, "wb") as file:
        file.write(path.read_bytes())
    path.unlink()


@pytest.mark.parametrize("suffix", OPENERS)
@pytest.mark.parametrize(
    "name", ["a.xyz", "a.traj", "a.db", "a.json", "a.pckl", "fitsnap.json", "al.scf.pwo", "al_vacancy_1.gpaw.txt"]
)
def test_every_format_can_be_compressed(tmp_path, name, suffix):
    path = tmp_path / name
    if (RAW / name).exists():
        shutil.copy(RAW / name, path)
    elif name == "fitsnap.json":
        path.write_text(json.dumps(fitsnap(strained())))
    elif name == "a.pckl":
        dataset.atoms_to_dataframe([strained(n) for n in range(4)], test_fraction=0.0).to_pickle(path)
    else:
        write(path, [strained(n) for n in range(3)], format={"xyz": "extxyz"}.get(name[2:]))
    plain = read(tmp_path)
    compress(path, tmp_path / f"{name}{suffix}")
    packed = read(tmp_path)
    assert len(packed) == len(plain) >= 1
    for one, other in zip(packed, plain, strict=True):
        same(one, other)


def test_a_file_that_is_packed_without_saying_so_is_read(tmp_path):
    (tmp_path / "a.extxyz").write_bytes(gzip.compress(EXAMPLES.read_bytes()))
    assert len(read(tmp_path)) == len(read(EXAMPLES))


def fitsnap(atoms, **changes):
    entry = {
        "Positions": atoms.positions.tolist(),
        "Lattice": atoms.cell.tolist(),
        "AtomTypes": list(atoms.symbols),
        "NumAtoms": len(atoms),
        "Energy": atoms.get_potential_energy(),
        "Forces": atoms.get_forces().tolist(),
        "Stress": (-atoms.get_stress(voigt=False) / bar).tolist(),  # a pressure: positive under compression
    }
    styles = {
        "PositionsStyle": "angstrom",
        "EnergyStyle": "electronvolt",
        "StressStyle": "bar",
        "AtomTypeStyle": "chemicalsymbol",
    }
    return {
        "Dataset": {
            "Data": [{**entry, **changes}],
            **styles,
            "ForcesStyle": "electronvoltperangstrom",
            "LatticeStyle": "angstrom",
        }
    }


@pytest.mark.parametrize("comment", ["", "# A test JSON file for QM data\n"])
def test_fitsnap(tmp_path, comment):
    for n in range(3):
        (tmp_path / f"Group_{n % 2}").mkdir(exist_ok=True)
        (tmp_path / f"Group_{n % 2}" / f"{n}.json").write_text(comment + json.dumps(fitsnap(strained(n))))
    (tmp_path / "package.json").write_text('{"name": "no structure"}')
    files = find_files(str(tmp_path))
    assert [file.format for file in files] == ["fitsnap"] * 3
    rows = found(dataset.structures_of(files), dataset.Rules(KEYS))
    assert [row[dataset.CONFIG_TYPE] for row in rows] == ["Group_0", "Group_0", "Group_1"]
    assert len({row[dataset.GROUP] for row in rows}) == 3
    for atoms, n in zip(read(tmp_path), (0, 2, 1), strict=True):
        same(atoms, strained(n))


def test_fitsnap_in_other_units(tmp_path):
    atoms = strained()
    content = fitsnap(
        atoms, Energy=atoms.get_potential_energy() / Hartree, Positions=(atoms.positions / Bohr).tolist(),
        Forces=(atoms.get_forces() / (Hartree / Bohr)).tolist(), Stress=(-atoms.get_stress(voigt=False) / GPa).tolist(),
    )  # fmt: skip
    content["Dataset"] |= {
        "EnergyStyle": "hartree",
        "PositionsStyle": "bohr",
        "ForcesStyle": "hartree/bohr",
        "StressStyle": "GPa",
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    (back,) = read(tmp_path)
    same(back, atoms)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"EnergyStyle": "furlong"}, "Energy is in 'furlong'; known are electronvolt"),
        ({"Positions": [[0, 0, 0]]}, r"4 AtomTypes, Positions of shape \(1, 3\)"),
        ({"AtomTypes": ["Cu", "Cu", "Qq", "Cu"]}, "no chemical elements"),
        ({"Lattice": None}, "has no Lattice"),
        ({"Forces": "none"}, "Forces is not an array of numbers"),
    ],
)
def test_what_is_wrong_in_fitsnap_is_said(tmp_path, change, reason):
    (tmp_path / "a.json").write_text(json.dumps(fitsnap(strained(), **change)))
    (said,) = read(tmp_path)
    assert isinstance(said, str)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(said)
    (tmp_path / "a.json").write_text(json.dumps(fitsnap(strained()))[:-40])
    assert read(tmp_path) == ["is no whole FitSNAP JSON (an object `Dataset` with a list `Data`)"]


def deepmd(folder, structures, per_set=2, types=("Cu",)):
    folder.mkdir(parents=True)
    (folder / "type.raw").write_text("\n".join(str(types.index(s)) for s in structures[0].symbols))
    (folder / "type_map.raw").write_text("\n".join(types))
    for number, begin in enumerate(range(0, len(structures), per_set)):
        some, part = structures[begin : begin + per_set], folder / f"set.{number:03d}"
        part.mkdir()
        arrays = {
            "coord": [a.positions.ravel() for a in some],
            "box": [a.cell.array.ravel() for a in some],
            "energy": [a.get_potential_energy() for a in some],
            "force": [a.get_forces().ravel() for a in some],
            # dpdata: the virial is minus the volume times ASE's stress
            "virial": [-a.get_volume() * a.get_stress(voigt=False).ravel() for a in some],
        }
        for name, values in arrays.items():
            np.save(part / f"{name}.npy", np.array(values))


def test_deepmd(tmp_path):
    given_ = [strained(n) for n in range(5)]
    deepmd(tmp_path / "copper", given_)
    (file,) = find_files(str(tmp_path))
    assert (file.name, file.format) == ("copper/type.raw", "deepmd")
    back = read(tmp_path)
    assert len(back) == 5
    for one, other in zip(back, given_, strict=True):
        same(one, other)
    before = file.sha256()
    np.save(tmp_path / "copper" / "set.001" / "energy.npy", np.zeros(2))
    assert file.sha256() != before  # a run on it is another run


def test_deepmd_of_mixed_sizes_and_without_a_cell(tmp_path):
    deepmd(tmp_path / "a", [strained()])
    np.save(tmp_path / "a" / "set.000" / "real_atom_types.npy", np.array([[0, 0, -1, 0]]))
    (tmp_path / "a" / "nopbc").touch()
    (back,) = read(tmp_path)
    assert str(back.symbols) == "Cu3"
    assert not back.pbc.any()
    np.testing.assert_array_equal(back.positions, strained().positions[[0, 1, 3]])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "type_map.raw").unlink(), "has no type_map.raw"),
        (lambda folder: (folder / "type_map.raw").write_text("Fe1"), "type_map.raw has Fe1; chemical elements are expected"),
        (lambda folder: (folder / "type_map.raw").write_text(""), "type 0 is not in type_map.raw, which has 0"),
        (lambda folder: (folder / "set.000" / "box.npy").unlink(), "set.000 has no coord.npy or box.npy"),
        (lambda folder: np.save(folder / "set.000" / "force.npy", np.zeros(5)), "has 5 numbers, expected 1 frames of 12"),
        (lambda folder: (folder / "set.000" / "energy.npy").write_bytes(b"x"), "energy.npy is no whole NumPy array"),
        (lambda folder: np.save(folder / "set.000" / "box.npy", np.array([{}]), allow_pickle=True), "is no whole NumPy"),
        (lambda folder: shutil.rmtree(folder / "set.000"), "has no set.* folder"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_deepmd_is_said(tmp_path, spoil, reason):
    deepmd(tmp_path / "a", [strained()])
    spoil(tmp_path / "a")
    (said,) = read(tmp_path)
    assert reason in said


def test_what_cannot_be_recognised_is_not_taken(tmp_path):
    for name in ("a.json", "coord.npy", "box.raw", "a.xz"):
        (tmp_path / name).write_bytes(b"\xfd7zXZ\x00 broken" if name == "a.xz" else b"{}")
        assert format_of(tmp_path / name) is None


FIVE = [strained(n) for n in range(5)]


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    path = tmp_path_factory.mktemp("five") / "five.xyz"
    write(path, FIVE, format="extxyz")
    return path


@pytest.mark.parametrize("atoms", [1, 4])
def test_a_file_that_ends_within_a_number_has_lost_it(tmp_path, atoms):
    """Wherever it is cut; a file whose last line merely has no end is whole."""
    one = labelled(Atoms(f"Al{atoms}", 2.5 * np.arange(3 * atoms).reshape(-1, 3)), -1.0, np.full((atoms, 3), -0.69889034))
    write(tmp_path / "one.xyz", one, format="extxyz")
    text = (tmp_path / "one.xyz").read_text().rstrip("\n ")
    (tmp_path / "one.xyz").write_text(text)
    (frame,) = read(tmp_path / "one.xyz")
    np.testing.assert_allclose(frame.get_forces(), one.get_forces())
    for lost in range(1, len("-0.69889034")):
        (tmp_path / "one.xyz").write_text(text[:-lost])
        (reason,) = read(tmp_path / "one.xyz")
        assert "ends within a frame" in reason


@pytest.mark.parametrize("digits", [8, 16])
def test_a_number_with_other_decimals_than_all_others_is_cut(tmp_path, digits):
    """Not if there are few numbers, as in small frames that are printed in full."""
    text = "8\nProperties=species:S:1:pos:R:3:forces:R:3 energy=-1.0\n"
    text += f"Al {' '.join([f'{0.3:.{digits}f}'] * 6)}\n" * 8
    short, whole = text[:-3] + "\n", text
    (tmp_path / "a.xyz").write_text(whole + short + whole)
    one, reason, other = read(tmp_path / "a.xyz")
    assert isinstance(one, Atoms)
    assert isinstance(other, Atoms)
    assert reason == "line 11: the last number of the frame is cut"
    (tmp_path / "a.xyz").write_text("".join(text.splitlines(keepends=True)[:4]).replace("8\n", "2\n", 1)[:-3] + "\n" + whole)
    assert [isinstance(frame, Atoms) for frame in read(tmp_path / "a.xyz")] == [True, True]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_file_that_was_cut_does_not_take_those_after_it_with_it(five, data):
    """As `cat` makes one of them: the cut line runs into the number of atoms of the next file."""
    text = five.read_text()
    cut = text[: data.draw(st.integers(0, len(text)))]
    path = five.with_name("cat.xyz")
    path.write_text(cut + text)
    (file,) = find_files(str(path))
    found = [frame for piece in extxyz.pieces_of(file) for frame in read_frames(piece)]
    kept = [frame for frame in found if isinstance(frame, Atoms)]
    for frame in kept:
        assert any(np.allclose(frame.get_forces(), one.get_forces()) and len(frame) == len(one) for one in FIVE)
    lost = 0 if cut == "" or cut.endswith("\n") else 1  # of the second file the first, which has no number of atoms
    assert len(kept) >= len(FIVE) - lost + cut.count("Lattice=") - 1
    assert len(found) >= len(FIVE) + cut.count("Lattice=")
    assert [frame.get_potential_energy() for frame in kept[lost - len(FIVE) :]] == [
        one.get_potential_energy() for one in FIVE[lost:]
    ]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_garbled_extended_xyz_gives_frames_that_are_in_it_or_a_reason(five, data):
    """Cut, spliced or with a line lost: never another frame's label, never a bare exception."""
    lines = five.read_text().splitlines(keepends=True)
    kind = data.draw(st.sampled_from(["cut", "lost line", "doubled line", "spliced", "garbled"]))
    at, to = data.draw(st.integers(0, len(lines) - 1)), data.draw(st.integers(0, len(lines) - 1))
    # Spliced at the same line of another frame it is a whole frame, of which nobody can tell that it is none.
    assume(kind != "spliced" or (at - to) % 6 or at % 6 == 0)
    if kind == "cut":
        text = "".join(lines)[: data.draw(st.integers(0, sum(map(len, lines))))]
    else:
        middle = {
            "lost line": [],
            "doubled line": [lines[at]] * 2,
            "spliced": lines[to:],
            "garbled": [lines[at].replace("0", "x")],
        }
        text = "".join([*lines[:at], *middle[kind], *lines[at + 1 :]])
    path = five.with_name("garbled.xyz")
    path.write_text(text)
    frames = list(read_frames(Piece(InputFile(path, path.name, "extxyz"))))
    assert frames
    for frame in frames:
        if isinstance(frame, str):
            assert frame
            assert "\n" not in frame
            continue
        try:
            energy, forces, *_ = labels_of(frame)
        except audit.Broken:
            continue
        (right,) = [atoms for atoms in FIVE if abs(atoms.get_potential_energy() - energy) < 1e-6]
        if kind != "doubled line":  # a doubled line of an atom shifts the rest, which is a whole frame with another atom
            np.testing.assert_allclose(frame.positions, right.positions, atol=1e-7)
            np.testing.assert_allclose(forces, right.get_forces(), atol=1e-7)


BANNERS = {
    "ORCA": "\n                                 *****************\n                                 * O   R   C   A *\n",
    "Gaussian": " Entering Gaussian System, Link 0=g16\n",
    "ABINIT": "\n.Version 7.8.2 of ABINIT \n.(sequential version, prepared for a x86_64_linux_gnu4.9 computer) \n",
    "SIESTA": "Siesta Version: siesta-4.0--500\n",
    "NWChem": " argument  1 = in.nw\n\n              Northwest Computational Chemistry Package (NWChem) 6.6\n",
    "n2p2 or RuNNer": "begin\ncomment one\nlattice 10 0 0\n",
    "CASTEP (.geom or .md; its .castep is read)": " BEGIN header\n  \n END header\n  \n",
    "pw.x (XML; its text output is read)": '<?xml version="1.0" encoding="UTF-8"?>\n<qes:espresso xsi:schemaLocation="">\n',
    "MTP (MLIP)": "BEGIN_CFG\n Size\n    1\n",
    "VASP's machine-learned force field (ML_AB)": " 1.0 Version\n" + 50 * "*" + "\n     The number of configurations\n",
}


@pytest.mark.parametrize("program", BANNERS)
def test_a_file_of_a_program_that_is_not_read_is_named(tmp_path, program):
    """Beside others it is left out, without counting as broken; alone it is said what it is."""
    (tmp_path / "job.o12").write_text(BANNERS[program])
    with pytest.raises(NoInputError, match=re.escape(program)):
        find_files(str(tmp_path))
    write(tmp_path / "good.xyz", [strained(n) for n in range(3)])
    files = find_files(str(tmp_path))
    about = dataset.assemble(dataset.structures_of(files), None, dataset.Rules(KEYS))[1]
    assert (about.read, about.used) == (4, 3)
    assert about.left_out == [
        {"source": "job.o12#0", "reason": f"is of {program}, which is not read here; ASE may convert it to extended XYZ"}
    ]


@pytest.mark.parametrize(
    "words", ["notes on ORCA and * O   R   C   A * banners", "see .Version 9 of ABINIT", "print('BEGIN_CFG')"]
)
def test_notes_about_a_program_are_not_of_it(tmp_path, words):
    (tmp_path / "notes.md").write_text(f"# Notes\nHere: {words}\n")
    write(tmp_path / "good.xyz", strained())
    assert [file.name for file in find_files(str(tmp_path))] == ["good.xyz"]


@pytest.mark.parametrize("content", ["tables", "nothing", "text"])
def test_a_file_that_is_no_database_of_ase_is_named_and_not_touched(tmp_path, content):
    path = tmp_path / "tracking.db"
    if content == "tables":
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE runs (id INTEGER)")
            connection.commit()
    else:
        path.write_text("" if content == "nothing" else "no database at all\n" * 100)
    before = path.read_bytes()
    (reason,) = read(path)
    assert isinstance(reason, str)
    assert re.search("is no database of ASE|file is not a database", reason)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["tracking.db"]


@pytest.mark.parametrize("suffix", ["db", "json"])
def test_a_database_is_converted_from_the_units_in_its_metadata(tmp_path, suffix):
    """As SchNetPack writes them: Hartree and Bohr in, eV and Å out; a unit that is not known is refused."""
    atoms = strained()
    results = atoms.calc.results
    with ase.db.connect(str(tmp_path / f"a.{suffix}")) as database:
        in_bohr = Atoms(atoms.symbols, atoms.positions / Bohr, cell=atoms.cell.array / Bohr, pbc=True)
        data = {"energy": [results["energy"] / Hartree], "forces": np.array(results["forces"]) * Bohr / Hartree}
        database.write(in_bohr, data=data)
        database.metadata = {
            "_property_unit_dict": {"energy": "Hartree", "forces": "Hartree/Bohr"},
            "_distance_unit": "Bohr",
        }
    (found,) = read(tmp_path / f"a.{suffix}")
    np.testing.assert_allclose(found.positions, atoms.positions, atol=1e-9)
    np.testing.assert_allclose(found.cell.array, atoms.cell.array, atol=1e-9)
    energy, forces = labels_of(found)[:2]
    assert energy == pytest.approx(results["energy"], abs=1e-9)
    np.testing.assert_allclose(forces, results["forces"], atol=1e-9)
    with ase.db.connect(str(tmp_path / f"a.{suffix}")) as database:
        database.metadata = {"_property_unit_dict": {"energy": "parsec"}}
    (found,) = read(tmp_path / f"a.{suffix}")
    with pytest.raises(Broken, match="'energy' is in 'parsec'"):
        labels(found, KEYS)


def test_deepmd_of_one_frame_without_an_axis_for_it(tmp_path):
    deepmd(tmp_path / "a", [strained()])
    for path in (tmp_path / "a" / "set.000").iterdir():
        np.save(path, np.load(path)[0])
    (back,) = read(tmp_path)
    same(back, strained())


@pytest.mark.parametrize("comment", ["Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.0", "no labels"])
def test_pieces_know_how_many_frames_come_before_them_also_behind_a_cut_one(tmp_path, monkeypatch, comment):
    """Of six atoms one is there, and the frame behind it ends where they would."""
    monkeypatch.setattr(extxyz, "BYTES_IN_PIECE", 1)
    row = "Al 0.30000000 0.3 0.3 0.3 0.3 0.3\n"
    sound = "3\nProperties=species:S:1:pos:R:3:forces:R:3 energy=-1.0\n" + 3 * row
    cut = sound.replace("3", "6", 1)[: -2 * len(row)] + f"3\n{comment}\n" + 3 * row
    (tmp_path / "a.xyz").write_text(2 * sound + cut + 3 * sound)
    (file,) = find_files(str(tmp_path / "a.xyz"))
    pieces = extxyz.pieces_of(file)
    assert len(pieces) > 1
    counts = [len(list(extxyz.read(piece))) for piece in pieces]
    assert [piece.frames for piece in pieces] == [sum(counts[:n]) for n in range(len(pieces))]
    assert sum(counts) == len(list(extxyz.read(Piece(file))))


def test_a_comment_that_is_a_number_begins_no_frame(tmp_path):
    (tmp_path / "a.xyz").write_text(
        "1\n12\nAl 0.0 0.0 0.0\n2\nProperties=species:S:1:pos:R:3 energy=-1.0\n" + "Al 0.3 0.3 0.3\n" * 2
    )
    assert [len(frame) for frame in read(tmp_path / "a.xyz") if isinstance(frame, Atoms)] == [1, 2]


def test_a_frame_that_ends_with_an_empty_line_costs_that_frame_only(tmp_path):
    frame = "4\nProperties=species:S:1:pos:R:3:forces:R:3 energy=-1.0\n" + "Al 0.30000 0.3 0.3 0.3 0.3 0.3\n" * 4
    (tmp_path / "a.xyz").write_text(frame + "\n".join(frame.split("\n")[:-2]) + "\n\n" + frame)
    one, reason, other = read(tmp_path / "a.xyz")
    assert isinstance(one, Atoms)
    assert isinstance(other, Atoms)
    assert "atom 4 of the frame has 0 columns" in reason


def test_types_of_columns_in_small_letters_are_types(tmp_path):
    """As Julia's InteratomicPotentials and LAMMPS scripts write them."""
    frame = '2\nLattice="9 0 0 0 9 0 0 0 9" Properties=species:s:1:pos:r:3:tag:i:1:forces:r:3 energy=-1.0\n'
    (tmp_path / "a.xyz").write_text(frame + "Al 0.0 0.0 0.0 1 0.1 0.2 0.3\nAl 0.0 0.0 2.8 2 -0.1 -0.2 -0.3\n")
    (atoms,) = read(tmp_path / "a.xyz")
    assert atoms.get_forces().tolist() == [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]]


def test_one_flaw_of_many_frames_is_one_reason(tmp_path):
    (tmp_path / "a.xyz").write_text("1\nProperties=species:S:1:pos:R:3\nAl 0 0 zero\n" * 30)
    found = audit.Audit()
    for n, reason in enumerate(read(tmp_path / "a.xyz")):
        found.reject(f"a.xyz#{n}", reason)
    assert found.reasons().count("\n") == 1
    assert "a.xyz#0 and 29 more: " in found.reasons()
    assert len({one["reason"] for one in found.left_out}) == 30  # each with its line
