"""The parts of a learning loop that are not mlip-pace's, small enough to run in a minute (docs/howto/active-learning.md).

    python -m examples.loop first FILE.xyz              strained and shaken cells of Al, labelled
    python -m examples.loop run POTENTIAL.json DUMP     hot molecular dynamics, frames as LAMMPS dumps them
    python -m examples.loop compute FOLDER FILE.xyz     label the FOLDER/*/POSCAR

EMT, ASE's effective medium theory of metals, stands in for DFT, and ASE for LAMMPS: a real loop has its own programs there.
"""

import sys
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.units import fs

from mlip_pace import load_calculator


def labelled(atoms: Atoms) -> Atoms:
    """With energy and forces, as a DFT program would give them."""
    atoms = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    atoms.calc = EMT()
    atoms.calc = SinglePointCalculator(atoms, energy=atoms.get_potential_energy(), forces=atoms.get_forces())
    return atoms


def first(count: int = 24) -> list[Atoms]:
    """Cells of four atoms, strained by up to 4 % and shaken a little: what one computes before one knows better."""
    rng, structures = np.random.default_rng(0), []
    for _ in range(count):
        atoms = bulk("Al", cubic=True)
        atoms.set_cell(atoms.cell @ (np.eye(3) + rng.uniform(-0.04, 0.04, (3, 3))), scale_atoms=True)
        atoms.positions += 0.03 * rng.normal(size=(len(atoms), 3))
        structures.append(labelled(atoms))
    return structures


def run(calculator, temperature: float = 1200.0, steps: int = 300, every: int = 10, seed: int = 1) -> list[Atoms]:
    """Frames of 32 atoms with a vacancy at `temperature` (K)."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Al", cubic=True).repeat(2)
    del atoms[0]
    atoms.calc = calculator
    thermalize_momenta(atoms, temperature_K=temperature, rng=rng)
    dynamics, frames = Langevin(atoms, 2 * fs, temperature_K=temperature, friction=0.02 / fs, rng=rng), []
    dynamics.attach(lambda: frames.append(atoms.copy()), interval=every)
    dynamics.run(steps)
    return frames


def dump(frames: list[Atoms], path: Path) -> None:
    """As LAMMPS's `dump custom id type x y z` writes them: atom types, no elements."""
    with path.open("w") as file:
        for step, atoms in enumerate(frames):
            file.write(f"ITEM: TIMESTEP\n{step}\nITEM: NUMBER OF ATOMS\n{len(atoms)}\nITEM: BOX BOUNDS pp pp pp\n")
            file.writelines(f"0 {length}\n" for length in atoms.cell.lengths())
            file.write("ITEM: ATOMS id type x y z\n")
            file.writelines(f"{n} 1 {x} {y} {z}\n" for n, (x, y, z) in enumerate(atoms.positions, 1))


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    if what == "run":
        sidecar, target = given
        found = run(load_calculator(sidecar))
        dump(found, Path(target))
    else:
        *folder, target = given
        found = [labelled(read(path)) for path in sorted(Path(folder[0]).glob("*/POSCAR"))] if folder else first()
        Path(target).parent.mkdir(exist_ok=True)
        write(target, found, format="extxyz")
    print(f"{len(found)} structures are in {target}")
