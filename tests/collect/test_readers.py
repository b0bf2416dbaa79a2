"""What DFT programs and ASE wrote comes back with the same numbers; what cannot be read says why; a pickle runs nothing."""

import gzip
import os
import pickle
import re
import shutil
import tarfile
import time
import zipfile

import ase.io
import numpy as np
import pandas as pd
import pytest
import written
from ase import Atoms
from ase.io import write
from collect.damage import identity, raw
from conftest import EXAMPLES, RAW, beside, found, labelled

from mlip_pace.collect import aims, audit, castep, cp2k, dataset, espresso, extxyz, gpaw
from mlip_pace.collect.extxyz import Piece
from mlip_pace.collect.files import InputFile, find_files, format_of
from mlip_pace.collect.frames import load_frame
from mlip_pace.collect.labels import labels
from mlip_pace.collect.read import read_frames
from mlip_pace.errors import NoInputError, UnsafeError
from mlip_pace.settings import DataSettings

KEYS = DataSettings()
NUMBER = r"(-?\d+\.\d+(?:E[-+]\d+)?)"


def read(path) -> list[Atoms | str]:
    (file,) = find_files(str(path))
    return list(read_frames(Piece(file)))


def labels_of(atoms: Atoms):
    """Energy (eV), forces (eV/Å), stress (3, 3) in eV/Å^3 as the job takes them."""
    assert not isinstance(atoms, str), atoms
    return audit.checked(atoms, labels(atoms, KEYS).found, None, 5.0)[:3]


@pytest.mark.parametrize("name", ["pw.out", "scf.log", "run.txt", "output", "pw.out.gz", "pw.out.1", "pw.out_2"])
def test_outputs_are_known_by_their_banner(tmp_path, name):
    for output, kind in (("al.scf.pwo", "espresso-out"), ("al_vacancy_1.gpaw.txt", "gpaw-out")):
        content = (RAW / output).read_bytes()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        assert format_of(tmp_path / name) == kind
        assert all(isinstance(atoms, Atoms) for atoms in read(tmp_path / name))
    (tmp_path / name).write_text("Dear diary")
    assert format_of(tmp_path / name) is None


def test_vasp_folders_give_each_calculation_once():
    data = beside("vasp-si-rss")
    start = time.perf_counter()
    files = find_files(str(data))
    frame, summary = dataset.assemble(dataset.structures_of(files), None, dataset.Rules(KEYS))
    assert time.perf_counter() - start < 5
    assert len(files) == summary.read == 22
    assert (summary.used, summary.e0_source) == (21, {"Si": "isolated atom"})
    (isolated,) = read(data / "Si_isolated_1" / "outputs")
    assert summary.e0 == {"Si": labels_of(isolated)[0]}
    assert frame.group.nunique() == 21


@pytest.mark.parametrize("run", ["Si_bulk_1", "Si_isolated_1"])
def test_vasprun_without_its_electrons_is_what_ase_reads_with_them(run, tmp_path):
    content = gzip.decompress((beside("vasp-si-rss") / run / "outputs" / "vasprun.xml.gz").read_bytes())
    step = content[content.index(b"<calculation>") : content.index(b"</calculation>") + len(b"</calculation>")]
    projected = b"<projected><eigenvalues><r> 1 1 </r></eigenvalues><array/></projected></calculation>"
    path = tmp_path / "vasprun.xml"
    path.write_bytes(content.replace(step, step.replace(b"</calculation>", projected) + step))
    ours, theirs = read(path), ase.io.read(path, ":")
    assert len(ours) == len(theirs) == 2
    for one, other in zip(ours, theirs, strict=True):
        assert one == other
        for name in ("energy", "free_energy", "forces", "stress"):
            np.testing.assert_array_equal(one.calc.results[name], other.calc.results[name])


@pytest.mark.parametrize("run", ["Si_bulk_1", "Si_dimer_2", "Si_isolated_1"])
def test_outcar_and_vasprun_agree(run):
    folder = beside("vasp-si-rss") / run / "outputs"
    assert [file.path.name for file in find_files(str(folder))] == ["vasprun.xml.gz"]
    (outcar,), (vasprun,) = read(folder / "OUTCAR.gz"), read(folder / "vasprun.xml.gz")
    printed = re.findall(rf"free  energy   TOTEN  = +{NUMBER}", gzip.decompress((folder / "OUTCAR.gz").read_bytes()).decode())
    ours, theirs = labels_of(outcar), labels_of(vasprun)
    assert ours[0] == pytest.approx(theirs[0], abs=1e-6)
    assert ours[0] == pytest.approx(float(printed[-1]), abs=1e-6)
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-5)
    np.testing.assert_allclose(ours[2], theirs[2], atol=1e-5)
    np.testing.assert_allclose(outcar.positions, vasprun.positions, atol=1e-4)


