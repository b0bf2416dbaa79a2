"""Whether intervals hold, and whether suggested structures teach more than others: real jobs on public sets.

    .venv/bin/python benchmarks/uncertainty.py calibration FOLDER NAME... [--splits 4] [--most 600] [--iterations 10]
    .venv/bin/python benchmarks/uncertainty.py suggest FOLDER NAME... [--seeds 5] [--first 40] [--add 40]

FOLDER is that of `sets.py prepare` (NAME/train.extxyz and test.extxyz; or all.extxyz alone, for `calibration`).
`calibration`: all structures of a set (at random MOST of them, by NumPy with seed 1) are split anew into 7/8 and 1/8 by the
seed of the job; of each split what part of the test errors is within the 68 % and the 95 % interval, then of all splits.
`suggest`: FIRST random structures of the training set are fitted; ADD of the others are added, those of `mlip-pace suggest`,
those of the largest grade (`mlip-pace predict`), or random ones, and fitted with them: errors on the test structures of the
set. Settings are defaults but for the cutoff (that of the search, `results/cutoffs.md`), no search for holes and, in `suggest`,
no iterations.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from ase.io import read, write

MLIP_PACE = Path(sys.executable).parent / "mlip-pace"
CUTOFF = {"si": 6, "ge": 6, "mo": 4.5, "li": 8, "wbe": 5}  # Å
SHARES = ("0.68", "0.95")


def job(out, data, **settings):
    """The metadata of the potential of a job."""
    environment = {"DATA_PATH": data, "OUTPUT_PATH": out, "PROBE_ROUNDS": 0, **settings}
    said = {f"MLIP_PACE_{name}": str(value) for name, value in environment.items()}
    done = subprocess.run([MLIP_PACE, "run"], env=os.environ | said, capture_output=True, text=True)
    if done.returncode not in (0, 82):
        raise SystemExit(done.stdout[-2000:] + done.stderr)
    return json.loads((out / "potential.json").read_text())["metadata"]


def calibration(folder, names, splits, most, iterations):
    print("| set | split | test structures | energies, 68 % | 95 % | forces, 68 % | 95 % | test MAE, meV/atom | eV/Å |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in names:
        files = [path for kind in ("all", "train", "test") if (path := folder / name / f"{kind}.extxyz").exists()]
        structures = [atoms for path in files for atoms in read(path, ":")]
        order = np.random.default_rng(1).permutation(len(structures))[:most]
        found = []
        for split in range(splits):
            with tempfile.TemporaryDirectory() as scratch:
                data = Path(scratch) / "all.extxyz"
                write(data, [structures[n] for n in sorted(order)])
                settings = {"BASIS_CUTOFF": CUTOFF[name], "TRAINING_SEED": split, "DATA_TEST_FRACTION": 0.125}
                settings["TRAINING_MAX_EPOCHS"] = iterations
                made = job(Path(scratch) / "out", data, **settings)
            covered, test = made["uncertainty"]["coverage"]["all"], made["errors"]["test"]
            numbers = [covered[quantity][share] for quantity in ("energy", "forces") for share in SHARES]
            found.append((test["n_structures"], test["n_atoms"], numbers))
            tell(name, split, test["n_structures"], numbers, f"{1e3 * test['energy_mae']:.2f} | {test['forces_mae']:.4f}")
        weights = np.array([[s, s, n, n] for s, n, _ in found], dtype=float)
        mean = (weights * [numbers for *_, numbers in found]).sum(axis=0) / weights.sum(axis=0)
        tell(f"**{name}**", "all", sum(s for s, *_ in found), mean, " | ")


def tell(name, split, count, numbers, errors):
    print(f"| {name} | {split} | {count} | " + " | ".join(f"{100 * x:.1f}" for x in numbers) + f" | {errors} |", flush=True)


def suggest(folder, names, seeds, first, add):
    print(
        "| set | seed | added | MAE, meV/atom | RMSE | MAE, eV/Å | RMSE | atoms |\n|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for name in names:
        train, test, means = read(folder / name / "train.extxyz", ":"), folder / name / "test.extxyz", {}
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(len(train)).tolist()
            known, pool = order[:first], order[first:]
            with tempfile.TemporaryDirectory() as scratch:
                place = Path(scratch)

                def fit(label, numbers, place=place, name=name, seed=seed, train=train, test=test, means=means):
                    write(place / f"{label}.extxyz", [train[n] for n in sorted(numbers)])
                    settings = {"BASIS_CUTOFF": CUTOFF[name], "TRAINING_MAX_EPOCHS": 0, "DATA_TEST_PATH": test}
                    e = job(place / label, place / f"{label}.extxyz", **settings)["errors"]["test"]
                    atoms = sum(len(train[n]) for n in numbers)
                    row = [1e3 * e["energy_mae"], 1e3 * e["energy_rmse"], e["forces_mae"], e["forces_rmse"], atoms]
                    means.setdefault(label, []).append(row)
                    say(name, seed, label, row)

                fit("none", known)
                sidecar, candidates = place / "none" / "potential.json", place / "candidates.xyz"
                write(candidates, [bare(train[n]) for n in pool])
                subprocess.run(
                    [MLIP_PACE, "suggest", sidecar, candidates, place / "s.xyz", "-n", str(add)], check=True, stdout=-3
                )
                subprocess.run([MLIP_PACE, "predict", sidecar, candidates, place / "p.xyz"], check=True, stdout=-3)
                suggested = [pool[number_of(atoms)] for atoms in read(place / "s.xyz", ":")]
                grades = [atoms.info["max_gamma"] for atoms in read(place / "p.xyz", ":")]
                fit("suggested", known + suggested)
                fit("random", known + pool[:add])
                fit("largest grade", known + [pool[n] for n in np.argsort(grades)[::-1][:add]])
        for label, rows in means.items():
            say(f"**{name}**", "mean", label, np.mean(rows, axis=0))


def say(name, seed, label, row):
    energies, forces = " | ".join(f"{x:.2f}" for x in row[:2]), " | ".join(f"{x:.4f}" for x in row[2:4])
    print(f"| {name} | {seed} | {label} | {energies} | {forces} | {row[4]:.0f} |", flush=True)


def bare(atoms):
    atoms = atoms.copy()
    atoms.calc, atoms.info = None, {}
    return atoms


def number_of(atoms):
    return int(atoms.info["source"].split("#")[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["calibration", "suggest"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+")
    for option, default in (("splits", 4), ("most", 600), ("iterations", 10), ("seeds", 5), ("first", 40), ("add", 40)):
        parser.add_argument(f"--{option}", type=int, default=default)
    given = parser.parse_args()
    if given.what == "calibration":
        calibration(given.folder, given.names, given.splits, given.most, given.iterations)
    else:
        suggest(given.folder, given.names, given.seeds, given.first, given.add)
