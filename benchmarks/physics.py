"""Elastic constants, vacancies, surfaces and drift of published potentials, beside MTPs fitted to the same data by others.

    .venv/bin/python benchmarks/physics.py --headers job FOLDER/NAME/OUT...  > benchmarks/results/physics.md
    .venv/bin/python benchmarks/physics.py mtp SYMBOL=FILE.mtp...  >> benchmarks/results/physics.md
    .venv/bin/python benchmarks/physics.py dft SYMBOL=training.json...  >> benchmarks/results/physics.md

OUT is the output path of a job (`sets.py prepare` writes sets that jobs can be run on). `mtp`: the moment tensor potentials of
Zuo et al., J. Phys. Chem. A 124, 731 (2020), that lie in github materialsvirtuallab/maml
(mvl_models/pes/Si/mtp.2020.01/fitted.mtp, …); it needs `motep` (0.2.0), which reads and evaluates them. All are computed by
`mlip_pace.physics`, from the crystal as each potential has it. `dft`: what is recognised in their training data (mlearn's
JSON), with their stresses, which the jobs are not given.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.units import GPa
from threadpoolctl import threadpool_limits

from mlip_pace.collect import dataset
from mlip_pace.physics import crystals, defects, dft, elastic, phonons
from mlip_pace.physics.crystals import LeftOutError, Lowest

LATTICES = {"Si": ("diamond", 5.47), "Ge": ("diamond", 5.76), "Mo": ("bcc", 3.17), "Li": ("bcc", 3.43)}
HEADERS = ["element", "by", "a, Å", "C11", "C12", "C44", "vacancy, eV", "(100)", "(110)", "(111), J/m²", "highest phonon, THz",
           "drift, eV/atom/ps"]  # fmt: skip


def row(*cells):
    print("| " + " | ".join(cells) + " |", flush=True)


def told(symbol, by, a, constants, vacancy, facets, highest, drift):
    cells = [f"{constants[name]:.1f}" if name in constants else "" for name in ("C11", "C12", "C44")]
    surfaces = [f"{facets[indices]:.2f}" if indices in facets else "" for indices in ((1, 0, 0), (1, 1, 0), (1, 1, 1))]
    row(symbol, by, "" if a is None else f"{a:.4f}", *cells, "" if vacancy is None else f"{vacancy:.3f}", *surfaces,
        "" if highest is None else f"{highest:.2f}", drift)  # fmt: skip


def job(out):
    """What a job has published."""
    metadata = json.loads((out / "potential.json").read_text())["metadata"]
    for symbol, known in metadata["physics"]["crystals"].items():
        facets = {tuple(one["indices"]): one["energy"] for one in known.get("surfaces", [])}
        (vacancy,) = known.get("vacancies", [None])
        run = known.get("dynamics")
        drift = f"{run['drift']:.1e} ({run['nve']:.1f} ps, {run['atoms']} atoms)" if run else ""
        told(symbol, "mlip-pace", known["crystal"]["relaxed"]["lengths"][0], known["elastic"]["constants"],
             vacancy and vacancy["energy"], facets, known["phonons"]["highest"], drift)  # fmt: skip
        data = known["data"]
        if data.get("elastic") or data["slabs"]:
            slabs = {tuple(one["indices"]): one["dft"] for one in data["slabs"]}
            in_data, relaxed = (known["crystal"][which] for which in ("in_data", "relaxed"))
            a = in_data["lengths"][0] if in_data["number"] == relaxed["number"] else None
            told(symbol, "DFT, as the job recognised it", a, data.get("elastic") or {}, None, slabs, None, "")


class OfAnySize(Calculator):
    """motep's calculator keeps the neighbour list of so many atoms."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 (ASE's interface)

    def __init__(self, make):
        super().__init__()
        self.make, self.size = make, None

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        if len(atoms) != self.size:
            self.size, self.inner = len(atoms), self.make()
        self.inner.calculate(atoms, ["energy", "forces", "stress"], all_changes)
        self.results = dict(self.inner.results)


def mtp(symbol, file):
    """What an MTP gives, by the same functions."""
    from ase.data import atomic_numbers
    from motep.calculator import MTP
    from motep.io.mlip.mtp import read_mtp

    potential = read_mtp(file)
    potential.species = [atomic_numbers[symbol]]
    calculator = OfAnySize(lambda: MTP(potential, engine="numba"))
    lattice, a = LATTICES[symbol]
    crystal = crystals.crystal_of(Lowest(symbol, "made", bulk(symbol, lattice, a=a, cubic=True), 0.0), calculator, {})

    def had(function):
        try:
            return function(crystal, calculator)
        except LeftOutError as error:
            print(f"{symbol}: {error}", file=sys.stderr)

    facets = {facet.indices: facet.energy for facet in had(defects.surfaces) or []}
    (vacancy,) = had(defects.vacancies) or [None]
    found = had(phonons.phonons)
    told(symbol, "MTP (Zuo et al.)", crystal.relaxed.lengths[0], had(elastic.elastic).constants, vacancy and vacancy.energy,
         facets, found and found.highest, "")  # fmt: skip


def data(symbol, file):
    """What is recognised in mlearn's JSON, stresses included."""
    rows = []
    for number, one in enumerate(json.loads(Path(file).read_text())):
        places = [site["xyz"] for site in one["structure"]["sites"]]
        atoms = Atoms(f"{symbol}{len(places)}", places, cell=one["structure"]["lattice"]["matrix"], pbc=True)
        labels = one["outputs"]
        xx, yy, zz, xy, yz, xz = labels["virial_stress"]  # VASP's order; its kB are positive under pressure
        stress = -np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]) / 10 * GPa
        rows.append({dataset.ATOMS: atoms, dataset.SOURCE: f"{Path(file).name}#{number}", dataset.ENERGY: labels["energy"],
                     dataset.ENERGY_ATOMS: 0.0, dataset.FORCES: np.array(labels["forces"]), dataset.STRESS: stress,
                     "name": ""})  # fmt: skip
    frame = pd.DataFrame(rows)
    lattice, a = LATTICES[symbol]
    atoms = bulk(symbol, lattice, a=a, cubic=True)
    about = crystals.Lattice.of(atoms)
    crystal = crystals.Crystal("", about, 0.0, about, 0.0, crystals.Cell.of(crystals.standard(atoms)), True)
    same = frame[[dft.is_same(one, crystal) for one in frame[dataset.ATOMS]]]
    about = crystals.Lattice.of(same[dataset.ATOMS].iloc[-1], crystals.IN_DATA)
    found = dft.of_crystal(crystal, frame, _Nothing(), {})
    slabs = {one.indices: one.dft for one in found.slabs}
    told(symbol, f"DFT (Zuo et al.), {found.strained} strained cells", about.lengths[0], found.elastic or {}, None, slabs,
         None, "")  # fmt: skip


class _Nothing:
    """In place of a potential, where only DFT is asked for."""

    results = {"energy": 0.0}  # noqa: RUF012

    def calculate(self, *_):
        return


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["job", "mtp", "dft"])
    parser.add_argument("given", nargs="+")
    parser.add_argument("--headers", action="store_true")
    asked = parser.parse_args()
    if asked.headers:
        row(*HEADERS)
        row(*["---"] * len(HEADERS))
    with threadpool_limits(1):
        for one in asked.given:
            if asked.what == "job":
                job(Path(one))
            else:
                {"mtp": mtp, "dft": data}[asked.what](*one.split("="))
