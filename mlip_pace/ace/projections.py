"""The basis functions of every atom of many structures, in files that are mapped into memory: more than memory holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms

from mlip_pace.ace.expansion import Expansion
from mlip_pace.run import pool

Rows = dict[str, npt.NDArray[Any]]  # by element: (atoms, functions)
CHUNK = 32  # structures that a worker takes at a time


def on_disk(
    folder: Path, structures: Sequence[Atoms], expansion: Expansion, workers: int, precision: type[np.floating[Any]]
) -> tuple[Rows, list[dict[str, slice]]]:  # fmt: skip
    """The functions of all atoms of each element, in files in `folder`, and where those of each structure are in them.

    Raises `OSError` if there is no space for them.
    """
    spans: list[dict[str, slice]] = []
    ends: dict[str, int] = {}
    for atoms in structures:
        symbols = list(atoms.symbols)
        spans.append({})
        for symbol in sorted(set(symbols)):
            first = ends.get(symbol, 0)
            ends[symbol] = first + symbols.count(symbol)
            spans[-1][symbol] = slice(first, ends[symbol])
    rows: Rows = {}
    for symbol, count in zip(expansion.elements, expansion.counts, strict=True):
        if symbol in ends:
            with (folder / symbol).open("wb") as file:  # a mapped file that finds the disk full kills whoever writes
                os.posix_fallocate(file.fileno(), 0, ends[symbol] * count * np.dtype(precision).itemsize)
            rows[symbol] = np.memmap(folder / symbol, precision, "r+", shape=(ends[symbol], count))
    chunks = [range(n, min(n + CHUNK, len(structures))) for n in range(0, len(structures), CHUNK)]
    for _ in pool.parallel_map(partial(_fill, rows, spans, structures, expansion), chunks, workers):
        pass
    return rows, spans


def _fill(rows: Rows, spans: list[dict[str, slice]], structures: Sequence[Atoms], expansion: Expansion, chunk: range) -> None:
    """Put the functions of the atoms of some structures where they belong."""
    for n, functions in zip(chunk, expansion.functions(structures[n] for n in chunk), strict=True):
        for symbol, block in functions.items():
            rows[symbol][spans[n][symbol]] = block
