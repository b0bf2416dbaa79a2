"""`mlip-pace suggest` as a user runs it: what is taken, what is left out and why, LAMMPS's dumps, POSCARs."""

import json
import subprocess
import sys

import numpy as np
import pytest
from ase.io import read, write
from conftest import EXAMPLES

from mlip_pace.collect import lammps
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
    cut, whole = tmp_path / "cut.dump", (tmp_path / "new.dump").read_text()
    for left in (whole[:-10], whole[: whole.rstrip().rindex("\n") + 1]):  # within a line, and between two
        cut.write_text(left)
        *_, (source, _, reason) = lammps.read(cut, "cut.dump", ["Al", "Mg"])
        assert source == "cut.dump#1"
        assert "cut" in reason
    assert not lammps.is_dump(EXAMPLES)


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
