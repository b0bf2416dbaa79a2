"""ASE's databases, SQLite or JSON: key-value pairs and data count as info and arrays of a structure."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import ase.db
import numpy as np
from ase.db.sqlite import SQLite3Database

from mlip_pace.collect.files import Frame, unpacked
from mlip_pace.collect.units import in_ours


def read(path: Path, kind: str) -> Iterator[Frame]:
    """Row by row. Energies and forces can be a calculator's, or under keys such as `dft_energy` and `dft_forces`.

    Units are those that SchNetPack writes into the metadata of a database, if it did.
    """
    with unpacked(path) as plain:
        if kind == "json":
            yield from _rows(ase.db.connect(str(plain), type=kind, use_lock_file=False))
            return
        database = _ReadOnly(str(plain), use_lock_file=False)
        with closing(database._connect()) as connection:
            known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'systems'").fetchall()
        if known:
            yield from _rows(database)
        else:
            yield "is no database of ASE: it has no table of systems"


class _ReadOnly(SQLite3Database):
    """ASE's own would make its tables in any SQLite file that lacks them."""

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(f"{Path(str(self.filename)).absolute().as_uri()}?mode=ro", uri=True)


def _rows(database: Any) -> Iterator[Frame]:
    rows = database.select()
    units = database.metadata.get("_property_unit_dict") or {}
    length = in_ours(database.metadata.get("_distance_unit") or "Ang", "length")
    for row in rows:
        atoms = row.toatoms()
        atoms.set_cell(length * atoms.cell.array)
        atoms.positions *= length
        atoms.info.update(row.key_value_pairs)
        atoms.info.update({f"{key}_unit": unit for key, unit in units.items()})
        for key, value in row.data.items():
            array = np.asarray(value) if isinstance(value, (list, np.ndarray)) else None
            if array is not None and array.shape == (len(atoms), 3) and key not in atoms.arrays:
                atoms.arrays[key] = array
            else:
                atoms.info.setdefault(key, value)
        yield atoms
