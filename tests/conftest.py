"""Shared by the tests: where the real data is, and structures with labels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read
from threadpoolctl import threadpool_limits

from mlip_pace.ace import basis
from mlip_pace.collect import dataset
from mlip_pace.publish.potential import Potential

ROOT = Path(__file__).parents[1]
RAW = ROOT / "tests" / "raw"
EXAMPLES = ROOT / "examples" / "al-mg.extxyz"
REQUIRE_DOCKER = os.environ.get("TESTS_REQUIRE_DOCKER") == "1"


# What makes a test slow: a whole job that it needs, or real programs at work for minutes.
SLOW_FIXTURES = {"trained", "demo", "sidecar", "image", "engine", "desk", "fitted", "silicon"}
SLOW_FILES = (
    "tests/container/",
    "tests/test_job.py",
    "tests/train/test_estimate.py",
    "tests/test_howto.py",
    "tests/test_readme.py",
    "tests/train/test_",
)


def pytest_collection_modifyitems(items):
    for item in items:
        if SLOW_FIXTURES & set(item.fixturenames) or item.nodeid.startswith(SLOW_FILES):
            item.add_marker(pytest.mark.slow)


SMALL = {
    "BASIS_CUTOFF": 5.0,
    "BASIS_FUNCTIONS": 20,
    "BASIS_BODY_ORDER": 3,
    "TRAINING_OPTIMIZER": "BFGS",
    "TRAINING_MAX_EPOCHS": 0,
    "DATA_TEST_FRACTION": 0.1,
    "PROBE_ROUNDS": 0,
    "PHYSICS_PROPERTIES": "none",
}


def found(pieces, rules, audit=None, workers=1):
    """The rows of the sound structures, as `dataset.assemble` finds them, each with its columns as attributes and by name."""
    structures = dataset.Found()
    structures.add(pieces, rules, audit or dataset.Audit(), workers=workers)
    return [row for _, row in structures.frame().iterrows()]


def of_a_user(physics="equation"):
    """The environment of somebody who has set nothing of ours, but for the crystals' properties, whose default takes half a
    minute a job: for documents whose subject they are not.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MLIP_PACE_")}
    return inherited | ({"MLIP_PACE_PHYSICS_PROPERTIES": physics} if physics else {})


def environment(output, data=EXAMPLES, **settings):
    ours = {**SMALL, "DATA_PATH": data, "OUTPUT_PATH": output, **settings}
    return of_a_user(None) | {f"MLIP_PACE_{name}": str(value) for name, value in ours.items() if value is not None}


def mlip_pace(output, data=EXAMPLES, command="run", **settings):
    """Run the program; returns its exit code, its JSON events and the last line of its log."""
    env = environment(output, data, **settings)
    done = subprocess.run(
        [sys.executable, "-m", "mlip_pace.cli", command], env=env, capture_output=True, text=True, timeout=300
    )
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[-1]["code"] == done.returncode, done.stdout + done.stderr
    return done.returncode, events, events[-1]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The output folder of a job with a real fit of a few iterations."""
    output = tmp_path_factory.mktemp("job") / "out"
    code, events, _ = mlip_pace(
        output, TRAINING_MAX_EPOCHS=5, TRAINING_DISPLAY_STEP=1, PROBE_ROUNDS=1, PHYSICS_PROPERTIES="equation"
    )
    assert code == 0, events
    return output


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The output folder of a job with 60 functions and the linear start alone: seconds, and good enough for physics."""
    output = tmp_path_factory.mktemp("demo") / "out"
    code, events, _ = mlip_pace(
        output,
        BASIS_FUNCTIONS=60,
        BASIS_BODY_ORDER=None,
        PROBE_ROUNDS=1,
        PHYSICS_PROPERTIES="equation,elastic,phonons,vacancies,surfaces",
    )
    assert code == 0, events
    return output


@pytest.fixture(scope="session")
def sidecar(trained):
    return Potential.load(trained / "potential.json")


def beside(name: str) -> Path:
    """Data beside the project, which must not be copied into it; without it, the test is skipped."""
    path = ROOT.parent / "shared" / "data" / name
    if not path.exists():
        pytest.skip(f"{path} is not there (data beside the project)")
    return path


def labelled(atoms: Atoms, energy: float, forces=None, **results) -> Atoms:
    """A copy of `atoms` with an energy (eV) and forces (eV/Å; zero, if none are given) as a calculator's results."""
    atoms = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    atoms.calc = SinglePointCalculator(atoms)
    atoms.calc.results = {"energy": energy, "forces": np.zeros((len(atoms), 3)) if forces is None else forces, **results}
    return atoms


def design_rows(on, structures):
    """For each structure the rows (1 + 3 n + 6, functions) of energy, forces and virial, by `expansion.py`."""
    return [of_c for of_c, _ in basis.expansion(on).rows(structures, stress=True)]


@pytest.fixture
def one_thread():
    """As our processes have it: many threads that multiply small matrices wait for each other."""
    with threadpool_limits(1):
        yield


@pytest.fixture
def al_mg() -> list[Atoms]:
    """The example data: two isolated atoms, then Al, Mg and their compounds, labelled with PBE."""
    return read(EXAMPLES, index=":")
