"""Compute examples/al-mg.extxyz: small Al, Mg and Al-Mg structures with real DFT labels.

    for i in 0 1; do /usr/bin/python3 make_dataset.py compute $i 2 & done; wait
    /usr/bin/python3 make_dataset.py collect

`compute I N` works through every N-th structure and keeps each result in `dft/`; started again, it does what is missing.
`collect` joins them into one extended XYZ file: free energy in eV (the one whose derivative the forces are), forces in
eV/Å, stress in eV/Å^3 (tension positive).

Needs Debian bookworm's `gpaw` and `gpaw-data` (PAW setups) and its system Python.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc100, hcp0001
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

RESULTS = Path(__file__).parent / "dft"
DATASET = Path(__file__).parent / "al-mg.extxyz"

# Lattice constants near the PBE equilibrium, Å. Only starting points: the data are the labels, whatever the cell.
A_AL, A_MG, C_MG = 4.04, 3.20, 5.19


def crystals() -> dict[str, Atoms]:
    """One unstrained cell of each lattice; no more than four atoms."""
    l12 = bulk("Al", "fcc", A_AL, cubic=True)
    al3mg, mg3al = l12.copy(), l12.copy()
    al3mg.symbols = ["Mg", "Al", "Al", "Al"]
    mg3al.symbols = ["Al", "Mg", "Mg", "Mg"]
    al3mg.set_cell(al3mg.cell * 1.03, scale_atoms=True)
    mg3al.set_cell(mg3al.cell * 1.09, scale_atoms=True)
    almg_hcp = bulk("Mg", "hcp", 3.05, 4.95)
    almg_hcp.symbols = ["Al", "Mg"]
    return {
        "al_fcc": bulk("Al", "fcc", A_AL),
        "al_bcc": bulk("Al", "bcc", 3.24),
        "al_hcp": bulk("Al", "hcp", 2.86, 4.71),
        "al_sc": bulk("Al", "sc", 2.72),
        "mg_hcp": bulk("Mg", "hcp", A_MG, C_MG),
        "mg_bcc": bulk("Mg", "bcc", 3.57),
        "mg_fcc": bulk("Mg", "fcc", 4.52),
        "almg_b2": bulk("AlMg", "cesiumchloride", 3.40),
        "almg_b1": bulk("AlMg", "rocksalt", 5.65),
        "almg_hcp": almg_hcp,
        "al3mg_l12": al3mg,
        "mg3al_l12": mg3al,
    }


def rattled(atoms: Atoms, rng: np.random.Generator, strain: float, displacement: float) -> Atoms:
    """A copy under a random symmetric strain with displaced atoms (standard deviations: 1, and Å)."""
    atoms = atoms.copy()
    deformation = rng.normal(0.0, strain, (3, 3))
    atoms.set_cell(atoms.cell @ (np.eye(3) + (deformation + deformation.T) / 2), scale_atoms=True)
    atoms.positions += rng.normal(0.0, displacement, atoms.positions.shape)
    return atoms


def structures() -> Iterator[tuple[str, str, Atoms]]:
    """Yield `(config_type, group, atoms)`; structures of one group are too much alike to be split into train and test."""
    rng = np.random.default_rng(2026)
    for symbol in ("Al", "Mg"):
        # Not cubic, so that the occupied p orbital has one definite direction.
        yield "isolated_atom", f"atom_{symbol}", Atoms(symbol, cell=(8.0, 8.6, 9.2), pbc=True)
    for name, cell in crystals().items():
        for scale in (0.88, 0.94, 1.0, 1.05, 1.12):
            strained = cell.copy()
            strained.set_cell(cell.cell * scale, scale_atoms=True)
            yield "volume", f"{name}_volume_{scale:.2f}", strained
    for name in ("al_fcc", "mg_hcp", "almg_b2", "almg_hcp"):
        cell = crystals()[name]
        supercell = cell.repeat((2, 2, 1)) if len(cell) == 1 else cell.repeat((2, 1, 1))
        for k in range(5):
            yield "rattled", f"{name}_rattled_{k}", rattled(supercell, rng, 0.03, 0.06 + 0.05 * k)
    for name in ("al3mg_l12", "mg3al_l12"):
        for k in range(3):
            yield "rattled", f"{name}_rattled_{k}", rattled(crystals()[name], rng, 0.03, 0.08 + 0.06 * k)
    supercell = bulk("Al", "fcc", A_AL).repeat((2, 2, 2))
    yield "rattled", "al_fcc8_rattled_0", rattled(supercell, rng, 0.02, 0.10)
    yield "rattled", "al_fcc8_rattled_1", rattled(supercell, rng, 0.04, 0.20)
    vacancy = supercell.copy()
    del vacancy[0]
    yield "vacancy", "al_vacancy_0", vacancy
    yield "vacancy", "al_vacancy_1", rattled(vacancy, rng, 0.02, 0.08)
    yield "surface", "al_fcc100", fcc100("Al", (1, 1, 4), a=A_AL, vacuum=4.5, periodic=True)
    yield "surface", "mg_hcp0001", hcp0001("Mg", (1, 1, 4), a=A_MG, c=C_MG, vacuum=4.5, periodic=True)
    # Short distances: one atom of a two-atom cell is pushed towards the other.
    for name in ("al_hcp", "mg_hcp", "almg_hcp"):
        for distance in (1.9, 2.2, 2.5):
            atoms = crystals()[name]
            atoms.set_distance(0, 1, distance, fix=0, mic=True)
            yield "short", f"{name}_short_{distance}", atoms


def label(atoms: Atoms, isolated: bool, log: Path) -> None:
    """Attach GPAW's free energy (eV), forces (eV/Å) and stress (eV/Å^3) to `atoms`.

    PBE, 400 eV plane waves, 3-electron Al and 2-electron Mg setups, Fermi smearing of 0.1 eV, a Gamma-centred grid with
    at least 4 k-points per 1/Å along each reciprocal vector; the isolated atoms are spin-polarised with Hund's moments.
    """
    from gpaw import GPAW, PW, FermiDirac

    smearing = FermiDirac(0.0, fixmagmom=True) if isolated else FermiDirac(0.1)
    if isolated and atoms.symbols[0] == "Al":
        atoms.set_initial_magnetic_moments([1.0])
    atoms.calc = GPAW(
        mode=PW(400),
        xc="PBE",
        setups={"Mg": "2"},
        kpts={"size": (1, 1, 1)} if isolated else {"density": 4.0, "gamma": True},
        occupations=smearing,
        hund=isolated and atoms.symbols[0] == "Al",
        convergence={"energy": 1e-5, "density": 1e-5, "forces": 1e-3},
        txt=str(log),
    )
    atoms.get_forces()
    if not isolated:
        atoms.get_stress()


def compute(index: int, every: int) -> None:
    RESULTS.mkdir(exist_ok=True)
    for number, (config_type, group, atoms) in enumerate(structures()):
        target = RESULTS / f"{group}.extxyz"
        if number % every != index or target.exists():
            continue
        label(atoms, config_type == "isolated_atom", RESULTS / f"{group}.txt")
        atoms.info.update(config_type=config_type, group=group)
        part = target.with_suffix(".part")
        write(part, atoms, format="extxyz")
        part.rename(target)
        print(group, len(atoms), flush=True)


def collect() -> None:
    frames = []
    for config_type, group, structure in structures():
        results = read(RESULTS / f"{group}.extxyz").calc.results
        results = {key: results[key] for key in ("free_energy", "forces", "stress") if key in results}
        structure.calc = SinglePointCalculator(structure, energy=results.pop("free_energy"), **results)
        structure.info = {"config_type": config_type, "group": group}
        frames.append(structure)
    write(DATASET, frames, format="extxyz")


if __name__ == "__main__":
    command, *numbers = sys.argv[1:]
    compute(*map(int, numbers)) if command == "compute" else collect()
