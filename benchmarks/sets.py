"""Default jobs on public sets that no default was tuned on: their errors, times and memory, as a table.

    .venv/bin/python benchmarks/sets.py prepare FOLDER --mlearn CLONE --fitsnap CLONE --pace CLONE
    .venv/bin/python benchmarks/sets.py run FOLDER [NAME...] > benchmarks/results/sets.md
    .venv/bin/python benchmarks/sets.py cutoffs FOLDER [NAME...] > benchmarks/results/cutoffs.md

The clones are of materialsvirtuallab/mlearn, FitSNAP/FitSNAP and ICAMS/python-ace. mlearn has test sets of its own; of the
others a fifth of the structures that `mlip-pace collect` gives is drawn for the test (a twentieth of W-Be), by NumPy with
seed 1. Nothing of them is kept in this repository.

`cutoffs` makes linear fits with 500 functions to all training structures for each cutoff of the search: log evidence, MAE
(meV/atom and eV/Å) of held-out folds and of the test set.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from mlip_pace import reference
from mlip_pace.ace import basis, core
from mlip_pace.collect import dataset
from mlip_pace.collect.files import find_files
from mlip_pace.settings import CUTOFFS, BasisSettings, DataSettings, ReferenceSettings
from mlip_pace.train import crossvalidation, linear

MLIP_PACE = Path(sys.executable).parent / "mlip-pace"
FITSNAP = {"fe": "Fe_Linear_NPJ2021", "inp": "InP_JPCA2020", "ta": "Ta_Linear_JCP2014", "wbe": "WBe_PRB2019"}
MLEARN = ("Si", "Ge", "Mo", "Li")
TEST = {"wbe": 20}  # one of so many is held out; 5 elsewhere
# Energies of python-ace's set are relative to free atoms already.
SETTINGS = {"cu": {"MLIP_PACE_DATA_E0": "none"}}


def of_mlearn(path):
    """The structures of one of mlearn's files."""
    for one in json.loads(path.read_text()):
        sites, labels = one["structure"]["sites"], one["outputs"]
        symbols, places = [site["species"][0]["element"] for site in sites], [site["xyz"] for site in sites]
        atoms = Atoms(symbols, positions=places, cell=one["structure"]["lattice"]["matrix"], pbc=True)
        atoms.info["config_type"] = str(one.get("group", ""))
        atoms.calc = SinglePointCalculator(atoms, energy=labels["energy"], forces=np.array(labels["forces"]))
        yield atoms


def prepare(folder, mlearn, fitsnap, pace):
    for symbol in MLEARN:
        place = folder / symbol.lower()
        place.mkdir(parents=True, exist_ok=True)
        for theirs, ours in (("training", "train"), ("test", "test")):
            write(place / f"{ours}.extxyz", list(of_mlearn(mlearn / "data" / symbol / f"{theirs}.json")))
    sources = {name: fitsnap / "examples" / example / "JSON" for name, example in FITSNAP.items()}
    for name, source in {**sources, "cu": pace / "examples" / "Cu-II" / "Cu_df2_1k.pkl.gzip"}.items():
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        command = [MLIP_PACE, "collect", source, place / "all.extxyz"]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | SETTINGS.get(name, {}))
        structures = read(place / "all.extxyz", ":")
        order = np.random.default_rng(1).permutation(len(structures))
        test = set(order[: len(structures) // TEST.get(name, 5)].tolist())
        write(place / "train.extxyz", [atoms for n, atoms in enumerate(structures) if n not in test])
        write(place / "test.extxyz", [atoms for n, atoms in enumerate(structures) if n in test])


def run(folder, names):
    print("| set | structures | test MAE, meV/atom | eV/Å | held out | cutoff, Å | chosen | seconds | search | MB | exit |")
    print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in names or sorted(path.name for path in folder.iterdir() if (path / "train.extxyz").exists()):
        place, out = folder / name, folder / name / "out"
        environment = {
            "MLIP_PACE_DATA_PATH": str(place / "train.extxyz"),
            "MLIP_PACE_DATA_TEST_PATH": str(place / "test.extxyz"),
            "MLIP_PACE_OUTPUT_PATH": str(out),
            **SETTINGS.get(name, {}),
        }
        begin = time.monotonic()
        code = subprocess.run([MLIP_PACE, "run"], env=os.environ | environment, capture_output=True).returncode
        seconds = time.monotonic() - begin
        made = json.loads((out / "potential.json").read_text())["metadata"]
        test, selection = made["errors"]["test"], made["selection"]
        held = made["training"].get("cross_validation", {}).get("errors")
        held_out = f"{1e3 * held['energy_mae']:.2f}, {held['forces_mae']:.4f}" if held else ""
        print(
            f"| {name} | {selection['given']} | {1e3 * test['energy_mae']:.2f} | {test['forces_mae']:.4f} | {held_out} | "
            f"{made['basis']['cutoff']:g} | {selection['chosen']} | {seconds:.0f} | {made['seconds']['basis']:.0f} | "
            f"{made['hardware']['peak_memory_mb']} | {code} |",
            flush=True,
        )


def cutoffs(folder, names):
    print("| set | cutoff, Å | log evidence | held out | test |\n|---|---|---|---|---|", flush=True)
    for name in names or sorted(path.name for path in folder.iterdir() if (path / "train.extxyz").exists()):
        train, test = (dataset.structures_of(find_files(str(folder / name / f"{kind}.extxyz"))) for kind in ("train", "test"))
        e0 = SETTINGS.get(name, {}).get("MLIP_PACE_DATA_E0", "auto")
        frames, about = dataset.assemble(train, test, dataset.Rules(DataSettings(e0=e0), cutoffs=CUTOFFS))
        target, subtracted = reference.subtracted_from(frames, ReferenceSettings(), CUTOFFS[0])
        shortest = core.shortest_of_every_pair(subtracted.shortest, about.elements)
        known, unseen = (target[target[dataset.SPLIT] == split] for split in ("train", "test"))
        for cutoff in CUTOFFS:
            on = basis.section(BasisSettings(cutoff=cutoff), about.elements, shortest)
            found = crossvalidation.validate(linear.labelled(known), known[dataset.GROUP].tolist(), on, 0.01, 2)
            fitted, held = found.solution, found.held_out
            labelled = linear.labelled(unseen)
            energy, forces = [], []
            rows = basis.expansion(on).rows(one.atoms for one in labelled)
            for one, (of_c, _) in zip(labelled, rows, strict=True):
                gap = of_c @ fitted.coefficients - one.target[: len(of_c)]
                energy.append(gap[0] / len(one.atoms))
                forces.append(gap[1:])
            errors = f"{1e3 * np.abs(energy).mean():.2f}, {np.abs(np.concatenate(forces)).mean():.4f}"
            held_out = f"{1e3 * held.errors.energy_mae:.2f}, {held.errors.forces_mae:.4f}"
            print(f"| {name} | {cutoff:g} | {fitted.log_evidence:.0f} | {held_out} | {errors} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "run", "cutoffs"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    for clone in ("mlearn", "fitsnap", "pace"):
        parser.add_argument(f"--{clone}", type=Path)
    given = parser.parse_args()
    if given.what == "prepare":
        prepare(given.folder, given.mlearn, given.fitsnap, given.pace)
    else:
        {"run": run, "cutoffs": cutoffs}[given.what](given.folder, given.names)
