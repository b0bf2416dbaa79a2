"""The whole job as a user runs it: the program in a process of its own, the real pacemaker, real DFT data."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.units import GPa
from conftest import EXAMPLES as DATA
from conftest import environment, mlip_pace

from mlip_pace import learn, load_calculator
from mlip_pace.ace import core, uncertainty
from mlip_pace.errors import OtherResultError
from mlip_pace.inputs import inputs_of
from mlip_pace.publish.potential import FILES, Potential, intact
from mlip_pace.run.log import STAGES
from mlip_pace.run.steps import sha256
from mlip_pace.sources import load


def started(output, **settings):
    return subprocess.Popen(
        [sys.executable, "-m", "mlip_pace.cli"], env=environment(output, **settings), stdout=subprocess.PIPE, text=True
    )


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def processes_in(folder):
    """Processes whose working directory is below a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").resolve().is_relative_to(folder):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_every_file_is_published_with_its_hash(trained, sidecar):
    assert set(sidecar.metadata["files"]) == set(FILES) - {uncertainty.FILE}  # which pacemaker's optimizers do not give
    for name, digest in sidecar.metadata["files"].items():
        assert sha256(trained / name) == digest
    assert intact(trained / "potential.json") is not None
    assert not list(trained.glob(".*.part"))


def test_the_sidecar_says_how_it_was_made(sidecar):
    assert sidecar.format == "ace"
    assert sidecar.elements == ["Al", "Mg"]
    metadata = sidecar.metadata
    assert metadata["training"]["iterations"] == 5
    assert metadata["training"]["stopped"] == "the iterations asked for are done"
    assert metadata["reference"] | {"kind": "zbl", "form": "zbl", "requires_overlay": True} == metadata["reference"]
    assert metadata["settings"]["BASIS_FUNCTIONS"] == {"value": 20, "from": "environment"}
    assert metadata["settings"]["BASIS_BODY_ORDER"]["from"] == "environment"
    assert metadata["settings"]["TRAINING_KAPPA"] == {"value": 0.01, "from": "default"}
    assert (metadata["basis"]["cutoff"], metadata["basis"]["functions_at_most"]) == (5.0, 20)
    assert metadata["dataset"]["files"][0]["sha256"] == sha256(DATA)
    assert {item["source"] for item in metadata["dataset"]["left_out"]} == {"al-mg.extxyz#0", "al-mg.extxyz#1"}
    assert metadata["e0"]["source"] == {"Al": "isolated atom", "Mg": "isolated atom"}
    for name in ("versions", "hardware", "seconds", "licenses", "selection", "basis"):
        assert metadata[name]


def test_the_sidecar_says_which_holes_were_looked_for(sidecar, demo):
    """Of pacemaker's fit they are told, of the least squares closed."""
    bfgs, least_squares = (found.metadata["probe"] for found in (sidecar, Potential.load(demo / "potential.json")))
    assert (bfgs["closed"], least_squares["closed"]) == (False, True)
    for probe in (bfgs, least_squares):
        assert len(probe["rounds"]) == 1
        assert set(probe["rounds"][0]["trials"]) == {"random", "compressed", "dynamics", "volumes"}
        assert probe["left"] == sum(probe["rounds"][0]["holes"].values())
        assert probe["curves"]["Al"]["volume"] == pytest.approx(16.5, abs=0.3)
    assert "probe" not in sidecar.metadata["training"]
    warned = [warning for warning in sidecar.metadata["warnings"] if "search for holes" in warning]
    assert len(warned) == (bfgs["left"] > 0)


def test_the_published_errors_are_those_of_the_published_files(trained, sidecar):
    frames = read(DATA, ":")
    tested = sidecar.metadata["errors"]["test"]
    sources = json.loads((trained / "work" / "4-select" / "chosen.json").read_text())
    chosen = [int(source.split("#")[1]) for source in sources]
    calculator = load_calculator(trained / "potential.json")
    energies, forces = [], []
    for n in chosen:
        atoms = frames[n].copy()
        atoms.calc = calculator
        energies.append((atoms.get_potential_energy() - frames[n].get_potential_energy()) / len(atoms))
        forces.append((atoms.get_forces() - frames[n].get_forces()).ravel())
    errors = sidecar.metadata["errors"]["train"]
    assert errors["energy_mae"] == pytest.approx(np.abs(energies).mean(), rel=1e-9)
    assert errors["forces_rmse"] == pytest.approx(np.sqrt((np.concatenate(forces) ** 2).mean()), rel=1e-9)
    assert errors["n_structures"] == len(chosen)
    assert tested["n_structures"] > 0
    assert errors["energy_rmse"] < 0.1


