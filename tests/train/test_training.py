"""Linear start, loss weights, input.yaml, the core below the data."""

import time
from dataclasses import replace
from itertools import combinations_with_replacement

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import bulk
from conftest import EXAMPLES, design_rows
from ruamel.yaml import YAML

from mlip_pace import reference
from mlip_pace.ace import basis, core
from mlip_pace.ace.basis import BasisFile
from mlip_pace.ace.evaluators import Predictor, calculator_of, pair_energies
from mlip_pace.ace.files import convert, write_linear
from mlip_pace.collect import dataset
from mlip_pace.collect.files import find_files
from mlip_pace.errors import SettingsError, ToolError
from mlip_pace.run import limits
from mlip_pace.run.compute import Compute
from mlip_pace.settings import BasisSettings, DataSettings, ReferenceSettings, TrainingSettings
from mlip_pace.train import linear, pacemaker, radial
from mlip_pace.train.override import load_override
from mlip_pace.train.weights import loss_weights


@pytest.fixture(scope="module")
def target():
    files = find_files(str(EXAMPLES))
    data = DataSettings.model_construct(test_fraction=0.0)
    frames, _ = dataset.assemble(dataset.structures_of(files), None, dataset.Rules(data))
    return reference.delta(reference.choose(ReferenceSettings.model_construct(), frames, 5.0), frames)


@pytest.fixture(scope="module")
def potential(target):
    shortest = reference.shortest_distances(target[dataset.ATOMS], 5.0)
    return basis.section(BasisSettings.model_construct(functions=20, body_order=3), ["Al", "Mg"], shortest)


@pytest.mark.parametrize("embedding", ["linear", "finnis-sinclair"])
def test_design_rows_times_coefficients_are_energies_and_forces(tmp_path, target, potential, embedding):
    settings = BasisSettings.model_construct(functions=20, body_order=3, embedding=embedding)
    section = basis.section(settings, ["Al", "Mg"], reference.shortest_distances(target[dataset.ATOMS], 5.0))
    coefficients = np.random.default_rng(1).normal(size=40)
    write_linear(tmp_path / "p.yaml", section, coefficients)
    calculator = calculator_of(tmp_path / "p.yaml")
    structures = list(target[dataset.ATOMS][60:90:7])
    predictions = map(Predictor(BasisFile(tmp_path / "p.yaml")), structures)
    for atoms, rows, predicted in zip(structures, design_rows(section, structures), predictions, strict=True):
        calculator.calculate(atoms)
        energy, forces, stress = (calculator.results[name] for name in ("energy", "forces", "stress"))
        results = np.concatenate([[energy], forces.ravel(), atoms.get_volume() * stress])
        np.testing.assert_allclose(rows @ coefficients, results, atol=1e-7)
        np.testing.assert_allclose(predicted, results, atol=1e-9)


def test_radial_rows_are_derivatives_by_radial_coefficients(tmp_path, target, potential):
    """Against pyace's evaluator on potentials whose radial coefficients differ by a finite amount, for every pair."""
    start, structures = tmp_path / "start.yaml", list(target[dataset.ATOMS][60:90:7])
    coefficients = np.random.default_rng(1).normal(size=40)
    write_linear(start, potential, coefficients)
    section = BasisFile(start)
    radial, pairs = basis.radial_coefficients(section), basis.radial_pairs(section)
    assert list(pairs) == [(0, 0), (0, 1), (1, 1)]
    expansion = basis.expansion(section)
    rows = [of_radial for _, of_radial in expansion.rows(structures, coefficients, list(pairs), stress=True)]
    assert {row.shape[1] for row in rows} == {len(radial)}
    for column in (pair.start + step for pair in pairs.values() for step in (3, 20)):
        ends = []
        for sign in (1, -1):
            there = radial + sign * 1e-3 * np.eye(len(radial))[column]
            write_linear(tmp_path / "moved.yaml", section, coefficients, there)
            ends.append([*map(Predictor(BasisFile(tmp_path / "moved.yaml")), structures)])
        for row, plus, minus in zip(rows, *ends, strict=True):
            slope = (plus - minus) / 2e-3
            np.testing.assert_allclose(row[:, column], slope, atol=1e-5 * np.abs(slope).max() + 1e-9)
    some = [of_radial for _, of_radial in expansion.rows(structures, coefficients, [(0, 1)])]
    for row, part in zip(rows, some, strict=True):
        np.testing.assert_allclose(row[:-6, pairs[0, 1]], part, atol=1e-12)


