"""What a step costs, and that potential.lammps names the faster evaluator."""

import time

import numpy as np
import pytest
from ase.build import bulk

from mlip_pace import reference
from mlip_pace.ace import basis, cost
from mlip_pace.ace.evaluators import calculator_of
from mlip_pace.ace.files import convert, write_linear
from mlip_pace.publish.potential import Potential
from mlip_pace.settings import BasisSettings


@pytest.fixture(scope="module")
def yace(tmp_path_factory):
    """A potential with 300 functions whose coefficients are random, but of the size that a fit gives them."""
    folder = tmp_path_factory.mktemp("cost")
    section = basis.section(BasisSettings(functions=300), ["Si"], {"Si-Si": 1.8})
    scale = basis.smoothness(section)
    write_linear(folder / "p.yaml", section, np.random.default_rng(0).normal(size=len(scale)) * scale)
    convert(folder / "p.yaml", folder / "p.yace", {})
    return folder / "p.yace"


def seconds(calculator, atoms):
    """The shortest of some evaluations, and the last results."""
    spent = []
    for n in range(4):
        atoms = atoms.copy()
        atoms.rattle(1e-9, seed=n)  # not what it has computed already
        begin = time.perf_counter()
        calculator.calculate(atoms)
        spent.append(time.perf_counter() - begin)
    return min(spent), calculator.results


def test_lammps_is_told_the_faster_of_two_ways_to_the_same_energy(yace):
    from pyace import PyACECalculator

    atoms = bulk("Si", cubic=True) * 3
    atoms.rattle(0.05, seed=1)
    product, of_product = seconds(PyACECalculator(str(yace)), atoms)
    recursive, of_recursive = seconds(PyACECalculator(str(yace), recursive_evaluator=True, recursive=True), atoms)
    assert of_recursive["energy"] == pytest.approx(of_product["energy"], rel=1e-9)
    np.testing.assert_allclose(of_recursive["forces"], of_product["forces"], atol=1e-8)
    faster = "recursive" if recursive < product else "product"
    for kind in ("none", "zbl"):
        commands = reference.lammps_commands(reference.Reference(kind, 1.0, 2.0), ["Si"], "p.yace")
        assert f" pace {faster}" in commands[0]


def test_the_cost_of_a_step_is_that_of_an_evaluation(demo, al_mg):
    """Measured by the job, in the sidecar and in the report; here measured anew."""
    published = Potential.load(demo / "potential.json")
    told = published.metadata["cost"]
    atoms = cost.repeated(al_mg[5])
    spent, _ = seconds(calculator_of(published.path), atoms)
    assert len(atoms) >= cost.ATOMS_ENOUGH
    assert told["atoms"] >= cost.ATOMS_ENOUGH
    assert told["evaluator"] == "recursive"
    assert told["md_step_us_per_atom"] == pytest.approx(1e6 * spent / len(atoms), rel=5)  # busy machines, another structure
    assert f"{told['md_step_us_per_atom']:g} µs an atom" in (demo / "report.html").read_text()
