"""Data frames in pickles, pacemaker's and ours, of any version of pandas and ASE, read without running any code (pickles.py).

Energies in eV, forces in eV/Å. In pacemaker's frames `energy` is that of DFT and `energy_corrected` that minus E0 of the atoms:
the first is taken where both are there. In our own, `energy_dft` and `forces_dft` are DFT's, the others what ACE is fitted to.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.cell import Cell

from mlip_pace.collect import pickles
from mlip_pace.collect.files import opened
from mlip_pace.collect.labels import is_label
from mlip_pace.collect.pickles import Inert
from mlip_pace.errors import UnsafeError

KEPT = ("name", "config_type", "group", "energy_weight", "forces_weight", "stress_weight")  # columns that are no labels


def read(path: Path) -> Iterator[Atoms | str]:
    """The structures in the column `ase_atoms`; the other columns, where they are labels, count before the atoms' own."""
    frame = load_frame(path)
    columns = [column for column in frame.columns if is_label(column)]
    if "energy_dft" in columns:
        columns = [column for column in columns if column.endswith("_dft")]
    if "ase_atoms" not in frame:
        yield f"its columns are {', '.join(map(str, frame.columns))}; ase_atoms, energy and forces are expected"
        return
    for n, atoms in enumerate(frame["ase_atoms"]):
        if not isinstance(atoms, Atoms):
            yield "its ase_atoms is no structure of ASE"
            continue
        if columns:
            atoms.calc = None
            for key in [key for key in (*atoms.info, *atoms.arrays) if is_label(key)]:
                atoms.info.pop(key, None)
                atoms.arrays.pop(key, None)
        for column in (*columns, *(column for column in KEPT if column in frame)):
            value = frame[column].iat[n]
            absent = value is None or (isinstance(value, float) and value != value and "energy" not in column)  # pandas' None
            if not absent and not isinstance(value, Inert):
                atoms.info[column] = value
        yield atoms
    for column in frame.attrs["unread"]:
        if is_label(column) or column in KEPT:
            yield f"its column {column!r} is no plain data and is not read"


def load_frame(path: Path) -> pd.DataFrame:
    """A pickled DataFrame, compressed or not, with real `ase.Atoms`. Columns that are no plain data are left
    out and named in `attrs["unread"]`.

    Raises `UnsafeError` if the pickle asks for what could run code, `ValueError` if it is no DataFrame.
    """
    with opened(path) as file:
        try:
            held = pickles.load(file)
        except UnsafeError as error:
            raise UnsafeError(f"{path.name}: {error.message}", error.hint) from None
        except (EOFError, pickle.UnpicklingError):
            raise ValueError("is no whole pickle") from None
    state = held.state if isinstance(held, Inert) else None
    manager = state.get("_mgr", state.get("_data")) if isinstance(state, dict) else None
    if not isinstance(manager, Inert):
        raise ValueError(f"holds a {getattr(held, 'name', '') or type(held).__name__}, not a DataFrame")
    blocks, axes = _blocks(manager)
    names, index = _index(axes[0]), _index(axes[1])
    if names is None:
        raise ValueError("holds a DataFrame whose columns have no plain names")
    rows = len(index) if index is not None else None
    columns: dict[int, Any] = {}
    for values, places in blocks:
        numbers = range(len(names))[places] if isinstance(places, slice) else [int(place) for place in np.atleast_1d(places)]
        whole = values if isinstance(values, np.ndarray) and values.ndim == 2 else None
        for row, number in enumerate(numbers):
            column = np.asarray(whole[row]) if whole is not None else _column(values)
            if column is not None and (rows is None or len(column) == rows):
                columns[number] = column
    frame = pd.DataFrame({names[number]: _real(columns[number]) for number in sorted(columns)})
    if index is not None and len(index) == len(frame):
        frame.index = pd.Index(index)
    frame.attrs["unread"] = [str(name) for number, name in enumerate(names) if number not in columns]
    return frame


def _blocks(manager: Inert) -> tuple[list[tuple[Any, Any]], Sequence[Any]]:
    """What a BlockManager is made of: values with the places of their columns; and its axes."""
    if isinstance(manager.state, tuple):  # before pandas 1.3
        extra = manager.state[3]["0.14.1"]
        return [(block["values"], block["mgr_locs"]) for block in extra["blocks"]], extra["axes"]
    blocks, axes = manager.args[:2]
    return [(block.args[0], block.args[1]) for block in blocks], axes


def _index(given: Any) -> Any:
    """The values of an index as a range, list or array, or None if they are not plain."""
    about = next((arg for arg in getattr(given, "args", ()) if isinstance(arg, dict)), None)
    if about is None:
        return None
    if "start" in about:
        return range(about["start"], about["stop"], about["step"])
    if "levels" in about:
        levels: list[Any] = [_index(level) for level in about["levels"]]
        codes: Any = about.get("codes", about.get("labels"))
        if any(level is None for level in levels):
            return None
        picked = ([level[c] if c >= 0 else None for c in row] for level, row in zip(levels, codes, strict=True))
        return list(zip(*picked, strict=True))
    return _column(about.get("data"))


