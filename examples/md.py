"""Molecular dynamics with a published potential: `python -m examples.md out/potential.json`.

32 atoms of fcc Al at constant energy: the total energy must stay, or forces are not the derivative of the energy.
"""

import sys

import numpy as np
from ase.build import bulk
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.units import fs

from mlip_pace import load_calculator


def run(sidecar, steps: int = 200, temperature: float = 600.0) -> np.ndarray:
    """Total energy (eV/atom) at every step of 1 fs; a perfect crystal at `temperature` (K) ends up at half of it."""
    atoms = bulk("Al", cubic=True).repeat(2)
    atoms.calc = load_calculator(sidecar)
    thermalize_momenta(atoms, temperature_K=temperature, rng=np.random.default_rng(1))
    energies = []
    dynamics = VelocityVerlet(atoms, timestep=1 * fs)
    dynamics.attach(lambda: energies.append(atoms.get_total_energy() / len(atoms)))
    dynamics.run(steps)
    return np.array(energies)


if __name__ == "__main__":
    total = run(sys.argv[1])
    print(f"total energy {total.mean():.6f} eV/atom, within {1e3 * np.ptp(total):.4f} meV/atom over {len(total) - 1} fs")