def test_forces_and_stress_are_the_derivatives_of_the_energy(trained):
    atoms = next(a for a in read(DATA, ":") if a.info["group"] == "mg3al_l12_rattled_1").copy()
    atoms.calc = load_calculator(trained / "potential.json")
    forces, stress, h = atoms.get_forces(), atoms.get_stress(voigt=False), 1e-4

    def energy(moved):
        moved.calc = atoms.calc
        return moved.get_potential_energy()

    for n, axis in ((0, 0), (2, 1)):
        up, down = atoms.copy(), atoms.copy()
        up.positions[n, axis] += h
        down.positions[n, axis] -= h
        assert -(energy(up) - energy(down)) / (2 * h) == pytest.approx(forces[n, axis], abs=2e-5)
    for i, j in ((0, 0), (0, 1)):
        strained = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += sign * h / 2
            strain[j, i] += sign * h / 2
            one = atoms.copy()
            one.set_cell(atoms.cell @ strain, scale_atoms=True)
            strained.append(energy(one))
        assert (strained[0] - strained[1]) / (2 * h) / atoms.get_volume() == pytest.approx(stress[i, j], abs=1e-6)


def test_free_atoms_have_their_dft_energy(trained):
    calculator = load_calculator(trained / "potential.json")
    for atoms in read(DATA, ":2"):
        free = atoms.copy()
        free.calc = calculator
        assert free.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-6)


def test_dimers_repel_ever_more_below_the_data(trained, sidecar):
    calculator = load_calculator(trained / "potential.json")
    from ase import Atoms

    for pair, shortest in sidecar.metadata["basis"]["shortest"].items():
        energies = []
        for r in np.r_[0.95 * shortest, np.arange(0.95 * shortest - 0.1, 0.295, -0.01)]:  # the end and the middle of the fade
            dimer = Atoms(pair.split("-"), [(0, 0, 0), (0, 0, r)], calculator=calculator)
            energies.append(dimer.get_potential_energy())
        assert core.rises(np.array(energies)), pair
        assert energies[-1] > 100  # eV at 0.3 Å


def test_the_lammps_file_has_ace_and_reference(trained, sidecar):
    lines = (trained / "potential.lammps").read_text().splitlines()
    inner, outer = (sidecar.metadata["reference"][name] for name in ("inner", "outer"))
    assert f"pair_style hybrid/overlay pace recursive zbl {inner:.10g} {outer:.10g}" in lines
    assert "pair_coeff * * pace ${pace_dir}/potential.yace Al Mg" in lines
    assert "pair_coeff 1 2 zbl 13 12" in lines


def test_the_active_set_grades_new_structures(trained):
    from pyace import PyACECalculator

    calculator = PyACECalculator(str(trained / "potential.yaml"))
    calculator.set_active_set(str(trained / "potential.asi"))
    known = next(a for a in read(DATA, ":") if a.info["group"] == "al_fcc_rattled_0").copy()
    strange = known.copy()
    strange.set_cell(strange.cell * 0.75, scale_atoms=True)
    grades = []
    for atoms in (known, strange):
        atoms.calc = calculator
        atoms.get_potential_energy()
        grades.append(calculator.results["gamma"].max())
    assert grades[0] < 2 < grades[1]


def test_a_finished_job_runs_nothing_again(trained):
    before = {p: p.stat().st_mtime_ns for p in (trained / "work").rglob("*")}
    code, events, _ = mlip_pace(
        trained, TRAINING_MAX_EPOCHS=5, TRAINING_DISPLAY_STEP=1, PROBE_ROUNDS=1, PHYSICS_PROPERTIES="equation"
    )
    assert code == 0
    assert any("already published" in e["message"] for e in events)
    assert before == {p: p.stat().st_mtime_ns for p in (trained / "work").rglob("*")}


def test_a_changed_setting_reruns_only_what_depends_on_it(tmp_path):
    assert mlip_pace(tmp_path)[0] == 0
    first = (tmp_path / "potential.json").read_bytes()
    assert mlip_pace(tmp_path, TRAINING_KAPPA=0.5)[0] == 78
    assert (tmp_path / "potential.json").read_bytes() == first
    code, events, _ = mlip_pace(tmp_path, TRAINING_KAPPA=0.5, OUTPUT_OVERWRITE=1)
    assert code == 0
    skipped = {e["stage"] for e in events if e.get("message") == "unchanged, not run again"}
    assert skipped == {"collect", "subtract", "basis", "select"}
    assert (tmp_path / "previous-1" / "potential.json").read_bytes() == first
    assert intact(tmp_path / "previous-1" / "potential.json") is not None


