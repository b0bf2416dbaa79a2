"""Crystals of potentials whose properties are known otherwise."""

from functools import cache

import numpy as np
from ase.build import bulk
from ase.calculators.lj import LennardJones

from mlip_pace.physics import crystals
from mlip_pace.physics.crystals import Lowest


def relaxed(atoms, calculator):
    """The crystal that a structure relaxes to with an ASE calculator."""
    return crystals.crystal_of(Lowest("A", "made", atoms, 0.0, 0.0), calculator, {})


class Pairs:
    """The pairs of an atom of fcc (n, 3) with a Lennard-Jones potential, the energy of each and its derivatives."""

    epsilon, sigma, cutoff = 0.4, 2.5, 9.0

    def __init__(self, a):
        grid = np.array(np.meshgrid(*[np.arange(-6, 7)] * 3)).reshape(3, -1).T * a
        basis = a * np.array([(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)])
        points = np.concatenate([grid + shift for shift in basis])
        r = np.linalg.norm(points, axis=1)
        within = (r > 0.1) & (r < self.cutoff)
        self.a, self.points, self.r = a, points[within], r[within]
        ratio = self.sigma / self.r
        self.energy = 4 * self.epsilon * (ratio**12 - ratio**6)
        self.first = 4 * self.epsilon * (-12 * ratio**12 + 6 * ratio**6) / self.r
        self.second = 4 * self.epsilon * (156 * ratio**12 - 42 * ratio**6) / self.r**2


@cache
def lennard_jones():
    """The crystal as it relaxes, a calculator, and its lattice sums."""
    calculator = LennardJones(epsilon=Pairs.epsilon, sigma=Pairs.sigma, rc=Pairs.cutoff)
    crystal = relaxed(bulk("Cu", "fcc", a=3.9, cubic=True), calculator)
    return crystal, calculator, Pairs(crystal.relaxed.lengths[0])
