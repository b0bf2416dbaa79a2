"""Cross-validation of the least squares, against fits that really leave out what is held out."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import EXAMPLES, design_rows
from scipy.linalg import lstsq

from mlip_pace import reference
from mlip_pace.ace import basis
from mlip_pace.collect import dataset
from mlip_pace.collect.dataset import ATOMS, GROUP
from mlip_pace.collect.files import find_files
from mlip_pace.settings import BasisSettings, DataSettings, ReferenceSettings
from mlip_pace.train import crossvalidation, linear


@pytest.fixture(scope="module")
def target():
    data = DataSettings.model_construct(test_fraction=0.0)
    frames, _ = dataset.assemble(dataset.structures_of(find_files(str(EXAMPLES))), None, dataset.Rules(data))
    return reference.delta(reference.choose(ReferenceSettings(), frames, 5.0), frames).iloc[::3]


@pytest.fixture(scope="module")
def on(target):
    shortest = reference.shortest_distances(target[ATOMS], 5.0)
    return basis.section(BasisSettings(cutoff=5.0, functions=20, body_order=3), ["Al", "Mg"], shortest)


def fitted(rows, structures, kappa, ridge):
    """Coefficients by a least-squares solver of rows, not of normal equations."""
    root = [np.sqrt(one.weights(kappa)) for one in structures]
    together = np.concatenate([w[:, None] * row[: len(w)] for w, row in zip(root, rows, strict=True)])
    aim = np.concatenate([w * one.target for w, one in zip(root, structures, strict=True)])
    return lstsq(np.vstack([together, np.diag(np.sqrt(ridge))]), np.append(aim, np.zeros(len(ridge))))[0]


def test_errors_are_those_of_structures_that_are_really_left_out(target, on):
    structures, groups, scale = linear.labelled(target), [str(n % 2) for n in range(len(target))], basis.smoothness(on)
    found = crossvalidation.validate(structures, groups, on, 0.1, 2)
    solution, validated = found.solution, found.held_out
    rows = design_rows(on, [one.atoms for one in structures])
    energy, forces, unseen = [], [], 0.0
    for fold in (0, 1):
        kept = [n for n in range(len(structures)) if n % 2 != fold]
        share = sum(len(structures[n].target) for n in kept) / sum(len(one.target) for one in structures)
        ridge = share * solution.lam / scale**2
        left = fitted([rows[n] for n in kept], [structures[n] for n in kept], 0.1, ridge)
        for n in range(fold, len(structures), 2):
            count = len(structures[n].atoms)
            gap = rows[n][: len(structures[n].target)] @ left - structures[n].target
            unseen += structures[n].weights(0.1) @ gap**2
            energy.append(gap[0] / count)
            forces.append(gap[1 : 1 + 3 * count])
    assert validated.folds == 2
    assert found.unseen == pytest.approx(unseen, rel=1e-4)
    assert validated.errors.energy_mae == pytest.approx(np.abs(energy).mean(), rel=1e-4)
    assert validated.errors.energy_rmse == pytest.approx(np.sqrt(np.square(energy).mean()), rel=1e-4)
    assert validated.errors.forces_mae == pytest.approx(np.abs(np.concatenate(forces)).mean(), rel=1e-4)
    assert validated.errors.forces_rmse == pytest.approx(np.sqrt(np.square(np.concatenate(forces)).mean()), rel=1e-4)
    plain = linear.fit(structures, on, 0.1)
    np.testing.assert_allclose(solution.coefficients, plain.coefficients, rtol=1e-5, atol=1e-8)


def test_the_number_of_workers_does_not_change_a_bit(target, on):
    one, two = (
        crossvalidation.validate(linear.labelled(target), target[GROUP].tolist(), on, 0.1, n, spreads=True) for n in (1, 2)
    )
    assert one.held_out == two.held_out
    for quantity in ("energies", "forces"):
        assert getattr(one.residuals, quantity).tobytes() == getattr(two.residuals, quantity).tobytes()
    assert one.solution.coefficients.tobytes() == two.solution.coefficients.tobytes()


def test_residuals_have_the_spread_of_the_fit_that_did_not_see_them(target, on):
    structures, groups, scale = linear.labelled(target), [str(n % 2) for n in range(len(target))], basis.smoothness(on)
    found = crossvalidation.validate(structures, groups, on, 0.1, 1, spreads=True)
    rows = design_rows(on, [one.atoms for one in structures])
    weighted = [np.sqrt(one.weights(0.1))[:, None] * row[: len(one.target)] for one, row in zip(structures, rows, strict=True)]
    share = sum(len(one.target) for one in structures[1::2]) / sum(len(one.target) for one in structures)
    seen = np.concatenate(weighted[1::2])  # all that is not of the fold of the first structure
    matrix = seen.T @ seen + share * found.solution.lam * np.diag(1 / scale**2)
    noise, new = found.solution.loss / found.normal.rows, rows[0][0] / len(structures[0].atoms)
    assert found.residuals.energies.shape == (len(structures), 2)
    spread = np.sqrt(noise * new @ np.linalg.solve(matrix, new))
    assert np.isclose(found.residuals.energies[:, 1], spread, rtol=1e-3).any()
    assert np.mean(found.residuals.forces[:, 0]) == pytest.approx(found.held_out.errors.forces_mae)
    assert crossvalidation.validate(structures, groups, on, 0.1, 1).residuals is None


def test_more_structures_help_and_the_learning_curve_shows_it(target, on):
    validated = crossvalidation.validate(linear.labelled(target), target[GROUP].tolist(), on, 0.01, 2).held_out
    numbers, errors = zip(*validated.learning_curve, strict=True)
    assert validated.folds == 8
    assert numbers == pytest.approx([len(target) * share / 8 for share in (1, 2, 4, 7)])
    assert errors[-1] == validated.errors
    assert errors[0].forces_mae > 1.2 * errors[-1].forces_mae


def test_kappa_weighs_energies_against_forces(target, on):
    """More weight on forces: better forces; and noise on the forces takes their weight."""
    structures, groups = linear.labelled(target), target[GROUP].tolist()
    errors = crossvalidation.choose_kappa(structures, groups, on, 2)
    assert errors[1e-4].forces_mae > errors[3e-1].forces_mae
    score = {kappa: np.log(one.energy_mae * one.forces_mae) for kappa, one in errors.items()}
    assert crossvalidation.best(errors) == min(score, key=score.get)
    rng = np.random.default_rng(0)
    noisy = [replace(one, forces=one.forces + rng.normal(0, 2.0, one.forces.shape)) for one in structures]
    assert crossvalidation.best(crossvalidation.choose_kappa(noisy, groups, on, 2)) < crossvalidation.best(errors)


def test_groups_are_never_divided_and_one_group_alone_is_not_held_out(target, on):
    structures = linear.labelled(target)
    assert crossvalidation.choose_kappa(structures, ["same"] * len(structures), on, 1) == {}
    alone = crossvalidation.validate(structures, ["same"] * len(structures), on, 0.1, 1)
    assert alone.held_out is None
    assert np.isfinite(alone.solution.coefficients).all()
    # A copy of each structure in the same group: held out with it, so the errors are those without the copies.
    groups = [str(n) for n in range(len(structures))]
    once = crossvalidation.validate(structures, groups, on, 0.1, 1).held_out
    half = [replace(one, w_energy=one.w_energy / 2, w_forces=one.w_forces / 2) for one in structures]
    twice = crossvalidation.validate(half + half, groups + groups, on, 0.1, 1).held_out
    assert twice.errors.forces_mae == pytest.approx(once.errors.forces_mae, rel=0.1)  # another lambda


def test_energies_and_forces_have_the_same_say_in_the_weight_of_forces():
    """The smallest product of both errors: neither the best energies nor the best forces alone."""
    of = {0.1: (1.0, 1.0), 0.001: (0.5, 4.0), 0.9: (4.0, 0.5)}
    errors = {
        kappa: crossvalidation.Errors(energy, 99.0 - energy, forces, 99.0 - forces) for kappa, (energy, forces) in of.items()
    }
    assert crossvalidation.best(errors) == 0.1
    assert crossvalidation.best({**errors, 0.01: crossvalidation.Errors(3.0, 9.0, 0.33, 9.0)}) == 0.01
