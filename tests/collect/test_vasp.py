"""vasprun.xml and OUTCAR: every label is that of its own step; what is no training data, or not whole, is named."""

import bz2
import gzip
import lzma
import re

import ase.io
import numpy as np
import pytest
from ase import Atoms
from conftest import beside
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from written import damaged, frames, outcar, vasprun

from mlip_pace.collect import outcar as outcar_reader
from mlip_pace.collect import vasp
from mlip_pace.collect import vasprun as vasprun_reader
from mlip_pace.collect.consistency import contradiction
from mlip_pace.collect.extxyz import Piece
from mlip_pace.collect.files import Unconverged, find_files
from mlip_pace.collect.read import read_frames

RUN = frames(4, changing=True)
WRITERS = {"vasprun.xml": vasprun, "OUTCAR": outcar}
READERS = {"vasprun.xml": vasprun_reader.read, "OUTCAR": outcar_reader.read}


def read(path):
    (file,) = find_files(str(path))
    return list(read_frames(Piece(file)))


def same(one: Atoms, other: Atoms, tolerance=2e-5) -> bool:
    """Equal in all that is read; a stress can be missing from `one`."""
    ours, theirs = one.calc.results, other.calc.results
    return (
        list(one.symbols) == list(other.symbols)
        and bool((one.pbc == other.pbc).all())
        and np.allclose(one.cell, other.cell, atol=tolerance)
        and np.allclose(one.positions, other.positions, atol=tolerance)
        and np.isclose(ours["free_energy"], theirs["free_energy"], atol=1e-6)
        and ("forces" not in ours or np.allclose(ours["forces"], theirs["forces"], atol=tolerance))
        and ("stress" not in ours or np.allclose(ours["stress"], theirs["stress"], atol=tolerance))
    )


@pytest.mark.parametrize("name", WRITERS)
def test_every_step_comes_with_its_own_labels(name):
    read = list(READERS[name](WRITERS[name](RUN).encode()))
    assert len(read) == len(RUN)
    assert all(same(ours, theirs) and "stress" in ours.calc.results for ours, theirs in zip(read, RUN, strict=True))
    assert read[0].calc.results["energy"] == pytest.approx(RUN[0].calc.results["free_energy"] + 0.001)
    assert contradiction(read) is None


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(("asked", "reason"), [({"cycles": 7, "nelm": 7}, "NELM=7"), ({"icharg": 11}, "ICHARG=11")])
def test_what_is_not_self_consistent_is_named(name, asked, reason):
    read = list(READERS[name](WRITERS[name](RUN, **asked).encode()))
    assert all(isinstance(frame, Unconverged) and reason in frame.reason for frame in read)
    assert len(read) == len(RUN)


def test_vasp_6_says_itself_that_a_step_did_not_converge():
    text = outcar(RUN).replace("aborting loop because EDIFF is reached", "aborting loop EDIFF was not reached (unconverged)", 1)
    first, *others = outcar_reader.read(text.encode())
    assert isinstance(first, Unconverged)
    assert all(isinstance(frame, Atoms) for frame in others)


def test_machine_learned_steps_are_left_out_by_name():
    read = list(outcar_reader.read(outcar(RUN, learned=True).encode()))
    assert [frame for frame in read if isinstance(frame, str)] == [
        "1 step of VASP's machine-learned force field, which is no DFT calculation"
    ] * len(RUN)
    assert all(same(a, b) for a, b in zip([frame for frame in read if isinstance(frame, Atoms)], RUN, strict=True))
    text = vasprun(RUN).replace(" <incar>\n", ' <incar>\n  <i type="logical" name="ML_LMLFF"> T  </i>\n')
    step = re.search(r" <structure >.*?</energy>\n", text.split("</calculation>")[1], re.DOTALL)[0]
    *read, reason = vasprun_reader.read(
        text.replace("</calculation>\n <structure name", f"</calculation>\n{step} <structure name").encode()
    )
    assert len(read) == len(RUN)
    assert "machine-learned" in reason