@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_in_any_stage_leaves_a_true_result_or_none(tmp_path, stage):
    def reached():
        status = tmp_path / "status.json"
        return status.exists() and json.loads(status.read_text())["stage"] in STAGES[STAGES.index(stage) :]

    job = started(tmp_path)
    wait_for(reached)
    job.kill()
    job.wait()
    sidecar = tmp_path / "potential.json"
    assert not sidecar.exists() or intact(sidecar) is not None
    wait_for(lambda: not processes_in(tmp_path), 10)
    assert mlip_pace(tmp_path)[0] == 0
    assert intact(sidecar) is not None


def test_a_killed_training_goes_on_from_its_checkpoint(tmp_path):
    settings = {"TRAINING_MAX_EPOCHS": 40, "TRAINING_EARLY_STOPPING_GAIN": 0, "TRAINING_OPTIMIZER": "BFGS"}
    job = started(tmp_path, **settings)
    attempt = tmp_path / "work" / "5-train.part" / "attempt-1"
    wait_for(lambda: (attempt / "checkpoint.yaml").exists())
    job.kill()
    job.wait()
    wait_for(lambda: not processes_in(tmp_path), 10)
    code, events, _ = mlip_pace(tmp_path, **settings)
    assert code == 0, events
    training = Potential.load(tmp_path / "potential.json").metadata["training"]
    killed, continued = training["attempts"]
    assert killed["ended"] == "killed"
    assert killed["iterations"] + continued["iterations"] == training["iterations"] == 40
    assert mlip_pace(tmp_path / "whole", **settings)[0] == 0
    whole = Potential.load(tmp_path / "whole" / "potential.json").metadata["training"]["loss"]
    first = float(
        (tmp_path / "whole" / "work" / "5-train" / "attempt-1" / "metrics.txt").read_text().splitlines()[1].split()[3]
    )
    assert abs(training["loss"] - whole) < 0.25 * (first - whole)  # BFGS begins anew with the curvature


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_a_signal_ends_the_job_with_its_code(tmp_path, number, code):
    job = started(tmp_path, TRAINING_MAX_EPOCHS=1000, TRAINING_EARLY_STOPPING_GAIN=0, TRAINING_OPTIMIZER="BFGS")
    wait_for(lambda: (tmp_path / "work" / "5-train.part" / "attempt-1" / "input.yaml").exists())
    job.send_signal(number)
    last = json.loads(job.communicate(timeout=20)[0].splitlines()[-1])
    assert job.returncode == last["code"] == code
    assert last["resumable"]
    assert not (tmp_path / "potential.json").exists()
    wait_for(lambda: not processes_in(tmp_path), 5)


def test_a_second_run_on_the_same_output_is_refused(tmp_path):
    job = started(tmp_path, TRAINING_MAX_EPOCHS=1000, TRAINING_EARLY_STOPPING_GAIN=0, TRAINING_OPTIMIZER="BFGS")
    try:
        wait_for(lambda: (tmp_path / "work" / "5-train.part").exists())
        assert mlip_pace(tmp_path)[0] == 75
    finally:
        job.kill()
        job.communicate()


def test_the_quality_gate_publishes_and_says_no(tmp_path):
    code, _, last = mlip_pace(tmp_path, EVALUATE_MAX_ENERGY_RMSE=1e-9)
    assert code == 81
    assert "energy RMSE" in last["message"]
    assert intact(tmp_path / "potential.json") is not None


@pytest.mark.parametrize("kind", ["lj", "none"])
def test_learn_takes_atoms_in_memory(tmp_path, kind):
    frames = [a for a in read(DATA, ":") if set(a.symbols) == {"Al"}]
    groups = {"basis": {"functions": 20, "body_order": 3}, "training": {"max_epochs": 0}}
    groups |= {"reference": {"kind": kind}, "probe": {"rounds": 1}}  # with lj some of the dynamics bursts
    potential = learn(frames, output=tmp_path / "out", **groups)
    assert potential.elements == ["Al"]
    assert potential.metadata["reference"]["kind"] == kind
    atoms = frames[3].copy()
    atoms.calc = load_calculator(tmp_path / "out" / "potential.json")
    error = atoms.get_potential_energy() - frames[3].get_potential_energy()
    assert abs(error) / len(atoms) < 0.5


