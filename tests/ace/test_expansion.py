"""ACE in arrays against pyace, function by function."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from conftest import design_rows
from pyace.atomicenvironment import aseatoms_to_atomicenvironment
from pyace.calculator import ACECalculator
from pyace.evaluator import ACEBEvaluator
from scipy.interpolate import CubicHermiteSpline
from scipy.special import sph_harm_y

from mlip_pace.ace import basis, kernels
from mlip_pace.ace.harmonics import tables
from mlip_pace.settings import BasisSettings


def potential(elements, body_order=5, functions=200):
    shortest = {"-".join(sorted((a, b))): 0.9 for a in elements for b in elements}
    return basis.section(BasisSettings.model_construct(functions=functions, body_order=body_order), elements, shortest)


def displaced(atoms, symbols=None):
    if symbols:
        atoms.symbols = symbols
    atoms.rattle(0.05, seed=0)
    return atoms


def cubic():
    return bulk("Al", cubic=True)


STRUCTURES = {
    "small cell: an atom sees itself and others several times": (["Al"], [displaced(bulk("Al").repeat((1, 1, 2)))]),
    "two elements": (["Al", "Mg"], [displaced(cubic(), "AlMgAlMg")]),
    "three elements": (["Al", "Cu", "Mg"], [displaced(cubic(), "AlMgAlCu")]),
    "an element that is not there": (["Al", "Mg"], [displaced(cubic())]),
    "a molecule": (["C", "H"], [displaced(molecule("C2H6"))]),
    "free atoms and atoms out of reach": (["Al"], [Atoms("Al"), *(Atoms("Al2", [(0, 0, 0), (0, 0, z)]) for z in (6, 3))]),
    "more than a block": (["Al"], [displaced(cubic().repeat((3, 3, 2))), bulk("Al"), bulk("Al", a=4.2)]),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_functions_and_rows_are_those_of_pyace(name):
    elements, structures = STRUCTURES[name]
    section = potential(elements)
    pyace = basis.basis_set(section)
    evaluator = ACEBEvaluator(pyace)
    calculator = ACECalculator(evaluator)
    rows = list(design_rows(section, structures))
    functions = list(basis.expansion(section).functions(structures))
    counts = [len(one) + len(more) for one, more in zip(pyace.basis_rank1, pyace.basis, strict=True)]
    first = dict(zip(pyace.elements_name, np.cumsum([0, *counts[:-1]]), strict=True))
    for atoms, row, by_element in zip(structures, rows, functions, strict=True):
        environment = aseatoms_to_atomicenvironment(atoms, pyace.cutoffmax, elements_mapper_dict=pyace.elements_to_index_map)
        calculator.compute(environment, compute_projections=True, compute_b_grad=True)
        expected = np.zeros(sum(counts))
        symbols = np.array(list(atoms.symbols))
        assert sorted(by_element) == sorted(set(symbols))
        for symbol, values in by_element.items():
            theirs = np.array([calculator.projections[n] for n in np.flatnonzero(symbols == symbol)])
            np.testing.assert_allclose(values, theirs, atol=1e-7 * max(1, np.abs(theirs).max()))
            expected[first[symbol] : first[symbol] + values.shape[1]] = theirs.sum(axis=0)
        forces = np.array(calculator.forces_bfuncs).transpose(0, 2, 1).reshape(3 * len(atoms), -1)
        np.testing.assert_allclose(row[0], expected, atol=1e-7 * max(1, np.abs(expected).max()))
        np.testing.assert_allclose(row[1:-6], forces, atol=1e-6 * max(1, np.abs(forces).max()))


def harmonics(directions, lmax):
    """Values (n, lm) and gradients (n, 3, lm) on the unit sphere."""
    ls, ms, legendre, derivative = tables(lmax)
    count, nlm, no_radial = len(directions), (lmax + 1) ** 2, np.zeros((2, 0))
    y, dy = np.empty((nlm, count)), np.empty((3, nlm, count))
    g, dg = np.empty((2, 0, count))
    directions = np.ascontiguousarray(directions.T)
    kernels.bond_functions(np.ones(count), directions, no_radial, no_radial, 0.1, legendre, derivative, ls, ms, g, dg, y, dy)
    return y.T, dy.transpose(2, 0, 1)


def test_splines_are_scipys():
    rng, grid = np.random.default_rng(0), 0.01 * np.arange(1, 50)
    values, slopes = rng.normal(size=(2, 49, 3))
    distance = np.sort(rng.uniform(0.01, 0.49, 40))
    spline, directions = CubicHermiteSpline(grid, values, slopes), np.repeat([[1.0], [0.0], [0.0]], 40, axis=1)
    g, dg = np.empty((2, 3, 40))
    ls, ms, legendre, derivative = tables(0)
    y, dy = np.empty((1, 40)), np.empty((3, 1, 40))
    kernels.bond_functions(distance, directions, values, slopes, 0.01, legendre, derivative, ls, ms, g, dg, y, dy)
    np.testing.assert_allclose(g, spline(distance).T, atol=1e-12)
    np.testing.assert_allclose(dg, spline(distance, 1).T, atol=1e-9)


def test_harmonics_are_scipys_and_their_gradients_along_the_sphere():
    directions = np.random.default_rng(0).normal(size=(20, 3))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    values, gradients = harmonics(directions, 4)
    theta, phi = np.arccos(directions[:, 2]), np.arctan2(directions[:, 1], directions[:, 0])
    for l in range(5):  # noqa: E741
        for m in range(l + 1):
            expected = (-1) ** m * np.sqrt(4 * np.pi) * sph_harm_y(l, m, theta, phi)  # without the phase of Condon and Shortley
            np.testing.assert_allclose(values[:, l**2 + max(0, 2 * m - 1)], expected.real, atol=1e-12)
            if m:
                np.testing.assert_allclose(values[:, l**2 + 2 * m], expected.imag, atol=1e-12)
    step = 1e-6
    for axis in range(3):
        moved = [directions + sign * step * np.eye(3)[axis] for sign in (1, -1)]
        plus, minus = (harmonics(d / np.linalg.norm(d, axis=1)[:, None], 4)[0] for d in moved)
        np.testing.assert_allclose(gradients[:, axis], (plus - minus) / (2 * step), atol=1e-7)
