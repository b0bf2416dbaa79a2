"""How long a job will take and how much memory, before it starts: from a second of the real computation on some of the data.

Rows of the linear start are timed here with pyace. TensorFlow is not started: an iteration is put at so many times the rows
of the same atoms, as was measured once. Good to a factor of two or so.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ase import Atoms

from mlip_pace import basis, limits
from mlip_pace.pacemaker import BYTES_PER_ATOM, TRAINER_BYTES

CALIBRATION = 0.5  # s
REFINEMENT = 3.0  # an iteration of radial.py, likewise
ITERATION = 1.0  # an iteration of pacemaker, in times of the rows of its atoms on as many threads
TENSORFLOW = 40.0  # s; to start it and build its graph


def seconds(
    potential: dict[str, Any], train: Sequence[Atoms], iterations: int, threads: int, pacemaker: bool
) -> dict[str, float]:
    """Seconds of the linear start and of `iterations` on all of the structures, by pacemaker or by radial.py."""
    by_size = sorted(train, key=len)
    # From the middle outwards, so that a sample of a few is of typical size; the first is not timed, it builds the basis.
    sample = [by_size[n] for n in sorted(range(len(train)), key=lambda n: abs(n - len(train) // 2))]
    total, atoms, made = 0.0, 0, basis.design_rows(potential, [sample[0], *sample])
    next(made)
    for structure in sample:
        begin = time.perf_counter()
        next(made)
        total, atoms = total + time.perf_counter() - begin, atoms + len(structure)
        if total > CALIBRATION:
            break
    rows = total / atoms * sum(map(len, train)) / threads
    return {
        "linear_start": round(rows, 3),
        "training": round(TENSORFLOW + iterations * ITERATION * rows, 0) if iterations else 0.0,
    }


def memory(batch_atoms: float) -> dict[str, int]:
    """Bytes that pacemaker takes with so many atoms in a batch, and bytes that there are."""
    return {"needed": int(TRAINER_BYTES + BYTES_PER_ATOM * batch_atoms), "available": limits.memory()}
