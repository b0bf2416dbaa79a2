"""How long a job will take and how much memory, before it starts: from half a second of it on some of the data.

Rows of the linear start and the building of the basis are timed here. TensorFlow is not started: what follows is put at so many
times these. Good to a factor of two or so.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from ase import Atoms

from mlip_pace.ace import basis
from mlip_pace.ace.basis import Basis
from mlip_pace.ace.bonds import ATOMS_IN_BATCH
from mlip_pace.run import limits
from mlip_pace.train.pacemaker import memory_needed

CALIBRATION = 0.5  # s
# In times of the rows of the same atoms on as many threads; a third of the silicon set, 300 and 500 functions: the linear start
# 0.5 to 1.4, the last solve with its folds 1.7 to 3.5, an iteration of radial.py 4.4 to 6.4; one of pacemaker 0.7 to 1.4 times
# pyace's rows, which take 10.5 times as long.
LINEAR_START, LAST_SOLVE, REFINEMENT, ITERATION = 1.3, 2.7, 5.0, 10.5
BUILDS = 3  # what the linear start and each iteration take without data, in times of building the basis once (100 functions)
TENSORFLOW = 40.0  # s; to start it and build its graph


@dataclass(frozen=True)
class Measured:
    """Seconds on one thread: for the rows of the linear start of all structures, and for building the basis once."""

    rows: float
    building: float


def seconds(on: Basis, train: Sequence[Atoms], iterations: int, threads: int, pacemaker: bool) -> dict[str, float]:
    """Seconds of the linear start, of `iterations` on all structures by pacemaker or by radial.py, and of the last solve."""
    return expected(measure(on, train), iterations, threads, pacemaker)


def measure(on: Basis, train: Sequence[Atoms]) -> Measured:
    """Build the basis, and compute the rows of structures for half a second, or of all."""
    by_size = sorted(train, key=len)
    # From the middle outwards, so that a sample of a few is of typical size.
    sample = [by_size[n] for n in sorted(range(len(train)), key=lambda n: abs(n - len(train) // 2))]
    begin = time.perf_counter()
    expansion = basis.expansion(on)
    building, spent, atoms = time.perf_counter() - begin, 0.0, 0
    while sample and spent < CALIBRATION:
        some = [sample.pop(0)]
        while sample and sum(map(len, some)) < ATOMS_IN_BATCH:
            some.append(sample.pop(0))
        begin = time.perf_counter()
        deque(expansion.rows(some), maxlen=0)
        spent, atoms = spent + time.perf_counter() - begin, atoms + sum(map(len, some))
    return Measured(spent / atoms * sum(map(len, train)), building)


def expected(measured: Measured, iterations: int, threads: int, pacemaker: bool) -> dict[str, float]:
    """What `seconds` says, from what was measured."""
    rows, without_data = measured.rows / threads, BUILDS * measured.building
    start, step = LINEAR_START * rows + without_data, REFINEMENT * rows + without_data
    training = TENSORFLOW + iterations * ITERATION * rows if pacemaker else iterations * step
    last = 0.0 if pacemaker else LAST_SOLVE * rows + without_data
    return {
        "linear_start": round(start, 3),
        "training": round(training if iterations else 0.0, 1),
        "last_solve": round(last, 3),
    }


def memory(batch_atoms: float, functions: int) -> dict[str, int]:
    """Bytes that pacemaker takes with so many atoms in a batch, and bytes that there are."""
    return {"needed": int(memory_needed(batch_atoms, functions)), "available": limits.memory()}