def _column(values: Any) -> Any:
    """The values of a column that pandas keeps in an array of its own: categories, strings, numbers with gaps, times."""
    if isinstance(values, np.ndarray):
        return np.asarray(values).ravel()
    parts = list(_parts(values))
    if any(isinstance(part, Inert) and part.name == "_restore_array" for part in parts):
        return _arrow_texts([part.args[0] for part in parts if isinstance(part, Inert) and part.name == "_restore_array"])
    arrays = [part for part in parts if isinstance(part, np.ndarray) and part.ndim]
    dtype = next((part for part in parts if isinstance(part, Inert) and part.name == "CategoricalDtype"), None)
    if dtype is not None:
        found = next((_index(part) for part in _parts(dtype) if isinstance(part, Inert) and _index(part) is not None), None)
        codes = next((array for array in arrays if array.dtype.kind in "iu"), None)
        return None if found is None or codes is None else _objects([found[c] if c >= 0 else None for c in codes.ravel()])
    mask = next((array for array in arrays if array.dtype.kind == "b"), None)
    if mask is not None and len(arrays) == 2:
        data = next(array for array in arrays if array is not mask)
        return _objects([None if gap else value for value, gap in zip(data.ravel().tolist(), mask.ravel(), strict=True)])
    return np.asarray(arrays[0]).ravel() if len(arrays) == 1 else None


def _arrow_texts(chunks: Sequence[Any]) -> Any:
    """The texts that PyArrow keeps: for each chunk its type, length, gaps, offset and buffers (validity, ends, letters)."""
    texts: list[str | None] = []
    for kind, length, gaps, offset, buffers, *_ in chunks:
        width = {"string": "<i4", "large_string": "<i8"}.get(next(iter(kind.args), ""))
        if width is None:
            return None
        valid, ends, letters = (b"" if buffer is None else bytes(buffer.args[0]) for buffer in buffers)
        end = np.frombuffer(ends, width)
        for n in range(offset, offset + length):
            missing = gaps and valid and not valid[n // 8] >> n % 8 & 1
            texts.append(None if missing else letters[end[n] : end[n + 1]].decode("utf-8"))
    return _objects(texts)


def _parts(given: Any) -> Iterator[Any]:
    """What an object was made of, one after the other, but not what is in an index or a type of categories."""
    for held in (*given.args, given.state) if isinstance(given, Inert) else ():
        for part in held.values() if isinstance(held, dict) else held if isinstance(held, (tuple, list)) else (held,):
            yield part
            if isinstance(part, Inert) and part.name not in ("CategoricalDtype", "_new_Index"):
                yield from _parts(part)


def _objects(values: Sequence[Any]) -> Any:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _real(column: Any) -> Any:
    if column.dtype.kind != "O":
        return column
    result = np.empty(len(column), dtype=object)
    for n, value in enumerate(column):
        result[n] = _plain(value)
    return result


def _plain(value: Any) -> Any:
    """Structures and arrays for their stand-ins; paths as text; what is not known stays a stand-in."""
    if isinstance(value, np.ndarray):
        return np.asarray(value) if value.dtype.kind != "O" else _real(np.asarray(value).ravel()).reshape(value.shape)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(one) for one in value)
    if isinstance(value, Inert):
        if isinstance(value.state, dict) and isinstance(value.state.get("arrays"), dict):
            return _atoms(value.state)
        if value.module.startswith("pathlib"):
            return "/".join(map(str, value.args)).replace("//", "/")
    return value


def bare(numbers: Any, positions: Any, cell: Any, pbc: Any) -> Atoms:
    """An `ase.Atoms` of arrays that are its own, in a tenth of the time that the constructor takes."""
    atoms = Atoms.__new__(Atoms)
    vars(atoms).update(_calc=None, _constraints=[], _celldisp=np.zeros((3, 1)), info={})
    atoms._cellobj, atoms._pbc = Cell(cell), pbc
    atoms.arrays = {"numbers": numbers, "positions": positions}
    return atoms


def _atoms(state: dict[str, Any]) -> Any:
    """A structure from the state of an `ase.Atoms` of any version; the labels of a single-point calculator with it."""
    arrays = {key: np.asarray(array) for key, array in state["arrays"].items() if isinstance(array, np.ndarray)}
    cell = state.get("_cellobj", state.get("_cell"))
    periodic = state.get("_pbc")
    if isinstance(cell, Inert):
        inside = [part for part in _parts(cell) if isinstance(part, np.ndarray)]
        cell = next((part for part in inside if part.shape == (3, 3)), None)
        # Up to ASE 3.19 the cell knew it.
        periodic = next((part for part in inside if part.dtype.kind == "b" and part.shape == (3,)), periodic)
    numbers, positions = arrays.get("numbers"), arrays.get("positions")
    if numbers is None or positions is None or numbers.dtype.kind not in "iu" or positions.dtype.kind != "f":
        return None
    if positions.shape != (*numbers.shape, 3):
        return None
    lattice = np.zeros((3, 3)) if cell is None else np.array(cell, dtype=float)
    pbc = np.array(periodic, dtype=bool) if isinstance(periodic, np.ndarray) else np.zeros(3, dtype=bool)
    atoms = bare(numbers, positions, lattice, pbc)
    atoms.arrays = {key: array for key, array in arrays.items() if array.shape[:1] == numbers.shape}
    info = state.get("info")
    if isinstance(info, dict):
        plain = {key: _plain(value) for key, value in info.items()}
        atoms.info = {key: value for key, value in plain.items() if isinstance(key, str) and not isinstance(value, Inert)}
    calculator = state.get("_calc", state.get("calc"))
    if isinstance(calculator, Inert) and calculator.name.startswith("SinglePoint") and isinstance(calculator.state, dict):
        results = calculator.state.get("results")
        if isinstance(results, dict):
            atoms.calc = SinglePointCalculator(atoms)
            atoms.calc.results = {key: _plain(value) for key, value in results.items() if isinstance(key, str)}
    return atoms