def test_dispersion_is_part_of_the_energy_and_shows_in_every_step():
    read = list(vasprun_reader.read(vasprun(RUN, added=-0.5).encode()))
    assert [frame.calc.results["free_energy"] for frame in read] == pytest.approx([a.calc.results["energy"] - 0.5 for a in RUN])
    mixed = vasprun(RUN[:2]).split(" <calculation>")[:-1] + vasprun(RUN[:2], added=-0.5).split(" <calculation>")[-1:]
    first, second = vasprun_reader.read(" <calculation>".join(mixed).encode())
    assert isinstance(first, Atoms)
    assert "differs by -0.5 eV" in second


def test_the_enthalpy_is_not_taken_for_the_energy():
    """With PSTRESS, here 10 kbar."""
    text = vasprun(RUN[:1]).replace('"PSTRESS">     0.0', '"PSTRESS">     10.0')
    (atoms,) = vasprun_reader.read(text.encode())
    assert same(atoms, RUN[0])
    work = 10 * 0.000624150913 * RUN[0].get_volume()  # eV
    energy = RUN[0].calc.results["free_energy"]
    cycles, mark, labels = text.partition('name="stress"')
    for share, found in ((1, True), (0.5, False)):
        printed = labels.replace(f"{energy:16.8f}", f"{energy + share * work:16.8f}")
        assert printed != labels
        (frame,) = vasprun_reader.read(f"{cycles}{mark}{printed}".encode())
        assert same(frame, RUN[0]) if found else "cannot be told apart" in frame


@pytest.mark.parametrize("word", ["Edisp (eV):", "Estimated vdW energy (eV):", "no words"])
def test_dispersion_is_added_after_the_last_electronic_step(word):
    """As versions 5 and 6 print it for all kinds, and 5.2 for Grimme's second."""
    text = re.sub(
        r"free energy    TOTEN  = +(\S+)", lambda last: f"free energy    TOTEN  = {float(last[1]) + 2.72852:18.8f}", outcar(RUN)
    )
    text = text.replace("  FORCE on cell", f"  {word}        -2.72852\n  FORCE on cell")
    read = list(outcar_reader.read(text.encode()))
    if word == "no words":
        assert all("not that of its last electronic step" in reason for reason in read)
    else:
        assert all(same(a, b) for a, b in zip(read, RUN, strict=True))


@pytest.mark.parametrize("name", WRITERS)
def test_what_we_do_not_need_costs_nothing(name):
    text = WRITERS[name](RUN)
    if name == "OUTCAR":
        broken = re.sub(r"in kB .*", "in kB  **** **** 1.0", text, count=1)
    else:
        broken = re.sub(r'(name="stress" >\n).*\n', r"\1    <v> *** 1.0 1.0 </v>\n", text, count=1).replace(
            "<r>  1.0", "<r> *&< "
        )
    read = list(READERS[name](broken.encode()))
    assert all(same(a, b) for a, b in zip(read, RUN, strict=True))
    assert ["stress" in atoms.calc.results for atoms in read] == [False, True, True, True]


@pytest.mark.parametrize("name", WRITERS)
def test_a_killed_job_gives_its_whole_steps_and_names_the_last(name):
    text = WRITERS[name](RUN)
    *read, reason = READERS[name](text[: text.rindex("TOTEN" if name == "OUTCAR" else "<energy>")].encode())
    assert all(same(a, b) for a, b in zip(read, RUN[:3], strict=True))
    assert reason.endswith(("printed for this step", "within this step, before an energy", "file ends within it"))


def test_the_other_output_is_read_if_the_first_cannot_be(tmp_path):
    (tmp_path / "OUTCAR").write_text(outcar(RUN))
    (tmp_path / "vasprun.xml").write_text(vasprun(RUN[:2]))
    assert len(read(tmp_path)) == 2
    for useless in ("", "<modeling>", vasprun(RUN)[:1500], "\x00" * 99):
        (tmp_path / "vasprun.xml").write_text(useless)
        assert all(same(a, b) for a, b in zip(read(tmp_path), RUN, strict=True))
    (tmp_path / "OUTCAR").write_text("")
    assert all(isinstance(reason, str) and reason for reason in read(tmp_path))


