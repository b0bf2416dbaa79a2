"""The basis functions of every atom of many structures, in files: they may be more than memory holds."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms

from mlip_pace.ace.expansion import Expansion
from mlip_pace.arrays import Array, Integers
from mlip_pace.run import pool
from mlip_pace.run.pool import Workers

CHUNK = 32  # structures that a worker takes at a time
PART_BYTES = 2**25  # of rows, in double precision, that are read at a time


@dataclass(frozen=True)
class OnFile:
    """Rows (atoms, functions) in a file. They are read when they are asked for: mapped pages would count as memory."""

    path: Path
    shape: tuple[int, int]
    precision: npt.DTypeLike

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: slice | Integers) -> npt.NDArray[Any]:
        """Those of a range, or of some numbers, in the precision of the file."""
        if isinstance(which, slice):
            first, last, _ = which.indices(len(self))
            return self._read(first, max(last - first, 0))
        return np.concatenate([self._read(int(n), 1) for n in which])

    def _read(self, first: int, count: int) -> npt.NDArray[Any]:
        functions = self.shape[1]
        offset = first * functions * np.dtype(self.precision).itemsize
        return np.fromfile(self.path, self.precision, count * functions, offset=offset).reshape(-1, functions)


@dataclass(frozen=True)
class Projections:
    """The functions of the atoms of structures: of each element a file, and the structure of each of its rows, ascending."""

    files: dict[str, Path]
    structure: dict[str, Integers]
    functions: dict[str, int]
    precision: npt.DTypeLike
    count: int  # structures

    def __len__(self) -> int:
        return self.count

    def rows(self, symbol: str) -> OnFile:
        """The rows of an element."""
        return OnFile(self.files[symbol], (len(self.structure[symbol]), self.functions[symbol]), self.precision)

    def parts(self) -> Iterator[tuple[str, Integers, Array]]:
        """All rows, part by part: element, the structures they are of, and the rows in double precision."""
        for symbol, structure in self.structure.items():
            rows, size = self.rows(symbol), max(1, PART_BYTES // (8 * self.functions[symbol]))
            for first in range(0, len(structure), size):
                part = slice(first, first + size)
                yield symbol, structure[part], rows[part].astype(np.float64, copy=False)


def on_disk(
    folder: Path, structures: Sequence[Atoms], expansion: Expansion, workers: Workers, precision: type[np.floating[Any]]
) -> Projections:  # fmt: skip
    """The functions of all atoms of each element, in files in `folder`. Raises `OSError` if there is no space for them."""
    counts = dict(zip(expansion.elements, expansion.counts, strict=True))
    of_atoms = {
        symbol: np.repeat(np.arange(len(structures)), [int((atoms.symbols == symbol).sum()) for atoms in structures])
        for symbol in counts
    }
    of_atoms = {symbol: structure for symbol, structure in of_atoms.items() if len(structure)}
    files = {symbol: folder.absolute() / symbol for symbol in of_atoms}
    functions = {symbol: counts[symbol] for symbol in of_atoms}
    for symbol, structure in of_atoms.items():
        with files[symbol].open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, len(structure) * counts[symbol] * np.dtype(precision).itemsize)
    # Of each chunk: its structures, and the first of their rows of each element.
    starts = range(0, len(structures), CHUNK)
    first = {symbol: np.searchsorted(structure, starts) for symbol, structure in of_atoms.items()}
    chunks = [
        ({symbol: int(rows[n]) for symbol, rows in first.items()}, structures[start : start + CHUNK])
        for n, start in enumerate(starts)
    ]
    projections = Projections(files, of_atoms, functions, precision, len(structures))
    for _ in pool.parallel_map(partial(_fill, files, precision, expansion), chunks, workers):
        pass
    return projections


def _fill(
    files: dict[str, Path], precision: type[np.floating[Any]], expansion: Expansion,
    chunk: tuple[dict[str, int], Sequence[Atoms]],
) -> None:  # fmt: skip
    """Write the functions of the atoms of some structures where they belong."""
    first, structures = chunk
    blocks: dict[str, list[Array]] = {}
    for functions in expansion.functions(structures):
        for symbol, block in functions.items():
            blocks.setdefault(symbol, []).append(block)
    for symbol, found in blocks.items():
        rows = np.concatenate(found).astype(precision)
        with files[symbol].open("r+b") as file:
            file.seek(first[symbol] * rows.shape[1] * rows.itemsize)
            rows.tofile(file)
