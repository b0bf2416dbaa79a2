"""The extrapolation grades of the test structures: where data are few for the active set, what is like them has high ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import pandas as pd
from ase import Atoms

from mlip_pace.ace.activeset import EXTRAPOLATION, Grader
from mlip_pace.arrays import Array
from mlip_pace.collect.audit import fully_periodic
from mlip_pace.collect.dataset import ATOMS
from mlip_pace.run import pool
from mlip_pace.run.pool import Workers

CHUNK = 16  # structures that a worker takes at a time
SHARE = 0.05  # of the test structures beyond EXTRAPOLATION, that is told
FEW = 10.0  # atoms of an element for each of its functions


@dataclass(frozen=True)
class Grades:
    """Of the largest grade of each test structure: the median, the largest, and how many are beyond EXTRAPOLATION; atoms of the
    training structures for each function of an element."""

    structures: int
    median: float
    largest: float
    extrapolating: int
    atoms_per_function: dict[str, float]

    @property
    def warnings(self) -> list[str]:
        if self.extrapolating <= SHARE * self.structures:
            return []
        few = [f"{each:.1f} of {symbol}" for symbol, each in self.atoms_per_function.items() if each < FEW]
        why = (
            f"there are few training atoms for each function ({', '.join(few)}), and grades are high of what is like the data, "
            "too; more data, or fewer MLIP_PACE_BASIS_FUNCTIONS, help"
            if few
            else "they are unlike the training data"
        )
        return [
            f"{self.extrapolating} of {self.structures} test structures have an extrapolation grade above {EXTRAPOLATION:g} "
            f"(the largest: {self.largest:.3g}): {why}"
        ]


def of_test(test: pd.DataFrame, train: pd.DataFrame, grader: Grader, workers: Workers) -> Grades:
    """The grades of test structures (one at least), and how many training atoms there are."""
    parts = pool.parallel_map(partial(_largest, grader=grader), pool.chunks(test[ATOMS].array, CHUNK), workers)
    largest = np.array(list(chain.from_iterable(parts)))
    symbols = pd.Series(np.concatenate([np.array(atoms.symbols) for atoms in train[ATOMS]])).value_counts()
    each = {symbol: float(symbols.get(symbol, 0) / len(inverse)) for symbol, inverse in grader.inverses.items()}
    beyond = int((largest > EXTRAPOLATION).sum())
    return Grades(len(largest), float(np.median(largest)), float(largest.max()), beyond, each)


def _largest(structures: Sequence[Atoms], grader: Grader) -> list[float]:
    sound = [fully_periodic(atoms, grader.expansion.cutoff)[0] for atoms in structures]
    grades: list[Array] = list(grader.of_many(sound))
    return [float(one.max()) for one in grades]
