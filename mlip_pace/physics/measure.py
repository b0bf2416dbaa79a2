"""The stage: what the published potential says of the crystals of its data, property by property, within a time.

Each property of each crystal is a task of its own, done by processes of this machine; the same property of all crystals comes
before the next one. Of what has no crystal (molecules, liquids, layers) molecular dynamics says whether it holds together.
What cannot be had is named with the reason, and so is what there was no time for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from mlip_pace.ace.calculator import PotentialCalculator
from mlip_pace.errors import JobError
from mlip_pace.physics import crystals, defects, dft, dynamics, elastic, phonons, volumes
from mlip_pace.physics.crystals import Crystal, LeftOutError, Lowest
from mlip_pace.physics.defects import Facet, Vacancy
from mlip_pace.physics.dft import Data
from mlip_pace.physics.dynamics import Dynamics
from mlip_pace.physics.elastic import Elastic
from mlip_pace.physics.phonons import Phonons
from mlip_pace.physics.volumes import Equation
from mlip_pace.publish.evaluate import Published
from mlip_pace.run import pool
from mlip_pace.settings import PhysicsSettings

MOST = 12  # compositions with a crystal
OTHERS = 6  # and without
TOLD = 3  # compositions that fall apart, each with its reason
LEAST = 30.0  # s, that it may take in any case
FIRST = 0.5  # of the time, that the crystals may take
DYNAMICS = "dynamics"
CRYSTAL, DATA, REST = "crystal", "data", "rest"  # what each composition begins with, what the data say, all that follows
DRIFT = 1e-5  # eV/atom/ps, that is told
BELOW, SWOLLEN = (
    0.3,
    0.15,
)  # eV/atom below the data (heat is 0.26 at 2000 K), and part of the volume, that are told of what has relaxed
DISTORTED = 0.1  # of a cell that relaxes, that is told
SLOPES, APART = (1.0, 10.0), 1.15  # B0' that crystals have; the larger bulk modulus over the smaller one
MEASURES: dict[str, Callable[[Crystal, Any, float], Any]] = {
    "equation": volumes.of_crystal, "elastic": elastic.elastic, "phonons": phonons.phonons, "vacancies": defects.vacancies,
    "surfaces": defects.surfaces, DYNAMICS: dynamics.dynamics,
}  # fmt: skip


@dataclass(frozen=True)
class LeftOut:
    """What was not measured, and why."""

    composition: str
    property: str
    reason: str


@dataclass(frozen=True)
class Known:
    """What is known of one composition. None: not measured (why is in `Physics.left_out`)."""

    crystal: Crystal
    data: Data | None = None  # what the data say of the same crystal
    equation: Equation | None = None
    elastic: Elastic | None = None
    phonons: Phonons | None = None
    vacancies: list[Vacancy] | None = None
    surfaces: list[Facet] | None = None
    dynamics: Dynamics | None = None

    @property
    def doubts(self) -> list[str]:
        """What speaks against the potential for this crystal, in words that follow its name."""
        return _of_crystal(self.crystal) + _of_elasticity(self.equation, self.elastic) + _of_phonons(self.phonons)


def _of_crystal(crystal: Crystal) -> list[str]:
    said, below = [], crystal.lowest_dft - crystal.energy
    if below > BELOW:
        said.append(
            f"relaxes to {below:.2f} eV/atom below the lowest energy that the data have of it: the potential prefers what DFT "
            "does not know"
        )
    swollen = crystal.relaxed.volume / crystal.in_data.volume - 1
    if abs(swollen) > SWOLLEN:
        said.append(f"relaxes to a volume that is {swollen:+.0%} of that in the data")
    if crystal.distortion > DISTORTED:
        said.append(f"relaxes to a cell of another shape than in the data: its stretches differ by {crystal.distortion:.0%}")
    return said


def _of_elasticity(equation: Equation | None, elastic: Elastic | None) -> list[str]:
    said = []
    if equation and not SLOPES[0] < equation.derivative < SLOPES[1]:
        said.append(f"has B0' = {equation.derivative:.1f} by its equation of state, where crystals have 2 to 8")
    if equation and elastic:
        # That of a cell which keeps its shape, as the equation has it (Voigt's mean).
        voigt = float(np.array(elastic.matrix)[:3, :3].mean())
        if max(voigt, equation.modulus) > APART * min(voigt, equation.modulus):
            said.append(
                f"has a bulk modulus of {equation.modulus:.0f} GPa by its equation of state and of {voigt:.0f} by its elastic "
                "constants: the potential is rough around it"
            )
    if elastic and not elastic.stable:
        said.append("is not stable against strain: Born's criteria are broken")
    return said


def _of_phonons(phonons: Phonons | None) -> list[str]:
    if not phonons or not phonons.imaginary:
        return []
    mode = phonons.imaginary[0]
    at = f"{mode.name or 'q'} ({', '.join(f'{x:g}' for x in mode.q)})"
    return [f"has imaginary phonons, the largest at {at}: {abs(mode.frequency):.2f}i THz"]


@dataclass(frozen=True)
class Moved:
    """Molecular dynamics of a structure as the data have it."""

    source: str
    dynamics: Dynamics


@dataclass(frozen=True)
class Physics:
    """What the potential says of crystals, by composition, of compositions without, and what was left out."""

    crystals: dict[str, Known] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    others: dict[str, Moved] = field(default_factory=dict)

    @property
    def falls_apart(self) -> list[LeftOut]:
        """What does not hold together as it relaxes or moves."""
        why = (dynamics.BURST, crystals.AWAY, crystals.RESTLESS)
        return [one for one in self.left_out if any(words in one.reason for words in why)]

    @property
    def warnings(self) -> list[str]:
        """What a user should know who simulates these crystals."""
        said = [f"{name} {doubt}" for name, known in self.crystals.items() for doubt in known.doubts]
        runs = {name: known.dynamics for name, known in self.crystals.items()}
        for name, run in (runs | {name: moved.dynamics for name, moved in self.others.items()}).items():
            # A slope that the noise makes, over so short a time, is no drift.
            if run and abs(run.drift) > max(DRIFT, run.noise / run.nve):
                said.append(f"the energy of {name} drifts by {run.drift:.1e} eV/atom/ps: take a shorter time step")
        lost = self.falls_apart
        said += [f"{one.composition}: {one.reason}" for one in lost[:TOLD]]
        return said + [f"{len(lost) - TOLD} more compositions do not hold together (physics.left_out)"] * (len(lost) > TOLD)

    def as_dict(self) -> dict[str, Any]:
        """As the sidecar has it: without what was not measured."""
        return {
            "crystals": {name: _present(asdict(known)) for name, known in self.crystals.items()},
            "others": {name: asdict(moved) for name, moved in self.others.items()},
            "left_out": [asdict(one) for one in self.left_out],
            "falls_apart": list(dict.fromkeys(one.composition for one in self.falls_apart)),
        }


def _present(values: Any) -> Any:
    return (
        {name: _present(value) for name, value in values.items() if value is not None} if isinstance(values, dict) else values
    )


def measure(
    frame: pd.DataFrame, published: Published, e0: Mapping[str, float], settings: PhysicsSettings, end: float, workers: int
) -> Physics:
    """The stage. `frame` is that of the data (columns of `dataset.py`); `end` is when to end (of time.monotonic)."""
    lowest, without = crystals.lowest_of(frame)
    left_out = [LeftOut(one.composition, CRYSTAL, "no structure of it in the data is bulk") for one in without]
    left_out += [LeftOut(several[0].composition, CRYSTAL, f"{MOST} compositions are looked at") for several in lowest[MOST:]]
    calculator, now = PotentialCalculator(published.potential, published.reference), time.monotonic()
    find = partial(_crystal, calculator=calculator, e0=e0, end=now + FIRST * (end - now))
    relaxed = pool.parallel_map(find, [one for several in lowest[:MOST] for one in several], workers)
    known = dict[str, Known]()
    for several in lowest[:MOST]:
        outcomes = list(islice(relaxed, len(several)))
        if found := [crystal for crystal in outcomes if isinstance(crystal, Crystal)]:
            known[several[0].composition] = Known(crystals.preferred(found))
        else:
            left_out.append(LeftOut(several[0].composition, CRYSTAL, outcomes[0]))
    for composition, crystal in ((composition, one.crystal) for composition, one in known.items()):
        if not crystal.is_crystal:
            size, group = len(crystal.conventional.symbols), crystal.relaxed.space_group
            left_out.append(LeftOut(composition, REST, f"it relaxes to a cell of {size} atoms in {group}, no crystal"))
    sought = [name for name, one in known.items() if one.crystal.is_crystal]
    others = [several[0] for several in lowest[:MOST] if several[0].composition not in sought] + without
    recognise = partial(_data, frame=frame, calculator=calculator, e0=e0, end=end)
    recognised = pool.parallel_map(recognise, [known[name].crystal for name in sought], workers)
    for composition, data in zip(sought, recognised, strict=True):
        if isinstance(data, Data):
            known[composition] = replace(known[composition], data=data)
        else:
            left_out.append(LeftOut(composition, DATA, data))
    tasks = [Task(name, composition, known[composition].crystal) for name in settings.names for composition in sought]
    done = pool.parallel_map(partial(_done, calculator=calculator, end=end), tasks, workers)
    for task, value in zip(tasks, done, strict=True):
        if isinstance(value, str):
            left_out.append(LeftOut(task.composition, task.property, value))
        else:
            known[task.composition] = replace(known[task.composition], **{task.property: value})
    moved, why_not = _moved(others, calculator, end, workers) if DYNAMICS in settings.names else ({}, [])
    return Physics(known, left_out + why_not, moved)


def _moved(
    others: Sequence[Lowest], calculator: Any, end: float, workers: int
) -> tuple[dict[str, Moved], list[LeftOut]]:  # fmt: skip
    """Molecular dynamics of what has no crystal, and what was left out of it. Atoms alone are not looked at."""
    several = [one for one in others if len(one.atoms) > 1]
    move, moved, left_out = partial(_move, calculator=calculator, end=end), dict[str, Moved](), list[LeftOut]()
    for one, run in zip(several, pool.parallel_map(move, several[:OTHERS], workers), strict=False):
        if isinstance(run, Dynamics):
            moved[one.composition] = Moved(one.source, run)
        else:
            left_out.append(LeftOut(one.composition, DYNAMICS, run))
    return moved, left_out + [LeftOut(one.composition, DYNAMICS, f"{OTHERS} are looked at") for one in several[OTHERS:]]


@dataclass(frozen=True)
class Task:
    """One property of one composition."""

    property: str
    composition: str
    crystal: Crystal


def _crystal(lowest: Lowest, calculator: Any, e0: Mapping[str, float], end: float) -> Any:
    return _or_why_not(partial(crystals.crystal_of, lowest, calculator, e0, end))


def _data(crystal: Crystal, frame: pd.DataFrame, calculator: Any, e0: Mapping[str, float], end: float) -> Any:
    return _or_why_not(partial(dft.of_crystal, crystal, frame, calculator, e0, end))


def _move(lowest: Lowest, calculator: Any, end: float) -> Any:
    return _or_why_not(partial(dynamics.of_structure, lowest.atoms, calculator, end))


def _done(task: Task, calculator: Any, end: float) -> Any:
    return _or_why_not(partial(MEASURES[task.property], task.crystal, calculator, end))


@threadpool_limits.wrap(limits=1)  # type: ignore[untyped-decorator]  # matrices are small: more threads wait for each other
def _or_why_not(function: Callable[[], Any]) -> Any:
    """What a function returns, or the reason why there is nothing. A page is no reason for a job to fail."""
    try:
        return function()
    except JobError:
        raise
    except LeftOutError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
