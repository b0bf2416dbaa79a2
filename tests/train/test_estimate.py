"""How long and how much memory: what `check` says beforehand against what was measured afterwards."""

import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import EXAMPLES, environment
from hypothesis import given
from hypothesis import strategies as st

from mlip_pace import reference
from mlip_pace.ace import basis
from mlip_pace.collect import dataset
from mlip_pace.collect.files import find_files
from mlip_pace.run import limits
from mlip_pace.run.compute import Compute
from mlip_pace.settings import BasisSettings, DataSettings, ReferenceSettings
from mlip_pace.train import estimate, linear, radial

MB = 2**20
CUTOFF = 5.0  # Å
FACTOR = 10  # between what is expected and what is measured; machines are shared, and small fits mostly start


@pytest.fixture(scope="module")
def target():
    """The example: 101 structures with what ACE is to learn of them."""
    files = dataset.structures_of(find_files(str(EXAMPLES)))
    frames, _ = dataset.assemble(files, None, dataset.Rules(DataSettings(test_fraction=0.0), cutoffs=[CUTOFF]))
    return reference.delta(reference.choose(ReferenceSettings(), frames, CUTOFF), frames)


def section(target, functions):
    shortest = reference.shortest_distances(target.ase_atoms, CUTOFF)
    return basis.section(BasisSettings(functions=functions), ["Al", "Mg"], shortest)


def within(measured, expected, factor=FACTOR):
    return expected / factor < measured < expected * factor


def test_the_fit_takes_about_as_long_as_said(target, tmp_path):
    problem, potential = radial.Problem(linear.labelled(target), [], 0.01), section(target, 100)
    said = estimate.seconds(potential, list(target.ase_atoms), 2, 1, pacemaker=False)
    begin = time.perf_counter()
    state = radial.start(tmp_path, problem, potential)
    start = time.perf_counter()
    state = radial.refine(tmp_path, problem, 2, Compute(threads=1))
    end = time.perf_counter()
    assert state.iteration == 2
    assert within(start - begin, said["linear_start"])
    assert within(end - start, said["training"])


def test_pacemaker_takes_about_as_long_and_as_much_as_said(target, tmp_path):
    said = estimate.seconds(section(target, 20), list(target.ase_atoms), 1, limits.cpus(), pacemaker=True)
    needed = estimate.memory(target.ase_atoms.map(len).sum(), 20)["needed"]
    script = (
        "import resource, sys; from mlip_pace.cli import main; code = main(['run'])\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr); sys.exit(code)"
    )
    env = environment(tmp_path / "out", TRAINING_MAX_EPOCHS=1, DATA_TEST_FRACTION=0, SELECTION_METHOD="none")
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=300)
    whole = time.perf_counter() - begin
    assert done.returncode == 0, done.stdout + done.stderr
    assert within(whole, said["training"])
    peak = 1024 * int(done.stderr.splitlines()[-1])  # of pacemaker, the largest of the processes that were started
    assert within(peak, needed, 2)


# Peak of pacemaker's process on silicon, measured by benchmarks/memory.py (docs/design.md): functions, atoms in a batch, MB.
MEASURED = [(20, 63, 817), (300, 63, 919), (300, 504, 1091), (300, 2016, 1600), (1000, 63, 1095), (1000, 315, 1600)]


@pytest.mark.parametrize(("functions", "atoms", "megabytes"), MEASURED)
def test_memory_is_that_of_the_benchmark(functions, atoms, megabytes):
    assert estimate.memory(atoms, functions)["needed"] / MB == pytest.approx(megabytes, rel=0.1)


def test_memory_that_is_there_is_that_of_the_machine():
    there = estimate.memory(100, 20)["available"]
    total = int(re.search(r"MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text())[1])
    assert 256 * MB < there <= 1024 * total
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < there


def test_what_is_measured_is_for_all_structures(target):
    atoms, potential = list(target.ase_atoms), section(target, 50)
    estimate.measure(potential, atoms)  # what is imported by the first is not to count
    few, many = estimate.measure(potential, atoms), estimate.measure(potential, atoms * 100)
    assert within(many.rows, 100 * few.rows, 30)  # larger batches take less for an atom, other programs more
    assert 0 < few.building < 30


MEASURED_HERE = estimate.Measured(rows=100.0, building=1.0)


@given(st.floats(0.01, 1e5), st.floats(0.01, 30), st.integers(1, 1000), st.integers(1, 64), st.booleans(), st.floats(1.5, 100))
def test_more_takes_longer(rows, building, iterations, threads, pacemaker, times):
    less = estimate.expected(estimate.Measured(rows, building), iterations, threads, pacemaker)
    larger = estimate.expected(estimate.Measured(rows * times, building), iterations, threads, pacemaker)
    slower = estimate.expected(estimate.Measured(rows, building * times), iterations, threads, pacemaker)
    longer = estimate.expected(estimate.Measured(rows, building), iterations + 10, threads, pacemaker)
    shared = estimate.expected(estimate.Measured(rows, building), iterations, 2 * threads, pacemaker)
    for name in less:
        assert shared[name] <= less[name] <= larger[name]
        assert less[name] <= slower[name]
    assert less["training"] <= longer["training"]
    assert larger["linear_start"] >= less["linear_start"] > 0


def test_what_is_expected_adds_up():
    own, theirs = (estimate.expected(MEASURED_HERE, 10, 4, pacemaker) for pacemaker in (False, True))
    assert 25 < own["linear_start"] == theirs["linear_start"] < 100  # the rows on four threads, and what comes with them
    assert 250 < own["training"] < 2000
    assert own["linear_start"] < own["last_solve"] < 0.3 * own["training"]
    assert theirs["last_solve"] == 0
    assert estimate.expected(MEASURED_HERE, 20, 4, False)["training"] == pytest.approx(2 * own["training"])
    for pacemaker in (False, True):
        assert estimate.expected(MEASURED_HERE, 0, 4, pacemaker)["training"] == 0
    nothing = estimate.expected(estimate.Measured(1e-6, 1e-6), 1, 1, pacemaker=True)
    assert 10 < nothing["training"] < 120  # TensorFlow has to start