def test_learn_tests_structures_of_one_composition_as_a_collection_does(tmp_path):
    frames = [a for a in read(DATA, ":") if str(a.symbols) == "AlMg"]
    for atoms in frames:
        atoms.info.pop("group", None)
    groups = {"basis": {"functions": 15, "body_order": 2}, "training": {"max_epochs": 0}, "probe": {"rounds": 0}}
    metadata = learn(frames, output=tmp_path / "out", physics={"properties": "none"}, **groups).metadata
    assert metadata["dataset"]["test"] >= 1
    assert metadata["errors"]["test"]["n_structures"] == metadata["dataset"]["test"]
    assert "calibration" in metadata["uncertainty"]
    assert all("group" not in atoms.info for atoms in frames)  # they are the user's


def test_learn_replaces_nothing_unasked(tmp_path):
    frames = [a for a in read(DATA, ":") if set(a.symbols) == {"Al"}]
    groups = {"basis": {"functions": 15, "body_order": 2}, "training": {"max_epochs": 0}, "probe": {"rounds": 0}}
    first = learn(frames, output=tmp_path / "out", **groups).metadata["files"]
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("potential.*")}
    with pytest.raises(OtherResultError):
        learn(frames[:-5], output=tmp_path / "out", **groups)
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").glob("potential.*")}
    assert learn(frames, output=tmp_path / "out", **groups).metadata["files"] == first
    assert learn(frames[:-5], output=tmp_path / "out", overwrite=True, **groups).metadata["files"] != first
    assert intact(tmp_path / "out" / "previous-1" / "potential.json").metadata["files"] == first


def test_settings_without_effect_are_named_and_change_nothing(tmp_path):
    """They are pacemaker's; the default fit does without it."""
    ours = {"TRAINING_OPTIMIZER": None, "TRAINING_MAX_EPOCHS": 1}
    assert mlip_pace(tmp_path, **ours)[0] == 0
    code, events, _ = mlip_pace(
        tmp_path, **ours, TRAINING_L1=1e-6, TRAINING_BATCH_SIZE=3, TRAINING_DISPLAY_STEP=2, command="check"
    )
    assert code == 0
    (said,) = [e["message"] for e in events if e.get("level") == "warning" and "no effect" in e["message"]]
    assert all(f"MLIP_PACE_TRAINING_{name}" in said for name in ("L1", "BATCH_SIZE", "DISPLAY_STEP"))
    assert "MAX_EPOCHS" not in said
    assert any("run would have nothing to do" in e["message"] for e in events)
    code, events, _ = mlip_pace(tmp_path, **ours, TRAINING_L1=1e-6, REFERENCE_EPSILON=0.2)
    assert code == 0  # not 78
    said = [e["message"] for e in events if e.get("level") == "warning" and "no effect" in e["message"]]
    assert [one.split(":")[0] for one in said] == ["MLIP_PACE_REFERENCE_EPSILON", "MLIP_PACE_TRAINING_L1"]
    assert any("already published" in e["message"] for e in events)
    metadata = Potential.load(tmp_path / "potential.json").metadata
    assert "batch_size" not in metadata["training"]
    assert metadata["training"]["device"] == "cpu"
    assert set(metadata["seconds"]) == {"collect", "subtract", "basis", "select", "train", "evaluate", "publish"}


@pytest.mark.parametrize("optimizer", ["auto", "BFGS"])
def test_more_iterations_go_on_from_where_fewer_ended(tmp_path, optimizer):
    """Without being asked to overwrite anything; what comes out is what comes of asking for more at once."""
    settings = {"TRAINING_OPTIMIZER": optimizer, "TRAINING_DISPLAY_STEP": 1}
    assert mlip_pace(tmp_path / "two", **settings, TRAINING_MAX_EPOCHS=1)[0] == 0
    first = Potential.load(tmp_path / "two" / "potential.json")
    code, events, _ = mlip_pace(tmp_path / "two", **settings, TRAINING_MAX_EPOCHS=2)
    assert code == 0, events
    second = Potential.load(tmp_path / "two" / "potential.json")
    assert (first.metadata["training"]["iterations"], second.metadata["training"]["iterations"]) == (1, 2)
    assert intact(tmp_path / "two" / "previous-1" / "potential.json") is not None
    if optimizer == "auto":
        assert mlip_pace(tmp_path / "one", **settings, TRAINING_MAX_EPOCHS=2)[0] == 0
        assert sha256(tmp_path / "one" / "potential.yace") == sha256(tmp_path / "two" / "potential.yace")
    else:
        assert len(second.metadata["training"]["attempts"]) == 2
    assert mlip_pace(tmp_path / "two", **settings, TRAINING_MAX_EPOCHS=1)[0] == 78  # fewer are another result


