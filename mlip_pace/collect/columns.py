"""Columns of a data frame whose rows are structures, or arrays: numbers in flat arrays, in memory or mapped from files.

A structure as an object takes 4 kB, its numbers 0.1 kB an atom, and a data set may have a million of them. So a column is its
numbers, one row after the other, where each ends, and which rows are in the frame: taking some of them copies no numbers. A
row is an array (or none), or an `ase.Atoms` that is made when it is asked for; changing it changes nothing in the frame.

NumPy's `.npy` files hold them: every program reads them, they are mapped as they are, and no library comes for them (Arrow's is
40 MB, and what it takes it copies).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from ase import Atoms
from pandas.api.extensions import ExtensionArray, ExtensionDtype

from mlip_pace.arrays import Integers
from mlip_pace.collect.frames import bare, load_frame

Values = npt.NDArray[Any]

PART = 2**18  # rows of an array that are copied at a time
TABLE, COLUMNS = "table.pckl.gzip", "columns.json"


@dataclass(frozen=True)
class Rows:
    """Arrays of any length, one after the other: their `values`, where each ends, and the files of both, if they have any."""

    values: Values
    ends: Integers
    files: tuple[Path, Path] | None = None

    def __getitem__(self, row: int) -> Values:
        return self.values[self.ends[row - 1] if row else 0 : self.ends[row]]

    def lengths(self, rows: Integers) -> Integers:
        starts = np.where(rows > 0, self.ends[rows - 1], 0)
        return np.asarray(self.ends[rows] - starts)

    def parts(self, rows: Integers) -> Iterator[Values]:
        """The values of some rows, a part at a time."""
        ends = np.cumsum(self.lengths(rows))
        first = 0
        while first < len(rows):
            before = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + PART, "right")))
            yield np.concatenate([self[row] for row in rows[first:last]])
            first = last

    def take(self, rows: Integers) -> Rows:
        """Some rows alone, in memory."""
        return Rows(np.concatenate([self.values[:0], *self.parts(rows)]), np.cumsum(self.lengths(rows)))

    def save(self, rows: Integers, stem: Path) -> None:
        """Write some rows into files; what is in files already as it is to be, is linked."""
        targets = stem.with_name(f"{stem.name}.npy"), stem.with_name(f"{stem.name}-ends.npy")
        if self.files is not None and np.array_equal(rows, np.arange(len(self.ends))):
            for source, target in zip(self.files, targets, strict=True):
                _link(source, target)
            return
        ends = np.cumsum(self.lengths(rows))
        shape = (int(ends[-1]) if len(ends) else 0, *self.values.shape[1:])
        with targets[0].open("wb") as file:
            header = {"descr": self.values.dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
            for part in self.parts(rows):
                part.tofile(file)
        np.save(targets[1], ends)

    @classmethod
    def load(cls, stem: Path) -> Rows:
        files = stem.with_name(f"{stem.name}.npy"), stem.with_name(f"{stem.name}-ends.npy")
        values, ends = (np.asarray(np.load(path, mmap_mode="r")) for path in files)
        return cls(values, ends, files)


def _link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy of it where the file system knows no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


class Growing:
    """Rows that are added one at a time: to a file without a name in `folder`, or in memory."""

    def __init__(self, dtype: npt.DTypeLike, shape: tuple[int, ...], folder: Path | None) -> None:
        self.dtype, self.shape, self.ends = np.dtype(dtype), shape, array("q")
        self.file: IO[bytes] = BytesIO() if folder is None else tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long as we)

    def append(self, row: Any) -> None:
        """Add a row; None: one without values."""
        values = np.zeros((0, *self.shape), self.dtype) if row is None else np.ascontiguousarray(row, self.dtype)
        self.file.write(values.tobytes())
        self.ends.append((self.ends[-1] if self.ends else 0) + len(values))

    def rows(self) -> Rows:
        self.file.flush()
        shape = (self.ends[-1] if self.ends else 0, *self.shape)
        if isinstance(self.file, BytesIO) or 0 in shape:
            content = self.file.getvalue() if isinstance(self.file, BytesIO) else b""
            values: Values = np.frombuffer(content, self.dtype).reshape(shape)
        else:
            values = np.asarray(np.memmap(self.file, self.dtype, "r", shape=shape))
        return Rows(values, np.array(self.ends, dtype=np.int64))


class _Type(ExtensionDtype):  # type: ignore[misc]
    na_value = None

    @property
    def type(self) -> type:
        return object


class StructuresType(_Type):
    name: ClassVar[str] = "structures"

    @classmethod
    def construct_array_type(cls) -> type[Structures]:
        return Structures


class ArraysType(_Type):
    name: ClassVar[str] = "arrays"

    @classmethod
    def construct_array_type(cls) -> type[Arrays]:
        return Arrays


class Column(ExtensionArray):  # type: ignore[misc]
    """Some rows of several `Rows`, which together make a value."""

    kind: ClassVar[ExtensionDtype]

    def __init__(self, stores: dict[str, Rows], index: Integers) -> None:
        self.stores, self.index = stores, index

    def _value(self, row: int) -> Any:
        raise NotImplementedError

    @property
    def counts(self) -> Integers:
        """The length of each value: atoms of a structure, rows of an array."""
        return next(iter(self.stores.values())).lengths(self.index)

    def save(self, folder: Path, name: str) -> None:
        """Write files into the folder."""
        for part, rows in self.stores.items():
            rows.save(self.index, folder / f"{name}-{part}")

    @classmethod
    def load(cls, folder: Path, name: str, parts: Sequence[str]) -> Column:
        stores = {part: Rows.load(folder / f"{name}-{part}") for part in parts}
        return cls(stores, np.arange(len(next(iter(stores.values())).ends)))

    def map(self, mapper: Callable[[Any], Any], na_action: Any = None) -> Any:
        """As pandas does it, but one value after the other; `len` looks at no value."""
        if mapper is len:
            return self.counts
        return pd.Series(_objects([mapper(value) for value in self])).infer_objects().array

    def __reduce__(self) -> Any:
        # What is sent to another process are these rows alone.
        stores = {part: rows.take(self.index) for part, rows in self.stores.items()}
        return type(self), (stores, np.arange(len(self.index)))

    # What pandas asks of an array of its own:
    @property
    def dtype(self) -> ExtensionDtype:
        return self.kind

    @property
    def nbytes(self) -> int:
        return int(self.index.nbytes)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, (int, np.integer)):
            return self._value(int(self.index[item]))
        return type(self)(self.stores, self.index[pd.api.indexers.check_array_indexer(self, item)])

    def __iter__(self) -> Iterator[Any]:
        return (self._value(int(row)) for row in self.index)

    def isna(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.counts == 0)

    def take(self, indices: Any, *, allow_fill: bool = False, fill_value: Any = None) -> Column:
        if allow_fill and (np.asarray(indices) < 0).any():
            raise ValueError("a column of structures or arrays has no value to fill gaps with")
        return type(self)(self.stores, self.index[np.asarray(indices, dtype=np.intp)])

    def copy(self) -> Column:
        return type(self)(self.stores, self.index.copy())

    def __array__(self, dtype: Any = None, copy: Any = None) -> Values:
        return _objects(list(self))

    def astype(self, dtype: Any, copy: bool = True) -> Any:
        return _objects(list(self)) if np.dtype(dtype) == object else super().astype(dtype, copy)

    @classmethod
    def _concat_same_type(cls, to_concat: Sequence[Column]) -> Column:
        return cls._from_sequence([value for column in to_concat for value in column])

    @classmethod
    def _from_sequence(cls, scalars: Iterable[Any], *, dtype: Any = None, copy: bool = False) -> Column:
        raise NotImplementedError


class Structures(Column):
    """`ase.Atoms` of numbers, positions (Å), a cell (Å) and its periodicity, without labels."""

    kind = StructuresType()
    PARTS: ClassVar[dict[str, tuple[Any, tuple[int, ...]]]] = {
        "numbers": (np.uint8, ()), "positions": (np.float64, (3,)), "cell": (np.float64, (3,)), "pbc": (np.bool_, ()),
    }  # fmt: skip

    def _value(self, row: int) -> Atoms:
        numbers, positions, cell, pbc = (rows[row] for rows in self.stores.values())
        return bare(numbers.astype(int), np.array(positions), np.array(cell), np.array(pbc))

    @classmethod
    def _from_sequence(cls, scalars: Iterable[Any], *, dtype: Any = None, copy: bool = False) -> Structures:
        growing = GrowingStructures(None)
        for atoms in scalars:
            growing.append(atoms)
        return growing.column()


class Arrays(Column):
    """Arrays of one kind: forces (n, 3) of each atom, a stress (3, 3) or None."""

    kind = ArraysType()

    def _value(self, row: int) -> Values | None:
        values = self.stores["values"][row]
        return values if len(values) else None

    @property
    def flat(self) -> Values:
        """All of them, one after the other: (rows, …)."""
        return self.stores["values"].take(self.index).values

    @classmethod
    def of(cls, values: Values, counts: Integers) -> Arrays:
        """Those that lie one after the other in `values`, each `counts` long."""
        return cls({"values": Rows(values, np.cumsum(counts))}, np.arange(len(counts)))

    @classmethod
    def _from_sequence(cls, scalars: Iterable[Any], *, dtype: Any = None, copy: bool = False) -> Arrays:
        growing = GrowingArrays(None)
        for row in scalars:
            growing.append(row)
        return growing.column()


class GrowingStructures:
    """A column of structures to which they are added one at a time."""

    def __init__(self, folder: Path | None) -> None:
        self.parts = {part: Growing(*what, folder) for part, what in Structures.PARTS.items()}

    def append(self, atoms: Atoms) -> None:
        for part, value in zip(self.parts, (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc), strict=True):
            self.parts[part].append(value)

    def column(self) -> Structures:
        stores = {part: growing.rows() for part, growing in self.parts.items()}
        return Structures(stores, np.arange(len(stores["numbers"].ends)))


class GrowingArrays:
    """A column of arrays to which they are added one at a time; the first that is one says of what shape their rows are."""

    def __init__(self, folder: Path | None) -> None:
        self.growing = Growing(np.float64, (), folder)

    def append(self, row: Any) -> None:
        if row is not None and not self.growing.shape:
            self.growing.shape = np.shape(row)[1:]
        self.growing.append(row)

    def column(self) -> Arrays:
        rows = self.growing.rows()
        return Arrays({"values": rows}, np.arange(len(rows.ends)))


class GrowingFrame:
    """A data frame to which rows are added one at a time, some of its columns structures, some arrays.

    These go to files without a name in `folder`, or stay in memory.
    """

    def __init__(
        self, arrays: Sequence[str], structures: Sequence[str] = (), scalars: Sequence[str] = (), folder: Path | None = None
    ) -> None:  # fmt: skip
        self.wide: dict[str, GrowingStructures | GrowingArrays] = {name: GrowingStructures(folder) for name in structures}
        self.wide |= {name: GrowingArrays(folder) for name in arrays}
        self.scalars: dict[str, list[Any]] = {name: [] for name in scalars}
        self.count = 0

    def append(self, row: dict[str, Any]) -> None:
        """Add a row. What it has not, is None."""
        for name in row:
            if name not in self.wide and name not in self.scalars:
                self.scalars[name] = [None] * self.count
        for name, values in self.scalars.items():
            values.append(row.get(name))
        for name, column in self.wide.items():
            column.append(row[name])
        self.count += 1

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame({**{name: column.column() for name, column in self.wide.items()}, **self.scalars})


def save(frame: pd.DataFrame, folder: Path) -> None:
    """Write a data frame into a folder of its own, in place of what it held: two files for each array, one for the rest."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    wide = {name: frame[name].array for name in frame if isinstance(frame[name].array, Column)}
    for name, column in wide.items():
        column.save(folder, name)
    kinds = {name: {"kind": str(column.dtype), "parts": list(column.stores)} for name, column in wide.items()}
    pickle(frame.drop(columns=list(wide)), folder / TABLE)
    (folder / COLUMNS).write_text(json.dumps({"order": list(frame), "wide": kinds}, indent=1))


def load(folder: Path) -> pd.DataFrame:
    """The data frame in a folder; its arrays stay where they are until they are looked at."""
    about, frame = json.loads((folder / COLUMNS).read_text()), load_frame(folder / TABLE)
    kinds = {"structures": Structures, "arrays": Arrays}
    for name, of in about["wide"].items():
        frame[name] = kinds[of["kind"]].load(folder, name, of["parts"])
    return frame[about["order"]]


def pickle(frame: pd.DataFrame, path: Path) -> None:
    """Write a pickled data frame. Fast compression: these files are read back once or twice."""
    frame.to_pickle(path, compression={"method": "gzip", "compresslevel": 1}, protocol=4)


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """The same data frame with an object for each structure and array, as other programs want it."""
    wide = [name for name in frame if isinstance(frame[name].array, Column)]
    return frame.assign(**{name: pd.Series(_objects(list(frame[name])), frame.index, dtype=object) for name in wide})


def _objects(values: Sequence[Any]) -> Values:
    column = np.empty(len(values), dtype=object)
    for n, value in enumerate(values):
        column[n] = value
    return column
