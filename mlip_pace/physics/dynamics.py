"""Short molecular dynamics: at constant temperature (do the atoms hold together?), then at constant energy (is it constant?).

About 216 atoms of a crystal at TEMPERATURE, or a structure of the data as it is at ROOM: the thermostat is that of G. Bussi,
D. Donadio, M. Parrinello, J. Chem. Phys. 126, 014101 (2007), then velocity Verlet. The drift is the slope of a straight line
through the total energy, the noise its standard deviation about it. eV/atom, ps, K; distances in Å.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.bussi import Bussi
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet

from mlip_pace.arrays import Array
from mlip_pace.collect.cells import heights
from mlip_pace.collect.neighbours import nearest
from mlip_pace.physics.crystals import Crystal, LeftOutError, bare, in_time

TEMPERATURE, ROOM = 600.0, 300.0  # K
ATOMS, LENGTH, MOST_ATOMS = 216, 9.0, 500  # about so many atoms; Å that the cell has at least
STEP, LIGHT_STEP, LIGHT = 1.0, 0.5, 12.0  # fs; that of masses (u) below
NVT, NVE = 0.5, 1.0  # ps
LEAST = 0.2  # ps, that tell something
THERMOSTAT = 100.0  # fs
EVERY = 5  # steps between looks
NEAR = 6.0  # Å, within which neighbours are looked for
CLOSE = 0.4  # of the nearest distance at the beginning: no two atoms come closer while they hold together
HOT = 10.0  # times the temperature; not even a few atoms become so hot by chance
LONGEST = 0.5  # Å, that an atom may move in a step: a neighbour list of what has burst takes forever
SEED = 0
BURST = "it does not hold together"


@dataclass(frozen=True)
class Dynamics:
    """Two runs, one after the other: how long (ps), mean temperature (K), and what came of them."""

    atoms: int
    timestep: float  # fs
    temperature: float  # K, that was asked for
    nvt: float
    nvt_temperature: float  # mean of the second half
    closest: float  # of any two atoms, in both runs
    displacement: float  # root mean square from where the atoms began, at the end of NVT
    nve: float
    nve_temperature: float
    drift: float  # eV/atom/ps
    noise: float  # eV/atom


def dynamics(crystal: Crystal, calculator: Any, deadline: float = math.inf) -> Dynamics:
    """Both runs of a supercell at TEMPERATURE, shorter if the time is; at least LEAST ps each. Raises `LeftOutError`."""
    return _both(supercell(crystal.atoms()), calculator, TEMPERATURE, deadline)


def of_structure(atoms: Atoms, calculator: Any, deadline: float = math.inf) -> Dynamics:
    """Both runs of a structure as it is, at ROOM: of molecules, liquids, slabs. Raises `LeftOutError`."""
    if len(atoms) > MOST_ATOMS:
        raise LeftOutError(f"it has more than {MOST_ATOMS} atoms")
    return _both(bare(atoms), calculator, ROOM, deadline)


def _both(atoms: Atoms, calculator: Any, temperature: float, deadline: float) -> Dynamics:
    atoms.calc = calculator
    near, start, rng = float(nearest(atoms, NEAR).min()), atoms.positions.copy(), np.random.default_rng(SEED)
    if not np.isfinite(near):
        raise LeftOutError(f"no two of its atoms are within {NEAR:g} Å")
    step = LIGHT_STEP if float(atoms.get_masses().min()) < LIGHT else STEP
    # Half of it goes into the potential energy of the vibrations.
    thermalize_momenta(atoms, temperature_K=2 * temperature, rng=rng)
    Stationary(atoms)
    begin = time.monotonic()
    middle = begin + (deadline - begin) * NVT / (NVT + NVE)
    bath = Bussi(atoms, step * units.fs, temperature, taut=THERMOSTAT * units.fs, rng=rng)
    run = partial(_run, atoms=atoms, step=step, temperature=temperature, close=CLOSE * near)
    _, temperatures, close = run(bath, picoseconds=NVT, ends=(middle, deadline))
    moved = atoms.positions - start
    displacement = float(np.sqrt(((moved - moved.mean(axis=0)) ** 2).sum(axis=1).mean()))
    nvt = len(temperatures) * EVERY * step / 1000
    Stationary(atoms)
    energies, second, closer = run(VelocityVerlet(atoms, step * units.fs), picoseconds=NVE, ends=(deadline, deadline))
    at = np.arange(len(energies)) * EVERY * step / 1000
    slope, first = np.polyfit(at, energies, 1)
    return Dynamics(
        len(atoms), step, temperature, nvt, float(np.mean(temperatures[len(temperatures) // 2 :])), min(close, closer),
        displacement, len(energies) * EVERY * step / 1000, float(np.mean(second)), float(slope),
        float(np.std(energies - slope * at - first)))  # fmt: skip


def _run(
    integrator: Any, atoms: Atoms, picoseconds: float, step: float, temperature: float, ends: tuple[float, float], close: float
) -> tuple[Array, Array, float]:  # fmt: skip
    """Total energies (eV/atom), temperatures (K) and the smallest distance (Å) of a run, which is shorter after the first of
    the ends (of time.monotonic), and does not go beyond the second. Raises `LeftOutError`, also of what bursts.
    """
    energies, temperatures, closest = list[float](), list[float](), math.inf
    steps, least = round(1000 * picoseconds / step), round(1000 * LEAST / step)
    for number, _ in enumerate(integrator.irun(steps)):
        when = f"after {number * step:g} fs at {temperature:g} K"
        moves = _longest_move(atoms, step * units.fs)
        if not moves < LONGEST:
            raise LeftOutError(f"{when} an atom moves by {moves:.1g} Å within {step:g} fs: {BURST}")
        if number % EVERY or number == 0:
            continue
        energies.append(float(atoms.get_total_energy()) / len(atoms))
        temperatures.append(float(atoms.get_temperature()))
        closest = min(closest, float(nearest(atoms, NEAR).min()))
        if closest < close:
            raise LeftOutError(f"{when} two atoms are {closest:.2f} Å apart: {BURST}")
        if temperatures[-1] > HOT * temperature:
            raise LeftOutError(f"{when} the atoms have become {temperatures[-1]:.0f} K hot: {BURST}")
        if time.monotonic() > ends[0] and number >= least:
            break
        in_time(ends[1])
    return np.array(energies), np.array(temperatures), closest


def _longest_move(atoms: Atoms, step: float) -> float:
    """How far (Å) an atom moves in the next step."""
    kick = step * atoms.get_forces() / atoms.get_masses()[:, None]
    return float(step * np.abs(atoms.get_velocities() + kick).max())


def supercell(cell: Atoms) -> Atoms:
    """About ATOMS atoms, in a cell that is as near to a cube as repetitions make it."""
    best, found = math.inf, None
    for counts in np.ndindex(13, 13, 13):
        number, edges = len(cell) * int(np.prod(counts)), heights(cell) * np.array(counts)
        if edges.min() < LENGTH or number > MOST_ATOMS:
            continue
        score = abs(math.log(number / ATOMS)) + math.log(edges.max() / edges.min())
        if score < best:
            best, found = score, counts
    if found is None:
        raise LeftOutError(f"a cell of {LENGTH:g} Å would have more than {MOST_ATOMS} atoms")
    larger: Atoms = cell.repeat(found)
    return larger