def test_a_file_alone_is_taken_as_it_is(tmp_path, trained):
    """Without iterations nothing is fitted, nor pacemaker started; the settings of a basis have no say, and are named."""
    given = {"TRAINING_START": trained / "potential.yaml", "TRAINING_MAX_EPOCHS": 0, "TRAINING_OPTIMIZER": None}
    code, events, _ = mlip_pace(tmp_path, command="check", **given)
    assert code == 0
    assert not any("pacemaker" in e["message"] for e in events if e.get("level") != "warning")
    assert mlip_pace(tmp_path, **given)[0] == 0
    metadata = Potential.load(tmp_path / "potential.json").metadata
    assert (metadata["training"]["attempts"], metadata["training"]["iterations"]) == ([], 0)
    assert metadata["uncertainty"] == {"absent": "nothing was fitted: the potential is the file that it started from"}
    assert metadata["errors"]["test"] == pytest.approx(Potential.load(trained / "potential.json").metadata["errors"]["test"])
    code, events, _ = mlip_pace(tmp_path, **{**given, "BASIS_FUNCTIONS": 77})
    assert code == 0  # not 78
    assert any("MLIP_PACE_BASIS_FUNCTIONS" in e["message"] and "no effect" in e["message"] for e in events)


def test_what_moves_below_a_potential_to_go_on_from_is_told(tmp_path, trained):
    """Other E0 or another reference shift the energies of the file; what keeps them is named."""
    given = {"TRAINING_START": trained / "potential.yaml", "TRAINING_MAX_EPOCHS": 0, "TRAINING_OPTIMIZER": None}
    e0 = Potential.load(trained / "potential.json").metadata["e0"]["energies"]
    kept = ",".join(f"{symbol}:{energy:.13g}" for symbol, energy in e0.items())
    for settings, told in (
        ({}, []),
        ({"DATA_E0": kept}, []),
        ({"DATA_E0": "Al:-1,Mg:0.5"}, ["E0"]),
        ({"REFERENCE_INNER": 0.9}, ["the reference"]),
    ):
        _, events, _ = mlip_pace(tmp_path, command="check", **given, **settings)
        said = [event["message"] for event in events if "is not that of the potential to go on from" in event["message"]]
        assert [message.partition(" is not that")[0] for message in said] == told
        assert all(f"MLIP_PACE_DATA_E0={kept} keeps it" in message for message in said if message.startswith("E0"))
        assert all("MLIP_PACE_REFERENCE_INNER=" in message for message in said if message.startswith("the reference"))


def test_what_is_named_keeps_what_is_below_a_potential(tmp_path, trained):
    """Energies of all electrons, too, which have many digits; a file that the sidecar does not name is another one."""
    about = json.loads((trained / "potential.json").read_text())
    about["metadata"]["e0"]["energies"] = exact = {"Al": -6601.123456789, "Mg": -762098.123456789}
    for name in about["metadata"]["files"]:
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    (tmp_path / "potential.json").write_text(json.dumps(about))
    (tmp_path / "other.yaml").write_bytes((trained / "potential.yaml").read_bytes())
    before = Potential.load(tmp_path / "potential.json").reference

    def moved(e0, start="potential.yaml"):
        groups = {
            "data": {"path": str(DATA)},
            "output": {"path": tmp_path / "out"},
            "training": {"start": str(tmp_path / start)},
        }
        return inputs_of(load(**groups)).moved(e0, before)

    assert moved(exact) == []
    (said,) = moved({"Al": -6601.0, "Mg": -762098.0})
    kept = re.search("MLIP_PACE_DATA_E0=(.*) keeps it", said)[1]
    assert moved(load(data={"path": str(DATA), "e0": kept}, output={"path": tmp_path / "out"}).data.e0) == []
    assert moved({"Al": -6601.0, "Mg": -762098.0}, "other.yaml") == []


