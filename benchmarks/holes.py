"""Holes of published potentials: random cells, compressed crystals, a hot and pressed melt, and energy that is conserved.

    .venv/bin/python benchmarks/holes.py cells FOLDER/NAME/OUT...  > table.md
    .venv/bin/python benchmarks/holes.py dynamics FOLDER/NAME/OUT... [--seeds 4] [--picoseconds 10]
    .venv/bin/python benchmarks/holes.py drift FOLDER/NAME/OUT...

OUT is the output path of a job (`sets.py prepare` writes sets that jobs can be run on). `cells`: 60 random cells of eight atoms
at each volume, no two atoms closer than 0.9 of the shortest distance in the data, for five seeds (not those of the job's own
search): how many of the 300 lie more than 0.2 eV/atom below the lowest energy of the data, and the lowest of them relative to
that (eV/atom); then the same of 4 a seed that are relaxed in their cells. Volumes are relative to that of the structure of
lowest energy; of several elements the cells have the composition of one of the structures with the lowest energy of their
composition, in turn. `dynamics`: 216 atoms of the lowest-energy crystal, heated to 4,000 K in half of the time, then pressed to
50 GPa. `drift`: 216 atoms at 600 K and constant energy.
"""

import argparse
from pathlib import Path

import numpy as np
from ase import units
from ase.build import make_supercell
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.md.nptberendsen import NPTBerendsen
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE

from mlip_pace.ace import core
from mlip_pace.collect import columns
from mlip_pace.collect.dataset import ATOMS, SPLIT
from mlip_pace.collect.geometry import composition
from mlip_pace.collect.split import TRAIN
from mlip_pace.probe.cells import random_cell
from mlip_pace.publish.potential import Potential, load_calculator
from mlip_pace.run import pool

VOLUMES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
SEEDS, CELLS, RELAXED, ATOMS_IN_CELL = range(1000, 1005), 60, 4, 8
BELOW, STEPS = 0.2, 200  # eV/atom; steps of a relaxation
TEMPERATURE, PRESSURE, STEP = 4000.0, 50.0, 1.0  # K, GPa, fs


class Job:
    """A published potential and what its data say: the lowest energies by composition, and the shortest distances."""

    def __init__(self, out):
        self.out, sidecar = out, out / "potential.json"
        self.potential, self.calculator = Potential.load(sidecar), load_calculator(sidecar)
        target = columns.load(out / "work" / "2-subtract" / "target")
        train = target[target[SPLIT] == TRAIN]
        e0 = self.potential.metadata["e0"]["energies"]
        self.e0 = {symbol: e0.get(symbol, 0.0) for symbol in self.potential.elements}
        self.lowest, self.crystals = {}, {}
        for atoms, energy in zip(train[ATOMS], train["energy_dft"], strict=True):
            if len(atoms) > 1 or atoms.pbc.all():
                key, cohesive = composition(atoms), (energy - self.free(atoms)) / len(atoms)
                if cohesive < self.lowest.get(key, np.inf):
                    self.lowest[key], self.crystals[key] = cohesive, atoms.copy()
        shortest = self.potential.metadata["basis"]["shortest"]
        pairs = core.shortest_of_every_pair(shortest, self.potential.elements)
        self.closest = {pair: 0.9 * distance for pair, distance in pairs.items()}

    def free(self, atoms):
        return sum(self.e0[symbol] for symbol in atoms.symbols)

    def excess(self, atoms):
        """Energy relative to the lowest of the data with this composition, eV/atom."""
        energy = self.calculator.predict(atoms)[0] - self.free(atoms)
        return energy / len(atoms) - self.lowest[composition(atoms)]

    @property
    def name(self):
        return "-".join(self.potential.elements)

    @property
    def crystal(self):
        """That of the lowest energy of all."""
        return self.crystals[min(self.lowest, key=self.lowest.get)]