def labelled(target, potential, coefficients):
    """Structures whose labels are exactly those of a linear ACE with these coefficients."""
    rows = [of_structure @ coefficients for of_structure in design_rows(potential, target[dataset.ATOMS])]
    return [
        replace(one, energy=float(row[0]), forces=row[1:-6].reshape(-1, 3), virial=row[-6:])
        for one, row in zip(linear.labelled(target), rows, strict=True)
    ]


def test_least_squares_find_the_coefficients_that_made_the_labels(target, potential):
    coefficients = np.random.default_rng(2).normal(size=40) * basis.smoothness(potential)
    structures = labelled(target, potential, coefficients)
    found = linear.fit(structures, potential, 0.1)
    for rows, one in zip(design_rows(potential, [s.atoms for s in structures]), structures, strict=True):
        np.testing.assert_allclose(rows @ found.coefficients, one.target, atol=1e-5)
    assert found.lam < 1e-6
    assert found.loss < 1e-10


def test_the_number_of_workers_does_not_change_a_bit(tmp_path, target, potential):
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        problem = radial.Problem(linear.labelled(target), [], 0.1)
        radial.start(folder, problem, potential, workers)
        radial.refine(folder, problem, 1, Compute(threads=workers))
    names = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert names == ["iteration-0.yaml", "iteration-1.yaml", "metrics.txt", "state.json"]
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_variable_projection_lowers_the_loss_and_continues_where_it_stopped(tmp_path, target, potential):
    structures = linear.labelled(target)
    for name, stops in (("through", [3]), ("stopped", [1, 3])):
        (tmp_path / name).mkdir()
        problem = radial.Problem(structures, structures[::5], 0.1)
        start = radial.start(tmp_path / name, problem, potential)
        for most in stops:
            state = radial.refine(tmp_path / name, problem, most, Compute(threads=1))
        assert state.solution.loss < 0.9 * start.solution.loss
        assert state.solution.log_evidence > start.solution.log_evidence
    for table in ("metrics.txt", "test_metrics.txt"):
        rows = [(tmp_path / name / table).read_text() for name in ("through", "stopped")]
        assert rows[0] == rows[1]
        assert len(rows[0].splitlines()) == 5
    header, *_, last = (tmp_path / "through" / "metrics.txt").read_text().splitlines()
    told = dict(zip(header.split(), map(float, last.split()), strict=True))
    assert told["loss"] == pytest.approx(
        state.solution.loss, rel=1e-5
    )  # of the file that was written, against that of the solve
    rows = design_rows(basis.BasisFile(tmp_path / "through" / state.potential), [one.atoms for one in structures])
    gaps = [
        (row[: len(one.target)] @ state.solution.coefficients - one.target) for row, one in zip(rows, structures, strict=True)
    ]
    counts = [len(one.atoms) for one in structures]
    energies = np.array([gap[0] / count for gap, count in zip(gaps, counts, strict=True)])
    forces = np.concatenate([gap[1 : 1 + 3 * count] for gap, count in zip(gaps, counts, strict=True)])
    assert told["mae_epa"] == pytest.approx(np.abs(energies).mean(), rel=1e-3)
    assert told["rmse_epa"] == pytest.approx(np.sqrt((energies**2).mean()), rel=1e-3)
    assert told["mae_f_comp"] == pytest.approx(np.abs(forces).mean(), rel=1e-3)
    assert told["rmse_f_comp"] == pytest.approx(np.sqrt((forces**2).mean()), rel=1e-3)


def test_more_regularisation_for_noisier_labels(target, potential):
    rng, lambdas = np.random.default_rng(3), []
    for noise in (1e-3, 1.0):
        structures = [
            replace(s, forces=s.forces + rng.normal(0, noise, s.forces.shape))
            for s in labelled(target, potential, np.ones(40) * basis.smoothness(potential))
        ]
        lambdas.append(linear.fit(structures, potential, 0.5).lam)
    assert lambdas[0] < lambdas[1]


def test_no_iteration_is_begun_that_might_not_end_before_the_deadline(tmp_path, target, potential):
    problem = radial.Problem(labelled(target, potential, np.ones(40)), [], 0.1)
    radial.start(tmp_path, problem, potential)
    state = radial.refine(tmp_path, problem, 5, Compute(threads=1, deadline=time.monotonic() + 1000), longest=2000)
    assert state.iteration == 0