def test_every_structure_that_is_left_out_is_named_where_data_are_refused(tmp_path):
    """However many reasons there are; by `run` and by `check`."""
    (tmp_path / "data").mkdir()
    for n in range(15):  # each with a reason of its own
        atoms = Atoms("H2", [(0, 0, 0), (0, 0, 0.01 * (n + 1))], cell=[9, 9, 9], pbc=True)
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((2, 3)))
        write(tmp_path / "data" / f"{n}.xyz", atoms, format="extxyz")
    for command in ("check", "run"):
        code, _, last = mlip_pace(tmp_path / "out", tmp_path / "data", command=command)
        assert code == 65
        assert sorted(item["source"] for item in last["left_out"]) == sorted(f"{n}.xyz#0" for n in range(15))
        assert all(item["reason"] for item in last["left_out"])


def test_check_refuses_weights_that_run_would(tmp_path):
    for weights, code in (("no such type:10", 64), ("volume:0,rattled:0,short:0,surface:0,vacancy:0", 65)):
        for command in ("check", "run"):
            assert mlip_pace(tmp_path / "out", command=command, TRAINING_WEIGHTS=weights)[0] == code


def test_check_writes_nothing(tmp_path):
    code, events, _ = mlip_pace(tmp_path / "out", command="check")
    assert code == 0
    assert any("20 functions of Al" in e["message"] for e in events)
    assert not (tmp_path / "out").exists()


def broken(change):
    """The example's frames, the last of them changed by `change(atoms, results)`."""
    frames = read(DATA, ":12")
    atoms, results = frames[-1], dict(frames[-1].calc.results)
    change(atoms, results)
    atoms.calc = SinglePointCalculator(atoms)
    atoms.calc.results = results
    return frames


def nan_energy(folder):
    write(folder / "bad.xyz", broken(lambda atoms, results: results.update(energy=float("nan"))), format="extxyz")


def wrong_forces(folder):
    text = DATA.read_text().splitlines(keepends=True)
    body = [line.replace("forces:R:3", "forces:R:2") for line in text[24:27]]
    (folder / "bad.xyz").write_text(
        "".join(text[:24] + [line.rsplit(None, 1)[0] + "\n" if n == 2 else line for n, line in enumerate(body)])
    )


def truncated(folder):
    text = DATA.read_text()
    (folder / "bad.xyz").write_text(text[: text.index("al_hcp_volume_1.00") + 250])


def unknown_element(folder):
    text = DATA.read_text().splitlines(keepends=True)[:24]
    (folder / "bad.xyz").write_text("".join([*text[:-1], text[-1].replace("Al ", "Xx ")]))


def single(folder):
    write(folder / "one.xyz", read(DATA, "7"), format="extxyz")


def pickle_with_code(folder):
    import pickle

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {folder}/executed",)

    (folder / "data.pckl.gzip").write_bytes(pickle.dumps(Evil()))