def test_steps_that_a_cut_vasprun_does_not_have_are_read_from_its_outcar(tmp_path):
    """If it is the OUTCAR of the same run."""
    run, text = frames(4), vasprun(frames(4))
    (tmp_path / "OUTCAR").write_text(outcar(run))
    third = text.index("<calculation>", text.index("<calculation>", text.index("<calculation>") + 1) + 1)
    for cut in (third, third + 1200):  # between steps, and within one
        (tmp_path / "vasprun.xml").write_text(text[:cut])
        found = read(tmp_path)
        assert len(found) == 4
        assert all(same(a, b) for a, b in zip(found, run, strict=True))
    (tmp_path / "OUTCAR").write_text(outcar(RUN))  # the cell of which changes
    *found, reason = read(tmp_path)
    assert [same(a, b) for a, b in zip(found, run[:2], strict=True)] == [True, True]
    assert "the file ends within this step" in reason


@pytest.mark.parametrize("packed", [gzip, bz2, lzma])
@pytest.mark.parametrize("name", WRITERS)
def test_compressed_files_are_read_also_when_they_are_cut(tmp_path, packed, name):
    content = packed.compress(WRITERS[name](frames(40)).encode())
    path = tmp_path / f"{name}.{'gz' if packed is gzip else 'bz2' if packed is bz2 else 'xz'}"
    path.write_bytes(content)
    assert len(read(path)) == 40
    path.write_bytes(content[: len(content) // 2])
    *found, loss = read(path)
    assert "compressed data are cut" in loss
    kept = [frame for frame in found if not isinstance(frame, str)]
    assert packed is not gzip or 10 < len(kept) < 30  # the others compress all of it as one block
    assert all(same(frame, other) for frame, other in zip(kept, frames(40), strict=False))


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_file_gives_frames_that_are_in_it_or_reasons(name, data):
    read = list(READERS[name](data.draw(damaged(WRITERS[name](RUN))).encode("utf-8")))
    assert read
    kept = [frame.atoms if isinstance(frame, Unconverged) else frame for frame in read if not isinstance(frame, str)]
    # Of a single step without dispersion vasprun.xml does not tell whether its energy is that of its electrons.
    assert (name == "vasprun.xml" and len(kept) == 1) or all(any(same(atoms, other) for other in RUN) for atoms in kept)
    assert all(reason and "Error" not in reason for reason in read if isinstance(reason, str))


def test_elements_are_known_by_their_potentials():
    text = vasprun(RUN).replace("<c>Si </c>", "<c>r  </c>").replace("PAW_PBE Si 05Jan2001", "PAW_PBE Zr_sv 04Jan2005")
    assert all(str(atoms.symbols) == "Zr2" for atoms in vasprun_reader.read(text.encode()))
    text = outcar(RUN).replace("Si", "Xx")
    assert all("elements" in reason for reason in outcar_reader.read(text.encode()))


def runs():
    return sorted((path.parent.name, path) for path in beside("vasp-si-rss").glob("*/outputs"))


def test_both_outputs_of_real_runs_say_the_same():
    assert len(runs()) == 22
    for run, folder in runs():
        (ours,) = outcar_reader.read(gzip.decompress((folder / "OUTCAR.gz").read_bytes()))
        (theirs,) = read(folder)
        assert same(ours, theirs, 6e-5), run
        assert "stress" in ours.calc.results
        assert "stress" in theirs.calc.results
        for name in ("energy", "free_energy"):
            assert ours.calc.results[name] == pytest.approx(theirs.calc.results[name], abs=1e-6), run


def test_a_real_vasprun_is_what_ase_reads(tmp_path):
    content = gzip.decompress((beside("vasp-si-rss") / "Si_bulk_1" / "outputs" / "vasprun.xml.gz").read_bytes())
    (tmp_path / "vasprun.xml").write_bytes(content)
    (ours,), (theirs,) = read(tmp_path / "vasprun.xml"), ase.io.read(tmp_path / "vasprun.xml", ":")
    for name in ("energy", "free_energy", "forces", "stress"):
        np.testing.assert_allclose(ours.calc.results[name], theirs.calc.results[name], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(ours.positions, theirs.positions, atol=1e-12)


@pytest.mark.parametrize(
    ("case", "energies"),
    [
        ("empty-vasprun", [-10.84, -10.83]),
        ("outcar/ml", [-10.84, -10.83]),
        ("outcar/bz2", [-10.84, -10.83]),
        ("outcar/nelm", []),
        ("vasprun/nelm", []),
    ],
)
def test_hard_cases(case, energies):
    read_ = read(beside("hard-cases") / case)
    assert [atoms.calc.results["free_energy"] for atoms in read_ if isinstance(atoms, Atoms)] == energies
    assert all(isinstance(frame, Unconverged) for frame in read_) or energies


@pytest.mark.parametrize(
    ("symbol", "potential", "element"),
    [
        ("Si", "PAW_PBE Si 05Jan2001", "Si"), ("r ", "PAW_PBE Zr_sv 04Jan2005", "Zr"), ("H ", "PAW_PBE H.5 06Feb2004", "H"),
        ("Si", "PAW_PBE#Si 05Jan2001", "Si"), ("S*", "PAW_PBE#Si", ""), ("", "US Ga_d", "Ga"), ("", "PAW_PBE", ""),
        ("O ", "", "O"), ("", "PAW Fe_pv_new 01Jan", "Fe"), ("", "C_h_nr", "C"), ("r ", "", ""),
    ],
)  # fmt: skip
def test_an_element_is_never_read_from_the_name_of_a_kind_of_potential(symbol, potential, element):
    """Phosphorus from PAW, uranium from US, nitrogen from NC."""
    assert vasp.element(symbol, potential) == element


def test_numbers_that_fill_their_columns_are_read_without_a_blank_between_them():
    """A vacuum of more than 100 Å, and a stress of more than 100000 kB."""
    atoms = RUN[0].copy()
    atoms.set_cell(atoms.cell.array + np.diag([0, 108.087567, 150]))
    atoms.calc = RUN[0].calc
    atoms.calc.results = {
        **atoms.calc.results,
        "stress": -vasp.KBAR * np.array([1.0, 2.0, 123456.78901, 123456.0, 3.0, 234567.0]),
    }
    text = outcar([atoms])
    assert "0.000000000113.517567000" in text
    assert re.search(r"in kB .*\.\d{5}123456\.", text)
    (found,) = outcar_reader.read(text.encode())
    assert same(found, atoms)
    assert "stress" in found.calc.results


def as_oxygen(text: str) -> str:
    """The output of a run with other atoms and as many electrons of another number."""
    text = re.sub(
        r"number of electron       8", "number of electron      12", text.replace("NELECT =       8", "NELECT =      12")
    )
    return re.sub(r"\bSi\b", "O", text)


@pytest.mark.parametrize("name", WRITERS)
def test_runs_in_one_file_have_atoms_and_settings_of_their_own(name):
    """As `cat` makes it, also of a run that was cut off within a line."""
    write, first, second = WRITERS[name], frames(2), frames(3)
    both = write(first) + as_oxygen(write(second, nelm=5))
    read = list(READERS[name](both.encode()))
    assert [str(frame.symbols) for frame in read[:2]] == ["Si2"] * 2
    assert [str(frame.atoms.symbols) for frame in read[2:]] == ["O2"] * 3
    assert all("NELM=5" in frame.reason for frame in read[2:])
    cut = write(first)[: write(first).rindex("TOTAL-FORCE" if name == "OUTCAR" else 'name="forces"') + 150]
    sound, broken, *others = READERS[name]((cut + as_oxygen(write(second))).encode())
    assert same(sound, first[0])
    assert isinstance(broken, str)
    assert [str(frame.symbols) for frame in others] == ["O2"] * 3


@pytest.mark.parametrize("name", WRITERS)
def test_steps_of_another_run_without_its_beginning_are_named(name):
    first, second = frames(3), frames(4, changing=True)
    start = " <calculation>" if name == "vasprun.xml" else "-" * 39 + " Iteration      4("
    one, other = WRITERS[name](first, isif=2), as_oxygen(WRITERS[name](second, isif=2))
    whole = one if name == "OUTCAR" else one[: one.index(' <structure name="finalpos"')]
    cut = other.index(start) if name == "OUTCAR" else other.rindex(start)
    *sound, stranger = READERS[name]((whole + other[cut:]).encode())
    assert all(same(a, b) for a, b in zip(sound, first, strict=True))
    assert ("12.0000012 electrons" if name == "OUTCAR" else "its cell is not that of the run") in stranger
    if name == "vasprun.xml":
        *sound, strays = READERS[name]((one + other[cut:]).encode())
        assert all(same(a, b) for a, b in zip(sound, first, strict=True))
        assert strays.startswith("1 step comes without the beginning of a run")


def test_steps_before_the_first_document_have_lost_their_atoms():
    one, other = vasprun(frames(3)), frames(2)
    reason, *sound = vasprun_reader.read((one[one.rindex(" <calculation>") :] + as_oxygen(vasprun(other))).encode())
    assert isinstance(reason, str)
    assert [str(frame.symbols) for frame in sound] == ["O2"] * 2


def test_the_electrons_of_a_step_are_those_of_its_last_iteration():
    """In the first ones they can be those of free atoms."""
    text = outcar(RUN).replace("number of electron       8.0000012", "number of electron       9.5000000", 1)
    assert all(same(a, b) for a, b in zip(outcar_reader.read(text.encode()), RUN, strict=True))


@pytest.mark.parametrize(
    ("mass", "valence", "sound"), [(28.09, 4.0, True), (30.0, 4.0, True), (28.09, 4.5, True), (16.0, 6.0, False)]
)
def test_masses_and_valences_are_those_of_the_potentials(mass, valence, sound):
    """If both are not, the head of the OUTCAR is of two runs; isotopes and core holes change one of them."""
    text = outcar(RUN).replace("   ions per", "   POMASS =   28.085; ZVAL   =    4.000    mass and valenz\n   ions per")
    text = text.replace("   ISIF", f"   POMASS =  {mass:5.2f}\n   ZVAL   =  {valence:5.2f}\n   ISIF")
    for frame in outcar_reader.read(text.encode()):
        assert isinstance(frame, Atoms) if sound else "its elements are not in the file" in frame
    one_more = text.replace("   ions per", "   POMASS =   69.723; ZVAL   =   13.000    mass and valenz\n   ions per")
    assert all("its elements are not in the file" in frame for frame in outcar_reader.read(one_more.encode()))


def test_the_cell_of_the_wave_functions_is_not_that_of_the_run():
    """Where the cell cannot change, VASP does not print it again; the one that WAVECAR is of comes last."""
    run = frames(3)
    text = outcar(run, isif=2)
    start, head = re.search("-+ Iteration", text).start(), text[: text.index("---")]
    table = head[head.index("      direct lattice") :]
    steps = re.sub(r"  volume of cell.*\n", "", text[start:]).replace(table[:-1], "")
    old = " old parameters found on file WAVECAR:\n" + table.replace("5.43", "5.55")
    assert "5.55" in old
    assert "direct lattice" not in steps
    read = list(outcar_reader.read((head + old + steps).encode()))
    assert all(same(a, b) for a, b in zip(read, run, strict=True))


@pytest.mark.parametrize("name", WRITERS)
def test_an_energy_that_is_not_quite_that_of_the_last_electronic_step_is_of_another(name):
    """Near its minimum, a relaxation gains less than 1 meV in a step."""
    text, energy = WRITERS[name](frames(2)), f"{frames(2)[1].calc.results['free_energy']:.8f}"
    at = text.rindex("TOTEN" if name == "OUTCAR" else "<energy>")
    near = text[:at] + text[at:].replace(energy, f"{float(energy) + 5e-4:.8f}", 1)
    sound, other = READERS[name](near.encode())
    assert same(sound, frames(2)[0])
    assert "of its last electronic step" in other
