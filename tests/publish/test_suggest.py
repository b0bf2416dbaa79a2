"""`mlip-pace suggest` as a user runs it: what is taken, what is left out and why, LAMMPS's dumps, POSCARs."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.io import read, write
from conftest import EXAMPLES

from mlip_pace.collect import lammps
from mlip_pace.collect.cells import gap_along
from mlip_pace.publish import suggest
from mlip_pace.publish.potential import Potential


def run(potential, candidates, output, number=4):
    command = [sys.executable, "-m", "mlip_pace.cli", "suggest", potential, candidates, output, "-n", str(number)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["code"] == done.returncode, done.stdout + done.stderr
    return last


@pytest.fixture
def candidates(tmp_path):
    """Fifteen rattled structures; then one of the data, a copy, one with atoms too close, and one of another element."""
    rng, structures = np.random.default_rng(0), []
    for atoms in read(EXAMPLES, "2:62:4"):
        atoms = atoms.repeat((2, 2, 1)) if len(atoms) < 5 else atoms.copy()
        atoms.calc = None
        atoms.positions += 0.08 * rng.normal(size=atoms.positions.shape)
        structures.append(atoms)
    close, copper = structures[0].copy(), structures[0].copy()
    close.positions[1] = close.positions[0] + [1.0, 0, 0]
    copper.symbols[0] = "Cu"
    known = read(EXAMPLES, 10)
    known.calc = None
    path = tmp_path / "candidates.xyz"
    write(path, [*structures, known, structures[3], close, copper], format="extxyz")
    return path


def test_what_cannot_be_suggested_is_named_with_its_reason(demo, candidates, tmp_path):
    last = run(demo / "potential.json", candidates, tmp_path / "out.xyz")
    reasons = {one["source"]: one["reason"] for one in last["summary"]["left_out"]}
    assert reasons["candidates.xyz#15"] == "the same as one of the data"
    assert reasons["candidates.xyz#16"] == "the same as one before it, candidates.xyz#3"
    assert "1.00 Å apart" in reasons["candidates.xyz#17"]
    assert "Cu" in reasons["candidates.xyz#18"]
    assert len(reasons) == 4
    assert last["summary"]["others"] == 11
    found = read(tmp_path / "out.xyz", ":")
    assert [atoms.info["rank"] for atoms in found] == [1, 2, 3, 4]
    for atoms, row in zip(found, last["summary"]["suggested"], strict=True):
        assert (atoms.info["source"], atoms.info["reason"]) == (row["source"], row["reason"])
        assert atoms.info["max_gamma"] == pytest.approx(row["max_gamma"])
        assert atoms.arrays["forces_uncertainty"].max() == pytest.approx(row["largest_forces_uncertainty"], abs=1e-7)
        assert not {"energy", "dft_energy"} & set(atoms.info)  # nothing that could be taken for a label
        assert atoms.calc is None


def test_the_reason_is_what_the_numbers_say(demo, candidates, tmp_path):
    """Grades above 5; uncertainties of twice the median of those taken and more, and of twice the noise of the fit."""
    many = read(candidates, ":")
    for factor in (0.82, 0.9, 0.93, 1.15):  # of which the fit is less sure
        squeezed = many[2].copy()
        squeezed.set_cell(factor * squeezed.cell.array, scale_atoms=True)
        many.append(squeezed)
    write(candidates, many, format="extxyz")
    assert run(demo / "potential.json", candidates, tmp_path / "out.xyz", number=12)["code"] == 0
    found = read(tmp_path / "out.xyz", ":")
    floors = Potential.load(demo / "potential.json").metadata["uncertainty"]["calibration"]
    energies = np.array([atoms.info["energy_uncertainty"] / len(atoms) for atoms in found])
    forces = np.array([atoms.arrays["forces_uncertainty"].max() for atoms in found])
    kinds = set()
    for atoms, energy, force in zip(found, energies, forces, strict=True):
        expected = []
        if atoms.arrays["gamma"].max() > 5:
            atom = int(atoms.arrays["gamma"].argmax())
            expected.append(f"the potential extrapolates at {atoms.symbols[atom]} {atom}")
        if force > 2 * max(np.median(forces), floors["forces"]["floor"]):
            atom = int(atoms.arrays["forces_uncertainty"].max(axis=1).argmax())
            expected.append(f"forces on {atoms.symbols[atom]} {atom} uncertain by {force:.2f} eV/Å")
        if energy > 2 * max(np.median(energies), floors["energy"]["floor"]):
            expected.append(f"energy uncertain by {1e3 * energy:.1f} meV/atom")
        assert atoms.info["reason"] == (", ".join(expected) or "unlike the data and those before it")
        kinds |= {part.split()[0] for part in expected}
    assert kinds == {"the", "forces", "energy"}


def test_each_is_the_best_beside_those_before_it(demo, candidates):
    """Greedy by brute force, with every row of every candidate instead of sketches and bounds."""
    quantify = Potential.load(demo / "potential.json").uncertainty()
    structures = read(candidates, ":15")
    rows = [suggest.whitened(atoms, quantify) for atoms in structures]
    energies, forces = np.concatenate([r[:1] for r in rows]), np.concatenate([r[1:] for r in rows])
    information, gains = np.eye(energies.shape[1]), {}

    def spread(matrix):
        inverse = np.linalg.inv(matrix)
        return sum(np.log(np.einsum("ri,ij,rj->", about, inverse, about)) for about in (energies, forces))

    taken = suggest.choose(structures, quantify, 3, 2)
    assert taken == suggest.choose(structures, quantify, 3, 1)
    for n, gain in taken:
        gains = {m: spread(information) - spread(information + r.T @ r) for m, r in enumerate(rows)}
        assert gain == pytest.approx(gains[n], rel=0.15)  # a sketch of 256 rows
        assert gains[n] > 0.85 * max(gains.values())
        information += rows[n].T @ rows[n]


def test_a_known_structure_teaches_less_than_before(demo, candidates):
    quantify = Potential.load(demo / "potential.json").uncertainty()
    atoms = read(candidates, "0")
    moved = atoms.copy()
    moved.positions += 0.001 * np.random.default_rng(1).normal(size=moved.positions.shape)
    (first, gain), (second, less) = suggest.choose([atoms, moved], quantify, 2, 1)
    assert {first, second} == {0, 1}
    assert less < 0.5 * gain


def test_of_what_is_closer_than_the_data_the_closest_comes_first(demo, candidates, tmp_path):
    """σ knows nothing of it: without that it might never be computed."""
    many = read(candidates, ":15")
    shortest = Potential.load(demo / "potential.json").metadata["basis"]["shortest"]["Al-Al"]
    for share in (0.94, 0.85, 0.9, 0.96):
        atoms = bulk("Al", cubic=True).repeat(2)
        atoms.positions[1] = atoms.positions[0] + [share * shortest, 0, 0]
        many.append(atoms)
    write(candidates, many, format="extxyz")
    taken = run(demo / "potential.json", candidates, tmp_path / "out.xyz", number=3)["summary"]["suggested"]
    first, *others = taken
    assert first["source"] == "candidates.xyz#16"
    told = re.match(r"Al-Al (\S+) Å apart, the shortest distance of the data is (\S+)$", first["reason"])
    assert [float(distance) for distance in told.groups()] == pytest.approx([0.85 * shortest, shortest], abs=0.006)
    assert first["gain"] > 0
    assert not any("apart" in one["reason"] for one in others)


@pytest.fixture
def dumps(tmp_path, al_mg):
    """Two frames that LAMMPS itself has written, with and without the column `element`, and what they are."""
    atoms = next(a for a in al_mg if len(set(a.symbols)) == 2 and len(a) > 3)
    write(tmp_path / "structure.data", atoms, format="lammps-data", specorder=["Al", "Mg"], masses=True)
    (tmp_path / "in.lammps").write_text(
        "units metal\nbox tilt large\nread_data structure.data\npair_style zero 3.0\npair_coeff * *\n"
        "velocity all create 300 1\nfix 1 all nve\ntimestep 0.001\n"
        "dump a all custom 5 new.dump id type x y z\n"
        "dump b all custom 5 elements.dump id type element xs ys zs\ndump_modify b element Al Mg\nrun 5\n"
    )
    done = subprocess.run(["lmp", "-in", "in.lammps", "-log", "none"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    return atoms


def test_dumps_of_lammps_are_read_with_or_without_elements(dumps, tmp_path):
    for name, named in (("new.dump", False), ("elements.dump", True)):
        assert lammps.is_dump(tmp_path / name)
        assert lammps.names_elements(tmp_path / name) is named
        frames = [atoms for _, _, atoms in lammps.read(tmp_path / name, name, ["Al", "Mg"])]
        assert len(frames) == 2
        assert frames[0].pbc.all()
        assert frames[0].symbols.get_chemical_formula() == dumps.symbols.get_chemical_formula()
        np.testing.assert_allclose(frames[0].cell.volume, dumps.cell.volume, rtol=1e-4)
        distances = [np.sort(a.get_all_distances(mic=True), axis=None) for a in (frames[0], dumps)]
        np.testing.assert_allclose(*distances, atol=1e-3)
    for _, _, reason in lammps.read(tmp_path / "new.dump", "new.dump", ["Al"]):
        assert reason == "has atoms of type 2, but the potential has 1 elements; a column `element` names them"
    cut, whole = tmp_path / "cut.dump", (tmp_path / "new.dump").read_text()
    for left in (whole[:-10], whole[: whole.rstrip().rindex("\n") + 1]):  # within a line, and between two
        cut.write_text(left)
        *_, (source, _, reason) = lammps.read(cut, "cut.dump", ["Al", "Mg"])
        assert source == "cut.dump#1"
        assert "cut" in reason
    assert not lammps.is_dump(EXAMPLES)


def test_dumps_that_tell_units_and_time_are_read_and_what_a_blown_up_run_leaves_is_named(dumps, demo, tmp_path):
    frames = "".join(f"ITEM: TIME\n0.{n}\nITEM: TIMESTEP{part}" for n, part in enumerate(
        (tmp_path / "new.dump").read_text().split("ITEM: TIMESTEP")[1:]))  # fmt: skip
    told, lost = tmp_path / "told.dump", tmp_path / "lost.dump"
    told.write_text("ITEM: UNITS\nmetal\n" + frames)
    assert lammps.is_dump(told)
    (_, _, first), (_, _, second) = lammps.read(told, "told", ["Al", "Mg"])
    (_, _, given), _ = lammps.read(tmp_path / "new.dump", "new", ["Al", "Mg"])
    np.testing.assert_array_equal(first.positions, given.positions)
    assert len(first) == len(second) == len(dumps)
    told.write_text("ITEM: UNITS\nlj\n" + frames)
    (_, _, reason), _ = lammps.read(told, "told", ["Al", "Mg"])
    assert "units lj" in reason
    whole, number = (tmp_path / "new.dump").read_text(), re.compile(r"\S+ \S+ \S+\n$")
    lost.write_bytes(number.sub("nan nan nan\n", whole).encode() + b"\xff\xfe\n")
    last = run(demo / "potential.json", lost, tmp_path / "out.xyz")
    assert "lost.dump#0: the same as one of the data" in last["message"]
    assert "lost.dump#1: positions has values that are no finite numbers" in last["message"]


def test_what_is_not_periodic_gets_vacuum_in_a_poscar():
    slab = fcc111("Al", (1, 1, 3))
    slab.cell[2, 2] = 4.84  # as a box that LAMMPS shrinks to the atoms
    cluster = Atoms("Al2", [(0, 0, 0), (0, 0, 2.8)], cell=[8.0, 8.0, 8.0])
    for atoms, axes in ((slab, [2]), (cluster, [0, 1, 2])):
        atoms.pbc = [axis not in axes for axis in range(3)]
        boxed = suggest.boxed(atoms)
        for axis in axes:
            assert gap_along(boxed, axis) == pytest.approx(suggest.VACUUM)
        np.testing.assert_allclose(boxed.get_all_distances(), atoms.get_all_distances())


def test_forces_that_symmetry_keeps_at_zero_are_nothing_to_learn(demo):
    potential = Potential.load(demo / "potential.json")
    cells = [bulk("Al", a=a) for a in (4.0, 4.05, 4.1, 5.2)]
    for structures in (cells, cells[::-1]):
        (best, gain), (_, second) = suggest.choose(structures, potential.uncertainty(), 2, 1)
        assert structures[best].cell[0, 1] == pytest.approx(2.6)  # far from the data
        assert gain > second > 0


def test_an_output_that_would_replace_what_is_read_is_refused_before_all_else(demo, candidates, tmp_path):
    before = candidates.read_bytes()
    (tmp_path / "file").touch()
    for output, said in (
        (candidates, "one of the files that are read"), (tmp_path / "no" / "out.xyz", "no folder"),
        (tmp_path / "file", "cannot be a new folder"), (tmp_path, "not empty"),
    ):  # fmt: skip
        last = run(demo / "potential.json", candidates, output)
        assert last["code"] == 73
        assert said in last["message"]
    assert candidates.read_bytes() == before


def test_a_folder_of_dumps_gives_poscars(demo, dumps, tmp_path):
    (tmp_path / "candidates").mkdir()
    (tmp_path / "new.dump").rename(tmp_path / "candidates" / "new.dump")
    last = run(demo / "potential.json", tmp_path / "candidates", tmp_path / "next", number=1)
    assert last["summary"]["assumed"] == ["new.dump has no column `element`: types 1 is Al, 2 is Mg"]
    poscar = read(tmp_path / "next" / "001" / "POSCAR")
    assert sorted(poscar.symbols) == sorted(dumps.symbols)
    assert run(demo / "potential.json", tmp_path / "candidates", tmp_path / "next")["code"] == 73
    assert run(demo / "potential.json", tmp_path / "nothing", tmp_path / "a.xyz")["code"] == 66


def test_without_uncertainties_there_are_no_suggestions(trained, candidates, tmp_path):
    last = run(trained / "potential.json", candidates, tmp_path / "out.xyz")
    assert last["code"] == 65
    assert "pacemaker" in last["message"]