BAD_INPUT = {
    "an empty folder": (lambda folder: None, {}, 66, "holds no files"),
    "a missing path": (lambda folder: folder.rmdir(), {}, 66, "does not exist"),
    "an empty file": (lambda folder: (folder / "a.xyz").touch(), {}, 65, "no structure"),
    "a truncated file": (truncated, {}, 65, "ends within a frame"),
    "forces of the wrong shape": (wrong_forces, {}, 65, "expected (1, 3)"),
    "NaN energy": (nan_energy, {}, 65, "energy is nan"),
    "an unknown key": (single, {"DATA_ENERGY_KEY": "E_total"}, 65, "E_total"),
    "no element": (unknown_element, {}, 65, "Xx"),
    "a single structure": (single, {}, 65, "1 structure to train on"),
    "a pickle that runs code": (pickle_with_code, {}, 77, "posix.system"),
    "an unknown variable": (single, {"TRANING_KAPPA": 1}, 64, "did you mean MLIP_PACE_TRAINING_KAPPA"),
    "kappa of 2": (single, {"TRAINING_KAPPA": 2}, 64, "MLIP_PACE_TRAINING_KAPPA=2"),
    "no element in a setting": (single, {"BASIS_ELEMENTS": "Al,Qq"}, 64, "Qq"),
    "a missing test path": (single, {"DATA_TEST_PATH": "/nowhere/test.xyz"}, 66, "/nowhere/test.xyz"),
    "a GPU that is not there": (single, {"RUN_DEVICE": "gpu"}, 69, "no NVIDIA GPU"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_ends_with_its_code_and_one_readable_line(tmp_path, case):
    make, settings, expected, words = BAD_INPUT[case]
    folder, output = tmp_path / "data", tmp_path / "out"
    folder.mkdir()
    make(folder)
    code, _, last = mlip_pace(output, folder, **settings)
    assert code == expected
    assert words in last["message"]
    assert last["hint"]
    assert not (output / "potential.json").exists()
    assert not (folder / "executed").exists()


def test_an_element_that_is_only_in_the_test_data_is_refused(tmp_path):
    frames = read(DATA, ":")
    write(tmp_path / "train.xyz", [a for a in frames if set(a.symbols) == {"Al"}], format="extxyz")
    write(tmp_path / "test.xyz", [a for a in frames if "Mg" in a.symbols], format="extxyz")
    code, _, last = mlip_pace(tmp_path / "out", tmp_path / "train.xyz", DATA_TEST_PATH=tmp_path / "test.xyz")
    assert code == 65
    assert "Mg is in test:test.xyz" in last["message"]


def test_an_output_of_somebody_else_is_named(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "potential.yace").symlink_to("/etc/hostname")
    code, _, last = mlip_pace(output)
    assert code == 77
    assert "/etc/hostname" in last["message"]
    blocked = tmp_path / "file"
    blocked.touch()
    code, _, last = mlip_pace(blocked / "out")
    assert code == 73
    assert "uid" in last["message"]


def test_the_time_limit_publishes_the_potential_so_far_and_the_next_run_continues(tmp_path):
    settings = {"TRAINING_MAX_EPOCHS": 3000, "BASIS_FUNCTIONS": 60, "BASIS_BODY_ORDER": 4, "TRAINING_EARLY_STOPPING_GAIN": 0}
    begin = time.monotonic()
    code, _, last = mlip_pace(tmp_path, RUN_TIME_LIMIT="1m45s", **settings)
    assert code == 124
    assert time.monotonic() - begin < 105
    assert last["resumable"]
    first = Potential.load(tmp_path / "potential.json")
    assert first.metadata["complete"] is False
    assert intact(tmp_path / "potential.json") is not None
    assert first.metadata["errors"]["test"]["n_structures"] > 0
    code, _, _ = mlip_pace(tmp_path, RUN_TIME_LIMIT=105, **settings)
    second = Potential.load(tmp_path / "potential.json").metadata["training"]
    assert code in (0, 124)  # a fast machine converges in the second run
    assert second["attempts"][0]["ended"] == "the time limit came first"
    assert len(second["attempts"]) == 2
    assert second["iterations"] > first.metadata["training"]["iterations"] > 0
    assert not (tmp_path / "previous-1").exists()  # the same job, further on


def test_by_default_the_radial_functions_are_refined_by_variable_projection(tmp_path):
    """Stopped by nothing but its number of iterations; the learning curve is that of the errors published."""
    code, events, _ = mlip_pace(tmp_path, TRAINING_OPTIMIZER="auto", TRAINING_MAX_EPOCHS=2)
    assert code == 0, events
    metadata = Potential.load(tmp_path / "potential.json").metadata
    assert metadata["training"]["iterations"] == 2
    header, *rows = (tmp_path / "work" / "5-train" / "least-squares" / "test_metrics.txt").read_text().splitlines()
    table = [dict(zip(header.split(), map(float, row.split()), strict=True)) for row in rows]
    assert [row["iter_num"] for row in table] == [0, 1, 2]
    # The core (core.py) is set after the fit, below all distances of the training data.
    assert table[-1]["mae_epa"] == pytest.approx(metadata["errors"]["test"]["energy_mae"], rel=0.02)
    assert table[-1]["mae_f_comp"] == pytest.approx(metadata["errors"]["test"]["forces_mae"], rel=0.02)


def test_the_same_inputs_give_the_same_potential_byte_for_byte(tmp_path):
    """With one thread and with two: sums do not depend on the number of workers."""
    for threads in (1, 2):
        code, events, _ = mlip_pace(
            tmp_path / str(threads), TRAINING_OPTIMIZER="auto", TRAINING_MAX_EPOCHS=2, RUN_THREADS=threads
        )
        assert code == 0, events
    one, two = ((tmp_path / str(threads) / "potential.yace").read_bytes() for threads in (1, 2))
    assert one == two


@pytest.mark.parametrize(("sign", "key"), [(1, "auto"), (-1, "auto"), (-1, "none")])
def test_stresses_are_fitted_and_doubted_where_they_do_not_go_with_the_energies(tmp_path, al_mg, sign, key):
    for atoms in al_mg:
        if "stress" in atoms.calc.results:
            atoms.calc.results["stress"] *= sign
    write(tmp_path / "data.extxyz", al_mg)
    code, _, _ = mlip_pace(tmp_path / "out", tmp_path / "data.extxyz", BASIS_FUNCTIONS=60, DATA_STRESS_KEY=key)
    metadata = Potential.load(tmp_path / "out" / "potential.json").metadata
    assert code == 0
    doubts = [warning for warning in metadata["warnings"] if "stresses of the training data do not go" in warning]
    errors = metadata["errors"]["train"]
    if key == "none":
        assert not doubts
        assert "stress_rmse" not in errors
    elif sign == 1:
        assert not doubts
        assert errors["stress_rmse"] < 1.0 * GPa
        assert "stress_left_out" not in metadata["training"]
    else:
        assert len(doubts) == 1
        assert "MLIP_PACE_DATA_STRESS_KEY=none" in doubts[0]
        assert metadata["training"]["stress_left_out"]
        without = mlip_pace(tmp_path / "without", tmp_path / "data.extxyz", BASIS_FUNCTIONS=60, DATA_STRESS_KEY="none")
        assert without[0] == 0
        published = [(tmp_path / name / "potential.yace").read_bytes() for name in ("out", "without")]
        assert published[0] == published[1]


def test_cutoff_and_functions_are_found_and_a_killed_search_goes_on(tmp_path):
    """With the defaults of a user: the basis by evidence, least squares for all, cross-validation."""
    settings = {"BASIS_CUTOFF": None, "BASIS_FUNCTIONS": 30, "TRAINING_OPTIMIZER": None, "TRAINING_MAX_EPOCHS": 1}
    job, tried = started(tmp_path, **settings), tmp_path / "work" / "3-basis.part" / "tried.json"
    wait_for(tried.exists)
    job.kill()
    job.wait()
    before = json.loads(tried.read_text())
    code, events, _ = mlip_pace(tmp_path, **settings)
    assert code == 0, events[-3:]
    metadata = Potential.load(tmp_path / "potential.json").metadata
    basis, training = metadata["basis"], metadata["training"]
    assert [one["seconds"] for one in basis["tried"][: len(before)]] == [one["seconds"] for one in before]
    assert basis["cutoff"] == max(basis["tried"], key=lambda one: one["log_evidence"])["cutoff"]
    assert {one["functions"] for one in basis["tried"]} == {basis["functions_at_most"]} == {30}
    assert sum("log evidence" in event["message"] for event in events) == len(basis["tried"]) - len(before)
    assert (training["fitted_to"], training["cross_validation"]["folds"]) == ("all", 8)
    assert metadata["selection"]["method"] == "none"
    assert "left_out" not in metadata["errors"]
    page = (tmp_path / "report.html").read_text()
    assert "Cutoff and functions" in page
    assert "Would more data help?" in page
    assert f"{basis['cutoff']:g} Å, 30 functions (taken)" in page


def test_a_choice_is_for_the_radial_functions_or_for_everything(tmp_path):
    """A number that is asked for is what all of the fit is to; the others are evaluated as left out."""
    settings = {"TRAINING_OPTIMIZER": None, "TRAINING_MAX_EPOCHS": 1, "SELECTION_MAX_STRUCTURES": 40}
    code, events, _ = mlip_pace(tmp_path, **settings)
    assert code == 0, events[-3:]
    metadata = Potential.load(tmp_path / "potential.json").metadata
    assert metadata["training"]["fitted_to"] == "chosen"
    assert metadata["errors"]["train"]["n_structures"] == metadata["selection"]["chosen"] == 40
    assert metadata["errors"]["left_out"]["n_structures"] == metadata["selection"]["given"] - 40
    assert metadata["selection"]["largest_weight"] <= 2 * metadata["selection"]["given"] / 40 + 1e-9
    assert metadata["selection"]["effective_number"] <= 40


def test_iterations_after_none_are_those_of_asking_at_once(tmp_path):
    """Without iterations no structures are chosen, with them they may be: the choice is made then, and the fit follows it."""
    settings = {"TRAINING_OPTIMIZER": None, "BASIS_FUNCTIONS": 10}  # few coefficients: some of the structures are enough
    assert mlip_pace(tmp_path / "later", **settings)[0] == 0
    assert Potential.load(tmp_path / "later" / "potential.json").metadata["selection"]["method"] == "none"
    for folder in ("later", "at once"):
        code, events, _ = mlip_pace(tmp_path / folder, **settings, TRAINING_MAX_EPOCHS=1)
        assert code == 0, events[-3:]
    assert Potential.load(tmp_path / "later" / "potential.json").metadata["selection"]["method"] == "doptimal"
    one, other = ((tmp_path / folder / "potential.yace").read_bytes() for folder in ("later", "at once"))
    assert one == other