def test_normal_equations_of_unlike_columns_add_up():
    rng = np.random.default_rng(3)
    together, parts = np.zeros((12, 7)), []
    for n, columns in enumerate(([0, 2, 3], [2, 5], [1, 6], [0, 1, 2, 3, 5, 6])):
        rows = rng.normal(size=(3, len(columns)))
        together[3 * n : 3 * n + 3, columns] = rows
        parts.append(linear.Normal(np.array(columns), rows.T @ rows, rows.sum(axis=0), 3.0, 3))
    added = (parts[0] + parts[1] + (parts[2] + parts[3])).of(np.arange(7))
    np.testing.assert_allclose(added.matrix, together.T @ together)
    np.testing.assert_allclose(added.vector, together.sum(axis=0))
    assert (added.square, added.rows) == (12.0, 12)


def test_rounding_does_not_pass_for_evidence():
    """Normal equations of fewer rows than functions, with the rounding that they have in real ones."""
    rng = np.random.default_rng(5)
    rows, noise = rng.normal(size=(60, 200)) * 10.0 ** rng.uniform(-6, 0, 200), rng.normal(size=200)
    target = rng.normal(size=60)
    normal = linear.Normal(np.arange(rows.shape[1]), rows.T @ rows, rows.T @ target + 1e-12 * noise, float(target @ target), 60)
    solution = linear.solve(normal, np.ones(200))
    assert solution.log_evidence < 60 * np.log(10) * 7  # that of a misfit of 1e-14
    assert np.abs(rows @ solution.coefficients).max() < 10 * np.abs(target).max()


@pytest.mark.parametrize("weighting", ["uniform", "energy"])
def test_weights_sum_to_one(target, weighting):
    weights = loss_weights(target, TrainingSettings(weighting=weighting))
    assert weights.energy.sum() == pytest.approx(1)
    assert sum(w.sum() for w in weights.forces) == pytest.approx(1)
    np.testing.assert_array_equal(weights.virial, weights.energy)
    assert [len(w) for w in weights.forces] == [len(a) for a in target[dataset.ATOMS]]


def test_energy_weights_are_those_of_pacemaker_on_dft_values(target):
    """pacemaker's own policy, given DFT values in place of the delta, on one composition (its hull is then the minimum)."""
    from pyace.preparedata import EnergyBasedWeightingPolicy

    ours = target[target[dataset.ATOMS].map(lambda a: set(a.symbols) == {"Al"})].reset_index(drop=True)
    energy = ours[dataset.ENERGY] - ours[dataset.ENERGY_ATOMS]
    columns = {"ase_atoms": ours[dataset.ATOMS], "energy_corrected": energy, "forces": ours[dataset.FORCES]}
    theirs = pd.DataFrame({**columns, "NUMBER_OF_ATOMS": ours[dataset.ATOMS].map(len)})
    theirs["energy_corrected_per_atom"] = energy / theirs.NUMBER_OF_ATOMS
    theirs = EnergyBasedWeightingPolicy(energy="cohesive", DElow=100, DEup=1000).generate_weights(theirs).sort_index()
    weights = loss_weights(ours, TrainingSettings(weighting="energy"))
    np.testing.assert_allclose(weights.energy, theirs.w_energy, rtol=1e-9)
    np.testing.assert_allclose(np.concatenate(weights.forces), np.concatenate(list(theirs.w_forces)), rtol=1e-9)


def rendered(tmp_path, target, potential, **settings):
    override = settings.pop("override", {})
    training = TrainingSettings.model_construct(**settings)
    text = pacemaker.PacemakerRunner(tmp_path, potential, training, override=override).render(target, has_test=True)
    return YAML(typ="safe", pure=True).load(text)


def test_input_yaml_says_what_the_settings_say(tmp_path, target, potential):
    settings = {"kappa": 0.2, "max_epochs": 7, "ladder_step": [10.0, 0.02], "l1": 1e-9, "batch_size": 5, "display_step": 3}
    made = rendered(tmp_path, target, potential, **settings)
    assert made["potential"] == potential.content
    assert made["fit"]["loss"] == {"kappa": 0.2, "L1_coeffs": 1e-9, "L2_coeffs": 1e-8}
    assert made["fit"]["maxiter"] == 7
    assert made["fit"]["ladder_step"] == [10, 0.02]
    assert made["backend"] == {"evaluator": "tensorpot", "batch_size": 5, "display_step": 3}
    assert made["data"] == {"filename": "train.pckl.gzip", "test_filename": "test.pckl.gzip"}
    assert "repulsion" not in made["fit"]


def test_settings_cannot_inject_yaml(tmp_path, target, potential):
    made = rendered(tmp_path, target, potential, optimizer='BFGS"\n  callbacks: [os.system]\n  x: "')
    assert made["fit"]["optimizer"].startswith('BFGS"\n')
    assert made["fit"]["callbacks"] == ["mlip_pace.after_iteration"]


