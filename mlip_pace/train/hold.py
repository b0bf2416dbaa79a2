"""Holes are closed: what the hunt (`probe/hunt.py`) finds goes into the least squares, until nothing is found.

The data say nothing of structures far from them, so that a fit may have any energy there. Structures in holes become rows that
are added to the normal equations of the data, which need not be accumulated again. Each says that its energy per atom is at
least that of the curve of its composition (`probe/ground.py`), with σ = 0.1 eV/atom and a tenth of what it
asks for above the lowest energy. It counts only as long as it is not: which rows count is found by solving again until they
stay the same. (docs/design.md has what else was tried.)

A row counts for its σ as a row of the data does for the noise of the fit, which is the loss over the number of its rows:
(noise/σ)^2. λ stays that of the data. If the loss of the data rises by more than COST of the loss of held-out structures, all
rows count for less. (Around its smallest value the loss rises by the mean square of what predictions change by, for other
structures as well. Few data are fitted much better than others are predicted: a part of their own loss would allow nothing.)

pacemaker's `pace_augment` makes such structures, too: compressed ones of the data with energies of ZBL or of an equation of
state, to be put among the data before a fit. It never looks where the fit that comes of it has its holes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ase import Atoms
from ase.units import GPa
from scipy.linalg import cho_factor, cho_solve
from threadpoolctl import threadpool_limits

from mlip_pace.ace import basis
from mlip_pace.ace.basis import Basis
from mlip_pace.ace.calculator import PotentialCalculator
from mlip_pace.ace.expansion import Expansion
from mlip_pace.ace.files import convert, write_linear
from mlip_pace.arrays import Array
from mlip_pace.collect.cells import is_bulk
from mlip_pace.collect.dataset import ATOMS
from mlip_pace.collect.geometry import composition
from mlip_pace.probe import ground, hunt
from mlip_pace.probe.hunt import Frame, Hunted, Outcome
from mlip_pace.reference import Reference
from mlip_pace.run import pool
from mlip_pace.run.compute import Compute, end_of_share
from mlip_pace.run.pool import Workers
from mlip_pace.settings import ProbeSettings
from mlip_pace.train.linear import Normal, Solution

SIGMA, PART = 0.1, 0.1  # σ: eV/atom, and of what the curve asks for
COST = 0.02  # rise of the loss of the data, relative to that of held-out structures: 1 % of their errors
MOST = 0.5  # the same, relative to the loss itself: folds without the like of them may predict some structures badly
WEAKER, WEAKEST = 0.5, 1e-3  # factors of the weights
SOLVES = 30  # at most, until the bounds that count stay the same
QUIET = 2  # rounds in a row that find nothing: the next would be other trials
LOOKED_AT = 500  # structures of the data, that trials begin with
FRAMES = 8  # that a worker makes rows of at a time
LEAST = 60.0  # s, that the search may take in any case
NO_BULK = "no structure of the data is bulk, so that nothing is known of volumes"
NOTHING, TIME, ROUNDS = "nothing was found", "its share of the time was over", "all rounds were done"


@dataclass(frozen=True)
class Round:
    """Trials and holes by kind, the depth of the deepest (eV/atom below what may be; none: no hole), seconds."""

    trials: dict[str, int]
    holes: dict[str, int]
    deepest: float | None
    seconds: float


@dataclass(frozen=True)
class Held:
    """What was tried, found and closed, and in which range nothing was found in the end."""

    ended: str
    rounds: list[Round] = field(default_factory=list)
    left: int = 0  # holes of the last round: closed, if they could be, but not looked for again
    closed: bool = False  # whether what was found went into the fit
    rows: int = 0  # structures made up, with a least energy
    loss_rise: float = 0.0  # of the data, relative
    loss_rise_of_held_out: float = 0.0  # the same, relative to the loss of held-out structures
    volumes: tuple[float, float] | None = None  # smallest and largest in the last round without a hole, of the lowest energy's
    temperature: float | None = None  # K, the largest there
    pressure: float | None = None  # GPa, that of the curves at the smallest volume; of several the smallest
    curves: dict[str, dict[str, float]] = field(default_factory=dict)  # by composition; eV/atom, Å^3/atom, GPa

    @property
    def warnings(self) -> list[str]:
        """What a user should know who compresses or heats."""
        if self.ended == TIME and not self.rounds:
            return ["holes were not looked for, there was no time: mind compressed and hot structures"]
        if self.ended == NO_BULK:
            return [
                "holes were not looked for, no structure of the data is bulk: nobody knows what the potential does off the "
                "data, try short molecular dynamics before you trust it"
            ]
        if not self.left:
            return []
        first = f"at volumes below {self.volumes[0]:.2f} of that of the lowest energy" if self.volumes else "at all volumes"
        done = "they went into the last solve, but were not looked for again" if self.closed else "they stay as they are"
        return [
            f"{self.left} trials of the last search for holes found energies that cannot be, {first}; {done}: mind compressed "
            "and hot structures, or give MLIP_PACE_PROBE_ROUNDS or MLIP_PACE_PROBE_SHARE more"
        ]


@dataclass(frozen=True)
class Rows:
    """Energies per atom of structures made up: row · c + constant should be at least the bound."""

    rows: Array  # (structures, functions)
    constants: Array  # (structures,): what is not linear in c, eV/atom
    bounds: Array
    sigma: Array

    def __add__(self, other: Rows) -> Rows:
        return Rows(*(np.concatenate(both) for both in zip(vars(self).values(), vars(other).values(), strict=True)))

    def counting(self, coefficients: Array) -> Any:
        """Those that are not kept at these coefficients: (structures,) of truth values."""
        return self.rows @ coefficients + self.constants < self.bounds


@dataclass(frozen=True)
class Data:
    """The least squares of the data: their normal equations in all columns, the solution, the loss of held-out structures, the
    scales of the prior.
    """

    normal: Normal
    solution: Solution
    unseen: float
    scale: Array

    def rise(self, c: Array) -> float:
        """Of the loss of the data, above that of their solution."""
        return self.normal.loss(c) - self.solution.loss

    @property
    def noise(self) -> float:
        """The loss over the number of its rows."""
        return self.solution.loss / max(self.normal.rows, 1)

    @property
    def matrix(self) -> Array:
        """That of the equations that the solution solves: the prior is in it."""
        return self.normal.matrix + np.diag(self.solution.lam / self.scale**2)

    def with_rows(self, added: Rows, start: Array) -> tuple[Array, Array]:
        """The coefficients with these rows, as strong as COST allows, and the matrix of the equations that they solve."""
        strength = 1.0
        while True:
            c, matrix = self._solve(added, strength * self.noise, start)
            if self.rise(c) <= min(COST * self.unseen, MOST * self.solution.loss) or strength < WEAKEST:
                return c, matrix
            strength *= WEAKER

    @threadpool_limits.wrap(limits=1)  # type: ignore[untyped-decorator]  # one thread gives the same bits
    def _solve(self, added: Rows, weight: float, start: Array) -> tuple[Array, Array]:
        c, counting, whole = start, added.counting(start), self.matrix
        for _ in range(SOLVES):
            root = np.sqrt(weight) / added.sigma[counting]
            rows, wanted = added.rows[counting] * root[:, None], (added.bounds - added.constants)[counting] * root
            matrix = whole + rows.T @ rows
            c = cho_solve(cho_factor(matrix), self.normal.vector + rows.T @ wanted)
            before, counting = counting, added.counting(c)
            if (before == counting).all():
                break
        return c, matrix


@dataclass(frozen=True)
class Search:
    """What is searched, and with what: the structures to train on (columns of `reference.delta`), the reference, the shortest
    distances (Å) of all pairs, the settings, and the time.monotonic at which the fit began.
    """

    train: pd.DataFrame
    reference: Reference
    shortest: dict[str, float]
    settings: ProbeSettings
    seed: int
    compute: Compute
    begun: float

    def deadline(self) -> float:
        """Of time.monotonic."""
        return end_of_share(self.settings.share, self.begun, self.compute.deadline, LEAST)

    def hunted(self, calculator: PotentialCalculator) -> Hunted:
        lowest = ground.ground(self.train, lambda atoms: calculator.predict(atoms)[0])
        structures = self.train[ATOMS]
        if len(structures) > LOOKED_AT:
            structures = structures.sample(LOOKED_AT, random_state=self.seed)
        known = [a for a in structures if len(a) <= hunt.MOST_ATOMS and is_bulk(a) and set(a.symbols) <= set(lowest.elements)]
        return Hunted(lowest, known, self.shortest, self.seed)


def look(folder: Path, potential: Path, search: Search) -> Held:
    """One round of the search for holes of a fitted potential (B-basis file), which stays as it is."""
    calculator, deadline = _calculator(folder, potential, search.reference), search.deadline()
    hunted = search.hunted(calculator)
    if not hunted.ground.structures:
        return Held(NO_BULK)
    begin = time.monotonic()
    outcomes = hunt.hunt(hunted, 0, calculator, search.compute.workers, deadline)
    this = _round(outcomes, time.monotonic() - begin)
    ended = ROUNDS if sum(this.holes.values()) else NOTHING
    return Held(ended, [this], sum(this.holes.values()), curves=_curves(hunted), **_range(hunted, outcomes))


def hold(folder: Path, on: Basis, data: Data, search: Search) -> tuple[Array, Array, Held]:
    """The coefficients (functions,) of the least squares with what closes the holes that are found, the matrix of the equations
    that they solve, and what was found.
    """
    c, matrix, deadline = data.solution.coefficients, data.matrix, search.deadline()
    hunted = search.hunted(_with(folder, on, c, search.reference))
    if not hunted.ground.structures:
        return c, matrix, Held(NO_BULK)
    make = partial(_rows, hunted, expansion=basis.expansion(on), workers=search.compute.workers)
    added = Rows(np.empty((0, len(c))), np.empty(0), np.empty(0), np.empty(0))
    rounds, outcomes, ended = list[Round](), list[Outcome](), ROUNDS
    for number in range(search.settings.rounds):
        begin = time.monotonic()
        if begin + max((one.seconds for one in rounds), default=0.0) > deadline:
            ended = TIME
            break
        calculator = _with(folder, on, c, search.reference)
        outcomes = hunt.hunt(hunted, number, calculator, search.compute.workers, deadline)
        frames = [frame for outcome in outcomes for frame in outcome.frames]
        if frames:
            added += make(frames, c)
            c, matrix = data.with_rows(added, c)
        rounds.append(_round(outcomes, time.monotonic() - begin))
        if time.monotonic() > deadline:
            ended = TIME
            break
        if not any(one.holes for one in rounds[-QUIET:]) and len(rounds) >= QUIET:
            ended = NOTHING
            break
    left = sum(rounds[-1].holes.values()) if rounds else 0
    rise, of_held_out = data.rise(c) / data.solution.loss, data.rise(c) / data.unseen
    where = _range(hunted, outcomes)
    held = Held(ended, rounds, left, True, len(added.bounds), rise, of_held_out, curves=_curves(hunted), **where)
    return c, matrix, held


def _with(folder: Path, on: Basis, c: Array, reference: Reference) -> PotentialCalculator:
    write_linear(folder / "held.yaml", on, c)
    return _calculator(folder, folder / "held.yaml", reference)


def _calculator(folder: Path, potential: Path, reference: Reference) -> PotentialCalculator:
    """Of a B-basis file; energies relative to E0. pyace computes with a `.yace` in half of the time."""
    convert(potential, folder / "held.yace", {})
    return PotentialCalculator(folder / "held.yace", reference)


def _rows(hunted: Hunted, frames: Sequence[Frame], c: Array, expansion: Expansion, workers: Workers) -> Rows:
    """Rows of structures with the energies that they have at the coefficients c."""
    chunks = [[frame.atoms for frame in frames[n : n + FRAMES]] for n in range(0, len(frames), FRAMES)]
    parts = pool.parallel_map(partial(_energies, expansion=expansion), chunks, workers)
    rows, counts = np.concatenate(list(parts)), np.array([len(frame.atoms) for frame in frames])
    bounds = np.array([hunted.least(frame.atoms) for frame in frames]) / counts
    sigma = SIGMA + PART * (bounds - [hunted.curve(frame.atoms).energy for frame in frames])
    return Rows(rows, np.array([frame.energy for frame in frames]) / counts - rows @ c, bounds, sigma)


def _energies(structures: Sequence[Atoms], expansion: Expansion) -> Array:
    """The derivatives of the energies per atom by c: (structures, functions)."""
    rows = expansion.rows(structures)
    return np.array([of_c[0] / len(atoms) for atoms, (of_c, _) in zip(structures, rows, strict=True)])


def _round(outcomes: Sequence[Outcome], seconds: float) -> Round:
    holes = [outcome for outcome in outcomes if outcome.frames]
    count = Counter(outcome.trial.kind for outcome in outcomes)
    deepest = max((outcome.depth for outcome in holes), default=None)
    return Round(dict(count), dict(Counter(hole.trial.kind for hole in holes)), deepest, round(seconds, 3))


def _range(hunted: Hunted, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Where no hole was found: the volumes above those of all holes, and what there was there."""
    first = max((outcome.volume for outcome in outcomes if outcome.frames), default=0.0)
    fine = [outcome for outcome in outcomes if outcome.volume > first]
    if not fine:
        return {}
    volumes = [outcome.volume for outcome in fine]
    return {
        "volumes": (round(min(volumes), 3), round(max(volumes), 3)),
        "temperature": round(max(outcome.temperature for outcome in fine)),
        "pressure": round(min(curve.pressure(min(volumes) * curve.volume) for curve in hunted.ground.curves) / GPa, 1),
    }


def _curves(hunted: Hunted) -> dict[str, dict[str, float]]:
    pairs = zip(hunted.ground.structures, hunted.ground.curves, strict=True)
    return {composition(atoms): {**asdict(curve), "modulus": round(curve.modulus / GPa, 2)} for atoms, curve in pairs}