def cell_of(job, seed, number, volume):
    """A random cell with the composition of one of the crystals, at this part of its volume."""
    rng = np.random.default_rng((seed, number, round(100 * volume)))
    crystals = [atoms for atoms in job.crystals.values() if ATOMS_IN_CELL % len(reduced(atoms)) == 0]
    crystal = crystals[number % len(crystals)]
    symbols = reduced(crystal) * (ATOMS_IN_CELL // len(reduced(crystal)))
    space = crystal.cell.volume / len(crystal) * ATOMS_IN_CELL * volume
    return random_cell(symbols, space, job.closest, rng)


def reduced(atoms):
    """The symbols of a formula unit."""
    counts = atoms.symbols.formula.reduce()[0].count()
    return [symbol for symbol, count in counts.items() for _ in range(count)]


class OfCell:
    """What a worker does: excess energy of a random cell, and the lowest while it is relaxed (of the first few)."""

    def __init__(self, job):
        self.job = job

    def __call__(self, item):
        seed, number, volume = item
        atoms = cell_of(self.job, seed, number, volume)
        if atoms is None:
            return None, None
        excess = self.job.excess(atoms)
        if number >= RELAXED:
            return excess, None
        atoms.calc = self.job.calculator
        lowest = [excess]
        optimizer = FIRE(atoms, logfile=None)
        for _ in optimizer.irun(fmax=0.05, steps=STEPS):
            lowest.append((atoms.get_potential_energy() - self.job.free(atoms)) / len(atoms))
            if lowest[-1] < lowest[0] - 1000 or not np.isfinite(lowest[-1]):
                break
        low = self.job.lowest[composition(atoms)]
        return excess, min(lowest[0], min(lowest[1:], default=np.inf) - low)


def told(values):
    values = [value for value in values if value is not None]
    below = sum(not value >= -BELOW for value in values)
    return f"{below} of {len(values)}" + (f", {min(values):.3g}" if below else "") if values else "–"


def cells(outs, workers):
    print("| potential | cells | " + " | ".join(f"{volume:g}" for volume in VOLUMES) + " |")
    print("|" + "---|" * (2 + len(VOLUMES)))
    for out in outs:
        job = Job(out)
        items = [(seed, number, volume) for volume in VOLUMES for seed in SEEDS for number in range(CELLS)]
        found = list(pool.parallel_map(OfCell(job), items, workers))
        for kind, name in enumerate(("random", "relaxed")):
            of_volume = [told([one[kind] for one, item in zip(found, items, strict=True) if item[2] == v]) for v in VOLUMES]
            print(f"| {job.name} ({out.name}) | {name} | " + " | ".join(of_volume) + " |", flush=True)


def supercell(crystal, atoms=216):
    """About so many atoms in a cell that is as long in all directions as it can be."""
    lengths, n = crystal.cell.lengths(), np.ones(3, dtype=int)
    while len(crystal) * np.prod(n) < 0.8 * atoms:
        n[np.argmin(lengths * n)] += 1
    return make_supercell(crystal, np.diag(n))


def dynamics_of(item):
    job, seed, picoseconds = item
    rng = np.random.default_rng(seed)
    atoms = supercell(job.crystal)
    atoms.calc = job.calculator
    steps = round(1000 * picoseconds / STEP)
    thermalize_momenta(atoms, temperature_K=300, rng=rng)
    low = job.lowest[composition(job.crystal)]
    lowest, smallest, pressure, ended = np.inf, 1.0, 0.0, "whole"
    start = atoms.cell.volume
    heated = Langevin(atoms, STEP * units.fs, temperature_K=300, friction=0.02 / units.fs, rng=rng, fixcm=False)
    pressed = NPTBerendsen(
        atoms, STEP * units.fs, temperature_K=TEMPERATURE, taut=100 * units.fs, taup=500 * units.fs,
        pressure_au=0.0, compressibility_au=1 / (100 * units.GPa))  # fmt: skip
    for step in range(0, steps, 10):
        share = step / steps
        if share < 0.5:
            heated.set_temperature(temperature_K=300 + (TEMPERATURE - 300) * 2 * share)
            heated.run(10)
        else:
            pressure = PRESSURE * (2 * share - 1)
            pressed.pressure = pressure * units.GPa  # its set_pressure() fails in ASE 3.29
            pressed.run(10)
        excess = (atoms.get_potential_energy() - job.free(atoms)) / len(atoms) - low
        lowest, smallest = min(lowest, excess), min(smallest, atoms.cell.volume / start)
        temperature = atoms.get_temperature()
        if not np.isfinite(excess) or excess < -BELOW or temperature > 10 * TEMPERATURE:
            ended = f"lost at {step * STEP / 1000:.2f} ps, {temperature:.0f} K, {pressure:.0f} GPa"
            break
    return lowest, smallest, ended, len(atoms)


def dynamics(outs, workers, seeds, picoseconds):
    print(
        "| potential | seed | atoms | lowest energy above the data's, eV/atom | smallest volume | |\n|---|---|---|---|---|---|",
        flush=True,
    )
    items = [(Job(out), seed, picoseconds) for out in outs for seed in range(seeds)]
    for (job, seed, _), (lowest, smallest, ended, n) in zip(items, pool.parallel_map(dynamics_of, items, workers), strict=True):
        print(f"| {job.name} ({job.out.name}) | {seed} | {n} | {lowest:.3f} | {smallest:.2f} | {ended} |", flush=True)


def drift_of(item):
    job, picoseconds = item
    atoms = supercell(job.crystal)
    atoms.calc = job.calculator
    FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=0.01, steps=100)
    rng = np.random.default_rng(1)
    thermalize_momenta(atoms, temperature_K=1200, rng=rng)  # half of it goes into the potential energy
    Stationary(atoms)
    moved, energies = VelocityVerlet(atoms, STEP * units.fs), []
    moved.attach(lambda: energies.append(atoms.get_total_energy() / len(atoms)), interval=10)
    moved.run(round(1000 * picoseconds / STEP))
    kept = np.array(energies[len(energies) // 5 :])
    time = np.arange(len(kept)) * 10 * STEP / 1000
    return float(np.polyfit(time, kept, 1)[0]), float(np.std(kept)), atoms.get_temperature()


def drift(outs, workers, picoseconds):
    print("| potential | drift, eV/atom/ps | fluctuation, eV/atom | K |\n|---|---|---|---|", flush=True)
    items = [(Job(out), picoseconds) for out in outs]
    for (job, _), (slope, spread, temperature) in zip(items, pool.parallel_map(drift_of, items, workers), strict=True):
        print(f"| {job.name} ({job.out.name}) | {slope:.2g} | {spread:.2g} | {temperature:.0f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cells", "dynamics", "drift"])
    parser.add_argument("outs", nargs="+", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--picoseconds", type=float, default=10.0)
    given = parser.parse_args()
    if given.what == "cells":
        cells(given.outs, given.workers)
    elif given.what == "dynamics":
        dynamics(given.outs, given.workers, given.seeds, given.picoseconds)
    else:
        drift(given.outs, given.workers, given.picoseconds)
