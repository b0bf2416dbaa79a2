"""Ourselves beside plain pacemaker and ace-jax, on the same data and cores, in one run: `make bench`.

    .venv/bin/python benchmarks/bench.py [--minutes 10] [--functions 300] [--ace-jax PATH_TO/aj] TRAIN TEST [parts ...]

Parts: `mlip-pace` (the linear solve, and the default settings stopped after 60 s and 300 s), `pacemaker` (its own template, the
same cutoff and number of functions, from zero, stopped after `--minutes`), `ace-jax` (`aj fit`, and ourselves with as many
functions), `workers` (normal equations, by one and by two processes), `rows` (the design rows by pyace and by us), `predict`
(all structures, by `mlip-pace predict` and by pacemaker), `collect` (a VASP tree, by `pace_collect` and by us), `growth` (the
linear solve on 1, 4 and 16 times the data, displaced by noise of 0.01 Å, and its memory). Errors are MAE on TEST, in meV/atom
and eV/Å, of the files as a user gets them; seconds are those of whole processes; memory is the largest process.
Results are written after every part, as JSON and Markdown, into benchmarks/results/.
"""

import argparse
import json
import multiprocessing
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from functools import partial
from pathlib import Path

import numpy as np
from ase.io import read, write
from jinja2 import Template
from threadpoolctl import threadpool_limits

from mlip_pace import reference
from mlip_pace.ace import basis
from mlip_pace.ace.evaluators import calculator_of
from mlip_pace.collect import dataset
from mlip_pace.collect.files import find_files
from mlip_pace.publish.potential import Potential
from mlip_pace.run import pool
from mlip_pace.settings import BasisSettings, DataSettings, ReferenceSettings
from mlip_pace.train import linear

RESULTS = Path(__file__).parent / "results"
CUTOFF = 5.0  # Å
BIN = Path(sys.executable).parent