@pytest.mark.parametrize("name", ["a.extxyz", "a.xyz", "a.xyz.gz", "a.traj", "a.db", "a.json"])
def test_what_ase_wrote_comes_back(tmp_path, al_mg, name):
    given = al_mg[1:20]
    write(tmp_path / name, given, format={"xyz": "extxyz"}.get(name.split(".")[1]))
    frames = read(tmp_path / name)
    assert len(frames) == len(given)
    for back, atoms in zip(frames, given, strict=True):
        assert list(back.symbols) == list(atoms.symbols)
        assert back.pbc.all()
        np.testing.assert_allclose(back.cell, atoms.cell, atol=1e-8)
        np.testing.assert_allclose(back.positions, atoms.positions, atol=1e-8)
        for ours, theirs in zip(labels_of(back), labels_of(atoms), strict=True):
            if theirs is not None:
                np.testing.assert_allclose(ours, theirs, atol=1e-8)


@pytest.mark.parametrize("columns", ["ours", "pacemaker"])
def test_data_frames_come_back(tmp_path, al_mg, columns):
    frame = dataset.atoms_to_dataframe(al_mg[:20])
    path = tmp_path / "data.pckl.gzip"
    if columns == "pacemaker":
        renamed = frame.rename(columns={"energy_dft": "energy", "forces_dft": "forces", "stress_dft": "stress"})
        dataset.save_frame(renamed[["ase_atoms", "energy", "forces", "stress"]], path)
    else:
        dataset.save_frame(frame, path)
    assert format_of(path) == "pacemaker"
    back = read(path)
    assert len(back) == len(frame) == 18
    for atoms, (_, row) in zip(back, frame.iterrows(), strict=True):
        energy, forces, stress = labels_of(atoms)
        assert energy == row.energy_dft
        np.testing.assert_array_equal(forces, row.forces_dft)
        np.testing.assert_array_equal(stress, row.stress_dft)


def test_labels_of_a_target_are_dft_not_the_delta(tmp_path, al_mg):
    frame = dataset.atoms_to_dataframe(al_mg[:20])
    frame["energy_corrected"], frame["forces"] = 0.0, [f * 0 for f in frame.forces_dft]
    dataset.save_frame(frame, tmp_path / "target.pckl.gzip")
    assert [labels_of(atoms)[0] for atoms in read(tmp_path / "target.pckl.gzip")] == frame.energy_dft.tolist()


