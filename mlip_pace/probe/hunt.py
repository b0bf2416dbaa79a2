"""The hunt for holes: structures unlike the data are made, relaxed and heated, and those whose energy cannot be are kept.

A structure is in a hole if its energy is lower than half of what the curve of its composition (`ground.py`) asks for at its
volume, by more than MARGIN: at the volume of the data and above, lower than the lowest energy of the data. Trials are

- `volumes`: the structures of the lowest energy at smaller volumes;
- `random`: eight atoms, or the formula units that are just more, anywhere in a cell (`cells.py`), relaxed in it;
- `compressed`: a structure of the data or one of the lowest energy, strained, shaken and at a smaller volume, relaxed in it;
- `dynamics`: atoms anywhere in a larger cell, at some volume and some thousand K.

What a trial does follows from the seed and its number alone. Energies relative to E0, in eV; distances in Å.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.optimize import LBFGS

from mlip_pace.probe.cells import pushed_apart, random_cell
from mlip_pace.probe.ground import Curve, Ground, strained
from mlip_pace.run import pool
from mlip_pace.run.pool import Workers
from mlip_pace.run.stopping import raise_if_stopped

KINDS = ("random", "compressed", "dynamics", "volumes")
MARGIN = 0.1  # eV/atom
HALF = 0.5  # of the curve
CLOSE = 0.9  # of the shortest distance of a pair in the data: as close as atoms are when a trial begins
LOWEST = 8  # structures of lowest energy in a round
COMPRESSED_TO = tuple(round(0.35 + 0.05 * n, 2) for n in range(13))  # volumes of them, relative to the curve's
VOLUMES = (0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.85, 1.0)  # of that of the curve
SMALLEST, LARGEST = 0.35, 1.05  # the same, of what is compressed
IN_CELL = 8  # atoms of a random cell at least; dynamics have twice as many
MOST_ATOMS = 48  # of a structure of the data
RANDOM, COMPRESSED, DYNAMICS = 48, 24, 8  # trials of a round; of random cells as many for each volume and composition at least
STRAIN, SHAKE = 0.1, 0.15  # largest entry of the strain; standard deviation of displacements over the shortest distance
RELAXATION, LEAST = 640, 10  # steps of a relaxation times atoms; steps at least
STEPS, EVERY = 120, 10  # of dynamics; between looks at it
LONGEST = 0.5  # Å, that an atom may move in a step
TEMPERATURES = (1000.0, 5000.0)  # K
TIMESTEP, FRICTION = 1.5, 0.02  # fs, 1/fs
DEEP = 50.0  # eV/atom: deeper there is nothing more to learn
KEPT = 4  # structures of a trial at most


@dataclass(frozen=True)
class Hunted:
    """What is probed: what the data say, structures of them, the shortest distances (Å) by pair, the seed."""

    ground: Ground
    structures: Sequence[Atoms]
    shortest: dict[str, float]
    seed: int

    @cached_property
    def closest(self) -> dict[str, float]:
        """The distances (Å) that atoms have at least when a trial begins."""
        return {pair: CLOSE * distance for pair, distance in self.shortest.items()}

    @cached_property
    def compositions(self) -> list[list[str]]:
        """The symbols of a random cell: of every element, every pair of them, and what the data have, if they tell of it."""
        elements = self.ground.elements
        found = [[element] * IN_CELL for element in elements]
        found += [[a] * (IN_CELL // 2) + [b] * (IN_CELL // 2) for a, b in combinations(elements, 2)]
        found += [_in_cell(atoms, elements) for atoms in self.ground.structures]
        return [list(one) for one in dict.fromkeys(map(tuple, found)) if self.ground.curve(one)]

    def curve(self, atoms: Atoms) -> Curve:
        """That of a trial's composition."""
        curve = self.ground.curve(list(atoms.symbols))
        assert curve is not None
        return curve

    def least(self, atoms: Atoms) -> float:
        """The energy (eV, relative to E0) that the curve has for a structure."""
        curve = self.curve(atoms)
        return len(atoms) * (curve.energy + curve.above(float(atoms.cell.volume) / len(atoms)))