def test_an_override_is_merged(tmp_path, target, potential):
    (tmp_path / "o.yaml").write_text("fit: {options: {gtol: 1e-5}, loss: {w0_rad: 1.0e-8}}\nbackend: {batch_size: 3}\n")
    override = load_override(tmp_path / "o.yaml")
    made = rendered(tmp_path, target, potential, override=override)
    assert made["fit"]["options"] == {"gtol": 1e-5}
    assert made["fit"]["loss"]["w0_rad"] == 1e-8
    assert made["fit"]["loss"]["kappa"] == 0.01
    assert made["backend"]["batch_size"] == 3


@pytest.mark.parametrize(
    "text",
    ["fit: {callbacks: [os.system]}", "data: {filename: x}", "potential: {filename: x}", "potential: {initial_potential: x}",
     "backend: {evaluator: pyace}", "cutoff: 3", "fit: 3", "- a", "a: [", "fit: {repulsion: auto}"],
)  # fmt: skip
def test_an_override_that_is_ours_to_decide_is_refused(tmp_path, text):
    (tmp_path / "o.yaml").write_text(text)
    with pytest.raises(SettingsError, match="MLIP_PACE_TRAINING_OVERRIDE"):
        load_override(tmp_path / "o.yaml")


def test_a_failing_pacemaker_is_shown_with_its_log(tmp_path, target, potential):
    broken = basis.Section(potential.content | {"bonds": {"AlAl": {"radbase": "no such radial function"}}})
    runner = pacemaker.PacemakerRunner(tmp_path, broken, TrainingSettings.model_construct(start="zero"))
    with pytest.raises(ToolError) as failed:
        runner.train(target)
    assert "pacemaker ended with exit code 1" in failed.value.message
    assert "KeyError" in failed.value.detail