class Runs:
    """Unpickled, calls `function(*arguments)`."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("where", ["alone", "in a frame", "in atoms"])
@pytest.mark.parametrize("function", [os.system, exec, eval, pd.read_pickle, np.load], ids=lambda f: f.__name__)
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, function, where):
    touched, path = tmp_path / "touched", tmp_path / "evil.pckl.gzip"
    code = f"touch {touched}" if function is os.system else f"__import__('os').system('touch {touched}')"
    evil = Runs(function, code)
    atoms = Atoms("Al", info={"note": evil})
    content = {"alone": evil, "in a frame": pd.DataFrame({"x": [evil]}), "in atoms": pd.DataFrame({"ase_atoms": [atoms]})}
    path.write_bytes(gzip.compress(pickle.dumps(content[where])))
    with pytest.raises(UnsafeError, match=r"evil\.pckl\.gzip") as refused:
        read(path)
    assert refused.value.code == 77
    assert not touched.exists()
    with pytest.raises(UnsafeError):
        load_frame(path)


@pytest.fixture
def five(tmp_path, al_mg):
    """The text of five frames of several atoms, as lines, with the line that each starts at."""
    write(tmp_path / "five.xyz", [a for a in al_mg if len(a) == 4][:5], format="extxyz")
    text = (tmp_path / "five.xyz").read_text()
    (tmp_path / "five.xyz").unlink()
    return text.splitlines(keepends=True)


@pytest.mark.parametrize("kept", [-1, -3, -5])
def test_a_truncated_xyz_names_the_frame_and_keeps_the_others(tmp_path, five, kept):
    (tmp_path / "a.xyz").write_text("".join(five[:kept]))
    *frames, reason = read(tmp_path / "a.xyz")
    assert [len(atoms) for atoms in frames] == [4] * 4
    assert reason == "line 25: the file ends within a frame of 4 atoms"


def test_an_xyz_cut_within_a_line_loses_only_that_frame(tmp_path, five):
    (tmp_path / "a.xyz").write_text("".join(five)[:-40])
    *frames, reason = read(tmp_path / "a.xyz")
    assert len(frames) == 4
    assert "line 25" in reason


@pytest.mark.parametrize(
    ("line", "text"), [(8, "Al 0 0 zero 0 0 0\n"), (8, "Qq 0 0 0 0 0 0\n"), (8, "Al 0 0 0\n"), (7, "x=\n")]
)
def test_a_broken_frame_does_not_take_the_others_with_it(tmp_path, five, line, text):
    (tmp_path / "a.xyz").write_text("".join([*five[:line], text, *five[line + 1 :]]))
    (file,) = find_files(str(tmp_path))
    seen = audit.Audit()
    assert len(found(dataset.structures_of([file]), dataset.Rules(KEYS), seen)) == 4
    assert seen.read == 5
    (broken,) = seen.left_out
    assert broken["source"] == "a.xyz#1"
    assert broken["reason"]


def test_no_element_is_named(tmp_path, five):
    (tmp_path / "a.xyz").write_text("".join(five).replace("Al ", "Qq ", 1))
    assert "Qq" in read(tmp_path / "a.xyz")[0]


@pytest.mark.parametrize(
    "name", ["a.xyz", "vasprun.xml", "OUTCAR", "a.pwo", "a.traj", "a.db", "a.castep", "a.pckl.gzip", "a.xyz.gz"]
)
@pytest.mark.parametrize("content", ["empty", "garbage"])
def test_an_unreadable_file_says_so(tmp_path, name, content):
    bytes_ = b"" if content == "empty" else b"\x00\x01 nothing of the kind\n" * 5
    (tmp_path / name).write_bytes(bytes_)
    frames = read(tmp_path / name)
    assert frames, "left out silently"
    assert all(isinstance(reason, str) and reason and "\n" not in reason for reason in frames)


def names(path) -> list[str]:
    return [file.name for file in find_files(str(path))]


def test_files_are_found_in_a_directory_by_glob_and_by_name(tmp_path):
    for name in ("b/c/two.xyz", "one.xyz", "b/notes.md", "b/settings.json", "three.traj"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(EXAMPLES, tmp_path / name)
    assert names(tmp_path) == ["b/c/two.xyz", "one.xyz", "three.traj"]
    assert names(tmp_path / "**" / "*.xyz") == ["b/c/two.xyz", "one.xyz"]
    assert names(tmp_path / "o*.xyz") == ["one.xyz"]
    assert find_files(str(tmp_path / "one.xyz")) == [InputFile(tmp_path / "one.xyz", "one.xyz", "extxyz")]


BANNERS = {
    "vasp-out": " vasp.5.4.1 24Jun15 (build Jul 10 2015) gamma-only\n  \n executed on             LinuxIFC date 2016.01.01\n",
    "espresso-out": "\n     Program PWSCF v.6.1 (svn rev. 13369) starts on  1Jan2017\n",
    "cp2k": " **** **  DBCSR| Multiplication driver\n CP2K| version string:                 CP2K version 7.1\n",
    "aims-output": "------------------------------------------------------------\n          Invoking FHI-aims ...\n",
    "castep-castep": " |  Welcome to Academic Release CASTEP version 23.1   |\n",
    "vasp-xml": '<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>\n <generator>\n',
}


@pytest.mark.parametrize(
    "name", ["01Water_OUTCAR.d", "Water_OUTCAR", "2021.10.19:19:44:37:OUTCAR", "run.log", "job.o1234", "relax.2", "si.stdout"]
)
@pytest.mark.parametrize("kind", BANNERS)
def test_outputs_are_known_by_their_first_lines_whatever_their_name(tmp_path, name, kind):
    (tmp_path / name).write_text(BANNERS[kind])
    assert format_of(tmp_path / name) == kind
    quoted = "".join(f'print("{line}")\n' for line in BANNERS[kind].splitlines())
    (tmp_path / "parser.py").write_text(quoted)
    assert format_of(tmp_path / "parser.py") is None


def test_other_names_and_banners_of_the_same_programs(tmp_path):
    (tmp_path / "27998_vasprun.xml").write_text(BANNERS["vasp-xml"])
    (tmp_path / "result.dat").write_text(" |                 Materials Studio CASTEP version 2024        |\n")
    (tmp_path / "outcar.json").write_text('{"energy": -1.0}')
    (tmp_path / "page.xml").write_text("<?xml version='1.0'?>\n<html>\n")
    (tmp_path / "vaspout.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    found = {path.name: format_of(path) for path in tmp_path.iterdir()}
    assert found == {
        "27998_vasprun.xml": "vasp-xml", "result.dat": "castep-castep", "outcar.json": None, "page.xml": None,
        "vaspout.h5": "other",
    }  # fmt: skip


@pytest.mark.parametrize("path", ["missing", "missing.xyz", "*.xyz", "", "b"])
def test_no_input_is_66_and_names_the_path(tmp_path, path):
    (tmp_path / "b").mkdir()
    if path == "b":
        (tmp_path / "b" / "notes.md").write_text("nothing")
    with pytest.raises(NoInputError, match=re.escape(str(tmp_path / path))) as refused:
        find_files(str(tmp_path / path))
    assert refused.value.code == 66
    assert refused.value.hint


def test_labels_keep_info_of_the_frame(tmp_path):
    atoms = labelled(Atoms("Al2", [(0, 0, 0), (0, 0, 2.5)], cell=[9, 9, 9], pbc=True), -1.0)
    atoms.info.update(config_type="dimer", group="g")
    write(tmp_path / "a.xyz", atoms, format="extxyz")
    (row,) = found(dataset.structures_of(find_files(str(tmp_path))), dataset.Rules(KEYS))
    assert (row["config_type"], row["group"], row["source"]) == ("dimer", "g", "a.xyz#0")


def test_a_file_in_pieces_is_the_same_file(tmp_path, monkeypatch):
    """Whatever the number of workers, with a broken frame and one that is there twice."""
    text = EXAMPLES.read_text()
    (tmp_path / "a.extxyz").write_text(text.replace("energy=", "energi=", 1) + text[: text.index("\n", 400) + 1] + "oops\n")
    (file,) = find_files(str(tmp_path))
    seen = []
    for size, workers in ((10**9, 1), (2000, 1), (2000, 2)):
        monkeypatch.setattr(extxyz, "BYTES_IN_PIECE", size)
        audited = audit.Audit()
        rows = found(dataset.structures_of([file]), dataset.Rules(KEYS), audited, workers)
        seen.append(([row[dataset.SOURCE] for row in rows], [row[dataset.ENERGY] for row in rows], audited))
    assert len(extxyz.pieces_of(file)) > 10
    assert len(seen[0][0]) > 100
    assert seen[0] == seen[1] == seen[2]


def test_a_name_that_is_not_utf_8_is_written_with_escapes(tmp_path):
    name = os.fsdecode(b"\xff\xe9.extxyz")
    shutil.copy(EXAMPLES, tmp_path / name)
    (file,) = find_files(str(tmp_path))
    assert file.name == r"\xff\xe9.extxyz"
    assert all(isinstance(atoms, Atoms) for atoms in read(tmp_path / name))


@pytest.mark.parametrize(
    "name", ["OUTCAR.tar", "vasprun.xml.tar.gz", "a.xyz.tar.xz", "runs.tgz", "a.extxyz.zip", "pw.out.7z", "pw.out"]
)
def test_archives_are_named_and_not_read_as_what_is_in_them(tmp_path, name):
    """Several outputs, one after the other with headers in between, would be taken for one."""
    path, output = tmp_path / name, RAW / "al.scf.pwo"
    if name.endswith("zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(output, "al.scf.pwo")
    elif name.endswith("7z"):
        path.write_bytes(b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(99))
    elif name == "pw.out":
        path.write_text(output.read_text(), encoding="utf-16")
    else:
        with tarfile.open(path, {"gz": "w:gz", "xz": "w:xz", "tgz": "w:gz", "tar": "w"}[name.rpartition(".")[2]]) as archive:
            archive.add(output, "al.scf.pwo")
    shutil.copy(EXAMPLES, tmp_path / "b.extxyz")
    archive_, _ = sorted(find_files(str(tmp_path)), key=lambda file: file.path != path)
    (reason,) = read_frames(Piece(archive_))
    assert "which is not read here" in reason
    assert ("unpack it" in reason) == (name != "pw.out")


def test_arrays_and_documents_are_no_archives(tmp_path):
    """NumPy's files are zipped, too."""
    np.savez(tmp_path / "a.npz", values=np.arange(3))
    with zipfile.ZipFile(tmp_path / "model.pth", "w") as archive:
        archive.writestr("model/data.pkl", "")
    assert [format_of(path) for path in tmp_path.iterdir()] == [None, None]


@pytest.mark.parametrize("program", ["pw.x", "CP2K", "GPAW", "CASTEP", "FHI-aims"])
def test_what_comes_before_the_first_beginning_of_a_run_is_named(program):
    """As of a file that lost its first block, with another run after it."""
    read_, text, label = {
        "pw.x": (espresso.read_output, raw("al.scf.pwo"), "Forces acting"),
        "CP2K": (cp2k.read_output, raw("h2o.cp2k.out.gz"), "ENERGY|"),
        "GPAW": (gpaw.read_output, raw("al_vacancy_1.gpaw.txt"), "Forces in eV"),
        "CASTEP": (lambda text: castep.read(text.encode()), written.castep(written.frames(2)), "Final energy"),
        "FHI-aims": (lambda text: aims.read(text.encode()), written.aims(written.frames(2)), "  | Total energy unc"),
    }[program]
    whole = list(read_(text))
    lost, *others = read_(text[text.index(label) - 5 :] + text)
    assert "the beginning of a run is lost" in lost
    assert [identity(frame) for frame in others] == [identity(frame) for frame in whole]
    assert len(list(read_("module load dft\n" + text))) == len(whole)
