"""The spread that least squares leave, against linear algebra written out and against fits to many noisy data."""

import numpy as np
import pytest
from conftest import design_rows

from mlip_pace.ace import basis, uncertainty
from mlip_pace.ace.files import write_linear
from mlip_pace.ace.uncertainty import Calibration, Scale, Uncertainty
from mlip_pace.settings import BasisSettings


@pytest.fixture
def on():
    shortest = dict.fromkeys(("Al-Al", "Al-Mg", "Mg-Mg"), 2.4)
    return basis.section(BasisSettings(functions=12, body_order=3, cutoff=5.0), ["Al", "Mg"], shortest)


def test_the_spread_is_that_of_fits_to_many_noisy_data():
    rng = np.random.default_rng(0)
    x, noise, new = rng.normal(size=(40, 5)), 0.3, rng.normal(size=(3, 5))
    data = x @ [1, -2, 0.5, 3, 0] + np.sqrt(noise) * rng.normal(size=(20000, 40))
    fits = np.linalg.lstsq(x, data.T, rcond=None)[0]
    found = np.linalg.norm(new @ uncertainty.factor(x.T @ x, noise).T, axis=1)
    np.testing.assert_allclose(found, (new @ fits).std(axis=1), rtol=0.02)


def test_a_factor_comes_back_from_its_file_of_half_its_size(tmp_path):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 50)) * np.geomspace(1, 1e-4, 50)
    whole = uncertainty.factor(x.T @ x, 0.1)
    uncertainty.save(tmp_path / "u.npy", whole)
    assert (tmp_path / "u.npy").stat().st_size == 128 + 4 * 50 * 51 // 2
    assert [p.name for p in tmp_path.iterdir()] == ["u.npy"]
    rows = rng.normal(size=(20, 50)) * np.geomspace(1, 1e-4, 50)
    spreads = [np.linalg.norm(rows @ f.T, axis=1) for f in (whole, uncertainty.load(tmp_path / "u.npy"))]
    np.testing.assert_allclose(*spreads, rtol=1e-5)


def test_sigma_of_a_structure_is_that_of_the_linear_algebra_written_out(tmp_path, on, al_mg):
    known, new = al_mg[10:60:5], al_mg[70]
    rows = np.concatenate([rows[: 1 + 3 * len(a)] for a, rows in zip(known, design_rows(on, known), strict=True)])
    matrix = rows.T @ rows + 1e-6 * np.eye(rows.shape[1])
    write_linear(tmp_path / "potential.yaml", on, np.ones(rows.shape[1]))
    uncertainty.save(tmp_path / uncertainty.FILE, uncertainty.factor(matrix, 0.01))
    calibration = Calibration(Scale(3.0, 0.002, {0.68: 1.0}), Scale(5.0, 0.01, {0.68: 1.0}), 10, 1.0, 1.0)
    energy, forces = Uncertainty.of(tmp_path, calibration)(new)
    (design,) = design_rows(on, [new])
    variance = 0.01 * np.einsum("ri,ij,rj->r", design, np.linalg.inv(matrix), design)
    n = len(new)
    assert energy == pytest.approx(n * np.sqrt(9 * variance[0] / n**2 + 0.002**2), rel=1e-4)
    np.testing.assert_allclose(forces.ravel(), np.sqrt(25 * variance[1 : 1 + 3 * n] + 0.01**2), rtol=1e-4)
    twice = new * (2, 1, 1)
    assert Uncertainty.of(tmp_path, calibration)(twice)[0] == pytest.approx(2 * energy, rel=1e-6)