def run(command, env=None, folder=None, limit=None, watch=lambda seconds: None):
    """Seconds, peak memory (MB) of the largest process and whether the command ended before the limit (s)."""
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with open(os.devnull, "w") as nowhere:
        child = subprocess.Popen(command, env={**os.environ, **(env or {})}, cwd=folder, stdout=nowhere, stderr=nowhere)
    while child.poll() is None:
        time.sleep(0.2)
        watch(time.monotonic() - begin)
        if limit and time.monotonic() - begin > limit:
            child.kill()
            child.wait()
            break
    seconds, peak = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    # Of all children so far: only a new maximum is that of this command.
    return {
        "seconds": round(seconds, 1),
        **({"memory_mb": peak // 1024} if peak > before else {}),
        "exit_code": child.returncode,
    }


def ours(train, test, **settings):
    """A job of ours; errors from its sidecar, which are those of the published potential.yace."""
    with tempfile.TemporaryDirectory() as folder:
        given = {"DATA_PATH": train, "DATA_TEST_PATH": test, "OUTPUT_PATH": f"{folder}/out", **settings}
        measured = run([BIN / "mlip-pace"], {f"MLIP_PACE_{name}": str(value) for name, value in given.items()})
        metadata = Potential.load(f"{folder}/out/potential.json").metadata
    errors = metadata["errors"]["test"]
    return {
        **measured, "energy": 1e3 * errors["energy_mae"], "forces": errors["forces_mae"],
        "forces_rmse": errors["forces_rmse"], "iterations": metadata["training"]["iterations"],
        "command": " ".join(f"MLIP_PACE_{name}={value}" for name, value in settings.items()) + " mlip-pace",
        "stages": metadata["seconds"], "memory_mb": metadata["hardware"]["peak_memory_mb"],
    }  # fmt: skip


def pacemaker_input(folder, train, test, functions):
    """Plain pacemaker's data and its template's input.yaml in a folder; the frame of the test set."""
    import pyace

    template = (Path(pyace.__file__).parent / "data" / "input_template.yaml").read_text()
    settings = DataSettings.model_construct(test_fraction=0.0)
    pieces = (dataset.structures_of(find_files(path)) for path in (train, test))
    frames, about = dataset.assemble(*pieces, dataset.Rules(settings, cutoffs=[CUTOFF]))
    frames["energy_corrected"], frames["forces"] = frames[dataset.ENERGY] - frames[dataset.ENERGY_ATOMS], frames[dataset.FORCES]
    is_test = frames[dataset.SPLIT] == dataset.TEST
    for part, rows in (("train", frames[~is_test]), ("test", frames[is_test])):
        dataset.save_frame(rows[[dataset.ATOMS, "energy_corrected", "forces", "name"]], folder / f"{part}.pckl.gzip")
    text = Template(template).render(
        ELEMENTS=about.elements, RCUT=CUTOFF, DATAFILENAME="train.pckl.gzip", test_size="test_filename: test.pckl.gzip",
        number_of_functions_per_element=f"number_of_functions_per_element: {functions}",
    )  # fmt: skip
    (folder / "input.yaml").write_text(text)
    return frames[is_test]


def pacemaker(train, test, functions, minutes):
    """Plain pacemaker, with the errors of its interim potential every 20 s."""
    curve = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frame = pacemaker_input(folder, train, test, functions)

        def watch(seconds):
            interim = folder / "interim_potential_0.yaml"
            if interim.exists() and seconds - (curve[-1]["seconds"] if curve else 0) > 20:
                shutil.copyfile(interim, folder / "copy.yaml")
                try:  # pacemaker rewrites the file in place: half of it is no potential
                    energy, forces = errors_of(folder / "copy.yaml", frame)
                except (RuntimeError, ValueError):
                    return
                curve.append({"seconds": round(seconds, 1), "energy": energy, "forces": forces})

        measured = run([BIN / "pacemaker", "input.yaml", "--no-predict"], folder=folder, limit=60 * minutes, watch=watch)
    return {**measured, "curve": curve, "command": f"pacemaker input.yaml ({functions} functions, stopped after {minutes} min)"}


def predict(train, test, functions):
    """All structures with the same potential, by `mlip-pace predict` (with grades) and by `pacemaker --no-fit`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {"BASIS_FUNCTIONS": functions, "TRAINING_MAX_EPOCHS": 0, "DATA_PATH": train, "OUTPUT_PATH": f"{folder}/out"}
        run([BIN / "mlip-pace"], {f"MLIP_PACE_{key}": str(value) for key, value in settings.items()})
        pacemaker_input(folder, train, test, functions)
        ours = [BIN / "mlip-pace", "predict", "out/potential.json", train, "predicted.xyz"]
        theirs = [BIN / "pacemaker", "input.yaml", "--no-fit", "--potential", "out/work/5-train/potential.yaml"]
        return {
            "mlip-pace predict TRAIN": run(ours, folder=folder),
            "pacemaker input.yaml --no-fit (TRAIN and TEST)": run(theirs, folder=folder),
        }


def collect(train):
    """A VASP tree (the one beside the silicon set, seven times over) by `pace_collect` and by our stage in two processes."""
    tree = Path(train).parent.parent / "vasp-si-rss"
    with tempfile.TemporaryDirectory() as name:
        for copy in range(7):
            shutil.copytree(tree, Path(name) / f"{tree.name}-{copy}")
        begin = time.monotonic()
        files = find_files(name)
        settings = DataSettings.model_construct(test_fraction=0.0, max_rejected=1.0)
        _, about = dataset.assemble(dataset.structures_of(files), None, dataset.Rules(settings, cutoffs=[CUTOFF]), workers=2)
        ours = {"seconds": round(time.monotonic() - begin, 2), "structures": about.read}
        theirs = run([BIN / "pace_collect", "-wd", name], folder=name)
    return {"ours": ours, "pace_collect": theirs}


def errors_of(potential, frame):
    """MAE of ACE against energy_corrected and forces: meV/atom, eV/Å."""
    calculator, energy, forces = calculator_of(potential), [], []
    for atoms, e, f in zip(frame[dataset.ATOMS], frame["energy_corrected"], frame["forces"], strict=True):
        calculator.calculate(atoms)
        energy.append(abs(calculator.results["energy"] - e) / len(atoms))
        forces.append(abs(calculator.results["forces"] - f).ravel())
    return 1e3 * float(np.mean(energy)), float(np.mean(np.concatenate(forces)))


def ace_jax(train, test, program):
    """`aj fit`: order 4, degree 14 (724 functions), E0 by least squares; errors recomputed from what `aj eval` predicts."""
    with tempfile.TemporaryDirectory() as folder:
        fit = [program, "fit", "--train", train, "--test", test, "--elements", "Si", "--order", "4", "--max-degree", "14",
               "--rcut", str(CUTOFF), "--e0", "lsq", "--out", f"{folder}/fit"]  # fmt: skip
        measured = run([*map(str, fit)])
        model = next(Path(folder).glob("fit/**/model.npz"))
        run([program, "eval", "--model", model, "--data", test, "--out", f"{folder}/predicted.extxyz"])
        predicted, given = read(f"{folder}/predicted.extxyz", ":"), read(test, ":")
    energy = [abs(p.info["ace_energy"] - g.get_potential_energy()) / len(g) for p, g in zip(predicted, given, strict=True)]
    forces = [abs(p.arrays["ace_forces"] - g.get_forces()).ravel() for p, g in zip(predicted, given, strict=True)]
    return {
        **measured, "energy": 1e3 * float(np.mean(energy)), "forces": float(np.mean(np.concatenate(forces))),
        "command": " ".join(map(str, fit)).replace(str(program), "aj"),
    }  # fmt: skip


def labelled(train, functions):
    """The structures with their labels and weights, and the potential section."""
    settings = DataSettings.model_construct(test_fraction=0.0)
    frames, about = dataset.assemble(dataset.structures_of(find_files(train)), None, dataset.Rules(settings, cutoffs=[CUTOFF]))
    target = reference.delta(reference.choose(ReferenceSettings.model_construct(), frames, CUTOFF), frames)
    shortest = reference.shortest_distances(target[dataset.ATOMS], CUTOFF)
    potential = basis.section(BasisSettings.model_construct(functions=functions), about.elements, shortest)
    return linear.labelled(target), potential


@threadpool_limits.wrap(limits=1)
def rows(train, functions):
    """Milliseconds an atom of design rows by pyace and by us, of every tenth structure, three times in turn: the fastest."""
    from pyace.atomicenvironment import aseatoms_to_atomicenvironment
    from pyace.calculator import ACECalculator
    from pyace.evaluator import ACEBEvaluator

    structures, potential = labelled(train, functions)
    structures = [one.atoms for one in structures[::10]]
    pyace = basis.basis_set(potential)
    evaluator = ACEBEvaluator(pyace)
    calculator = ACECalculator(evaluator)
    elements = pyace.elements_to_index_map

    def theirs():
        for atoms in structures:
            environment = aseatoms_to_atomicenvironment(atoms, CUTOFF, elements_mapper_dict=elements)
            calculator.compute(environment, compute_projections=True, compute_b_grad=True)
            np.array(calculator.forces_bfuncs)

    def time_of(function):
        begin = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - begin) / sum(map(len, structures))

    zero, pairs = np.zeros(sum(basis.expansion(potential).counts)), list(basis.radial_pairs(potential))
    ways = {
        "pyace": theirs,
        "ours": lambda: deque(basis.expansion(potential).rows(structures, stress=True), maxlen=0),
        "ours with those of the radial coefficients": lambda: deque(
            basis.expansion(potential).rows(structures, zero, pairs), maxlen=0
        ),
    }
    times = [{name: time_of(function) for name, function in ways.items()} for _ in range(3)]
    return {name: round(min(one[name] for one in times), 2) for name in ways}


def workers(train, functions):
    """Seconds of the design rows and normal equations by one and by two processes, three times in turn: the fastest of each."""
    structures, potential = labelled(train, functions)
    function = partial(linear.accumulate, expansion=basis.expansion(potential), kappa=0.01)
    seconds = {1: [], 2: []}
    for count in (1, 2) * 3:
        begin = time.monotonic()
        deque(pool.parallel_map(function, linear.chunks_of(structures), count), maxlen=0)
        seconds[count].append(round(time.monotonic() - begin, 2))
    return {"one": seconds[1], "two": seconds[2], "ratio": round(min(seconds[1]) / min(seconds[2]), 2)}


def linear_memory(train, functions):
    """MB that least squares take beyond the structures, in our own process and in the largest of two workers."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def measure():
        structures, potential = labelled(train, functions)
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far
        before = memory_of("VmRSS")
        linear.fit(structures, potential, 0.01, 2)
        worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
        sender.send({"structures_mb": before, "peak_mb": memory_of("VmHWM"), "worker_mb": worker})

    child = multiprocessing.get_context("fork").Process(target=measure)
    child.start()
    child.join()
    return receiver.recv()


def memory_of(name):
    """MB, from /proc/self/status."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024


def growth(train, test, functions):
    """The linear solve on more data of the same kind."""
    structures, rng, rows = read(train, ":"), np.random.default_rng(0), []
    for times in (1, 4, 16):
        with tempfile.TemporaryDirectory() as folder:
            many = []
            for copy in range(times):
                for atoms in structures:
                    moved = atoms.copy()
                    moved.calc = atoms.calc
                    moved.positions += rng.normal(scale=0.01, size=moved.positions.shape) if copy else 0.0
                    many.append(moved)
            for atoms in many:
                atoms.calc.atoms = atoms
            write(f"{folder}/train.extxyz", many)
            settings = {"BASIS_FUNCTIONS": functions, "TRAINING_MAX_EPOCHS": 0, "SELECTION_METHOD": "none"}
            measured = ours(f"{folder}/train.extxyz", test, **settings)
            rows.append({"times": times, **measured, "linear": linear_memory(f"{folder}/train.extxyz", functions)})
    return rows


def save(results):
    """JSON, and the same as Markdown."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "bench.json").write_text(json.dumps(results, indent=1) + "\n")
    lines = ["# Benchmark", "", f"`{results['command']}`, {results['date']}; {results['machine']}.", "",
             "| what | seconds | MAE energy, meV/atom | MAE forces, eV/Å | memory, MB |", "|---|---|---|---|---|"]  # fmt: skip

    def line(what, row):
        cells = [f"{row['energy']:.2f}", f"{row['forces']:.4f}"] if "energy" in row else ["", ""]
        lines.append(f"| {what} | {row['seconds']} | " + " | ".join([*cells, str(row.get("memory_mb", ""))]) + " |")

    for row in results.get("mlip-pace", []) + results.get("growth", []):
        line((f"{row['times']}x data: " if "times" in row else "") + f"`{row['command']}`", row)
    if "pacemaker" in results:
        row = results["pacemaker"]
        for point in row["curve"][:: max(1, len(row["curve"]) // 10)] + row["curve"][-1:]:
            line("pacemaker, interim potential", point)
        line(f"`{row['command']}`", row)
    if "ace-jax" in results:
        line(f"`{results['ace-jax']['command']}`", results["ace-jax"])
    if "workers" in results:
        found = results["workers"]
        lines += [
            "",
            f"Normal equations, s: one process {found['one']}, two {found['two']}; ratio of the fastest {found['ratio']}.",
        ]
    for row in results.get("growth", []):
        used = row["linear"]
        lines += ["", f"Least squares on {row['times']}x the data: {used['structures_mb']} MB with the structures, at most "
                  f"{used['peak_mb']} MB during it, {used['worker_mb']} MB in a worker."]  # fmt: skip
    for part in ("predict", "collect"):
        seconds = ", ".join(f"{name} {found['seconds']}" for name, found in results.get(part, {}).items())
        lines += ["", f"{part}, s: {seconds}."] if seconds else []
    if "rows" in results:
        found = ", ".join(f"{name} {value}" for name, value in results["rows"].items())
        lines += ["", f"Design rows, ms/atom, one process: {found}."]
    (RESULTS / "bench.md").write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument(
        "parts", nargs="*", default=["mlip-pace", "pacemaker", "workers", "rows", "predict", "collect", "growth"]
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--functions", type=int, default=300)
    parser.add_argument("--ace-jax", type=Path)
    given = parser.parse_args()
    train, test = (str(Path(path).resolve()) for path in (given.train, given.test))
    results = {
        "command": " ".join(["benchmarks/bench.py", *sys.argv[1:]]), "date": time.strftime("%Y-%m-%d %H:%M"),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f} at the start",
    }  # fmt: skip
    if "mlip-pace" in given.parts:
        linear = {"BASIS_FUNCTIONS": given.functions, "TRAINING_MAX_EPOCHS": 0}
        runs = results.setdefault("mlip-pace", [])
        for settings in (linear, {"RUN_TIME_LIMIT": 60}, {"RUN_TIME_LIMIT": 300}):
            runs.append(ours(train, test, **settings))
            save(results)
    if "ace-jax" in given.parts:
        results["ace-jax"] = ace_jax(train, test, given.ace_jax)
        results["mlip-pace"] = [*results.get("mlip-pace", []), ours(train, test, BASIS_FUNCTIONS=724, TRAINING_MAX_EPOCHS=0)]
        save(results)
    if "pacemaker" in given.parts:
        results["pacemaker"] = pacemaker(train, test, given.functions, given.minutes)
        save(results)
    if "workers" in given.parts:
        results["workers"] = workers(train, given.functions)
        save(results)
    if "rows" in given.parts:
        results["rows"] = rows(train, given.functions)
        save(results)
    if "predict" in given.parts:
        results["predict"] = predict(train, test, given.functions)
        save(results)
    if "collect" in given.parts:
        results["collect"] = collect(train)
        save(results)
    if "growth" in given.parts:
        results["growth"] = growth(train, test, given.functions)
        save(results)


if __name__ == "__main__":
    main()
