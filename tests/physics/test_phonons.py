"""Phonons against the dynamical matrix of pair potentials, and a crystal that is not stable."""

import subprocess
import sys

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.data import atomic_masses
from pairs import lennard_jones, relaxed

from mlip_pace.physics import phonons

pytestmark = pytest.mark.usefixtures("one_thread")

THZ = np.sqrt(1.602176634e-19 / 1e-20 / 1.66053906892e-27) / (2 * np.pi) * 1e-12  # of sqrt(eV/Å^2/u); CODATA 2022


def frequencies(pairs, q):
    """Of q (Cartesian, in 2π/Å): D = 1/m Σ (1 - cos 2πq·r) (φ'' r̂r̂ + φ'/r (1 - r̂r̂)), THz, ascending."""
    unit = pairs.points / pairs.r[:, None]
    along = np.einsum("ni,nj->nij", unit, unit)
    stiffness = pairs.second[:, None, None] * along + (pairs.first / pairs.r)[:, None, None] * (np.eye(3) - along)
    matrix = np.einsum("n,nij->ij", 1 - np.cos(2 * np.pi * pairs.points @ q), stiffness) / atomic_masses[29]
    return np.sqrt(np.linalg.eigvalsh(matrix)) * THZ


def test_those_of_a_lennard_jones_crystal_are_those_of_its_dynamical_matrix():
    crystal, calculator, pairs = lennard_jones()
    found = phonons.phonons(crystal, calculator)
    assert (found.imaginary, found.share, found.gamma) == ([], 0.0, [])
    at = {name: place for place, name in found.bands.points}
    for name, q in (("X", (1, 0, 0)), ("L", (0.5, 0.5, 0.5))):
        nearest = int(np.abs(np.array(found.bands.distance) - at[name]).argmin())
        line = sorted(branch[nearest] for branch in found.bands.frequencies)
        assert line == pytest.approx(frequencies(pairs, np.array(q) / pairs.a), rel=0.01), name
    # The largest of fcc metals and noble gases is longitudinal, at X or near it.
    assert found.highest == pytest.approx(frequencies(pairs, np.array([1, 0, 0]) / pairs.a)[-1], rel=0.03)


def test_imaginary_modes_have_their_names():
    """bcc copper is not stable: the transversal mode at N leads to fcc (W. G. Burgers, Physica 1, 561 (1934))."""
    found = phonons.phonons(relaxed(bulk("Cu", "bcc", a=2.85, cubic=True), EMT()), EMT())
    names = {mode.name: mode.frequency for mode in found.imaginary}
    assert min(names, key=names.get) == "N"
    assert names["N"] < -0.5
    assert "G" not in names
    assert 0 < found.share < 0.1
    assert min(map(min, found.bands.frequencies)) == pytest.approx(names["N"], abs=0.01)


def test_after_phonons_in_this_process_its_workers_compute_them_too():
    """Threads do not survive a fork, and what waits for them waits for ever; here in a process that a limit of time ends."""
    script = """
from functools import partial
from ase.build import bulk
from ase.calculators.emt import EMT
from mlip_pace.physics import crystals, phonons
from mlip_pace.run import pool
copper = crystals.crystal_of(crystals.Lowest("Cu", "", bulk("Cu"), -3.5, -3.5), EMT(), {})
first = phonons.phonons(copper, EMT())
assert list(pool.parallel_map(partial(phonons.phonons, calculator=EMT()), [copper, copper], 2)) == [first, first]
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