@dataclass(frozen=True)
class Trial:
    """One thing that is tried: its kind, and the number that with seed and round says all of it."""

    kind: str
    round: int
    number: int


@dataclass(frozen=True)
class Frame:
    """A structure with the energy (eV) that a potential gives it, relative to E0."""

    atoms: Atoms
    energy: float


@dataclass(frozen=True)
class Outcome:
    """What a trial has come to: the depth (eV/atom) below what may be, frames of the hole, and where it has been."""

    trial: Trial
    depth: float  # the largest; negative: above it
    frames: list[Frame]
    volume: float  # relative to that of the curve
    temperature: float  # K; 0 of a relaxation


def _in_cell(atoms: Atoms, elements: list[str]) -> list[str]:
    """The symbols of so many formula units that they are IN_CELL atoms or just more; nearly these, of a formula too large."""
    formula = atoms.symbols.formula.reduce()[0].count()
    size = sum(formula.values())
    if size <= MOST_ATOMS // 2:
        counts = [-(-IN_CELL // size) * formula.get(element, 0) for element in elements]
    else:
        content = np.array([formula.get(element, 0) for element in elements]) / size * IN_CELL
        rounded = np.floor(content + 1e-9).astype(int)
        rounded[np.argsort(rounded - content, kind="stable")[: IN_CELL - rounded.sum()]] += 1
        counts = rounded.tolist()
    return [symbol for symbol, count in zip(elements, counts, strict=True) for _ in range(count)]


def trials(hunted: Hunted, number: int) -> list[Trial]:
    """Those of a round."""
    # Eight atoms may be too few for the only composition that the data have, that of a high-entropy alloy, say.
    random, dynamics = (max(RANDOM, len(VOLUMES) * len(hunted.compositions)), DYNAMICS) if hunted.compositions else (0, 0)
    volumes = len(COMPRESSED_TO) * min(LOWEST, len(hunted.ground.structures))
    counts = {"random": random, "compressed": COMPRESSED, "dynamics": dynamics, "volumes": volumes}
    # The long ones first.
    return [Trial(kind, number, n) for kind, count in reversed(counts.items()) for n in range(count)]


def hunt(hunted: Hunted, number: int, calculator: Any, workers: Workers, deadline: float = math.inf) -> list[Outcome]:
    """The outcomes of a round with an ASE calculator (energies relative to E0); of fewer trials if the deadline (of
    time.monotonic) comes first.
    """
    outcomes = []
    for outcome in pool.parallel_map(partial(run, hunted=hunted, calculator=calculator), trials(hunted, number), workers):
        outcomes.append(outcome)
        raise_if_stopped()
        if time.monotonic() > deadline:
            break
    return [outcome for outcome in outcomes if outcome is not None]


def run(trial: Trial, hunted: Hunted, calculator: Any) -> Outcome | None:
    """One trial; nothing if its atoms do not fit into its cell, or are on top of each other."""
    rng = np.random.default_rng((hunted.seed, KINDS.index(trial.kind), trial.round, trial.number))
    make = {"random": _random, "compressed": _compressed, "dynamics": _melt, "volumes": _smaller}[trial.kind]
    atoms = make(hunted, trial, rng)
    if atoms is None:
        return None
    atoms.calc, temperature = calculator, 0.0
    path: Iterable[Frame]
    if trial.kind == "dynamics":
        temperature = float(rng.uniform(*TEMPERATURES))
        path = _dynamics(atoms, temperature, rng)
    elif trial.kind == "volumes":
        path = [_frame(atoms)]
    else:
        path = _relaxation(atoms)
    curve, volume = hunted.curve(atoms), float(atoms.cell.volume) / len(atoms)
    depths, frames = list[float](), list[Frame]()
    for step in _until_it_bursts(path):
        depth = curve.energy + HALF * curve.above(volume) - MARGIN - step.energy / len(atoms)
        # The first one in the hole, and then each that is twice as deep.
        if depth > 0 and (not frames or depth > 2 * max(depths)):
            frames.append(step)
        depths.append(depth)
        if not depth < DEEP:
            break
    if not depths:
        return None
    return Outcome(trial, max(depths), frames[:KEPT], volume / curve.volume, temperature)


def _until_it_bursts(path: Iterable[Frame]) -> Iterator[Frame]:
    """Its frames, as long as neighbours can be listed: a burst leaves atoms on top of each other, which matscipy refuses."""
    with suppress(ValueError):
        yield from path


def _random(hunted: Hunted, trial: Trial, rng: np.random.Generator) -> Atoms | None:
    number, which = divmod(trial.number, len(hunted.compositions))
    return _cell(hunted, hunted.compositions[which], VOLUMES[number % len(VOLUMES)], rng)


def _melt(hunted: Hunted, trial: Trial, rng: np.random.Generator) -> Atoms | None:
    symbols = 2 * hunted.compositions[trial.number % len(hunted.compositions)]
    return _cell(hunted, symbols, float(rng.uniform(SMALLEST, LARGEST)), rng)


def _smaller(hunted: Hunted, trial: Trial, rng: np.random.Generator) -> Atoms:
    which, volume = divmod(trial.number, len(COMPRESSED_TO))
    number = (which + LOWEST * trial.round) % len(hunted.ground.structures)
    atoms, curve = hunted.ground.structures[number], hunted.ground.curves[number]
    return strained(atoms, np.eye(3) * np.cbrt(COMPRESSED_TO[volume] * curve.volume * len(atoms) / atoms.cell.volume))


def _cell(hunted: Hunted, symbols: list[str], volume: float, rng: np.random.Generator) -> Atoms | None:
    curve = hunted.ground.curve(symbols)
    assert curve is not None
    return random_cell(symbols, volume * curve.volume * len(symbols), hunted.closest, rng)


def _compressed(hunted: Hunted, trial: Trial, rng: np.random.Generator) -> Atoms:
    several = hunted.structures if trial.number % 2 == 0 and hunted.structures else hunted.ground.structures
    atoms = several[int(rng.integers(len(several)))]
    volume = hunted.curve(atoms).volume * rng.uniform(SMALLEST, LARGEST)
    deformation = np.eye(3) + rng.uniform(-STRAIN, STRAIN, (3, 3))
    scale = np.cbrt(volume * len(atoms) / abs(atoms.cell.volume * np.linalg.det(deformation)))
    atoms = strained(atoms, deformation * scale)
    atoms.positions += rng.normal(0.0, SHAKE * scale * min(hunted.shortest.values()), (len(atoms), 3))
    pushed_apart(atoms, hunted.closest)  # as far as they can be
    return atoms


def _relaxation(atoms: Atoms) -> Iterator[Frame]:
    """The steps of a relaxation of the places in the cell as it is."""
    steps = max(LEAST, RELAXATION // len(atoms))
    for _ in LBFGS(atoms, logfile=None, maxstep=0.2).irun(fmax=0.05, steps=steps):  # type: ignore[arg-type]
        yield _frame(atoms)


def _dynamics(atoms: Atoms, temperature: float, rng: np.random.Generator) -> Iterator[Frame]:
    """Frames of molecular dynamics, until it ends or bursts: places far away would take a neighbour list forever."""
    thermalize_momenta(atoms, temperature_K=temperature, rng=rng)
    time_step = TIMESTEP * units.fs
    moved = Langevin(atoms, time_step, temperature_K=temperature, friction=FRICTION / units.fs, rng=rng, fixcm=False)
    for step, _ in enumerate(moved.irun(STEPS)):
        kick = time_step * atoms.get_forces() / atoms.get_masses()[:, None]
        bursts = not np.abs(time_step * (atoms.get_velocities() + kick)).max() < LONGEST
        if bursts or step % EVERY == 0:
            yield _frame(atoms)
        if bursts:
            return


def _frame(atoms: Atoms) -> Frame:
    copied = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    return Frame(copied, float(atoms.get_potential_energy()))
