"""Equilibrium volume and bulk modulus of fcc Al against the DFT that a potential was trained on.

`python -m examples.equation_of_state out/potential.json`
"""

import sys
from pathlib import Path

from ase.eos import EquationOfState
from ase.io import read
from ase.units import GPa

from mlip_pace import load_calculator


def compare(sidecar) -> dict[str, tuple[float, float]]:
    """V0 (Å^3/atom) and B0 (GPa) by Birch-Murnaghan on the same cells, of DFT and of the potential."""
    cells = [a for a in read(Path(__file__).parent / "al-mg.extxyz", ":") if a.info["group"].startswith("al_fcc_volume")]
    calculator, found = load_calculator(sidecar), {}
    energies = {"DFT": [atoms.get_potential_energy() / len(atoms) for atoms in cells], "ACE": []}
    for cell in cells:
        atoms = cell.copy()
        atoms.calc = calculator
        energies["ACE"].append(atoms.get_potential_energy() / len(atoms))
    for name, values in energies.items():
        v0, _, b0 = EquationOfState([a.get_volume() / len(a) for a in cells], values, eos="birchmurnaghan").fit()
        found[name] = float(v0), float(b0 / GPa)
    return found


if __name__ == "__main__":
    for method, (v0, b0) in compare(sys.argv[1]).items():
        print(f"{method}: V0 {v0:.3f} Å^3/atom, B0 {b0:.1f} GPa")