def test_e0_in_the_yace_is_added_to_every_atom(tmp_path, potential):
    write_linear(tmp_path / "p.yaml", potential, np.ones(40))
    convert(tmp_path / "p.yaml", tmp_path / "p.yace", {"Al": -1.5, "Mg": -0.25})
    atoms = Atoms("AlMg", [(0, 0, 0), (0, 0, 2.8)])
    energies = []
    for name in ("p.yaml", "p.yace"):
        atoms.calc = calculator_of(tmp_path / name)
        energies.append(atoms.get_potential_energy())
    assert energies[1] - energies[0] == pytest.approx(-1.75, abs=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_core_makes_any_dimer_curve_rise(tmp_path, potential, sign):
    """Random coefficients give wild energies at short distances; the fade and, if need be, the core repulsion tame them."""
    from pyace.basis import BBasisConfiguration

    coefficients = sign * 30 * np.abs(np.random.default_rng(5).normal(size=40)) * basis.smoothness(potential)
    file = tmp_path / "p.yaml"
    write_linear(file, potential, coefficients)
    zbl = reference.Reference("zbl", 1.2, 2.4)
    shortest = dict.fromkeys(("Al-Al", "Al-Mg", "Mg-Mg"), 1.9)
    before = pair_energies(file, "Al", "Al", np.arange(1.9, 3.0, 0.1))
    settled = core.settle(file, zbl, shortest)
    after = pair_energies(file, "Al", "Al", np.arange(1.9, 3.0, 0.1))
    np.testing.assert_allclose(after, before, atol=1e-9)  # nothing changes where there are data
    for pair, values in settled.items():
        assert values.r_in == pytest.approx(0.95 * 1.9)
        r = np.r_[0.95 * 1.9, np.arange(0.95 * 1.9 - 0.1, 0.295, -0.01)]  # from the middle of the fade
        curve = pair_energies(file, *pair.split("-"), r) + zbl.pair(*pair.split("-"), r)[0]
        assert bool((np.diff(curve) > 0).all()) == values.rises
        if values.core > 0:  # it is as weak as it can be, but for a margin
            weaker = BBasisConfiguration(str(file))
            for block in weaker.funcspecs_blocks:
                block.core_rep_parameters = [0.8 * values.core, 1.0]
            weaker.save(str(tmp_path / "weaker.yaml"))
            curve = pair_energies(tmp_path / "weaker.yaml", *pair.split("-"), r) + zbl.pair(*pair.split("-"), r)[0]
            assert (np.diff(curve) <= 0).any()
    assert sign < 0 or all(values.rises for values in settled.values())


def test_batches_fit_into_the_memory_and_are_halved_when_they_did_not(tmp_path, target, potential, monkeypatch):
    runner = pacemaker.PacemakerRunner(tmp_path, potential, TrainingSettings.model_construct())
    sizes = []
    for megabytes in (16000, 806, 805, 500):
        monkeypatch.setattr(limits, "memory", lambda m=megabytes: m * 2**20)
        sizes.append(runner.batch_size(target))
    assert sizes[0] == len(target) > sizes[1] > sizes[2] > sizes[3] == 1
    monkeypatch.undo()
    (tmp_path / "attempt-1").mkdir()
    (tmp_path / "attempt-1" / pacemaker.RECORD).write_text('{"batch_size": 40, "ended": "killed", "out_of_memory": true}')
    assert runner.batch_size(target) == 20


@pytest.mark.parametrize("elements", [1, 2, 3, 4])
@pytest.mark.parametrize(("functions", "body_order"), [(1, 2), (3, 5), (8, 3), (30, 2), (30, 5)])
def test_any_number_of_functions_for_any_number_of_elements_is_fitted_or_refused(tmp_path, elements, functions, body_order):
    """From least squares over a step of the radial functions to the .yace: what the rows say is what the file gives."""
    symbols = ["Al", "Cu", "Mg", "Zr"][:elements]
    rng = np.random.default_rng(elements)
    structures = []
    for _ in range(12):
        atoms = bulk("Al", cubic=True) * (2, 1, 1)
        atoms.rattle(0.1, rng=rng)
        atoms.symbols = rng.choice(symbols, len(atoms))
        weights = (1 / 12, np.full(len(atoms), 1 / 96), 1 / 12)
        structures.append(linear.Labelled(atoms, float(rng.normal()), rng.normal(size=(len(atoms), 3)), None, *weights))
    pairs = ["-".join(pair) for pair in combinations_with_replacement(symbols, 2)]
    settings = BasisSettings.model_construct(functions=functions, body_order=body_order)
    section = basis.section(settings, symbols, dict.fromkeys(pairs, 2.0))
    try:
        basis.refuse_unusable(section, symbols)
    except SettingsError as error:
        assert functions < 5 * elements
        assert "BASIS_FUNCTIONS" in error.hint  # noqa: PT017
        return
    problem = radial.Problem(structures, [], 0.1)
    radial.start(tmp_path, problem, section)
    state = radial.refine(tmp_path, problem, 1, Compute(threads=1))
    file = tmp_path / state.potential
    convert(file, tmp_path / "p.yace", {})
    calculator = calculator_of(tmp_path / "p.yace")
    for one, rows in zip(structures, design_rows(BasisFile(file), [s.atoms for s in structures]), strict=True):
        calculator.calculate(one.atoms)
        assert rows[0] @ state.solution.coefficients == pytest.approx(calculator.results["energy"], abs=1e-6)


def test_the_prior_prefers_low_orders():
    """1/s = 1 + Σ (n² + l²), by hand: the first functions of body order 2, and pairs."""
    section = basis.section(BasisSettings(functions=40, body_order=3), ["Al"], {"Al-Al": 2.0})
    built = basis.basis_set(section)
    functions = [*built.basis_rank1[0], *built.basis[0]]
    scales = dict(zip([(tuple(f.ns), tuple(f.ls)) for f in functions], 1 / basis.smoothness(section), strict=True))
    assert [scales[(n,), (0,)] for n in (1, 2, 3)] == pytest.approx([2, 5, 10])
    assert scales[(1, 1), (0, 0)] == pytest.approx(3)
    assert scales[(1, 1), (1, 1)] == pytest.approx(5)
    assert scales[(1, 2), (1, 1)] == pytest.approx(8)


@pytest.fixture
def begun(tmp_path, target, potential):
    """The linear start, with few rows in the sample that a step is made from."""
    problem = radial.Problem(linear.labelled(target), [], 0.1, seed=1)
    return problem, replace(radial.start(tmp_path, problem, potential), rows=0.5)


def test_a_step_without_evidence_is_not_taken(tmp_path, begun):
    """As if the model so far had all the evidence there is: the potential stays, the next step is half as long."""
    problem, state = begun
    best = replace(state, solution=replace(state.solution, log_evidence=np.inf))
    after = radial.iterate(tmp_path, best, problem, 1)
    assert (after.potential, after.solution, after.trust) == (best.potential, best.solution, best.trust / 2)
    assert not (tmp_path / "iteration-1.yaml").exists()


def test_the_seed_draws_the_sample(tmp_path, begun):
    problem, state = begun
    losses = [radial.iterate(tmp_path, state, replace(problem, seed=seed), 1).solution.loss for seed in (1, 2, 1)]
    assert losses[0] == losses[2] != losses[1]
